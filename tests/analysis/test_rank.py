"""Numerical ranks against NumPy's singular values and the eigenvalues of exact kernels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, spectra
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from scipy.sparse.linalg import aslinearoperator

import inrfast as inr
from inrfast.analysis.rank import numerical_rank
from inrfast.errors import RangeError, ResolutionError
from inrfast.linalg import costs, eigenvalues
from inrfast.linalg.operators import DenseOperator
from inrfast.tangent.kernel_operator import KernelOperator


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    decades=st.floats(0, 12),
    rtol=st.sampled_from([0.3, 1e-2, 1e-5, 1e-8, 1e-11]),
    seed=st.integers(0, 10**6),
)
def test_contains_numpys_count_of_singular_values(m, n, decades, rtol, seed):
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((m, n)) * np.logspace(0, -decades, n)
    values = np.linalg.svd(matrix, compute_uv=False)
    truth = int((values > rtol * values[0]).sum())
    for given_as in (matrix, matrix.T, torch.from_numpy(matrix), torch.from_numpy(matrix).t()):
        found = numerical_rank(given_as, rtol)
        assert truth in found
        assert found.rtol == rtol


@settings(max_examples=10)
@given(net=networks(max_width=12, max_depth=3), seed=st.integers(0, 10**6))
def test_of_a_kernel_counts_eigenvalues_and_of_its_jacobian_their_square_roots(net, seed):
    coords = random_coords(15, net.in_features, seed)
    jacobian = exact_jacobian(net, coords)
    values = torch.linalg.eigvalsh(exact_kernel(jacobian, jacobian, "full"))
    kernel = inr.ntk(net, coords, output="full")
    for rtol in (1e-2, 1e-4):
        truth = int((values > rtol * values[-1]).sum())
        assert truth in numerical_rank(kernel, rtol)
        assert truth in numerical_rank(jacobian.flatten(0, 1), rtol**0.5)


class Written:
    """An operator that is nothing but a shape and to_dense()."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, tuple(matrix.shape)

    def to_dense(self):
        return self.matrix


AS_OPERATORS = {
    "tensor": Written,
    "fp32 array": lambda matrix: Written(matrix.float().numpy()),
    "dense operator": DenseOperator,
    "LinearOperator": lambda matrix: aslinearoperator(matrix.numpy()),
}


@given(spectra(90), st.sampled_from(sorted(AS_OPERATORS)), st.lists(st.floats(-5, 0.3), min_size=1, max_size=4))
def test_of_operators_eigenvalues_are_counted_and_of_matrices_singular_values(values, kind, exponents):
    matrix = matrix_with(values, 0)
    given_as = AS_OPERATORS[kind](matrix)
    exact, one = torch.linalg.eigvalsh(matrix).flip(0), float(values[0])
    error = (1e-5 if "fp32" in kind else 1e-12) * one
    levels = [10.0**e * one for e in exponents]
    for found in (numerical_rank(given_as, levels=levels), numerical_rank(matrix, None, torch.tensor(levels))):
        assert len(found) == len(levels)
        for level, count in zip(levels, found, strict=True):
            assert count.lower <= int((exact > level - error).sum())
            assert count.upper >= int((exact > level + error).sum())
            assert count.rtol == pytest.approx(level / one, rel=1e-4)
    rtols = tuple(10.0**e for e in exponents if e < -0.01) or (0.1,)
    several = numerical_rank(given_as, rtols)
    assert several == tuple(numerical_rank(given_as, rtol) for rtol in rtols)
    assert several == numerical_rank(given_as, np.array(rtols))


@settings(max_examples=4)
@given(
    st.sampled_from(["gaussian", "relu", "tanh"]), st.sampled_from(["dense", "pivots", "inertia"]), st.integers(0, 99)
)
def test_large_kernels_are_counted_by_any_way(activation, way, seed):
    coords = random_coords(220, 2, seed)
    kernel = inr.ntk(inr.INR(2, 1, width=20, hidden_layers=2, activation=activation, omega=20.0, seed=seed), coords)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigenvalues, "SMALL", 300 if way == "dense" else 50)
        patch.setattr(eigenvalues, "DENSE_LIMIT", 300 if way == "dense" else 0)
        patch.setattr(costs, "CERTIFICATE", 0 if way == "inertia" else 1e9)
        for K in (kernel, kernel.layers["layers.1"], KernelOperator(kernel.at_precision("highest"))):
            dense = K if isinstance(K, KernelOperator) else K.at_precision("highest")
            exact = torch.linalg.eigvalsh(dense.to_dense()).flip(0)
            rtols = (1e-1, 1e-3, 1e-5)
            levels = [rtol * float(exact[0]) for rtol in rtols]
            for found in (numerical_rank(K, rtols), numerical_rank(K, levels=levels)):
                for level, count in zip(levels, found, strict=True):
                    assert int((exact > level).sum()) in count
                    assert count.upper - count.lower <= 1 + 0.05 * count.lower


