"""Passes in pieces give the same numbers and gradients, keep less, and are left alone where points depend on others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import inrfast as inr
from inrfast.calling import Calling
from inrfast.training.regularizers import passes

X = inr.grid((20, 15), dtype=torch.float64)


def kept(call) -> int:
    sizes: dict[int, int] = {}

    def keep(own):
        sizes[own.untyped_storage().data_ptr()] = own.untyped_storage().nbytes()
        return own

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda own: own):
        call()
    return sum(sizes.values())


def test_pieces_give_the_same_numbers_and_keep_less(monkeypatch):
    net, calling = inr.INR(2, 2, width=32, dtype=torch.float64), Calling()
    parameters = list(net.parameters())
    whole = passes.evaluated(net, calling, X)
    before, stated = kept(lambda: passes.evaluated(net, calling, X)), passes.evaluated_bytes(net, calling, X)
    assert before <= stated <= 3 * before
    monkeypatch.setattr(passes, "PIECE", 64)
    pieces = passes.evaluated(net, calling, X)
    assert passes.in_pieces(net, len(X))
    torch.testing.assert_close(pieces, whole, atol=1e-14, rtol=1e-13)
    one, other = (torch.autograd.grad(own.square().sum(), parameters) for own in (pieces, whole))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)
    assert kept(lambda: passes.evaluated(net, calling, X)) < before / 3
    assert passes.evaluated_bytes(net, calling, X) < stated / 3


@pytest.mark.parametrize("net", [inr.INR(2, 1, width=8, norm="batch"), nn.Sequential(nn.Linear(2, 3), nn.Softmax(0))])
def test_networks_that_may_couple_points_take_them_at_once(net, monkeypatch):
    whole = net(X.float())
    monkeypatch.setattr(passes, "PIECE", 64)
    assert not passes.in_pieces(net, len(X))
    torch.testing.assert_close(passes.evaluated(net, Calling(), X.float()), whole)


class Counting(nn.Module):
    """A network whose passes in train mode change buffers, running statistics and a count, and that is not an INR."""

    def __init__(self, norm):
        super().__init__()
        norms = [nn.BatchNorm1d(8)] if norm else []
        self.net = nn.Sequential(nn.Linear(2, 8), *norms, nn.Tanh(), nn.Linear(8, 1)).double()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.passes += 1
        return self.net(x)


REGULARISERS = {
    "KAR": lambda: inr.KAR(X, rows=40, keys=40),
    "differences": lambda: inr.TotalVariation(3 * X),
    "derivatives": lambda: inr.DirichletEnergy(3 * X, mode="derivatives", rows=50),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_no_buffer_of_a_network_changes_but_by_the_fit_itself(name):
    """A factor of 0 is a fit without, and after any factor the count and the statistics are those of the steps."""
    y, options = X.sin().prod(1), {"steps": 6, "lr": 1e-2, "progress": False}
    plain = [(0.0, [])]
    norms = name != "derivatives"
    for factor, own in [*plain, (0.0, [(REGULARISERS[name](), 0.0)]), (0.1, [(REGULARISERS[name](), 0.1)])]:
        torch.manual_seed(0)
        kind = "batch" if norms else None
        net, norm = Counting(norms), inr.INR(2, 1, width=8, norm=kind, dtype=torch.float64)
        for one in (net, norm):
            inr.fit(one, X, y, regularizers=own, **options)
        states = [one.state_dict() for one in (net, norm)]
        if not own:
            wanted = states
        assert states[0]["passes"] >= 6
        for mine, theirs in zip(states, wanted, strict=True):
            for key in mine:
                if factor == 0 or mine[key].dtype == torch.int64:
                    torch.testing.assert_close(mine[key], theirs[key], atol=1e-9, rtol=1e-9)


def test_buffers_come_back_after_an_error_and_shared_ones_stay_shared():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Linear(3, 1)).double()
    net[1].register_buffer("running_mean", net[0].running_mean)
    before = dict(net.named_buffers(remove_duplicate=False))
    with passes.buffers_kept(net):
        assert net[0].running_mean is net[1].running_mean is not before["0.running_mean"]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        passes.evaluated(net, Calling(), X)
    assert all(own is before[name] for name, own in net.named_buffers(remove_duplicate=False))
    assert float(before["0.running_mean"].abs().sum()) == 0
