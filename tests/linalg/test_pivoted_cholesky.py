"""The pivoted factor: exact on its pivots, a residual that stays positive semidefinite, and pivots of the right law."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, operator_with, spectra

from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.pivoted_cholesky import PivotedCholesky


def factor_of(cholesky):
    return torch.cat(cholesky.blocks, 1)


def as_on_a_gpu(operator, seed, dtype=torch.float64):
    """A factor that takes no decision on the host before the end of a block."""
    cholesky = PivotedCholesky(operator, seed, dtype)
    cholesky._on_cpu = False
    return cholesky


@given(spectra(), st.integers(1, 50), st.integers(0, 10**6), st.booleans())
def test_the_factor_reproduces_its_pivots_and_leaves_a_semidefinite_rest(values, step, seed, gpu):
    operator = operator_with(values, seed)
    cholesky = as_on_a_gpu(operator, seed) if gpu else PivotedCholesky(operator, seed)
    scale = float(operator.matrix.diagonal().sum())
    for _ in range(3):
        grown = cholesky.grow(step)
        assert 0 <= grown <= step
        assert (grown == 0) == (cholesky.rank > 0 and cholesky.exhausted and grown == 0)
        F = factor_of(cholesky)
        assert F.shape == (len(values), cholesky.rank)
        assert len(set(cholesky.pivots.tolist())) == cholesky.rank
        rest = operator.matrix - F @ F.t()
        assert rest[:, cholesky.pivots].abs().max() <= 1e-12 * scale
        assert torch.linalg.eigvalsh(rest).min() >= -1e-12 * scale
        assert (cholesky.residual >= 0).all()
        assert (cholesky.residual - rest.diagonal()).abs().max() <= 1e-12 * scale
        assert (cholesky.gram - F.t() @ F).abs().max() <= 1e-12 * scale
    v = torch.randn(len(values), 2, dtype=torch.float64)
    assert (cholesky.apply_residual(v) - rest @ v).abs().max() <= 1e-10 * scale
    c = torch.randn(cholesky.rank, 2, dtype=torch.float64)
    assert (cholesky.product(c) - F @ c).abs().max() <= 1e-10 * scale**0.5


@given(spectra(), st.integers(0, 10**6))
def test_to_exhaustion_the_factor_is_the_matrix_and_its_rank_the_rank(values, seed):
    operator = operator_with(values, seed)
    cholesky = PivotedCholesky(operator, seed)
    while cholesky.grow(64):
        pass
    assert cholesky.exhausted
    assert cholesky.rank <= len(values)
    rest = operator.matrix - factor_of(cholesky) @ factor_of(cholesky).t()
    assert torch.linalg.matrix_norm(rest, 2) <= 1e-11 * float(operator.matrix.diagonal().sum())
    assert cholesky.rank >= int((values > 1e-10 * values.max()).sum())


@settings(max_examples=15)
@given(spectra(), st.integers(0, 10**6), st.booleans())
def test_kept_in_fp32_all_is_computed_from_what_is_kept(values, seed, gpu):
    operator = operator_with(values, seed)
    cholesky = (as_on_a_gpu if gpu else PivotedCholesky)(operator, seed, torch.float32)
    scale = float(operator.matrix.diagonal().sum())
    while cholesky.trace > 1e-5 * scale and cholesky.grow(20):
        pass
    assert all(block.dtype == torch.float32 for block in cholesky.blocks)
    F = factor_of(cholesky).double()
    rest = operator.matrix - F @ F.t()
    v = torch.randn(len(values), 2, dtype=torch.float64)
    assert (cholesky.apply_residual(v) - rest @ v).abs().max() <= 1e-10 * scale
    assert (cholesky.gram - F.t() @ F).abs().max() <= 1e-12 * scale
    assert torch.linalg.eigvalsh(rest).min() >= -1e-6 * scale
    assert (cholesky.residual - rest.diagonal()).abs().max() <= 1e-6 * scale


def test_a_gpu_takes_the_pivots_that_a_cpu_takes():
    for values in (torch.logspace(0, -8, 300), torch.arange(1, 301) ** -3.0, torch.ones(300)):
        operator = operator_with(values.double(), 0)
        on_cpu, on_gpu = PivotedCholesky(operator, 1), as_on_a_gpu(operator, 1)
        for _ in range(3):
            assert on_cpu.grow(40) == on_gpu.grow(40)
        assert torch.equal(on_cpu.pivots, on_gpu.pivots)
        assert (factor_of(on_cpu) - factor_of(on_gpu)).abs().max() <= 1e-9
        assert on_gpu.trace == pytest.approx(on_cpu.trace, rel=1e-9)
        assert on_gpu.norm_estimate == pytest.approx(on_cpu.norm_estimate, rel=1e-6)
        exact = torch.linalg.eigvalsh(on_gpu.gram)
        assert 0.5 * exact[-1] <= on_gpu.largest_estimate <= (1 + 1e-12) * exact[-1]
        assert (on_gpu.eigenvalues() - exact.flip(0)).abs().max() <= 1e-12 * exact[-1]


def test_the_same_seed_gives_the_same_factor_and_another_one_another():
    operator = operator_with(torch.logspace(0, -8, 300, dtype=torch.float64), 0)
    first, second, third = (PivotedCholesky(operator, seed) for seed in (1, 1, 2))
    for cholesky in (first, second, third):
        cholesky.grow(40)
    assert torch.equal(first.pivots, second.pivots)
    assert torch.equal(factor_of(first), factor_of(second))
    assert not torch.equal(first.pivots, third.pivots)


def test_blocks_draw_from_the_law_of_one_pivot_after_another():
    """The probability of every ordered pair is d_i / tr(K) times d'_j / tr(K'), by the definition of the method."""
    matrix = matrix_with(torch.tensor([1.0, 0.5, 0.2, 0.05, 0.01]), 3)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        left = matrix - torch.outer(matrix[:, i], matrix[:, i]) / matrix[i, i]
        expected[i] = matrix[i, i] / matrix.trace() * left.diagonal().clamp_min(0) / left.trace()
    unordered = (expected + expected.t()).triu(1)
    draws, found = 1500, torch.zeros(5, 5, dtype=torch.float64)
    operator = DenseOperator(matrix)
    for seed in range(draws):
        cholesky = PivotedCholesky(operator, seed)
        while cholesky.rank < 2:
            cholesky.grow(2 - cholesky.rank)
        i, j = sorted(cholesky.pivots.tolist())
        found[i, j] += 1
    likely = unordered > 0
    statistic = ((found - draws * unordered)[likely] ** 2 / (draws * unordered[likely])).sum()
    assert statistic < 33.7  # chi square, 9 degrees of freedom, 1e-4


def test_it_is_as_good_as_its_theory():
    """Theorem 5.1 of arXiv 2207.06503: k >= r / e + r log(1 / (e n)) pivots leave (1 + e) times the best of rank r."""
    values = torch.arange(1, 401, dtype=torch.float64) ** -3.0
    operator = operator_with(values, 0)
    r, traces = 20, []
    best = float(values[r:].sum())
    for seed in range(10):
        cholesky = PivotedCholesky(operator, seed)
        while cholesky.rank < 3 * r:
            cholesky.grow(3 * r - cholesky.rank)
        traces.append(cholesky.trace)
    assert np.mean(traces) <= 2 * best


def nonsymmetric():
    matrix = matrix_with(torch.logspace(0, -3, 60), 0)
    matrix[:, :30] *= 1.01
    return DenseOperator(matrix)


def indefinite():
    return operator_with(torch.cat([torch.logspace(0, -3, 50), -torch.logspace(-3, -0.5, 50)]).double(), 0)


def with_nan():
    matrix = matrix_with(torch.ones(5), 0)
    matrix[2, 2] = float("nan")
    return DenseOperator(matrix)


class Contradictory(DenseOperator):
    """Its columns are of another matrix than its submatrices."""

    def submatrix(self, index):
        return super().submatrix(index) + 1e-3 * torch.eye(len(index), dtype=torch.float64)


def exhaust(operator, gpu=False):
    cholesky = as_on_a_gpu(operator, 0) if gpu else PivotedCholesky(operator)
    while cholesky.grow(16):
        pass


@pytest.mark.parametrize("gpu", [False, True])
def test_what_is_no_positive_semidefinite_operator_is_named(gpu):
    with pytest.raises(ValueError, match="not symmetric"):
        exhaust(nonsymmetric(), gpu)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        exhaust(indefinite(), gpu)
    with pytest.raises(ValueError, match="contradicts itself"):
        exhaust(Contradictory(matrix_with(torch.logspace(0, -3, 60), 0)), gpu)
    with pytest.raises(ValueError, match="NaN"):
        exhaust(with_nan())
    with pytest.raises(ValueError, match="diagonal entry 3 is -1"):
        PivotedCholesky(DenseOperator(torch.diag(torch.tensor([1.0, 2.0, 3.0, -1.0]))))
    with pytest.raises(ValueError, match="square"):
        DenseOperator(torch.ones(3, 4))


@settings(max_examples=30)
@given(spectra(), st.sampled_from([1e-9, 1e-7, 1e-5]), st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 10**6))
def test_what_columns_in_fp32_are_off_by_is_accounted_for(values, allowed, unit, seed):
    """Of the operator's columns, of the Gram matrix, and of the semidefinite rest."""
    operator = DenseOperator(unit * matrix_with(values, seed))
    cholesky, largest = PivotedCholesky(operator, seed), unit * float(values[0])
    cholesky.allowed = allowed * largest
    for _ in range(6):
        cholesky.grow(max(len(values) // 10, 1))
    F = factor_of(cholesky).double()
    noise = 1e-12 * float(operator.matrix.diagonal().sum())
    moved = F @ F[cholesky.pivots].t() - operator.matrix[:, cholesky.pivots]
    accounted = cholesky._squared_rounding**0.5
    assert accounted <= 2 * cholesky.allowed
    assert float(torch.linalg.matrix_norm(moved, 2)) <= accounted + noise
    assert float(torch.linalg.matrix_norm(cholesky.gram - F.t() @ F)) <= cholesky.gram_error + noise
    lowest = float(torch.linalg.eigvalsh(operator.matrix - F @ F.t())[0])
    assert lowest >= -cholesky.shortfall() - noise


def test_columns_are_kept_in_fp32_where_that_moves_little():
    values = torch.logspace(0, -9, 300, dtype=torch.float64)
    for allowed, single in ((0.0, False), (1e-7, True)):
        cholesky = PivotedCholesky(operator_with(values, 0), 0)
        cholesky.allowed = allowed
        while cholesky.grow(32) and cholesky.rank < 200:
            pass
        assert cholesky.blocks[0].dtype == torch.float64
        assert (cholesky.blocks[-1].dtype == torch.float32) == single
        assert (cholesky._squared_rounding > 0) == single
