"""The block LDL^T: what it says of M holds for M formed densely, its error is small, bad input is refused.

The dense truth is formed from the stored numbers alone, by the definition ``M = (O + W D^-1) D (O + W D^-1)^T``.
"""

import math

import numpy as np
import pytest
import torch
from extended_precision import LONG, needs_long_double
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, operator_with, spectra

from inrfast.errors import MemoryBudgetError, RangeError
from inrfast.linalg import block_ldl as module
from inrfast.linalg.block_ldl import Elimination, block_ldl, bytes_needed, shapes, sizes
from inrfast.linalg.lower_rows import LowerRows
from inrfast.linalg.operators import DenseOperator

DTYPES = (torch.float32, torch.float64)


def dense_g(factor, number=np.float64):
    """G (n, n), from W, D and the bases, in any of NumPy's precisions."""
    n = factor.size
    turned, order = np.zeros((n, n), number), []  # rows of the operator, by directions
    columns = np.zeros((n, 0), number)
    for step in factor.steps:
        own = np.zeros((n, step.rows.stop - step.rows.start), number)
        own[step.rows] = np.eye(own.shape[1], dtype=number)
        columns = np.concatenate([columns, own], 1) @ step.basis.numpy().astype(number)
        turned[:, step.start : step.start + step.kept] = columns[:, : step.kept]
        columns = columns[:, step.kept :]
        order += range(step.start, step.start + step.kept)
    assert order == list(range(n)) and columns.shape[1] == 0
    lower = np.zeros((n, n), number)
    for step in factor.steps:
        height = len(factor.lower[0])
        block = factor.lower[step.rows.start // height].numpy().astype(number)
        first = step.rows.start % height
        rows = block[first : first + step.rows.stop - step.rows.start]
        lower[step.rows, : step.start] = rows[:, : step.start]
        assert not rows[:, step.start :].any()
    return turned + lower / factor.pivots.numpy().astype(number)


@st.composite
def cases(draw):
    """A positive semidefinite operator, a shift somewhere in its spectrum or beyond, and sizes that rarely divide."""
    values = draw(spectra(most=90))
    operator = operator_with(values, draw(st.integers(0, 10**6)))
    largest = float(values.max())
    level = draw(st.one_of(st.floats(-0.5, 1.5), st.sampled_from([1e-2, 1e-4, 1e-6, -1e-3])))
    at = float(values[draw(st.integers(0, len(values) - 1))])
    shift = draw(st.sampled_from([level * largest, at, at * (1 + 1e-3)]))
    window = draw(st.integers(1, 40))
    return operator, shift, {"window": window, "panel": window * draw(st.integers(1, 4)), "progress": False}


@given(cases(), st.sampled_from(DTYPES), st.integers(0, 10**6))
@settings(max_examples=60)
def test_products_inverse_and_inertia_are_those_of_m_and_m_is_near_the_operator(case, dtype, seed):
    operator, shift, given_sizes = case
    factor = block_ldl(operator, shift, dtype, **given_sizes)
    n, unit = factor.size, torch.finfo(dtype).eps / 2
    G = torch.from_numpy(dense_g(factor))
    M = (G * factor.pivots) @ G.t()
    scale = float(operator.matrix.diagonal().sum()) + abs(shift)
    V = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rounding = factor.rounding()
    assert torch.linalg.matrix_norm(factor.product(V) - M @ V) <= 8 * (rounding + 1e-15 * scale) * V.norm()
    solved = factor.inverse(V)
    assert (M @ solved - V).norm() <= 8 * (rounding + 1e-15 * scale) * solved.norm() + 1e-12 * V.norm()
    # Sylvester: the signs of D are those of M's eigenvalues, where these are beyond the rounding of the dense ones.
    found = torch.linalg.eigvalsh(M)
    doubt = rounding + 1e-14 * n * float(found.abs().max())
    assert int((found > doubt).sum()) <= factor.positive <= int((found > -doubt).sum())
    assert factor.positive + factor.negative == n and bool((factor.pivots != 0).all())
    assert sum(step.kept for step in factor.steps) == n
    assert all(len(step.basis) <= 2 * given_sizes["window"] for step in factor.steps)
    # Close to the operator: delays hold the growth of rounding at 1 / DELAY where they are free.
    error = float(torch.linalg.matrix_norm(operator.matrix - shift * torch.eye(n, dtype=torch.float64) - M, 2))
    if abs(shift) >= 1e-6 * scale:
        growth = 1 + scale / (module.DELAY * abs(shift))
        assert error <= 40 * n * unit * scale * min(growth, 1e3)
    if shift < 0:
        assert factor.negative == 0 or error >= abs(shift) / 2


@needs_long_double
@given(cases(), st.sampled_from(DTYPES), st.integers(0, 10**6))
@settings(max_examples=15)
def test_the_stated_rounding_bounds_the_error_of_products_in_long_double(case, dtype, seed):
    operator, shift, given_sizes = case
    factor = block_ldl(operator, shift, dtype, **given_sizes)
    n = factor.size
    G = dense_g(factor, LONG)
    M = (G * factor.pivots.numpy().astype(LONG)) @ G.T
    V = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
    units = torch.cat([V, torch.eye(n, dtype=torch.float64)], 1)
    sizes_of = units.norm(dim=0).numpy()
    errors = np.sqrt(((factor.product(units).numpy() - M @ units.numpy().astype(LONG)) ** 2).sum(0))
    assert (errors <= factor.rounding() * sizes_of).all()
    solved = factor.inverse(units)
    backward = np.sqrt(((M @ solved.numpy().astype(LONG) - units.numpy()) ** 2).sum(0))
    assert (backward <= factor.rounding() * solved.norm(dim=0).numpy()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0, 0.25])
