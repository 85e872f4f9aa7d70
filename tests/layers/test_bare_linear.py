"""Bare weights in linear maps: the factors that nn.Linear has, whatever function multiplies."""

import copy
import pickle

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

CALLS = {
    "linear": (False, lambda x, w, b: F.linear(x, w, b)),
    "by keyword": (False, lambda x, w, b: F.linear(bias=b, weight=w, input=x)),
    "without bias": (False, lambda x, w, b: F.linear(x, w) + b),
    "view": (False, lambda x, w, b: F.linear(x, w[:], b[None][0])),
    "matmul": (True, lambda x, w, b: x @ w + b),
    "matmul of the transpose": (False, lambda x, w, b: torch.matmul(x, w.t()) + b),
    "addmm": (True, lambda x, w, b: torch.addmm(b, x, w)),
    "addmm of the transpose": (False, lambda x, w, b: torch.addmm(b, x, w.T)),
    "mm in place": (True, lambda x, w, b: x.mm(w).add_(b)),
    "permuted": (False, lambda x, w, b: x.matmul(w.permute(1, 0)) + b.unsqueeze(-2)),
    "einsum": (False, lambda x, w, b: torch.einsum("ni,oi->no", x, w) + b),
    "einsum of columns": (True, lambda x, w, b: torch.einsum("io, ...i -> ...o", w, x) + b),
    "batch of one": (False, lambda x, w, b: F.linear(x[None], w, b)[0]),
}
PAIRS = {"linear", "by keyword", "view", "addmm", "addmm of the transpose", "batch of one"}


class Layer(nn.Module):
    def __init__(self, inputs, outputs, way):
        super().__init__()
        transposed, self.call = CALLS[way]
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return self.call(x, self.weight, self.bias)


def network(ways, widths):
    parts = [
        part for a, b, way in zip(widths, widths[1:], ways, strict=False) for part in (Layer(a, b, way), nn.Tanh())
    ]
    return nn.Sequential(*parts[:-1])


@settings(max_examples=6)
@given(st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=3), st.integers(0, 10**6), st.data())
def test_bare_weights_have_the_factors_of_linear_layers(ways, seed, data):
    torch.manual_seed(seed)
    widths = [2, *data.draw(st.lists(st.integers(1, 5), min_size=len(ways), max_size=len(ways)))]
    net, coords = network(ways, widths), random_coords(5, 2, seed)
    truth = jacobian_by_points(net, coords).flatten(0, 1)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)
    p = torch.randn(truth.shape[1], 2, dtype=torch.float64)
    torch.testing.assert_close(J @ p, truth @ p, rtol=1e-10, atol=1e-11)
    v = torch.randn(len(truth), 2, dtype=torch.float64)
    torch.testing.assert_close(J.T @ v, truth.t() @ v, rtol=1e-10, atol=1e-11)
    expected = []
    for way in ways:
        expected += ["bare_linear"] if way in PAIRS else ["bare_linear", "bare_rows"]
    assert [layer.kind for layer in J.specs] == expected
    for (a, b), layer in zip(J.capture.widths, J.specs, strict=True):
        if layer.kind == "bare_linear":
            outputs = layer.outputs
            assert (a, b) == (layer.columns // outputs, outputs)


def test_a_siren_of_bare_weights_is_a_siren():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 2))
    bare = network(["linear"] * 3, [2, 9, 9, 2])
    bare.load_state_dict(net.state_dict())
    coords = random_coords(20, 2, 0)
    one, other = inr.ntk(net, coords), inr.ntk(bare, coords)
    assert one.left.capture.widths == other.left.capture.widths
    assert list(one.layers) == list(other.layers)
    assert one.cost().factor_bytes == other.cost().factor_bytes
    assert set(other.cost().ways.values()) == {"two factors (bare_linear)"}
    torch.testing.assert_close(one.to_dense(), other.to_dense(), rtol=1e-6, atol=0)
    report, same = (inr.diagnose(module, coords, progress=False) for module in (net, bare))
    for own, its in zip(report.sensitivities, same.sensitivities, strict=True):
        assert own.trace == pytest.approx(its.trace)
        assert [r.lower for r in own.spectrum.ranks] == [r.lower for r in its.spectrum.ranks]


class Decay(nn.Module):
    """Uses its weight once more, in what every output gets."""

    def __init__(self, use):
        super().__init__()
        self.weight, self.bias, self.use = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2)), use

    def forward(self, x):
        return self.use(self, x)


def in_part(net, x):
    return torch.cat([F.linear(x, net.weight[:1]), torch.sin(F.linear(x, net.weight[1:]))], 1) + net.bias


def written(net, x):
    y = torch.zeros_like(x)
    y[:, 0] = net.bias[0]
    return F.linear(torch.sin(x + y), net.weight, net.bias)


def two_calls(net, x):
    return F.linear(torch.sin(F.linear(x, net.weight, net.bias)), net.weight)


