"""Kernel regression against NumPy's pseudo-inverse, and against the training of linearised networks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import exact_jacobian

import inrfast as inr

F64 = torch.float64


@given(n=st.integers(1, 20), rank=st.integers(1, 20), m=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_is_numpys_pseudo_inverse(n, rank, m, seed):
    draw = np.random.default_rng(seed)
    factor, other = draw.standard_normal((n, rank)), draw.standard_normal((5, rank))
    y = draw.standard_normal((n, m) if m else n)
    K, cross = factor @ factor.T, other @ factor.T
    found = inr.kernel_regression(K, y, cross, rtol=1e-10)
    inverse = np.linalg.pinv(K, rcond=1e-10, hermitian=True)
    values = np.linalg.eigvalsh(K)
    condition = values[-1] / values[values > 1e-10 * values[-1]].min()
    allowed = 1e-13 * condition * np.linalg.norm(cross) / np.linalg.norm(K) * np.linalg.norm(y) + 1e-12
    np.testing.assert_allclose(found.prediction.numpy(), cross @ inverse @ y, atol=allowed)
    assert found.rank == (values > 1e-10 * values[-1]).sum() == min(n, rank)
    block = y.reshape(n, -1)
    missed = np.linalg.norm(block - K @ inverse @ block, axis=0) / np.linalg.norm(block, axis=0)
    np.testing.assert_allclose(found.residual.numpy(), missed, atol=1e-13 * condition + 1e-12)
    np.testing.assert_allclose(found.norm, (block * (inverse @ block)).sum(0), rtol=1e-11 * condition)


def test_a_network_and_a_function_make_their_own_blocks():
    coords, at = inr.grid(12, dtype=F64), torch.tensor([[-0.4], [0.15], [0.9]], dtype=F64)
    y = torch.sin(3 * coords)
    net = inr.INR(1, 1, width=64, hidden_layers=1, activation="sine", omega=4.0, init="siren", dtype=F64)
    lazy = inr.kernel_regression(
        inr.ntk(net, coords, precision="highest"), y, inr.ntk(net, at, coords, precision="highest")
    )
    made = inr.kernel_regression(net, y, coords=coords, at=at)
    assert torch.equal(lazy.prediction, made.prediction) and made.prediction.shape == (3, 1)
    wide = inr.infinite_ntk(2, bias_variance=0.5)
    blocks = inr.kernel_regression(wide(coords), y, wide(at, coords))
    assert torch.equal(blocks.prediction, inr.kernel_regression(wide, y, coords=coords, at=at).prediction)


def test_is_where_gradient_descent_on_the_linearised_network_ends():
    """Equation 21 with the start that it leaves out: f_0(x) + K(x, X) K^+ (y - f_0(X))."""
    coords, at = inr.grid(7, dtype=F64), inr.grid(20, dtype=F64)
    net = inr.INR(1, 1, width=24, hidden_layers=1, activation="sine", omega=3.0, init="siren", dtype=F64, seed=1)
    y = torch.cos(4 * coords)
    with torch.no_grad():
        starts = net(coords), net(at)
    J, Jx = (exact_jacobian(net, points)[:, 0] for points in (coords, at))
    moved = torch.linalg.lstsq(J, y - starts[0], driver="gelsd").solution  # the least change that fits the data
    found = inr.kernel_regression(net, y - starts[0], coords=coords, at=at)
    torch.testing.assert_close(starts[1] + found.prediction, starts[1] + Jx @ moved, rtol=0, atol=1e-6)


def test_rounding_is_not_inverted():
    """A kernel of rank 3 in fp32 has eigenvalues of rounding alone, whose inverses would be noise."""
    factor = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = factor @ torch.tensor([1.0, -2.0, 0.5])
    found = inr.kernel_regression(factor @ factor.t(), y, factor @ factor.t(), rtol=0)
    assert found.rank == 3 and found.floor == 40 * torch.finfo(torch.float32).eps and found.cut > 0
    torch.testing.assert_close(found.prediction.float(), y, rtol=1e-4, atol=1e-4)
    assert (
        inr.kernel_regression(factor.double() @ factor.double().t(), y, factor.double() @ factor.double().t()).rank == 3
    )


def test_several_outputs_are_fitted_together():
    """All N M values move the same parameters; the sum of the outputs' kernels gives something else."""
    coords, at = inr.grid(5, dtype=F64), inr.grid(8, dtype=F64)
    net = inr.INR(1, 2, width=12, hidden_layers=1, activation="sine", omega=3.0, init="siren", dtype=F64, seed=1)
    y = torch.cat([torch.cos(4 * coords), coords], 1)
    J, Jx = (exact_jacobian(net, points).flatten(0, 1) for points in (coords, at))
    wanted = Jx @ torch.linalg.lstsq(J, y.reshape(-1), driver="gelsd").solution
    blocks = [inr.ntk(net, *points, precision="highest", output="full") for points in ((coords,), (at, coords))]
    found = inr.kernel_regression(blocks[0], y.reshape(-1), blocks[1])
    torch.testing.assert_close(found.prediction, wanted, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"kernel is a network of 2 outputs.*output='full'"):
        inr.kernel_regression(net, y, coords=coords, at=at)


