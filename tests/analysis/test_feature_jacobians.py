"""Ranks of feature Jacobians against singular values of Jacobians by reverse mode, and against known ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks, random_coords
from tqdm import tqdm

import inrfast as inr
from inrfast.analysis import feature_jacobians as module
from inrfast.analysis.feature_jacobians import feature_jacobians
from inrfast.modes import own_modes
from inrfast.tangent.capture import Capture
from inrfast.threads import cores

SILENT = tqdm(disable=True)


def ranks_of(net, coords, rtols, budget=1 << 30):
    capture = Capture(net, coords, precision="highest")
    with own_modes():
        return feature_jacobians(capture.mlp, capture.inputs(coords), rtols, budget, SILENT)


def known(singular_values, gain, seed):
    """A linear layer with these singular values, its rows behind a slope of ``gain`` but one, which is off."""
    d = len(singular_values)
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    net = inr.INR(d, 1, width=d + 1, hidden_layers=1, activation="relu", dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].weight[:d] = gain * left @ torch.diag(singular_values) @ right.t()
        net.layers[0].weight[d] = 1.0
        net.layers[0].bias.copy_(torch.tensor([1.0] * d + [-1.0]))
    return net


@settings(max_examples=15)
@given(net=networks(max_width=16, max_depth=3), n=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_ranks_are_those_of_the_singular_values(net, n, seed):
    coords, rtols = random_coords(n, net.in_features, seed), (0.3, 1e-2, 1e-4, 1e-6)
    mlp = Capture(net, coords, precision="highest").mlp
    exact = net.double()
    z = coords.double() if exact.encoding is None else exact.encoding(coords.double())
    assert len(mlp.hidden) == net.hidden_layers
    for index, found in enumerate(ranks_of(net, coords, rtols)):

        def layer(row, index=index):
            return exact.activate(index, exact.layers[index](row.unsqueeze(0)))[0]

        values = torch.stack([torch.linalg.svdvals(torch.func.jacrev(layer)(row)) for row in z]).detach()
        noise = 1e-13 * values.amax()  # a Jacobian that cancels to nothing
        for rtol, ranks in zip(rtols, found.ranks, strict=True):
            most = (values > rtol * (1 - 1e-6) * values[:, :1] - noise).sum(1)
            least = (values > rtol * (1 + 1e-6) * values[:, :1] + noise).sum(1)
            assert int(least.min()) <= ranks.minimum <= int(most.min())
            assert int(least.max()) <= ranks.maximum <= int(most.max())
        z = exact.activate(index, exact.layers[index](z)).detach()


@settings(max_examples=15)
@given(
    above=st.integers(1, 5),
    below=st.integers(0, 5),
    exponent=st.integers(1, 9),
    gain=st.sampled_from([1e-170, 1e-3, 1.0, 1e170]),
    seed=st.integers(0, 10**6),
)
def test_values_next_to_a_threshold_are_on_the_right_side(above, below, exponent, gain, seed):
    """Nearer than the square root of rounding, where the eigenvalues of a Gram matrix know nothing."""
    rtol = 10.0**-exponent
    apart = max(1e-9, 1e-13 / rtol)  # what the singular values themselves know
    values = torch.tensor([1.0] + [rtol * (1 + apart)] * above + [rtol * (1 - apart)] * below, dtype=torch.float64)
    coords = torch.zeros(3, len(values), dtype=torch.float64)
    (found,) = ranks_of(known(values, gain, seed), coords, (0.5, rtol) if rtol < 0.5 else (rtol,))
    assert found.ranks[-1].minimum == found.ranks[-1].maximum == 1 + above


def test_eigenvalues_decide_where_they_can(monkeypatch):
    """Of full and of deficient matrices alike: whoever asks for singular values here would take them everywhere."""
    net = inr.INR(2, 1, width=24, hidden_layers=3)
    with torch.no_grad():
        net.layers[1].weight[:, 5:] = 0
    coords = inr.grid((5, 5))
    expected = ranks_of(net, coords, (1e-2, 1e-9))
    monkeypatch.setattr(torch.linalg, "svdvals", lambda matrix: pytest.fail("asked for singular values"))
    for a, b in zip(ranks_of(net, coords, (1e-2, 1e-6)), expected, strict=True):
        assert [(r.minimum, r.median, r.maximum) for r in a.ranks] == [
            (r.minimum, r.median, r.maximum) for r in b.ranks
        ]


def test_threads_and_budgets_change_no_rank(monkeypatch):
    net, coords, rtols = inr.INR(2, 1, width=20, hidden_layers=2, activation="sine"), inr.grid((6, 6)), (1e-2, 1e-6)
    expected = ranks_of(net, coords, rtols)
    with cores(3):
        assert ranks_of(net, coords, rtols) == expected
    monkeypatch.setattr(module, "PASS_PIXELS", 5)
    assert ranks_of(net, coords, rtols, budget=1) == expected
