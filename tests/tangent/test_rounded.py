"""Kernels of factors rounded to fp32 are one matrix, no farther from the exact one than is said, and count right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.linalg.costs import Alternative
from inrfast.tangent import rounded
from inrfast.tangent.kernel_operator import KernelOperator
from inrfast.tangent.rounded import RoundedStore

EVERYTHING = 1 << 40


@pytest.fixture(autouse=True)
def small_kernels_too(monkeypatch):
    monkeypatch.setattr("inrfast.tangent.rounded.RELEASED", 0)
    monkeypatch.setattr("inrfast.linalg.eigenvalues.SMALL", 64)
    monkeypatch.setattr("inrfast.linalg.eigenvalues.DENSE_LIMIT", 64)


def level_of(rtol):
    return lambda largest: rtol * largest


@pytest.mark.parametrize("output", ["trace", "full", 1])
@pytest.mark.parametrize("settings", [{}, {"activation": "sine"}, {"activation": "gaussian", "init": "kaiming"}])
def test_all_that_is_read_is_of_one_matrix(output, settings, monkeypatch):
    """Columns, blocks, a submatrix, the diagonal and products, tile by tile and chunk by chunk."""
    monkeypatch.setattr(rounded, "ROWS", 100)
    net = inr.INR(2, 3, width=40, hidden_layers=2, seed=1, **settings)
    kernel = inr.ntk(net, inr.grid((25, 30)), output=output, precision="highest")
    exact = KernelOperator(kernel)
    found = exact.rounded(level_of(1e-6), EVERYTHING)
    n, store = kernel.shape[0], found._kernel.left.store
    factors = store.all()
    assert isinstance(store, RoundedStore) and all(f is None or f.dtype == torch.float32 for p in factors for f in p)
    assert not kernel.left.store.kept
    J = torch.zeros(750, 3, kernel.left.shape[1], dtype=torch.float64)
    start = 0
    for layer, own in zip(kernel.specs, factors, strict=True):  # outer products, in fp64, of what is kept
        z = torch.ones(750, 1) if own.features is None else own.features
        s = torch.eye(3).expand(750, 3, 3) if own.sensitivities is None else own.sensitivities
        rows = torch.einsum("nmb,na->nmba", s.double(), z.double()).flatten(2)
        J[:, :, start : start + rows.shape[2]] = rows
        start += rows.shape[2]
        assert rows.shape[2] == layer.columns
    J = J.flatten(0, 1) if output == "full" else J.flatten(1) if output == "trace" else J[:, output]
    truth = J @ J.t()
    index, near = torch.tensor([5, n - 1, 0, n // 2]), {"rtol": 0, "atol": 1e-12 * float(truth.abs().max())}
    block = torch.empty(n - 7, 4, dtype=torch.float64)
    found.blocks_([(block, slice(7, n))], index, torch.float64)
    V = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(block, truth[7:, index], **near)
    assert torch.allclose(found.columns(index), truth[:, index], **near)
    assert torch.allclose(found.submatrix(index), truth[index][:, index], **near)
    assert torch.allclose(found.diagonal(), truth.diagonal(), **near)
    assert torch.allclose(found @ V, truth @ V, rtol=0, atol=1e-12 * float((truth.abs() @ V.abs()).max()))


@given(st.integers(0, 1000), st.sampled_from(["relu", "sine", "tanh"]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_jacobian_is_moved_by_no_more_than_is_said(seed, activation, scale):
    """Singular values tell: of the kernels' roots, whose distance is a lower bound of |dJ|."""
    net = inr.INR(2, 1, width=24, hidden_layers=2, seed=seed, activation=activation)
    with torch.no_grad():
        net.layers[-1].weight *= scale
    kernel = inr.ntk(net, inr.grid((12, 12)), precision="highest")
    found = KernelOperator(kernel).rounded(level_of(1e-3), EVERYTHING)
    roots = [torch.linalg.eigvalsh(K.to_dense()).clamp_min(0).sqrt() for K in (kernel, found._kernel)]
    moved = float((roots[0] - roots[1]).abs().max())
    assert 0 < moved <= found.moved + 1e-7 * float(roots[0].max())
    assert found.moved <= 3e-7 * math.sqrt(kernel.trace())
    assert found.jacobian_error == found._kernel.jacobian_error + found.moved
    J, other = kernel.left.rows(), found._kernel.left.rows()
    assert 0 < float(torch.linalg.matrix_norm(J - other)) <= found.moved


