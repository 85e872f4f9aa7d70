"""Adapting to many signals is the plain loop of a few steps for each."""

import copy

import pytest
import torch
from PIL import Image
from torch.optim import SGD, Adam

import inrfast as inr
from inrfast.metrics import psnr

COORDS = inr.grid((9, 7)).double()


def network() -> inr.INR:
    return inr.INR(2, 1, width=8, hidden_layers=2, activation="sine", init="siren", omega=5.0, dtype=torch.float64)


def signals(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adam", Adam)])
def test_each_signal_takes_the_steps_of_a_plain_loop(name: str, kind: type) -> None:
    start, values = network(), signals()
    before = copy.deepcopy(start.state_dict())
    some = torch.arange(63) % 2 == 0
    seen, other = values.flatten(1)[:, some], values.flatten(1)[:, ~some]
    result = inr.adapt(
        start, COORDS[some], seen, 5, 1e-2, name, eval_coords=COORDS[~some], eval_signals=other, data_range=1.0
    )
    for place, y in enumerate(seen):
        net = copy.deepcopy(start)
        optimizer = kind(net.parameters(), lr=1e-2)
        for step in range(6):
            assert float(result.psnrs[step, place]) == pytest.approx(
                psnr(net(COORDS[~some]).squeeze(1), other[place]), abs=1e-6
            )
            loss = (net(COORDS[some]).squeeze(1) - y).square().mean()
            if step < 5:
                assert float(result.losses[step, place]) == pytest.approx(float(loss.detach()))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for name_, own in net.state_dict().items():
            torch.testing.assert_close(result.nets[place].state_dict()[name_], own)
    assert all(torch.equal(own, before[n]) for n, own in start.state_dict().items())


def test_points_of_each_signal_and_a_common_range() -> None:
    start, values = network(), 0.2 * signals(3).flatten(1)
    coords = torch.rand(3, 63, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = inr.adapt(start, coords, values, 2)
    assert together.data_range == pytest.approx(float(values.max() - values.min()))
    for place in range(3):
        alone = inr.adapt(start, coords[place], values[place : place + 1], 2, data_range=together.data_range)
        torch.testing.assert_close(alone.psnrs[:, 0], together.psnrs[:, place])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fits_that_diverge_are_nan_and_named() -> None:
    with pytest.warns(RuntimeWarning, match="4 of 4 fits diverged"):
        result = inr.adapt(
            inr.INR(2, 1, width=8, hidden_layers=3, activation="relu").double(), COORDS, signals(), 60, 1e4
        )
    assert bool(result.psnrs[-1].isnan().all())
    assert bool(result.psnrs[0].isfinite().all())


def test_bad_arguments_are_named() -> None:
    start = network()
    with pytest.raises(ValueError, match="eval_coords needs eval_signals"):
        inr.adapt(start, COORDS, signals(), eval_coords=COORDS)
    with pytest.raises(ValueError, match="eval_signals must hold 4 signals, got 3"):
        inr.adapt(start, COORDS, signals(), eval_signals=signals(3))
    with pytest.raises(ValueError, match="optimizer must be one of"):
        inr.adapt(start, COORDS, signals(), optimizer="sgdd")
    with pytest.raises(ValueError, match=r"signals\[0\] must have shape"):
        inr.adapt(start, COORDS, signals().mT[:, :5])


def test_no_steps_give_the_psnrs_of_the_start() -> None:
    start, values = network(), signals()
    none, one = (inr.adapt(start, COORDS, values, steps, data_range=1.0) for steps in (0, 1))
    assert none.losses.shape == (0, 4) and torch.equal(none.psnrs, one.psnrs[:1])
    for net in none.nets:
        assert all(torch.equal(own, start.state_dict()[name]) for name, own in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("data_range", [None, 1, 255])
@pytest.mark.parametrize("kind", ["tensor", "pictures"])
def test_pixels_have_the_psnr_of_their_values(data_range, kind):
    pixels = torch.randint(60, 100, (3, 9, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = pixels if kind == "tensor" else [Image.fromarray(own.numpy()) for own in pixels]
    usual = inr.adapt(network(), COORDS, pixels.double() / 255, data_range=1)
    for evaluated in (None, given):
        found = inr.adapt(network(), COORDS, given, data_range=data_range, eval_signals=evaluated)
        assert found.data_range == 1 and torch.allclose(found.psnrs, usual.psnrs)
    with pytest.raises(ValueError, match="signals and eval_signals must be of one kind"):
        inr.adapt(network(), COORDS, given, eval_signals=pixels.double())
    with pytest.raises(ValueError, match="must be of one kind"):
        inr.meta_learn(network(), COORDS, [pixels[0], pixels[1].double()], steps=1)
    with pytest.raises(ValueError, match="data_range must be 255"):
        inr.adapt(network(), COORDS, given, data_range=100)
