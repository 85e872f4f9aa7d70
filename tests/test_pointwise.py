"""Networks that look at their batch are noticed by ntk, fit, its PSNR and render; networks that do not never are."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError, UnsupportedModuleError
from inrfast.pointwise import RANDOM, dependence
from inrfast.signals import render as rendering
from inrfast.signals.render import render


def number(z):
    return torch.arange(len(z), dtype=z.dtype).unsqueeze(1)


def encoded_rows(z):
    """Sines of the row number, as transformers add them."""
    return torch.sin(number(z) * torch.arange(1, z.shape[1] + 1, dtype=z.dtype))


# What a hidden layer's values (n, width) become when a module looks at its batch.
COUPLINGS = {
    "minimum": lambda z: z - z.amin(0),
    "mean": lambda z: z - z.mean(0),
    "maximum": lambda z: z / z.abs().amax(),
    "first row": lambda z: z - z[:1],
    "last row": lambda z: z * z[-1:],
    "row number": lambda z: z + 0.01 * number(z),
    "positions": lambda z: z + encoded_rows(z),
    "positions of the end": lambda z: z + encoded_rows(z).flip(0),
    "length": lambda z: z / len(z) ** 0.5,
    "sorted": lambda z: z.sort(0).values,
    "ranks": lambda z: z + z.argsort(0).argsort(0) / len(z),
    "standardised": lambda z: (z - z.mean(0)) / (z.std(0, unbiased=False) + 1e-5),
    "attention": lambda z: torch.softmax(z @ z.mT, 1) @ z,
    "neighbour": lambda z: z + z.roll(1, 0),
    "nearest": lambda z: z + z[(torch.cdist(z, z) + 1e9 * torch.eye(len(z), dtype=z.dtype)).argmin(1)],
    "pairs": lambda z: z.view(len(z) // 2, 2, -1).flip(1).reshape(z.shape),
    "cumulative": lambda z: z.cumsum(0),
}


def grouped(z):
    """Rows by expert, as mixtures and KiloNeRF do: another number of rows a product, the same function."""
    out = torch.empty_like(z)
    for rows in (z[:, 0] > 0, z[:, 0] <= 0):
        out[rows] = z[rows] @ torch.eye(z.shape[1], dtype=z.dtype) * 0.9
    return out


# And where it does not.
POINTWISE = {
    "identity": lambda z: z,
    "softmax over features": lambda z: torch.softmax(z, 1),
    "attention over features": lambda z: (torch.softmax(z.unsqueeze(2) * z.unsqueeze(1), 2) @ z.unsqueeze(2)).squeeze(
        2
    ),
    "squeezed": lambda z: z.squeeze(),
    "sorted features": lambda z: z.sort(1).values,
    "experts": grouped,
    "written in place": lambda z: z.clone().mul_(2),
    "a step": lambda z: z + (z > 0),
}


class Hidden(nn.Module):
    """A network whose hidden values go through a function."""

    def __init__(self, change, width=8, outputs=1, omega=3.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.change, self.omega = change, omega
        self.a, self.b = nn.Linear(2, width), nn.Linear(width, outputs)

    def forward(self, x):
        return self.b(torch.sin(self.omega * self.change(self.a(x))))


sizes = st.integers(1, 70)
seeds = st.integers(0, 10**6)


@given(st.sampled_from(sorted(COUPLINGS)), st.integers(2, 70), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_every_coupling_is_noticed(name, n, seed, dtype):
    net = Hidden(COUPLINGS[name], seed=seed % 100).to(dtype)
    coords = random_coords(n, 2, seed).to(dtype)
    for exact in (True, False):
        assert dependence(net, coords, exact=exact) not in (None, RANDOM)
    for call in (inr.ntk, inr.jacobian):
        with pytest.raises(UnsupportedModuleError, match="couples samples"):
            call(net, coords)


@given(st.sampled_from(sorted(POINTWISE)), sizes, seeds, st.sampled_from([1.0, 30.0]), st.integers(1, 300))
def test_networks_that_take_their_points_one_by_one_never_are(name, n, seed, omega, width):
    net = Hidden(POINTWISE[name], width + 1, 2, omega, seed % 100)
    coords = random_coords(n, 2, seed)
    assert dependence(net, coords) is None
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert dependence(copy.deepcopy(net).to(dtype), coords.to(dtype)) is None
    assert inr.ntk(net, coords).trace() > 0


@given(networks(), sizes, seeds, st.sampled_from([torch.float32, torch.float64]))
def test_nor_are_coordinate_networks(net, n, seed, dtype):
    net = net.to(dtype)
    assert dependence(net, random_coords(n, net.in_features, seed).to(dtype)) is None


@pytest.mark.parametrize("name", sorted(COUPLINGS))
@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_coupling_behind_a_head_of_zeros_is_noticed(monkeypatch, name, size):
    """It does not show in the predictions, but in the kernel, and in the fit from its second step on."""
    monkeypatch.setattr("inrfast.training.engines.autograd.cached_rows", lambda *arguments: 16)
    net, coords = Hidden(COUPLINGS[name]), inr.grid((9, 6))
    with torch.no_grad():
        net.b.weight.mul_(size)
    with pytest.raises(UnsupportedModuleError, match="couples samples"):
        inr.ntk(net, coords)
    assert inr.fit(net, coords, coords[:, :1], steps=1, progress=False).config["gradient"] == "whole"


@given(st.integers(40, 1900), st.sampled_from(["length", "row"]), seeds)
def test_dependence_that_begins_with_many_points_is_noticed(begin, kind, seed):
    def change(z):
        if len(z) <= begin:
            return z
        return 1.5 * z if kind == "length" else z - z[begin : begin + 1]

    net, coords = Hidden(change, seed=seed % 100), random_coords(2000, 2, seed)
    with pytest.raises(UnsupportedModuleError, match="couples samples"):
        inr.ntk(net, coords)
    assert dependence(net, coords, number=2000) is not None
    assert dependence(net, coords[:begin], number=begin) is None


@pytest.mark.parametrize("name", sorted(COUPLINGS))
def test_fit_its_psnr_and_render_take_all_points_of_such_a_network_at_once(monkeypatch, name):
    monkeypatch.setattr(rendering, "cached_rows", lambda *arguments: 16)
    monkeypatch.setattr("inrfast.training.engines.autograd.cached_rows", lambda *arguments: 16)
    coords = inr.grid((9, 6))
    target = (3 * coords).sin().prod(1, keepdim=True)
    net = Hidden(COUPLINGS[name])
    twin = copy.deepcopy(net)
    result = inr.fit(net, coords, target, steps=3, lr=1e-3, schedule="constant", progress=False)
    optimiser = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        (twin(coords) - target).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        expected = net(coords)
        torch.testing.assert_close(expected, twin(coords), rtol=1e-4, atol=1e-5)
    assert result.psnr == pytest.approx(-10 * math.log10(float((expected - target).square().mean())), abs=1e-3)
    torch.testing.assert_close(render(net, (9, 6)).view(-1, 1), expected)
    with pytest.raises(MemoryBudgetError, match="couples its points"):
        render(net, (900, 600), memory_budget=2**22)


def test_mini_batches_couple_their_own_points_and_the_psnr_is_of_all_at_once():
    coords = inr.grid((40, 30))
    target = (3 * coords).sin().prod(1, keepdim=True)
    net = Hidden(COUPLINGS["standardised"])
    result = inr.fit(net, coords, target, steps=5, batch_size=50, progress=False)
    with torch.no_grad():
        error = float((net(coords) - target).square().mean())
    assert result.config["gradient"] == "whole"
    assert result.psnr == pytest.approx(-10 * math.log10(error), abs=1e-3)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MemoryBudgetError, match="couples its points, or has hooks, at all 1200"):
        inr.fit(net, coords, target, steps=5, batch_size=50, memory_budget=100_000, progress=False)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Everything(nn.Module):
    """Takes the whole grid alone, as an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.mix, self.b = nn.Linear(2, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        image = torch.tanh(self.a(x)).T.reshape(1, 8, 20, 30)
        return self.b(torch.tanh(self.mix(image)).flatten(2)[0].T)


def test_a_network_of_one_grid_is_fitted_and_rendered_on_it(monkeypatch):
    monkeypatch.setattr(rendering, "cached_rows", lambda *arguments: 16)
    net, coords = Everything(), inr.grid((20, 30))
    result = inr.fit(net, coords, torch.rand(600, 3), steps=2, progress=False)
    assert result.config["gradient"] == "whole"
    with torch.no_grad():
        torch.testing.assert_close(render(net, (20, 30)).view(-1, 3), net(coords))
    with pytest.raises(ValueError, match="net does not take coords"):
        render(net, (21, 30))
    with pytest.raises(ValueError, match="net fails on points of coords"):
        inr.ntk(net, coords, params=["b"])


@pytest.mark.parametrize("points", [17, 33, 49])
def test_a_chunk_of_one_point_is_rendered_by_networks_that_squeeze(monkeypatch, points):
    monkeypatch.setattr(rendering, "cached_rows", lambda *arguments: 16)
    net = Hidden(torch.squeeze, outputs=3)
    with torch.no_grad():
        torch.testing.assert_close(render(net, (1, points)).view(-1, 3), net(inr.grid((1, points))))
    assert render(Hidden(torch.squeeze, outputs=3), (1, 1)).shape == (1, 1, 3)


def test_a_network_that_takes_one_size_alone_and_one_that_draws_are_named():
    coords = random_coords(40, 2, 0)
    assert "does not take 16 points" in dependence(Hidden(lambda z: z.view(4, 4, -1).flatten(0, 1)), coords)
    assert dependence(Hidden(lambda z: z + torch.randn_like(z)), coords) == RANDOM