def without_derivative(net, x):
    return F.linear(x, net.weight, net.bias) * net.weight.data.sum() + torch.sin(x @ net.weight.detach())


USES = {
    "decay": (lambda net, x: F.linear(x, net.weight, net.bias) + 0.1 * net.weight.square().sum(), "bare_rows"),
    "two calls": (two_calls, "bare_rows"),
    "both ways": (lambda net, x: torch.tanh(x @ net.weight) @ net.weight.t() * net.bias, "bare_rows"),
    "in part": (in_part, "bare_rows"),
    "normalised": (lambda net, x: F.linear(x, F.normalize(net.weight, dim=1) * net.bias[:, None]), "bare_rows"),
    "overwritten": (lambda net, x: F.linear(x, net.weight, net.bias).sin_().mul_(2).add_(x), "bare_linear"),
    "without derivative": (without_derivative, "bare_linear"),
    "positions": (lambda net, x: F.linear(torch.stack([x, x**2], 1), net.weight, net.bias).tanh().sum(1), "bare_rows"),
    "chosen by points": (lambda net, x: torch.where(x > net.bias, x @ net.weight, x), "bare_linear"),
    "from the left": (lambda net, x: (net.weight @ x.t()).t() + net.bias, "autodiff"),
    "einsum of both": (lambda net, x: torch.einsum("ni,oi,nj->no", x, net.weight, x) + net.bias, "autodiff"),
    "einsum of sums": (lambda net, x: torch.einsum("ni,oj->no", x, net.weight) + net.bias, "autodiff"),
    "einsum in part": (lambda net, x: torch.einsum("ni,ji->n", x, net.weight)[:, None] + net.bias, "autodiff"),
    "unknown": (lambda net, x: F.bilinear(x, x, net.weight[None], net.bias[:1]).expand(-1, 2), "autodiff"),
}


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
@pytest.mark.parametrize("name", USES)
def test_a_weight_that_is_used_otherwise_goes_another_way(name):
    torch.manual_seed(0)
    use, kind = USES[name]
    net, coords = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), Decay(use), nn.Linear(2, 2)), random_coords(9, 2, 0)
    truth = jacobian_by_points(net, coords).flatten(0, 1)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)
    assert next(layer.kind for layer in J.specs if "2.weight" in layer.parameters) == kind


class Inside(nn.Module):
    """A layer of bare parameters and what follows it, in a checkpoint or not."""

    def __init__(self, checkpointed):
        super().__init__()
        self.weight, self.bias, self.omega = (nn.Parameter(torch.randn(shape)) for shape in ((2, 2), (2,), ()))
        self.checkpointed = checkpointed

    def run(self, x):
        return torch.sin(self.omega * F.linear(x, self.weight, self.bias)).mul_(2)

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) if self.checkpointed else self.run(x)


@pytest.mark.filterwarnings("ignore:parameters .*omega.* in an activation checkpoint")
def test_checkpoints_run_bare_layers_once_more():
    torch.manual_seed(0)
    plain, coords = nn.Sequential(Inside(False), Inside(False)), random_coords(9, 2, 0)
    net = nn.Sequential(Inside(True), Inside(True))
    net.load_state_dict(plain.state_dict())
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), jacobian_by_points(plain, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)
    assert [layer.kind for layer in J.specs] == ["bare_linear", "autodiff"] * 2


class Widths(nn.Module):
    """As many units as some sample may have points, in every axis."""

    def __init__(self, width):
        super().__init__()
        self.first, self.gain = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(width))
        self.second = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return torch.sin(x @ self.first) @ (self.gain * self.second) * self.gain


@pytest.mark.parametrize("width", [4, 32])
def test_units_are_not_taken_for_points(width):
    torch.manual_seed(0)
    net = Widths(width)
    for n in {1, width}:
        coords = random_coords(n, 2, n)
        J = inr.jacobian(net, coords, precision="highest")
        truth = jacobian_by_points(net, coords).flatten(0, 1)
        torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-11)
        assert [layer.kind for layer in J.specs] == ["bare_linear", "bare_rows", "bare_rows"]


def test_copies_and_streams_of_bare_layers_are_the_same_kernel():
    torch.manual_seed(0)
    net = nn.Sequential(Decay(two_calls), nn.Tanh(), nn.Linear(2, 1))
    coords = random_coords(700, 2, 0)
    K = inr.ntk(net, coords)
    dense, v = K.to_dense(), torch.ones(700, 1)
    streamed = inr.ntk(net, coords, memory_budget=2**14)
    assert not streamed.left.store.fits
    torch.testing.assert_close(streamed @ v, dense @ v, rtol=1e-5, atol=0)
    for other in (pickle.loads(pickle.dumps(K)), copy.deepcopy(K)):
        assert torch.equal(other.to_dense(), dense)