@settings(max_examples=15)
@given(
    st.sampled_from([{}, {"init": "rank_expanding"}, {"activation": "sine", "init": "siren", "omega": 10.0}]),
    st.sampled_from(["trace", "full", 1]),
    st.lists(st.sampled_from([1e-2, 1e-4, 1e-5, 1e-6]), min_size=1, max_size=2, unique=True),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.integers(0, 1000),
)
def test_counts_hold_the_truth(settings, output, rtols, scale, seed):
    """By tolerances and by levels, by pivots and by what takes over from them, of the network in fp64."""
    net = inr.INR(2, 2, width=24, hidden_layers=2, seed=seed, dtype=torch.float64, **settings)
    with torch.no_grad():
        net.layers[1].weight[:3] = net.layers[1].weight[:1]
        net.layers[-1].weight *= scale
    kernel, used = inr.ntk(net, inr.grid((18, 18)), output=output), []
    own, given = type(kernel).rounded, inr.ntk(net, inr.grid((18, 18)), output=output, precision="highest")
    values = torch.linalg.eigvalsh(given.to_dense()).flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kernel), "rounded", lambda self, *rest: used.append(own(self, *rest)) or used[-1])
        s = kernel.counts(rtols)
        absolute = [2.0 * rtol * float(values[0]) for rtol in rtols]
        other = kernel.counts(levels=absolute)
    assert used[0] is not None
    exact = kernel.at_precision("highest").jacobian_error
    assert s.jacobian_error > exact > 0
    for rtol, level in zip(rtols, absolute, strict=True):
        assert int((values > rtol * values[0]).sum()) in s.rank(rtol)
        assert int((values > level).sum()) in other.count_above(level)


def test_a_factorisation_after_rounded_pivots_counts_the_exact_kernel(monkeypatch):
    """Where pivots give way, what counts then is not moved by rounding."""
    monkeypatch.setattr(Alternative, "verdict", lambda self, rank, *rest: "enough" if rank >= 200 else "")
    net = inr.INR(2, 1, width=64, hidden_layers=1, activation="sine", omega=200.0, seed=0, dtype=torch.float64)
    kernel = inr.ntk(net, inr.grid((40, 40)), precision="highest")
    found = kernel.counts(1e-3)
    values = torch.linalg.eigvalsh(kernel.to_dense()).flip(0)
    assert "factorisation" in found.note
    count = found.rank(1e-3)
    assert count.lower == count.upper == int((values > 1e-3 * values[0]).sum())


def test_it_is_left_where_it_is_no_use(monkeypatch):
    net = inr.INR(2, 1, width=16, hidden_layers=1, seed=0)
    kernel = inr.ntk(net, inr.grid((20, 20)), precision="highest")
    assert kernel.rounded(level_of(1e-6), EVERYTHING) is not None
    assert kernel.rounded(level_of(1e-12), EVERYTHING) is None  # it would move eigenvalues of that size
    assert kernel.rounded(lambda largest: 0.0, EVERYTHING) is None
    assert kernel.layers["layers.0"].rounded(level_of(1e-6), EVERYTHING) is None
    assert inr.ntk(net, inr.grid((20, 20))).rounded(level_of(1e-6), EVERYTHING) is None
    other = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    assert inr.ntk(other, inr.grid((20, 20)), precision="highest").rounded(level_of(1e-6), EVERYTHING) is None
    kernel.diagonal()
    assert kernel.left.store.kept and kernel.rounded(level_of(1e-6), EVERYTHING) is None
    for scale in (1e-30, 1e30):
        net = inr.INR(2, 1, width=16, hidden_layers=1, seed=0, dtype=torch.float64)
        with torch.no_grad():
            net.layers[-1].weight *= scale
        assert inr.ntk(net, inr.grid((20, 20)), precision="highest").rounded(level_of(1e-3), EVERYTHING) is None
    monkeypatch.setattr("inrfast.tangent.rounded.RELEASED", 1 << 40)
    assert inr.ntk(inr.INR(2, 1), inr.grid((20, 20)), precision="highest").rounded(level_of(1e-3), EVERYTHING) is None
