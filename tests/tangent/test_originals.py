"""Networks whose copies still reach the original, what they do not use, and forward passes that need gradients."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from random_networks import random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Field(nn.Module):
    """A layer, a bare parameter that ``act`` takes, and a head."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(2, 5), nn.Linear(5, 2)
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        self.kept = None

    def act(self, h):
        return torch.sin(self.w * h)

    def forward(self, x):
        return self.head(self.act(self.a(x)))


def by_a_lambda(net):
    net.act = lambda h: torch.sin(net.w * h)


def by_a_layer_in_a_closure(net):
    layer = net.a
    net.act = lambda h: layer(h[:, :2]).sin()


def by_a_hook(net):
    net.a.register_forward_hook(lambda module, args, output: output * net.w)


def by_a_wrapped_forward(net):
    old = net.forward
    net.forward = lambda x: 2 * old(x)


def by_views_made_once(net):
    net.part = net.w.view(5)
    net.act = Kept(net)


def by_a_cache_of_an_earlier_pass(net):
    net.part = 2 * net.w.exp()
    net.act = Kept(net)


class Kept:
    """Multiplies by what the network keeps."""

    def __init__(self, net):
        self.net = net

    def __call__(self, h):
        return torch.sin(self.net.part * h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "reach",
    [
        by_a_lambda,
        by_a_layer_in_a_closure,
        by_a_hook,
        by_a_wrapped_forward,
        by_views_made_once,
        by_a_cache_of_an_earlier_pass,
    ],
)
def test_what_a_copy_reaches_of_the_original_is_refused(reach, dtype):
    net = Field().to(dtype)
    reach(net)
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    with pytest.raises(UnsupportedModuleError, match=r"net reaches its parameter '(w|a\.weight)' .*Reach it"):
        inr.ntk(net, random_coords(9, 2, 0))
    assert all(vars(module).keys() == before[name].keys() for name, module in net.named_modules())


def test_what_select_closes_over_is_refused():
    net = Field()
    with pytest.raises(UnsupportedModuleError, match=r"its parameter 'head\.weight'"):
        inr.ntk(net, random_coords(9, 2, 0), select=lambda out: out @ net.head.weight)


class Merged(nn.Module):
    """Two weights, merged and kept at the first pass in eval mode; with ``detached`` they are constants then."""

    def __init__(self, detached):
        super().__init__()
        self.W, self.A = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 2))
        self.scale = nn.Parameter(torch.randn(3))
        self.detached, self.kept = detached, None

    def forward(self, x):
        if self.kept is None:
            self.kept = (self.W + self.A).detach() if self.detached else self.W + self.A
        return (x @ self.kept.T).sin() * self.scale


def test_a_filled_cache_is_constant_and_told_of_once_for_every_network():
    for _ in range(2):
        net = Merged(detached=True)
        coords = random_coords(6, 2, 0)
        with pytest.warns(RuntimeWarning, match="do not depend on its parameters 'W', 'A': their rows .* are zero"):
            K = inr.ntk(net, coords, precision="highest")
        assert net.kept is None
        h = (coords.double() @ (net.W + net.A).double().T).sin()
        torch.testing.assert_close(K.to_dense(), h @ h.t())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inr.ntk(net, coords)


def by_autograd(net, coords):
    """Return the rows of the Jacobian in fp64, output after output."""
    net = copy.deepcopy(net).double()
    outputs, parameters = net(coords.double()).flatten(), list(net.parameters())
    rows = [torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True) for y in outputs]
    zeros = [torch.zeros_like(parameter) for parameter in parameters]
    filled = [[z if g is None else g for g, z in zip(row, zeros, strict=True)] for row in rows]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in filled])


def test_a_graph_that_a_pass_keeps_counts():
    net, coords = Merged(detached=False), random_coords(6, 2, 0)
    truth = by_autograd(net, coords)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth, rtol=1e-10, atol=1e-12)


class Normed(Field):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def act(self, h):
        return F.rms_norm(0.01 * h, (5,), eps=self.eps) * self.w


def test_an_epsilon_of_the_dtype_is_to_be_given():
    coords = random_coords(6, 2, 0)
    with pytest.raises(UnsupportedModuleError, match=r"rms_norm without eps.*eps=1\.19.*e-07 is what torch\.float32"):
        inr.ntk(Normed(None), coords)
    inr.ntk(Normed(torch.finfo(torch.float32).eps), coords)
    net = Normed(None).double()
    truth = by_autograd(net, coords)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth, rtol=1e-10, atol=1e-12)


class Watched(Field):
    def act(self, h):
        h.retain_grad()
        h.register_hook(lambda gradient: None)
        return super().act(h)


class Slope(Field):
    def forward(self, x):
        x.requires_grad_()
        return torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("kind", [Watched, Slope])
def test_forward_passes_that_need_gradients(kind):
    net, coords = kind(), random_coords(5, 2, 0)
    truth = by_autograd(net, coords)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth, rtol=1e-10, atol=1e-12)
