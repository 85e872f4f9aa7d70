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


@pytest.mark.parametrize(
    "of", [inr.KAR, lambda points: inr.TotalVariation(points, mode="derivatives"), inr.DirichletEnergy]
)
def test_running_statistics_are_those_of_the_fit_alone(of):
    """With a factor of 0 a regulariser changes nothing, though its points lie elsewhere."""
    x = inr.grid((8, 8))

    def fitted(regularizers):
        net = inr.INR(2, 1, width=16, norm="batch", seed=0)
        result = inr.fit(net, x, x.sin()[:, :1], steps=20, lr=1e-2, regularizers=regularizers, progress=False)
        return result.psnr, dict(net.named_buffers())

    plain, with_none = fitted([]), fitted([(of(inr.grid((6, 6), bounds=(-3, 3))), 0.0)])
    assert abs(plain[0] - with_none[0]) < 0.1
    for name, own in plain[1].items():
        torch.testing.assert_close(with_none[1][name], own, rtol=1e-3, atol=1e-4)