def test_what_is_no_operator_is_refused():
    matrix = matrix_with(torch.logspace(0, -3, 30), 0)
    tilted = matrix.clone()
    tilted[0, 5] += 0.1
    broken = matrix.clone()
    broken[3, 3] = math.nan
    wrong = Written(matrix)
    wrong.shape = (40, 40)
    negative = matrix - 0.1 * torch.eye(30)
    shifted = torch.eye(30) + 2 * torch.eye(30).flip(0)
    for given_as, error, message in (
        (Written(tilted), ValueError, "must be symmetric"),
        (DenseOperator(tilted), ValueError, "not symmetric"),
        (Written(broken), ValueError, "finite"),
        (Written(matrix[:, :7]), ValueError, r"square to have eigenvalues, got an operator of shape \(30, 7\)"),
        (wrong, ValueError, r"has shape \(40, 40\), but to_dense\(\) gives \(30, 30\)"),
        (Written(negative), ValueError, "diagonal entry .* is -"),
        (Written(shifted), ValueError, "not positive semidefinite"),
        (Written, TypeError, "must be a tensor"),
        (Written(matrix.to(torch.int64)), TypeError, "floating"),
    ):
        with pytest.raises(error, match=message):
            numerical_rank(given_as, 1e-2)
    for arguments, error, message in (
        ({}, TypeError, "rtol must be a number .* and no levels"),
        ({"rtol": []}, ValueError, "at least one tolerance"),
        ({"rtol": [0.1, 1.0]}, ValueError, "below 1"),
        ({"rtol": [0.1, "x"]}, TypeError, "rtol"),
        ({"levels": []}, TypeError, "got None and no levels"),
        ({"rtol": 0.1, "levels": [1.0]}, TypeError, "rtol or levels, not both"),
        ({"levels": {0.1, 0.2}}, TypeError, "levels must be a number or a sequence of them, got set"),
        ({"rtol": (t for t in (0.1, 0.2))}, TypeError, "rtol must be a number or a sequence of them, got generator"),
        ({"levels": [0.0]}, ValueError, "levels must be above 0"),
        ({"levels": [math.nan]}, ValueError, "levels must be finite"),
    ):
        for given_as in (matrix, Written(matrix)):
            with pytest.raises(error, match=message):
                numerical_rank(given_as, **arguments)


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sampled_from(["<f8", ">f8", "<f4", ">f4"]),
    st.sampled_from(["C", "F", "reversed", "strided", "read-only", "subclass"]),
    st.integers(0, 10**6),
)
def test_arrays_of_any_byte_order_and_layout(m, n, rank, dtype, layout, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    values = values.astype(dtype)
    expected = numerical_rank(torch.from_numpy(values.astype(np.float64)), 1e-3)  # of no order of rows or columns
    given = {
        "C": values,
        "F": np.asfortranarray(values),
        "reversed": values[::-1, ::-1],
        "strided": np.repeat(values, 2, 1)[:, ::2],
        "read-only": np.broadcast_to(values, values.shape),
        "subclass": values.view(np.recarray),
    }[layout]
    assert numerical_rank(given, 1e-3) == expected


@given(spectra(50), st.sampled_from(["LinearOperator", "dense operator", "tensor"]), st.integers(-1000, 1000))
def test_counts_do_not_depend_on_the_unit(values, kind, power):
    matrix = matrix_with(values / values[0], 0)
    levels = [0.3, 1e-2, 1e-5]
    expected = numerical_rank(AS_OPERATORS[kind](matrix), levels=levels)
    scale = 2.0**power
    found = numerical_rank(AS_OPERATORS[kind](matrix * scale), levels=[level * scale for level in levels])
    for before, after in zip(expected, found, strict=True):
        assert before.lower <= after.upper
        assert after.lower <= before.upper
        assert after.upper - after.lower <= before.upper - before.lower + 1


def test_zero_and_single_entries():
    assert numerical_rank(torch.zeros(4, 9), 1e-3).upper == 0
    assert numerical_rank(np.ones((1, 1), dtype=np.float32), 1e-3).lower == 1


def test_a_tolerance_below_rounding_is_refused():
    with pytest.raises(ResolutionError, match="floor"):
        numerical_rank(torch.randn(30, 20), 1e-17)


@pytest.mark.parametrize("rtol", [0, -1e-3, 1, 2.0, math.nan, math.inf])
def test_tolerances_outside_the_unit_interval_are_refused(rtol):
    with pytest.raises(ValueError, match="rtol"):
        numerical_rank(torch.eye(3), rtol)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(3), ValueError, "2 dimensions"),
        (torch.ones(2, 2, 2), ValueError, "2 dimensions"),
        (torch.ones(0, 3), ValueError, "empty"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "finite"),
        (torch.tensor([[1.0, math.inf]]), ValueError, "finite"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "floating"),
        ([[1.0, 2.0]], TypeError, "matrix_or_kernel"),
        (np.ones((2, 2), np.longdouble), TypeError, "longdouble"),
        (np.ones((2, 2), complex), TypeError, "real numbers"),
        (np.ma.masked_less(np.array([[1.0, -1.0]]), 0), TypeError, "masked"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        numerical_rank(matrix, 1e-3)


def test_a_kernel_between_two_sets_of_points_is_refused():
    kernel = inr.ntk(inr.INR(2, 1, width=4), inr.grid((3, 3)), inr.grid((2, 2)))
    with pytest.raises(ValueError, match="coords2"):
        numerical_rank(kernel, 1e-3)


def test_an_operator_that_multiplies_in_fp32_is_known_to_no_more():
    """Its products are noise below that: a rank there is refused, not counted."""
    kernel = inr.ntk(inr.INR(2, 1, width=16, seed=0), inr.grid((16, 16)))
    exact = kernel.at_precision("highest")
    for rtol in (1e-3, 1e-10):
        assert numerical_rank(exact.to_scipy(), rtol) == numerical_rank(exact, rtol)
    assert numerical_rank(exact, 1e-3).lower in numerical_rank(kernel.to_scipy(), 1e-3)
    with pytest.raises(ResolutionError, match="floor"):
        numerical_rank(kernel.to_scipy(), 1e-10)


@pytest.mark.parametrize("scale", [1e-281, 1e-316])
def test_matrices_that_fp64_holds_in_part_are_refused(scale):
    with pytest.raises(RangeError, match="scale it"):
        numerical_rank(scale * torch.rand(8, 8, dtype=torch.float64), 1e-6)
    assert numerical_rank(torch.zeros(8, 8), 1e-6).upper == 0
