"""Parameters used in odd ways: sliced, masked, tied, in place, in loops; always exact, whichever handler takes them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from random_networks import random_coords
from torch import nn

import inrfast as inr

pytestmark = pytest.mark.filterwarnings("ignore:parameters .* automatic differentiation:RuntimeWarning")


class Net(nn.Module):
    """Two linear layers and bare parameters, and what happens with them in the forward pass."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(2, 6), nn.Linear(6, 1), way
        self.gain, self.matrix = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(6, 6))
        self.table, self.experts = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x):
        return self.way(self, x)


def cell(x):
    return ((x[:, 0] + 1) * 4).long().clamp(0, 8)


def expert(x):
    return (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def masked(radius):
    def way(net, x):
        inside = x.norm(dim=1) < radius
        out = torch.zeros(len(x), 1, dtype=x.dtype)
        out[inside] = net.b(torch.tanh(net.a(x[inside])))
        return out

    return way


def routed(net, x):
    h, own = torch.tanh(net.a(x)), expert(x)
    out = torch.zeros_like(h)
    for k, matrix in enumerate(net.experts):
        out[own == k] = h[own == k] @ matrix
    return net.b(out)


def in_place(net, x):
    h = net.a(x)
    h *= net.gain
    h += net.gain
    return net.b(h.sin_())


def views_that_overlap(net, x):
    h = net.a(x)
    return net.b(torch.cat([h @ net.matrix[:4].t(), h @ net.matrix[4:].t()], 1) + h * net.matrix[0])


def table_read_in_many_ways(net, x):
    i, t = cell(x), net.table
    read = t[i] * t[i - 9] + t.t()[:, (i + 1) % 9].t() + t.index_select(0, (i + 2) % 9) + F.embedding(i, t)
    return net.b(torch.tanh(net.a(x)) * (read + t[2:][i.clamp(max=6)] + t[torch.stack([i, 8 - i], 1)].sum(1)))


def pairs_of_points(net, x):
    h, n = net.a(x), len(x)
    h = torch.cat([h, h[-1:]]) if n % 2 else h
    return net.b(h.view(-1, 2, 6)).view(-1, 1)[:n]


def scaled_gradient(net, x):
    h = net.a(x)
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return net.b(torch.tanh(h))


def second_derivatives(net, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net.b(torch.sin(net.a(x))).sum(), x, create_graph=True)
        return torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0]


def low_rank_change(net, x):
    return net.b(torch.sin(F.linear(x, net.a.weight + net.matrix[:, :2] @ net.matrix[:2, :2], net.a.bias)))


def normed_by_hand(net, x):
    weight = net.gain[:, None] * net.a.weight / net.a.weight.norm(dim=1, keepdim=True)
    return net.b(torch.sin(F.linear(x, weight, net.a.bias)))


def solved(net, x):
    return net.b(torch.linalg.solve(net.matrix + 9 * torch.eye(6).to(x), net.a(x).t()).t())


USES = {
    "masked": masked(0.7),
    "masked at few points": masked(1.35),
    "experts by index": lambda net, x: net.b(torch.bmm(torch.tanh(net.a(x))[:, None], net.experts[expert(x)])[:, 0]),
    "experts in a loop": routed,
    "in place": in_place,
    "views that overlap": views_that_overlap,
    "table": table_read_in_many_ways,
    "pairs": pairs_of_points,
    "backwards": lambda net, x: net.b(torch.tanh(net.a(x.flip(0)))).flip(0),
    "backwards inside": lambda net, x: net.b(torch.tanh(net.a(x.flip(0)).flip(0))),
    "gradient hook": scaled_gradient,
    "second derivatives": second_derivatives,
    "low rank change": low_rank_change,
    "normed by hand": normed_by_hand,
    "solved": solved,
    "twice in a product": lambda net, x: net.b(net.a(x) @ net.matrix @ net.matrix.t() * net.gain + net.a(x) * net.gain),
    "repeated": lambda net, x: net.b(torch.tanh(net.a(x) + net.gain.repeat(len(x), 1))),
    "lerp": lambda net, x: net.b(torch.lerp(net.a(x), torch.sin(net.a(x)), net.gain)),
    "functional": lambda net, x: torch.func.functional_call(
        net.b, {"weight": net.matrix[:1], "bias": net.gain[:1]}, (net.a(x),)
    ),
    "vmap": lambda net, x: torch.vmap(lambda point: net.b(torch.tanh(net.a(point))))(x),
    "loop": lambda net, x: torch.stack([net.b(torch.tanh(net.a(point))) for point in x]),
    "chunks": lambda net, x: torch.cat([net.b(torch.tanh(net.a(part))) for part in x.split(3)]),
    "by its numbers": lambda net, x: net.b(net.a(x)) if float(net.gain.detach().sum()) > 0 else net.a(x)[:, :1],
}


def exact_rows(net, coords):
    """Return the Jacobian (N M, P) by torch.autograd, point by point."""
    net, rows = copy.deepcopy(net).double(), []
    parameters = list(net.parameters())
    for point in coords.double():
        for value in net(point.expand(2, -1))[0]:
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", USES)
def test_odd_uses_of_parameters_are_exact(name):
    net, coords = Net(USES[name]), random_coords(21, 2, 0)
    truth = exact_rows(net, coords)
    K = inr.ntk(net, coords, coords[:5], output="full", precision="highest")
    torch.testing.assert_close(K.left.rows(), truth, rtol=1e-10, atol=1e-10 * float(truth.abs().max()))
    expected = truth @ truth[: K.shape[1]].t()
    torch.testing.assert_close(K.to_dense(), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
