"""Linear maps of parameters alone, in modulators and hypernetworks: two factors, against automatic differentiation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import jacobian_by_points
from random_networks import random_coords
from torch import nn
from torch.utils.checkpoint import checkpoint

import inrfast as inr

WIDTH = 4


class Module(nn.Module):
    """``nn.Linear``."""

    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.map = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, h):
        return self.map(h)


class Bare(nn.Module):
    """A bare weight in one of the functions that multiply by a matrix."""

    def __init__(self, inputs, outputs, bias, way):
        super().__init__()
        shape = (inputs, outputs) if way in ("columns", "sum") else (outputs, inputs)
        self.weight, self.way = nn.Parameter(torch.randn(shape) / inputs**0.5), way
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, h):
        if self.way == "sum" and self.bias is not None:
            return torch.addmm(self.bias, h.reshape(1, -1), self.weight).view(*h.shape[:-1], -1)
        if self.way == "rows" or (self.way == "first" and h.ndim != 1):
            return F.linear(h, self.weight, self.bias)
        u = self.weight @ h if self.way == "first" else h @ self.weight
        return u if self.bias is None else u.add_(self.bias)


ACTIVATIONS = (torch.sin, torch.tanh, F.relu, torch.relu_, lambda u: u, lambda u: u.mul_(2).exp_().clamp(max=3))


class Coded(nn.Module):
    """Layers of points between which stands what a chain of linear maps makes of a latent code."""

    def __init__(self, draw):
        super().__init__()
        self.axes, self.again, self.ending = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
        self.saved, size = draw(st.booleans()), draw(st.integers(1, 3))
        self.latent = nn.Parameter(torch.randn(*[1] * self.axes, size))
        self.uses = draw(st.lists(st.sampled_from(sorted(USES)), min_size=1, max_size=3))
        self.activations = [draw(st.sampled_from(ACTIVATIONS)) for _ in self.uses]
        self.maps, self.points = nn.ModuleList(), nn.ModuleList()
        inputs = size
        for k, use in enumerate(self.uses):
            way, bias = draw(st.sampled_from(["module", "rows", "columns", "sum", "first"])), draw(st.booleans())
            outputs = USES[use][0]
            self.maps.append(Module(inputs, outputs, bias) if way == "module" else Bare(inputs, outputs, bias, way))
            self.points.append(nn.Linear(WIDTH if k else 2, WIDTH))
            inputs = outputs + self.again * size
        self.head = nn.Linear(WIDTH, draw(st.integers(1, 2)))

    def mods(self, z):
        h, found = z, []
        for act, step in zip(self.activations, self.maps, strict=True):
            h = act(step(h))
            found.append(h)
            h = torch.cat([h, z], dim=-1) if self.again else h
        return tuple(found)

    def forward(self, x):
        z = torch.tanh(self.latent)
        mods = checkpoint(self.mods, z, use_reentrant=False) if self.saved else self.mods(z)
        for layer, use, mod in zip(self.points, self.uses, mods, strict=True):
            x = torch.sin(USES[use][1](layer(x), mod))
        if self.ending:  # one tensor of parameters alone that meets the points several times
            x = x * mods[0].sum() + mods[-1].reshape(-1)[:1]
        return self.head(x)


def gain_in_place(h, mod):
    h *= mod if mod.ndim == 2 else mod.unsqueeze(0)
    return h


def film(h, mod):
    gain, shift = mod.chunk(2, dim=-1)
    return h * (1 + gain) + shift


def low_rank(h, mod):
    left, right = mod.reshape(2, WIDTH, 2)
    return h + h @ (left @ right.t())


USES = {
    "gain": (WIDTH, lambda h, mod: h * mod),
    "gain in place": (WIDTH, gain_in_place),
    "shift": (WIDTH, lambda h, mod: h + mod.reshape(-1).expand(len(h), -1)),
    "film": (2 * WIDTH, film),
    "weight": (WIDTH * WIDTH, lambda h, mod: F.linear(h, mod.reshape(WIDTH, WIDTH))),
    "weight and bias": (WIDTH * WIDTH + WIDTH, lambda h, mod: F.linear(h, *parts_of(mod.reshape(-1)))),
    "low rank": (4 * WIDTH, low_rank),
    "one": (1, lambda h, mod: h * mod),
    "twice": (WIDTH, lambda h, mod: h * mod + torch.cos(h) * mod.square()),
}


def parts_of(mod):
    return mod[WIDTH:].view(WIDTH, WIDTH), mod[:WIDTH]


def agrees(net):
    coords = random_coords(6, 2, 0)
    J = inr.jacobian(net, coords, precision="highest")
    chosen = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()])
    if getattr(net, "saved", False):  # torch.func knows no checkpoints
        net = copy.deepcopy(net)
        net.saved = False
    wanted = jacobian_by_points(net, coords).flatten(0, 1)[:, chosen]
    torch.testing.assert_close(J.rows(), wanted, rtol=1e-10, atol=1e-11)
    return {name: layer for layer in J.specs for name in layer.parameters}


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 2**20))
def test_weights_of_chains_of_a_latent_code_are_two_factors(data, seed):
    torch.manual_seed(seed)
    net = Coded(data.draw)
    frozen = data.draw(st.sets(st.sampled_from(["latent", *(f"maps.{k}." for k in range(len(net.maps)))])))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not any(name.startswith(start) for start in frozen))
    for name, layer in agrees(net).items():
        if name.startswith("maps") and name.endswith("weight"):
            outputs, inputs = layer.block
            assert layer.kind == "bare_constant"
            assert {outputs, inputs - (len(layer.parameters) - 1)} == set(net.get_parameter(name).shape)


class Modulated(nn.Module):
    """Gains made by two linear maps of a latent code, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.latent, self.codes = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 3))
        self.first, self.second = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inlet, self.head, self.way = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 2), way

    def forward(self, x):
        return self.head(self.way(self, torch.sin(self.inlet(x))))