def test_singular_and_degenerate_matrices_have_no_zero_pivot_and_finite_products(dtype, shift):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    repeated = few[torch.arange(30) % 5]
    matrices = {
        "zero": torch.zeros(30, 30),
        "identity": torch.eye(30),
        "rank three": few @ few.t(),
        "points repeated": repeated @ repeated.t(),
        "one": torch.ones(1, 1),
        "indefinite, zero diagonal": torch.eye(30).flip(0),
    }
    if shift == 0:
        del matrices["indefinite, zero diagonal"]  # no direction of a window of zeros can be told from rounding
    for name, matrix in matrices.items():
        factor = block_ldl(DenseOperator(matrix), shift, dtype, window=7, panel=14, progress=False)
        n = len(matrix)
        whole = factor.product(torch.eye(n, dtype=torch.float64))
        assert bool((factor.pivots != 0).all()), name
        assert factor.positive + factor.negative == n
        error = whole - matrix.double() + shift * torch.eye(n, dtype=torch.float64)
        allowed = 1e3 * torch.finfo(dtype).eps * max(float(matrix.abs().max()), abs(shift))
        assert float(error.abs().max()) <= allowed + 1e-37, name


@pytest.mark.parametrize("least", [1e-14, 1e-6, 1e-2])
def test_larger_pivots_of_the_last_window_are_a_matrix_as_near_as_that(least):
    factor = block_ldl(operator_with(torch.logspace(0, -9, 150), 3), 1e-5, torch.float64, window=32, panel=32)
    other, unit = factor.away_from_zero(least), torch.eye(150, dtype=torch.float64)
    apart = torch.linalg.matrix_norm(factor.product(unit) - other.product(unit), 2)
    assert apart <= 1.01 * least + 2 * factor.rounding()
    assert (other.positive, other.negative) == (factor.positive, factor.negative)


def test_sizes_change_no_more_than_rounding():
    operator = operator_with(torch.linspace(1, 1e-3, 70), 3)
    ones = torch.eye(70, dtype=torch.float64)
    found = {
        (window, panel): block_ldl(operator, 0.3, torch.float64, window=window, panel=panel, progress=False)
        for window, panel in ((70, 70), (256, 1024), (7, 7), (7, 70), (16, 48), (1, 1))
    }
    assert {factor.positive for factor in found.values()} == {int((torch.linspace(1, 1e-3, 70) > 0.3).sum())}
    for factor in found.values():
        assert (factor.product(ones) - operator.matrix + 0.3 * ones).abs().max() <= 1e-13


