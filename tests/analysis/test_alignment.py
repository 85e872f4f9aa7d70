"""Alignment against its definition with dense NumPy matrices, of arrays, of lazy kernels and of samples."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords

import inrfast as inr
from inrfast.analysis import alignment as module
from inrfast.errors import ResolutionError

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def defined(K, other, centered):
    """Cristianini's formula, Cortes's with H on both sides, in dense matrices."""
    K, other = np.asarray(K, dtype=np.float64), np.asarray(other, dtype=np.float64)
    target = other.reshape(len(K), -1)
    L = other if other.shape == K.shape else target @ target.T
    if centered:
        H = np.eye(len(K)) - 1 / len(K)
        K, L = H @ K @ H, H @ L @ H
    return float((K * L).sum() / (np.linalg.norm(K) * np.linalg.norm(L)))


def symmetric(n, seed):
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix + matrix.T


@given(
    n=st.integers(2, 30),
    m=st.integers(0, 4),
    centered=st.booleans(),
    scale=st.sampled_from([1e-100, 1.0, 1e100]),
    seed=st.integers(0, 10**6),
)
def test_of_arrays_is_the_definition(n, m, centered, scale, seed):
    K, L = symmetric(n, seed), symmetric(n, seed + 1)
    if m == n:
        return
    Y = np.random.default_rng(seed).standard_normal((n, m) if m else n)
    for other in (Y, L):
        truth = defined(K, other, centered)
        found = inr.alignment(scale * K, scale * other, centered=centered)
        assert found == pytest.approx(truth, abs=1e-13)
        assert inr.alignment(torch.from_numpy(K), torch.from_numpy(-3 * Y), centered=centered) == pytest.approx(
            defined(K, Y, centered), abs=1e-13
        )
    assert inr.alignment(K, 2 * K, centered=centered) == pytest.approx(1, abs=1e-14)
    assert inr.alignment(K, -K, centered=centered) == pytest.approx(-1, abs=1e-14)
    constant = 5 * np.abs(K).max()
    assert inr.alignment(K + constant, Y + 3.0, centered=True) == pytest.approx(defined(K, Y, True), abs=1e-12)


@settings(max_examples=12)
@given(
    net=networks(max_width=16, max_depth=3),
    output=st.sampled_from(["trace", "full", 0]),
    precision=st.sampled_from(["high", "highest"]),
    centered=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_of_lazy_kernels_is_that_of_exact_ones(net, output, precision, centered, seed):
    coords = random_coords(11, net.in_features, seed)
    jacobian = exact_jacobian(net, coords)
    truth = exact_kernel(jacobian, jacobian, output).numpy()
    K = inr.ntk(net, coords, output=output, precision=precision)
    rows = len(truth)
    Y, L = np.random.default_rng(seed).standard_normal((rows, 2)), symmetric(rows, seed)
    H = np.eye(rows) - centered / rows
    norm = np.linalg.norm(H @ truth @ H)
    if norm <= 1e-5 * np.linalg.norm(truth):
        return
    # Entries of K to 1e-6 sqrt(K_ii K_jj), a matrix of norm tr K; its share of what is left after centring.
    entry = 2e-6 if precision == "high" else 1e-11
    error = entry * np.trace(truth) * np.linalg.norm(truth) / norm**2 + 1e-9
    samples = inr.optimal_kernel(Y.T.copy())
    for other, dense in ((Y, Y), (Y[:, 0].copy(), Y[:, :1]), (L, L), (samples, Y)):
        expected = defined(truth, dense, centered)
        assert inr.alignment(K, other, centered=centered) == pytest.approx(expected, abs=error)
        if other is L or other is samples:
            assert inr.alignment(other, K, centered=centered) == pytest.approx(expected, abs=error)
    assert inr.alignment(K, K, centered=centered) == pytest.approx(1, abs=2 * error)
    if output == "full" and net.out_features > 1:
        images = Y[:, 0].reshape(11, -1)
        assert inr.alignment(K, images) == inr.alignment(K, Y[:, 0].copy())


def test_two_lazy_kernels_meet_block_by_block(monkeypatch):
    coords = inr.grid((12, 11))
    first, second = (inr.ntk(inr.INR(2, 1, width=24, hidden_layers=2, seed=seed), coords) for seed in (0, 1))
    whole = [inr.alignment(first, second, centered=centered) for centered in (False, True)]
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * 132 * 5)  # five rows
    assert len(module.Lazy("K", first, False).parts()) == 27
    for centered, expected in zip((False, True), whole, strict=True):
        truth = defined(first.to_dense(), second.to_dense(), centered)
        assert inr.alignment(first, second, centered=centered) == pytest.approx(truth, abs=2e-5)
        assert inr.alignment(first, second, centered=centered) == pytest.approx(expected, abs=1e-6)
        assert inr.alignment(first, second.to_dense(), centered=centered) == pytest.approx(truth, abs=2e-5)


@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-4])
def test_a_kernel_that_is_nearly_constant_is_centred_in_fp64(scale):
    """Its centred part falls as scale^2: by sums in fp32, in fp64, and by blocks."""
    coords = inr.grid((6, 7))
    net = inr.INR(2, 1, width=8, hidden_layers=1, activation="tanh", seed=3)
    truth = exact_kernel(*(exact_jacobian(net, scale * coords),) * 2, "trace")
    target = torch.sin(3 * coords[:, 0]) + coords[:, 1]
    K = inr.ntk(net, scale * coords)
    centred = truth - truth.mean(0) - truth.mean(1, keepdim=True) + truth.mean()
    share = float(centred.norm() / truth.norm())
    found = inr.alignment(K, target, centered=True)
    assert found == pytest.approx(defined(truth, target, True), abs=1e-5 + 1e-13 / share)


def test_an_array_in_fp32_counts_as_the_numbers_that_it_holds():
    """Beside 1e6 rounding is a part of what centring leaves; it was called constant. Truth in extended precision."""
    factor = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    K, y = (factor @ factor.t() + 1e6).float(), factor[:, 0]
    wide, target = (own.numpy().astype(np.longdouble) for own in (K, y))
    centred = wide - wide.mean(0) - wide.mean(1, keepdims=True) + wide.mean()
    target = target - target.mean()
    truth = target @ centred @ target / np.sqrt((centred**2).sum()) / (target @ target)
    assert inr.alignment(K, y, centered=True) == pytest.approx(float(truth), rel=1e-8)


def test_what_is_constant_is_refused():
    coords = inr.grid((4, 4))
    bias = inr.ntk(inr.INR(2, 1, width=8), coords, params=["layers.3.bias"])
    assert inr.alignment(bias, torch.ones(16)) == pytest.approx(1)
    with pytest.raises(ResolutionError, match="K is constant to rounding"):
        inr.alignment(bias, coords[:, 0], centered=True)
    with pytest.raises(ValueError, match="K must not be constant"):
        inr.alignment(torch.full((5, 5), 0.1), torch.arange(5.0), centered=True)
    with pytest.raises(ValueError, match="other must not be constant"):
        inr.alignment(torch.eye(16), torch.full((16, 2), 0.7), centered=True)


BAD = {
    "another size": (torch.eye(4), torch.ones(5), r"other must be a target of shape \(4,\).*got \(5,\)"),
    "another kernel's size": (torch.eye(4), inr.optimal_kernel(torch.ones(2, 5)), "other must be a kernel of 4 rows"),
    "a zero kernel": (torch.zeros(4, 4), torch.ones(4), "K must not be zero"),
    "a zero target": (torch.eye(4), torch.zeros(4), "other must not be zero"),
    "a NaN": (torch.eye(4), torch.tensor([1.0, float("nan"), 0, 0]), "other must be finite, got 1 NaN"),
    "not square": (torch.ones(4, 3), torch.ones(4), r"K must be a kernel, \(N, N\), got shape \(4, 3\)"),
    "not symmetric": (torch.eye(3), torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), "other must be symmetric"),
    "integers": (torch.eye(3), torch.arange(3), "floating-point dtype, got torch.int64"),
    "a list": (torch.eye(3), [1.0, 2.0, 3.0], "other must be a kernel of inrfast.ntk"),
    "a network": (inr.INR(2, 1, width=4), torch.ones(3), "K must be a kernel of inrfast.ntk"),
    "two sets of points": (inr.ntk(inr.INR(1, 1, width=4), inr.grid(4), inr.grid(4)), torch.ones(4), "coords2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    K, other, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        inr.alignment(K, other)


def test_many_points_and_a_target_take_little_memory():
    """8,192 points, whose kernel would be 512 MiB: the process grows by a fraction of it."""
    program = """if True:
        import resource, torch, inrfast as inr
        net = inr.INR(2, 1, width=8, hidden_layers=1)
        def taken(side):
            coords = inr.grid((side, side // 2))
            K = inr.ntk(net, coords, memory_budget=2**26)
            inr.alignment(K, torch.sin(4 * coords[:, 0]), centered=True)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = taken(16)
        print(taken(128) - before)
    """
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128 * 1024  # KiB