def heads(p, h):
    trunk = p.first(p.latent)
    return F.linear(h, torch.outer(trunk, torch.sin(trunk)), p.second(trunk))


def heads_in_another_order(p, h):
    trunk = torch.tanh(p.second(F.pad(p.latent, (0, 1))))
    return torch.addmm(p.first(trunk[1:]), h, torch.outer(trunk, torch.sin(trunk)).t()) * trunk


def of_a_row(p, h):
    trunk = F.linear(p.codes[1], p.first.weight, bias=p.first.bias)
    return h + p.second(trunk.unsqueeze(0)).expand(len(h), -1)


@pytest.mark.parametrize("way", [heads, heads_in_another_order, of_a_row])
def test_weights_and_biases_of_points_come_from_one_code(way):
    torch.manual_seed(0)
    net = Modulated(way)
    (net.latent if way is of_a_row else net.codes).requires_grad_(False)
    kinds = {name: layer.kind for name, layer in agrees(net).items()}
    assert {kinds[f"{layer}.{own}"] for layer in ("first", "second") for own in ("weight", "bias")} == {"bare_constant"}


OTHERWISE = {
    "twice": lambda p, h: h * p.second(p.second(p.first(p.latent))),
    "several rows": lambda p, h: h * p.second(p.first(p.codes).tanh()).sum(0),
    "points too": lambda p, h: p.second(h) * p.second(p.first(p.latent)),
    "bare points too": lambda p, h: h @ p.second.weight.t() + p.second(p.first(p.latent)),
    "its norm too": lambda p, h: h * p.second(p.first(p.latent)) * p.second.weight.norm(),
    "one row of it too": lambda p, h: h * p.second(p.first(p.latent)) + p.second.weight[1],
    "in part": lambda p, h: h * F.pad(p.second.weight[:2] @ p.first(p.latent), (1, 1)),
    "another matrix": lambda p, h: h * F.linear(p.first(p.latent), p.second.weight * p.second.bias),
    "as the input": lambda p, h: h @ (p.second.weight @ p.second.weight[:, :1] @ p.first(p.latent)[None]),
}


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_a_weight_that_is_used_otherwise_goes_another_way(name):
    torch.manual_seed(0)
    kinds = {name: layer.kind for name, layer in agrees(Modulated(OTHERWISE[name])).items()}
    assert kinds["second.weight"] != "bare_constant"
    assert (kinds["first.weight"] == "bare_constant") is (name != "several rows")


def test_a_bias_that_is_used_otherwise_leaves_the_weight_two_factors():
    torch.manual_seed(0)
    found = agrees(Modulated(lambda p, h: h * p.second(p.first(p.latent)) + p.second.bias))
    kinds = {name: layer.kind for name, layer in found.items()}
    assert (kinds["second.weight"], kinds["second.bias"]) == ("bare_constant", "bare_rows")


def test_reports_know_maps_of_a_latent_code():
    torch.manual_seed(0)
    net, coords = Modulated(lambda p, h: h * p.second(torch.sin(p.first(p.latent)))), random_coords(9, 2, 0)
    net.codes.requires_grad_(False)
    K = inr.ntk(net, coords)
    two = dict.fromkeys(["first", "second"], "two factors (bare_constant)")
    assert K.cost().ways == {
        "latent": "rows (bare_rows)",
        **two,
        **dict.fromkeys(["inlet", "head"], "two factors (linear)"),
    }
    # What is the same at all points is no representation of them.
    assert "inlet" in str(inr.representation(net, coords, layer="inlet"))
    with pytest.raises(ValueError, match=r"one of \['inlet', 'input'\]"):
        inr.representation(net, coords, layer="first")
    assert "first" in str(inr.diagnose(net, coords))
