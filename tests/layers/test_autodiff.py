"""Kernels and Jacobians of networks of any layers, against automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import jacobian_by_points, modules
from random_networks import exact_kernel, random_coords

import inrfast as inr

pytestmark = pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
ALLOWED = {"highest": 1e-10, "high": 1e-6, "medium": 2e-4}


@settings(max_examples=15)
@given(
    modules(),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(sorted(ALLOWED)),
    st.sampled_from(["trace", "full", 0]),
    st.sampled_from([None, 3000]),
    st.data(),
)
def test_every_network_has_its_kernel(net, n, seed, precision, output, budget, data):
    """Rows, products, entries and eigenvalues, of all parameters or some, kept or streamed."""
    coords = random_coords(n, net.inlet.in_features, seed)
    names = [name for name, _ in net.named_parameters()]
    chosen = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(names), min_size=1, unique=True)))
    truth = jacobian_by_points(net, coords, None if chosen is None else [name for name in names if name in chosen])
    tol, flat = ALLOWED[precision], truth.flatten(0, 1)
    size = flat.norm(dim=1)
    rng = torch.Generator().manual_seed(seed)

    J = inr.jacobian(net, coords, params=chosen, precision=precision, memory_budget=budget and 10 * budget)
    p, v = (torch.randn(count, 2, generator=rng, dtype=torch.float64) for count in flat.shape[::-1])
    assert J.shape == tuple(flat.shape)
    for point in {0, n - 1}:
        m = truth.shape[1]
        assert ((J.rows(point) - truth[point]).abs() <= tol * size[point * m : point * m + m, None] + 1e-300).all()
    assert ((J @ p - flat @ p).abs() <= 4 * tol * torch.outer(size, p.norm(dim=0)) + 1e-300).all()
    assert ((J.T @ v - flat.t() @ v).abs() <= 4 * tol * (size @ v.abs()) + 1e-300).all()

    K = inr.ntk(net, coords, params=chosen, output=output, precision=precision, memory_budget=budget and 10 * budget)
    exact = exact_kernel(truth, truth, output)
    root = exact.diagonal().clamp_min(0).sqrt()
    allowed = tol * torch.outer(root, root) + 1e-300
    columns = K.columns(torch.arange(K.shape[1]))
    assert ((columns - exact).abs() <= allowed).all()
    assert ((sum(layer.columns(slice(None)) for layer in K.layers.values()) - exact).abs() <= 2 * allowed).all()
    assert ((K.diagonal() - exact.diagonal()).abs() <= allowed.diagonal()).all()
    w = torch.randn(K.shape[1], 2, generator=rng, dtype=torch.float64)
    assert ((K @ w - exact @ w).abs() <= 4 * (allowed @ w.abs()) + 1e-300).all()
    if budget is None:
        eigenvalues = torch.linalg.eigvalsh(exact).flip(0)
        found = K.spectrum(progress=False).eigenvalues
        assert float((found - eigenvalues).abs().max()) <= 1e-9 * float(eigenvalues[0])
