"""Native steps behind a trained encoding against fp64 autograd: pieces, batches, weights, and when others step in."""

from __future__ import annotations

import copy

import pytest
import torch

import inrfast as inr
from inrfast.encodings import Compose, HashGrid, Polynomial, RandomFourier
from inrfast.ops import mlp_step
from inrfast.training.engines import encoded

ENCODINGS = {
    "polynomial": Polynomial(2, trainable=True),
    "scaled fourier": Compose(Polynomial(1, trainable=True, constant=False), RandomFourier(6, 1.0)),
    "fourier": RandomFourier(6, 1.0, trainable=True),
    "hash grid": HashGrid(levels=3, finest=20, table_size=2**8),
}

X = inr.grid((13, 17))
Y = torch.cat([torch.sin(5 * X.sum(1, keepdim=True)), X[:, :1] ** 2], 1)
WEIGHT = (X[:, 0] + 1.1).abs()

needs_native = pytest.mark.skipif(not mlp_step.reaches_inputs(), reason="no native step with gradients of inputs here")


def network(kind: str, **options) -> inr.INR:
    net = inr.INR(2, 2, width=24, hidden_layers=2, encoding=ENCODINGS[kind], **options)
    with torch.no_grad():
        for name, own in net.named_parameters():
            if name == "encoding.table":
                own.mul_(1e4)  # or what a step changes is below the rounding of the rest
    return net


def moved(net: inr.INR, **options) -> list[torch.Tensor]:
    """Return minus the gradient of a step, taken from what plain descent at rate 1 changes."""
    own = copy.deepcopy(net)
    data = [one.to(next(net.parameters()).dtype) for one in (X, Y, WEIGHT)]
    given = {"steps": 1, "lr": 1.0, "schedule": "constant", "optimizer": "sgd", "progress": False, **options}
    result = inr.fit(own, *data[:2], weight=data[2], **given)
    expected = "layerwise" if data[0].dtype == torch.float32 else "chunked"
    assert result.config["gradient"] == expected
    return [
        new.detach().double() - old.detach().double()
        for new, old in zip(own.parameters(), net.parameters(), strict=True)
    ]


@needs_native
@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("kind", list(ENCODINGS))
def test_gradients_are_those_of_fp64_autograd(kind, batch_size, monkeypatch):
    monkeypatch.setattr(encoded, "PIECE", 90)  # pieces, the last one shorter
    net = network(kind)
    mine, theirs = moved(net, batch_size=batch_size), moved(copy.deepcopy(net).double(), batch_size=batch_size)
    for own, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, wanted, atol=3e-5 * float(wanted.abs().max()) + 2e-7, rtol=0)


@needs_native
def test_losses_evaluations_and_frozen_parts():
    net = network("polynomial")
    net.layers[1].weight.requires_grad_(False)
    before = net.layers[1].weight.clone()
    expected = float((copy.deepcopy(net).double()(X.double()) - Y.double()).square().mean().detach())
    result = inr.fit(net, X, Y, steps=3, eval_coords=X, eval_target=Y, eval_every=1, progress=False)
    assert result.config["gradient"] == "layerwise" and torch.equal(net.layers[1].weight, before)
    assert result.losses[0] == pytest.approx(expected, rel=1e-5)
    assert 10 ** (-result.psnrs[0] / 10) * result.data_range**2 == pytest.approx(expected, rel=1e-5)


@needs_native
def test_a_fit_is_repeated_bit_by_bit_and_resumed(tmp_path):
    options = {"lr": 1e-3, "batch_size": 60, "seed": 4, "progress": False, "schedule": "constant"}
    whole, again = network("hash grid"), network("hash grid")
    losses = inr.fit(whole, X, Y, steps=8, **options).losses
    file = {"checkpoint": tmp_path / "fit.safetensors"}
    inr.fit(again, X, Y, steps=4, **options, **file)
    again = network("hash grid")
    assert inr.fit(again, X, Y, steps=8, resume=True, **options, **file).losses == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@needs_native
def test_what_it_does_not_take_goes_on_as_before(monkeypatch):
    for options in ({"norm": "layer"}, {"dtype": torch.float64}):
        net = network("polynomial", **options)
        data = [own.to(net.layers[0].weight.dtype) for own in (X, Y)]
        assert inr.fit(net, *data, steps=1, progress=False).config["gradient"] == "chunked"
    monkeypatch.setattr(mlp_step, "reaches_inputs", lambda: False)  # an extension that was built before
    assert inr.fit(network("polynomial"), X, Y, steps=1, progress=False).config["gradient"] == "chunked"
