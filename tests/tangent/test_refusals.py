"""Networks without an exact Jacobian are refused by name, and the advice of the message works."""

import threading

import pytest
import torch
import torch.nn.functional as F
from others_modules import REFUSED, Size
from random_networks import exact_jacobian, random_coords
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import inrfast as inr
from inrfast.errors import UnsupportedModuleError
from inrfast.tangent.refusals import check_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:parameters .* automatic differentiation:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]


def assert_exact(net, dimensions=2):
    coords = random_coords(7, dimensions, 0)
    found = inr.jacobian(net, coords, precision="highest").rows()
    torch.testing.assert_close(found, exact_jacobian(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)


def mlp(change=lambda linear: linear):
    torch.manual_seed(0)
    return nn.Sequential(change(nn.Linear(2, 6)), nn.Tanh(), nn.Linear(6, 2))


def bake(net):
    parametrize.remove_parametrizations(net[0], "weight")


def fill(net):
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.normal_(parameter)


NORMED = {
    "weight norm": (parametrizations.weight_norm, "remove_parametrizations", bake),
    "spectral norm": (parametrizations.spectral_norm, "remove_parametrizations", bake),
    "orthogonal": (parametrizations.orthogonal, "remove_parametrizations", bake),
    "weight norm by a hook": (
        nn.utils.weight_norm,
        r"torch\.nn\.utils\.remove_weight_norm",
        lambda net: nn.utils.remove_weight_norm(net[0]),
    ),
    "spectral norm by a hook": (
        nn.utils.spectral_norm,
        r"torch\.nn\.utils\.remove_spectral_norm",
        lambda net: nn.utils.remove_spectral_norm(net[0]),
    ),
    "on no device": (lambda linear: linear.to("meta"), r"'0\.weight' holds no numbers yet.*to_empty", fill),
    "lazy": (lambda linear: nn.LazyLinear(6), "run net once", lambda net: net(torch.zeros(3, 2))),
}


@pytest.mark.parametrize("name", NORMED)
def test_parameters_that_are_made_of_others_or_hold_no_numbers(name):
    change, message, cure = NORMED[name]
    net = mlp(change)
    with pytest.raises(UnsupportedModuleError, match=message):
        inr.ntk(net, random_coords(6, 2, 0))
    cure(net)
    assert_exact(net)


def test_parts_on_several_devices():
    with pytest.raises(ValueError, match=r"spread over devices: '0\.weight' is on cpu.*net\.to\(device\)"):
        check_tensors(mlp(), torch.device("cuda"))


class Wave(nn.Module):
    """A layer of complex weights, held as such or as real and imaginary part."""

    def __init__(self, whole):
        super().__init__()
        weight = torch.randn(6, 2, dtype=torch.complex64)
        self.weight = nn.Parameter(weight if whole else torch.view_as_real(weight))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return self.head(torch.exp(1j * (x.to(weight.dtype) @ weight.t())).real)


def test_complex_parameters():
    with pytest.raises(UnsupportedModuleError, match=r"'weight' is complex.*view_as_real.*view_as_complex"):
        inr.ntk(Wave(True), random_coords(6, 2, 0))
    assert_exact(Wave(False))


@pytest.mark.parametrize("name", REFUSED)
def test_networks_of_others_that_are_refused(name):
    other, message = REFUSED[name]
    with pytest.raises(UnsupportedModuleError, match=message):
        inr.ntk(other.make(Size()), random_coords(6, other.dimensions, 0))


class Coupled(nn.Module):
    """What is done over the points between two layers; ``kept`` are statistics of a batch."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(2, 6), nn.Linear(6, 1), between
        self.norm = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.gate = nn.Parameter(torch.zeros(6))
        self.attention = nn.MultiheadAttention(6, 2)
        self.kept = None

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def standardised(net, h):
    mean, std = net.kept or (h.mean(0), h.std(0))
    return (h - mean) / std


COUPLED = {
    "standardised": standardised,
    "largest": lambda net, h: h / h.abs().amax().detach(),
    "instance norm over points": lambda net, h: net.norm(h.t().unsqueeze(0))[0].t(),
    "attention": lambda net, h: h + net.attention(h, h, h)[0],
    "softmax": lambda net, h: torch.softmax(h @ h.t(), 1) @ h,
    "sorted": lambda net, h: h.sort(0).values,
    "summed along": lambda net, h: h.cumsum(0),
    "neighbour": lambda net, h: h - h.roll(1, 0),
    "faint": lambda net, h: h + 1e-4 * h.mean(0),
    "counted": lambda net, h: h / len(h),
    "numbered": lambda net, h: h + torch.arange(len(h), device=h.device)[:, None],
    "behind zeros": lambda net, h: h + net.gate * h.mean(0),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_points(name):
    with pytest.raises(UnsupportedModuleError, match=r"couples samples.*buffer that the forward pass only reads"):
        inr.ntk(Coupled(COUPLED[name]), random_coords(40, 2, 0))


def test_statistics_that_are_kept_couple_no_points():
    net, coords = Coupled(standardised), random_coords(40, 2, 0)
    h = net.a(coords).detach().double()
    net.kept = h.mean(0), h.std(0)
    assert_exact(net)
    net = Coupled(COUPLED["instance norm over points"])
    net(coords)
    assert_exact(net.eval())


class Again(nn.Module):
    """One layer in several places."""

    def __init__(self, way):
        super().__init__()
        self.a, self.h, self.b, self.way = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 1), way

    def forward(self, x):
        return self.way(self, x)


def with_its_transpose(net, x):
    h = torch.tanh(net.a(x))
    return F.linear(torch.tanh(net.h(h)), net.h.weight.t()) @ net.a.weight


AGAIN = {
    "in turn": lambda net, x: net.b(net.h(torch.tanh(net.h(torch.tanh(net.a(x)))))),
    "on two inputs": lambda net, x: net.b(torch.tanh(net.a(x)) - torch.tanh(net.a(-2 * x))),
    "on two inputs at once": lambda net, x: net.b(torch.tanh(net.a(torch.stack([x, -x])))).sum(0),
    "beside its own weight": with_its_transpose,
    "at some points": lambda net, x: net.b(torch.where(x[:, :1] > 0, net.h(net.a(x)), net.h(net.h(net.a(x))))),
    "at one sign": lambda net, x: net.b(net.h(net.a(x)) * (x[:, :1] > 0)) + net.b(net.a(x) * (x[:, :1] <= 0)),
    "detached once": lambda net, x: net.b(net.h(torch.tanh(net.h(net.a(x))).detach()) + net.h(net.a(x))),
}


@pytest.mark.parametrize("name", AGAIN)
def test_layers_in_several_places_are_exact(name):
    torch.manual_seed(0)
    assert_exact(Again(AGAIN[name]))


def test_pruned_parameters_are_exact():
    net, coords = mlp(), random_coords(7, 2, 0)
    prune.random_unstructured(net[0], "weight", 0.5)
    found = inr.jacobian(net, coords, precision="highest").rows()
    parameters = list(net.double().parameters())
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in net(coords.double()).flatten()]
    truth = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


class Phases(nn.Module):
    """A complex buffer, which turns real features."""

    def __init__(self):
        super().__init__()
        self.a, self.turn = nn.Linear(2, 3), nn.Buffer(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        h = self.a(x)
        return (torch.complex(h, h.square()) * self.turn).real


def test_complex_buffers_are_exact():
    net, coords = Phases(), random_coords(7, 2, 0)
    found, turn = inr.jacobian(net, coords, precision="highest").rows(), net.turn.to(torch.complex128)
    weight, bias = net.a.weight.detach().double(), net.a.bias.detach().double()
    h = coords.double() @ weight.t() + bias
    slope = turn.real - 2 * h * turn.imag
    rows = [torch.func.vmap(torch.diag)(slope)]
    rows.insert(0, (rows[0].unsqueeze(3) * coords.double()[:, None, None, :]).flatten(2))
    torch.testing.assert_close(found, torch.cat(rows, 2).flatten(0, 1), rtol=1e-12, atol=1e-12)


def test_attributes_without_a_copy_and_outputs_that_are_no_tensors_are_refused_with_the_way_out():
    coords, net = random_coords(7, 2, 0), mlp()
    net[0].lock = threading.Lock()
    with pytest.raises(UnsupportedModuleError, match=r"'lock' of module '0' cannot be copied.*__deepcopy__"):
        inr.ntk(net, coords)
    del net[0].lock
    net.register_forward_hook(lambda module, given, out: {"c": {"fine": out}})
    with pytest.raises(TypeError, match=r"net returns dict \['c'\]; pass select="):
        inr.ntk(net, coords)
    with pytest.raises(TypeError, match=r"select='c' gives dict \['fine'\], no tensor"):
        inr.ntk(net, coords, select="c")
    assert inr.ntk(net, coords, select=lambda returned: returned["c"]["fine"]).shape == (7, 7)
