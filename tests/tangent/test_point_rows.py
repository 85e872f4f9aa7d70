"""Rows by automatic differentiation: every way gives the same, the fastest that is right is taken, copies keep it."""

import copy
import pickle

import pytest
import torch
from random_modules import BLOCKS, jacobian_by_points
from random_networks import random_coords
from torch import nn

import inrfast as inr
from inrfast.layers import LAYERS, layers_of
from inrfast.tangent.point_rows import PointRows

pytestmark = pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")


@pytest.mark.parametrize("kind", sorted(set(BLOCKS) - {"squeezed"}))
def test_all_ways_give_the_same_rows(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), BLOCKS[kind](4), nn.Linear(4, 3)).double()
    names = [name for name, _ in net.named_parameters()]
    layers, coords = layers_of(net, names, dict.fromkeys(names, LAYERS)), random_coords(5, 2, 0).double()
    cotangents = torch.randn(5, 2, 3, dtype=torch.float64)
    truth = jacobian_by_points(net, coords)
    for copies in (0,) if kind == "branching" else (0, 1, 2):
        rows = PointRows(net, layers, net)
        rows._copies = copies
        found = torch.cat([factors.sensitivities for factors in rows(coords)], 2)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
        found = torch.cat([factors.sensitivities for factors in rows(coords, cotangents)], 2)
        torch.testing.assert_close(found, cotangents @ truth, rtol=1e-10, atol=1e-12)


@pytest.fixture
def few_kinds(monkeypatch):
    """Linear layers, and automatic differentiation for everything else."""
    monkeypatch.setattr(LAYERS, "_items", {kind: LAYERS[kind] for kind in ("linear", "autodiff")})


class Dropped(nn.Module):
    """Drops the axis of outputs, and that of a single point with it."""

    def forward(self, x):
        return x.squeeze()


@pytest.mark.parametrize(("kind", "copies"), [("gain", 1), ("conv", 1), ("squeezed", 1), ("branching", 0)])
def test_the_fastest_way_that_is_right_is_taken_and_copies_keep_the_kernel(kind, copies, few_kinds):
    torch.manual_seed(0)
    last = Dropped() if kind == "squeezed" else nn.Identity()
    net, coords = nn.Sequential(nn.Linear(2, 4), BLOCKS[kind](4), nn.Linear(4, 1), last), random_coords(9, 2, 0)
    K = inr.ntk(net, coords)
    dense = K.to_dense()
    assert K.left.capture._rows._copies == copies
    for other in (pickle.loads(pickle.dumps(K)), copy.deepcopy(K)):
        assert torch.equal(other.to_dense(), dense)


class Alone(nn.Module):
    """Treats a single point otherwise than two of them."""

    def __init__(self):
        super().__init__()
        self.lin, self.gain = nn.Linear(2, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.lin(x) * self.gain * (1.0 if len(x) > 1 else 1.001)


def test_a_way_that_gives_other_rows_is_not_taken(few_kinds):
    net, coords = Alone(), random_coords(6, 2, 0)
    J = inr.jacobian(net, coords, precision="highest")
    assert J.capture._rows._copies == 2
    torch.testing.assert_close(J.rows(), jacobian_by_points(net, coords).flatten(0, 1))