def test_a_lazy_cross_is_of_the_same_points_and_network():
    net, coords, at = inr.INR(1, 1, width=4), inr.grid(6), inr.grid(6, bounds=(-0.9, 1.1))
    K, y = inr.ntk(net, coords), torch.ones(6)
    inr.kernel_regression(K, y, inr.ntk(net, at, coords.clone(), precision="highest"))
    inr.kernel_regression(K, y, inr.ntk(net, coords))
    other = inr.INR(1, 1, width=4, seed=5)
    for cross, match in {
        inr.ntk(net, coords, at): "columns.*its rows are: swap them",
        inr.ntk(net, at): "cross must have the points of kernel as columns",
        inr.ntk(other, at, coords): "cross must be of the network",
        inr.ntk(net, at, coords, params=["layers.0"]): "cross must be of the network",
    }.items():
        with pytest.raises(ValueError, match=match):
            inr.kernel_regression(K, y, cross)
    two = inr.INR(1, 2, width=4)
    with pytest.raises(ValueError, match="cross must be of output='trace'"):
        inr.kernel_regression(inr.ntk(two, coords), y, inr.ntk(two, at, coords, output=0))


EYE = torch.eye(3, dtype=F64)
SOME = torch.ones(3, dtype=F64)
BAD = {
    "no cross": (lambda: inr.kernel_regression(EYE, SOME), "comes with cross"),
    "coords of an array": (lambda: inr.kernel_regression(EYE, SOME, EYE, coords=EYE), "without coords and at"),
    "no points": (lambda: inr.kernel_regression(inr.infinite_ntk(1), SOME), "comes with coords and at"),
    "other points": (lambda: inr.kernel_regression(inr.infinite_ntk(1), SOME, coords=EYE, at=EYE[:, :2]), "3 coord"),
    "no kernel": (lambda: inr.kernel_regression(3, SOME, coords=EYE, at=EYE), "kernel must be a kernel, a network"),
    "another y": (lambda: inr.kernel_regression(EYE, SOME[:2], EYE), r"y must have shape \(3,\)"),
    "another cross": (lambda: inr.kernel_regression(EYE, SOME, EYE[:, :2]), r"cross must be K\(x, X\), \(N', 3\)"),
    "not square": (lambda: inr.kernel_regression(EYE[:2], SOME, EYE), r"kernel must be K\(X, X\)"),
    "not symmetric": (lambda: inr.kernel_regression(EYE + torch.ones(3, 3).triu(1), SOME, EYE), "must be symmetric"),
    "indefinite": (lambda: inr.kernel_regression(EYE - 0.5, SOME, EYE), "must be positive semidefinite"),
    "zero": (lambda: inr.kernel_regression(0 * EYE, SOME, EYE), "must not be zero"),
    "NaN": (lambda: inr.kernel_regression(EYE * torch.nan, SOME, EYE), "kernel must be finite"),
    "negative rtol": (lambda: inr.kernel_regression(EYE, SOME, EYE, rtol=-1), "rtol must be at least 0"),
    "a function of one set": (
        lambda: inr.kernel_regression(lambda a: a @ a.t(), SOME, coords=EYE, at=EYE), "does not take them",
    ),
    "two sets as kernel": (
        lambda: inr.kernel_regression(inr.ntk(inr.INR(1, 1, width=4), inr.grid(3), inr.grid(3)), SOME, EYE),
        "the one made with coords2 is cross",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
