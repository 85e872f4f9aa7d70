"""Networks that treat a few late points otherwise, or have no derivative there: found, named, and right by the cure."""

import re

import pytest
import torch
import torch.nn.functional as F
from random_modules import HiddenProduct
from random_networks import exact_kernel
from torch import nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Field(nn.Module):
    """A field of two layers, by bare weights too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(6))

    def field(self, x):
        return self.b((self.a(x) * self.c).sin())

    def forward(self, x):
        return self.field(x)


class Sorted(Field):
    def forward(self, x):
        order = torch.argsort((x.abs() > 1).any(1).long(), stable=True)
        y = self.field(x[order])
        return torch.empty_like(y).index_copy(0, order, y)


class SortedBare(Field):
    def forward(self, x):
        order = torch.argsort((x.abs() <= 1).all(1).long(), stable=True)
        y = F.linear(F.linear(x[order], self.a.weight).sin() * self.c, self.b.weight)
        return torch.empty_like(y).index_copy(0, order, y)


class OnceMore(Field):
    def forward(self, x):
        y, rare = self.field(x), x[:, 0] > 1
        if rare.any():
            y = y.clone()
            y[rare] = y[rare] + x[rare] @ self.b.weight[:, :2].T
        return y


class ByFunction(Field):
    def forward(self, x):
        h = self.a(x).sin()
        if (x[:, 0] > 1).any():
            h = h + 1e-3 * (x[:, :1] > 1) * HiddenProduct.apply(x, self.a.weight)
        return self.b(h * self.c)


class Boxed(Field):
    def forward(self, x):
        inside = (x.abs() <= 1).all(1)
        y = x.new_zeros(len(x), 2)
        y[inside] = self.field(x[inside])
        return y


class Unique(Field):
    def forward(self, x):
        points, places = torch.unique(x, dim=0, return_inverse=True)
        return self.field(points)[places]


def truth(net, coords):
    net.double()
    outputs, parameters = net(coords.double()), list(net.parameters())
    rows = [torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True) for y in outputs.flatten()]
    zeros = [torch.zeros_like(parameter) for parameter in parameters]
    rows = [[z if g is None else g for g, z in zip(row, zeros, strict=True)] for row in rows]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(*outputs.shape, -1)
    return exact_kernel(J, J, "trace")


@pytest.mark.parametrize("kind", [Sorted, SortedBare, OnceMore, ByFunction, Boxed, Unique])
@pytest.mark.filterwarnings("ignore:parameters")
def test_late_points_that_a_network_treats_otherwise_are_named_and_come_right_by_the_cure(kind):
    torch.manual_seed(0)
    net, coords = kind(), 1.8 * torch.rand(700, 2) - 0.9
    rare = [333]
    if kind is Unique:
        coords[333], rare = coords[501], [333, 501]
    else:
        coords[333, 0] = 1.7
    with pytest.raises(UnsupportedModuleError, match=r"Such points: .*Put them first in coords") as caught:
        inr.ntk(net, coords, precision="highest").to_dense()
    (listed,) = re.findall(r"Such points: (.*)\. Put", str(caught.value))
    named = torch.tensor([[float(entry) for entry in point.strip("()").split(",")] for point in listed.split("; ")])
    torch.testing.assert_close(named, coords[rare])
    kept = torch.ones(len(coords), dtype=torch.bool)
    kept[rare] = False
    coords = torch.cat([coords[rare], coords[kept]])
    found = inr.ntk(net, coords, precision="highest").to_dense()[:40, :40]
    torch.testing.assert_close(found, truth(net, coords[:40]), rtol=1e-10, atol=1e-12)


def test_a_late_point_without_a_derivative_is_named():
    class Root(Field):
        def forward(self, x):
            return self.b((self.a(x) - self.a.bias).square().sum(1, keepdim=True).sqrt() * self.c)

    coords = torch.rand(700, 2) + 0.1
    coords[433] = torch.tensor([0.0, 0.0])
    with pytest.raises(ValueError, match=r"NaN or Inf at the point \(0\.0, 0\.0\) of coords"):
        inr.ntk(Root(), coords).to_dense()


def test_rows_of_very_different_size_are_checked_alike():
    class Uneven(OnceMore):
        def forward(self, x):
            return super().forward(x) * (1e-5 * (x[:, :1] > 1) + 1.0 * (x[:, :1] <= 1))

    coords = 1.8 * torch.rand(700, 2) - 0.9
    coords[333, 0] = 1.7
    with pytest.raises(UnsupportedModuleError, match="layer 'b'"):
        inr.ntk(Uneven(), coords).to_dense()
