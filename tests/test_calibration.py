"""Batch norms of any module take exact statistics of the full set of points, layer after layer."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_coords
from torch import nn
from torch.nn.parallel import DataParallel

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Aside(nn.Sequential):
    """A batch norm that the forward pass leaves out."""

    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        return self[0](x)


class AnyAxes(nn.Module):
    """Batch norms of every kind, the first called last but one, in a network of (..., d)."""

    def __init__(self, affine, momentum):
        super().__init__()
        options = {"affine": affine, "momentum": momentum}
        self.last = nn.BatchNorm3d(2, **options)
        self.a, self.flat = nn.Linear(2, 12), nn.BatchNorm1d(12, **options)
        self.image, self.line = nn.SyncBatchNorm(3, **options), nn.BatchNorm1d(4, **options)
        self.head = nn.Linear(12, 1)

    def steps(self, x):
        """Yield each norm and what enters it; what is sent back is its output."""
        h = yield self.flat, self.a(x.flatten(0, -2))
        h = yield self.image, h.sin().view(-1, 3, 2, 2)
        h = yield self.line, h.exp().reshape(-1, 4, 3)
        h = yield self.last, h.square().reshape(-1, 2, 3, 2, 1)
        return self.head(h.flatten(1)).reshape(*x.shape[:-1], 1)

    def forward(self, x):
        steps = self.steps(x)
        try:
            norm, given = next(steps)
            while True:
                norm, given = steps.send(norm(given))
        except StopIteration as end:
            return {"value": end.value}


@pytest.mark.filterwarnings("ignore:parameters .* automatic differentiation:RuntimeWarning")
@given(
    affine=st.booleans(),
    momentum=st.sampled_from([0.1, None]),
    shape=st.sampled_from([(37, 2), (1, 37, 2), (5, 8, 2)]),
    frozen=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_statistics_are_those_of_all_points_layer_after_layer(affine, momentum, shape, frozen, seed):
    """Law: what each norm holds is mean and variance of what enters it, by hand, over all points and positions."""
    torch.manual_seed(seed)
    net = AnyAxes(affine, momentum).double()
    net.line.train(not frozen)
    modes = [module.training for module in net.modules()]
    coords = random_coords(math.prod(shape[:-1]), 2, seed).double().reshape(shape)
    wrapped = DataParallel(net, device_ids=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inrfast.calibration.CALIBRATION_ROWS", 16)
        assert inr.calibrate_batchnorm_(wrapped, coords.numpy()) is wrapped
    assert [module.training for module in net.modules()] == modes
    assert all(not module._forward_pre_hooks for module in net.modules())
    steps = net.steps(coords)
    norm, entering = next(steps)
    for _ in range(4):
        axes = [axis for axis in range(entering.ndim) if axis != 1]
        mean, variance = entering.mean(axes), entering.var(axes, correction=0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        along = (-1, *[1] * (entering.ndim - 2))
        leaving = (entering - mean.view(along)) / (variance.view(along) + norm.eps).sqrt()
        if affine:
            leaving = leaving * norm.weight.view(along) + norm.bias.view(along)
        try:
            norm, entering = steps.send(leaving)
        except StopIteration as end:
            torch.testing.assert_close(net.eval()(coords)["value"], end.value)
    assert inr.ntk(net, coords, select="value").shape == (coords[..., 0].numel(),) * 2


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("encoding", [None, inr.RandomFourier(4, 1.0)])
def test_calibrated_batchnorm_equals_one_batch_in_train_mode(position, encoding):
    net = inr.INR(2, 1, width=8, norm="batch", norm_position=position, encoding=encoding).double()
    coords = inr.grid((13, 9), dtype=torch.float64)
    assert inr.calibrate_batchnorm_(net, coords) is net
    assert net.training
    expected = copy.deepcopy(net).train()(coords)
    torch.testing.assert_close(net.eval()(coords), expected)


def test_calibration_streams_over_chunks(monkeypatch):
    coords = inr.grid((20, 20))
    nets = [inr.INR(2, 1, width=8, norm=["batch", None, "batch"]) for _ in range(2)]
    inr.calibrate_batchnorm_(nets[0], coords)
    monkeypatch.setattr("inrfast.calibration.CALIBRATION_ROWS", 33)
    inr.calibrate_batchnorm_(nets[1], coords)
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_calibration_refuses():
    net = inr.INR(2, 1, width=4, norm="batch")
    with pytest.raises(ValueError, match="no batch norm"):
        inr.calibrate_batchnorm_(inr.INR(2, 1), inr.grid((4, 4)))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        inr.calibrate_batchnorm_(lambda x: x, inr.grid((4, 4)))
    with pytest.raises(ValueError, match="2 points"):
        inr.calibrate_batchnorm_(net, inr.grid((1, 1)))
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        inr.calibrate_batchnorm_(net, inr.grid((4,)))
    twice = nn.BatchNorm1d(3)
    for wrong, error, message in (
        (nn.Sequential(nn.Linear(2, 3), twice, nn.Tanh(), twice), UnsupportedModuleError, "'1' is used 2 times"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)), UnsupportedModuleError, "'1'"),
        (Aside(), ValueError, "'1' is not reached"),
    ):
        before = copy.deepcopy(wrong.state_dict())
        with pytest.raises(error, match=message):
            inr.calibrate_batchnorm_(wrong, inr.grid((4, 4)))
        assert all(torch.equal(before[name], now) for name, now in wrong.state_dict().items())