@given(cases(), st.sampled_from(DTYPES), st.integers(0, 100))
@settings(max_examples=15)
def test_a_run_stopped_anywhere_goes_on_from_the_last_panel_to_the_same_bits(case, dtype, stop):
    operator, shift, given_sizes = case
    n = len(operator.matrix)
    _, panel, height = sizes(n, operator.device, given_sizes["window"], given_sizes["panel"])
    once = block_ldl(operator, shift, dtype, **given_sizes)
    out = LowerRows(shapes(n, height), dtype, operator.device)
    for block in range(len(shapes(n, height))):
        out[block].fill_(math.nan)
    kept = []

    class Stop(BaseException):
        pass

    class Interrupted(DenseOperator):
        calls = 0

        def blocks_(self, targets, index, dtype):
            Interrupted.calls += 1
            if Interrupted.calls > stop % (-(-n // panel)) + 1:
                targets[0][0][: len(targets[0][0]) // 2] = 7.0
                raise Stop
            super().blocks_(targets, index, dtype)

    first = Interrupted(operator.matrix)
    try:
        block_ldl(first, shift, dtype, **given_sizes, out=out, save=kept.append)
    except Stop:
        state = kept[-1]
        assert state.row == panel * len(kept) and len(state.values) + state.start == state.row
        again = block_ldl(operator, shift, dtype, **given_sizes, out=out, state=state)
        assert torch.equal(again.pivots, once.pivots)
        ones = torch.eye(n, dtype=torch.float64)
        assert torch.equal(again.product(ones), once.product(ones))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(3, 3), (35, 2), (39, 38), (0, 1)])
def test_entries_that_are_not_finite_are_refused(bad, place):
    matrix = matrix_with(torch.linspace(1, 0.1, 40), 0)
    operator = DenseOperator(matrix)
    operator.matrix[place] = operator.matrix[place[::-1]] = bad
    with pytest.raises((ValueError, RangeError), match="NaN or Inf"):
        block_ldl(operator, 0.5, torch.float64, window=8, panel=16, progress=False)


@pytest.mark.parametrize("scale", [1e45, 1e-45])
def test_values_beyond_fp32_are_refused_in_fp32_alone(scale):
    operator, shift = operator_with(torch.linspace(1, 0.1, 40, dtype=torch.float64) * scale, 0), 0.5 * scale
    with pytest.raises(RangeError, match="fp32 numbers near"):
        block_ldl(operator, shift, torch.float32, window=8, panel=16, progress=False)
    assert block_ldl(operator, shift, torch.float64, window=8, panel=16, progress=False).positive == 22


@pytest.mark.parametrize("first", [0, 10, 20])
def test_entries_beside_the_diagonal_beyond_fp32_are_not_called_infinite(first):
    half = torch.zeros(20, 20, dtype=torch.float64)
    matrix = matrix_with(torch.linspace(1, 0.1, 20, dtype=torch.float64) * 1e40, 0)
    order = torch.arange(40).view(2, 20).T.flatten().roll(first)  # in the diagonal blocks, too
    operator = DenseOperator(torch.cat([torch.cat([half, matrix], 1), torch.cat([matrix, half], 1)])[order][:, order])
    with pytest.raises(RangeError, match=r"entries exceed 3.4e\+38"):
        block_ldl(operator, 9e36, torch.float32, window=8, panel=16, progress=False)
    found = block_ldl(operator, 9e36, torch.float64, window=8, panel=16, progress=False)
    assert found.positive == int((torch.linalg.eigvalsh(operator.matrix) > 9e36).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_not_symmetric_is_refused(dtype):
    matrix = matrix_with(torch.linspace(1, 0.1, 40), 0)
    matrix[30, 26] += 1e-3
    with pytest.raises(ValueError, match="not symmetric"):
        block_ldl(DenseOperator(matrix), 0.5, dtype, window=8, panel=16, progress=False)


def test_bad_arguments_are_named():
    operator = operator_with(torch.linspace(1, 0.1, 10), 0)
    with pytest.raises(ValueError, match="shift must be finite"):
        block_ldl(operator, math.nan, torch.float64)
    with pytest.raises(TypeError, match="dtype must be"):
        block_ldl(operator, 0.5, torch.float16)
    with pytest.raises(ValueError, match="multiple of the window"):
        block_ldl(operator, 0.5, torch.float64, window=4, panel=6)
    with pytest.raises(ValueError, match="window must be at least 1"):
        block_ldl(operator, 0.5, torch.float64, window=0)


def test_a_budget_is_refused_before_anything_is_allocated_and_the_message_names_what_fits():
    class Large(DenseOperator):
        def __init__(self):
            super().__init__(torch.ones(1, 1))
            self.shape = (20000, 20000)

    device = torch.device("cpu")
    single = bytes_needed(20000, torch.float32, device)
    with pytest.raises(MemoryBudgetError, match=r"in fp32 .* fits") as refused:
        block_ldl(Large(), 1.0, torch.float64, budget=single)
    assert refused.value.needed == bytes_needed(20000, torch.float64, device)
    with pytest.raises(MemoryBudgetError, match=r"order 1[0-9]{4} fits"):
        block_ldl(Large(), 1.0, torch.float32, budget=single * 3 // 4)


@pytest.mark.parametrize("order", [1, 300, 2100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_needed_covers_what_is_held_and_is_little_more_than_half_the_square(order, dtype):
    operator = operator_with(torch.linspace(1, 0.1, order), 0) if order < 1000 else DenseOperator(torch.eye(order))
    factor = block_ldl(operator, 0.5, dtype, progress=False)
    needed = bytes_needed(order, dtype, operator.device)
    assert factor.nbytes <= needed
    large = bytes_needed(10**5, dtype, operator.device)
    assert large <= 0.54 * 10**10 * dtype.itemsize + 8 * 4 * 10**5 * module.WINDOW


def test_a_state_holds_what_is_passed_on():
    values = torch.cat([torch.full((10,), 1.0), torch.full((50,), 0.5)])
    operator = operator_with(values, 1)
    out = LowerRows(shapes(60, 10), torch.float64, operator.device)
    elimination = Elimination(operator, 0.5, None, 10, 10, out, None)
    for _ in elimination.windows_of_a_panel():
        pass
    state = elimination.state()
    assert state.row == 10 and state.passed.shape == (50, 10 - state.start) and len(state.values) == 10 - state.start
