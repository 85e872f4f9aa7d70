"""What ``fit_many`` is given belongs to each network as it would in a fit of its own."""

import numpy as np
import pytest
import torch

import inrfast as inr


def network(bounds=None, outputs=1):
    return inr.INR(2, outputs, width=8, hidden_layers=1, seed=0, bounds=bounds)


@pytest.mark.parametrize("several", [False, True], ids=["one", "each"])
def test_each_network_has_the_grid_of_its_own_bounds(several):
    boxes = [(0, 1), None, (-2, 2), ((0, 1), (-1, 1)), (0.0, 1.0)]
    targets = [torch.rand(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(len(boxes))]
    targets = targets if several else [targets[0]] * len(boxes)
    options = {"steps": 3, "progress": False, "seed": 0}
    found = inr.fit_many([network(box) for box in boxes], None, targets if several else targets[0], **options)
    for box, target, own in zip(boxes, targets, found, strict=True):
        alone = inr.fit(network(box), None, target, **options)
        assert own.losses == pytest.approx(alone.losses, rel=1e-5) and own.psnr == pytest.approx(alone.psnr, abs=1e-3)


PIXELS = torch.randint(60, 100, (5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
OTHERS = {8: PIXELS, 16: PIXELS.to(torch.uint16) * 257, 0: PIXELS / 255}
NOTED = pytest.mark.filterwarnings("ignore:.*pixels of")


@NOTED
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("evaluated", OTHERS)
@pytest.mark.parametrize("coords", [None, inr.grid((5, 4))], ids=["none", "grid"])
def test_target_and_eval_target_are_pixels_of_one_kind_or_none(target, evaluated, coords):
    def fits():
        yield inr.fit(network(), coords, OTHERS[target], eval_target=OTHERS[evaluated], **options)
        yield from inr.fit_many([network()], coords, [OTHERS[target]], eval_target=[OTHERS[evaluated]], **options)
        yield from inr.fit_many([network()], coords, OTHERS[target], eval_target=OTHERS[evaluated], **options)

    options = {"steps": 1, "progress": False, "data_range": max(2**target - 1, 1)}
    if target == evaluated:
        for result in fits():
            usual = inr.fit(network(), coords, OTHERS[0], steps=1, data_range=1, progress=False)
            assert result.data_range == 1 and result.psnr == pytest.approx(usual.psnr, abs=1e-3)
        return
    with pytest.raises(ValueError, match=r"target and eval_target must be of one kind, got"):
        next(fits())
    with pytest.raises(ValueError, match=r"targets\[0\] and eval_target\[0\] must be of one kind, got"):
        inr.fit_many([network()], coords, [OTHERS[target]], eval_target=[OTHERS[evaluated]], **options)


@NOTED
def test_the_range_of_pixels_is_their_white_whatever_they_span():
    ranges = [255, 65535, None]
    nets, targets = [network() for _ in OTHERS], list(OTHERS.values())
    found = inr.fit_many(nets, None, targets, steps=1, data_range=ranges, eval_target=targets, progress=False)
    span = float(OTHERS[0].max() - OTHERS[0].min())
    assert [own.data_range for own in found] == [1, 1, pytest.approx(span)]
    for net, own, values in zip(nets, found, targets, strict=True):
        result = inr.fit(network(), None, values, steps=1, progress=False)
        assert result.data_range == pytest.approx(own.data_range)
        shown = net(inr.grid((5, 4))).detach().reshape(5, 4)
        truth = -10 * torch.log10((shown - OTHERS[0]).double().square().mean() / own.data_range**2)
        assert own.psnr == pytest.approx(float(truth), abs=1e-3)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_numbers_of_networks_may_be_an_array(kind):
    x, y = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)), torch.rand(20, 1)
    numbers = {"lr": [1e-2, 2e-2], "seed": [3, 4], "data_range": [1.0, 2.0], "target_psnr": [90.0, 91.0]}
    options = {"steps": 4, "batch_size": 5, "progress": False}
    usual = inr.fit_many([network(), network()], x, y, **numbers, **options)
    arrays = {name: kind(own, dtype=None) for name, own in numbers.items()} | {"lr": np.array(numbers["lr"])}
    found = inr.fit_many([network(), network()], x, y, **arrays, **options)
    assert [own.losses for own in found] == [own.losses for own in usual]
    assert [own.data_range for own in found] == [1.0, 2.0]
    with pytest.raises(ValueError, match="seed must be one value or 2 of them"):
        inr.fit_many([network(), network()], x, y, seed=kind([1, 2, 3]), **options)


@NOTED
def test_one_range_of_pixels_is_no_range_of_others():
    targets = [OTHERS[8], OTHERS[0]]
    with pytest.raises(
        ValueError, match="data_range must be a sequence of one per network where targets are pixels of 8"
    ):
        inr.fit_many([network(), network()], None, targets, steps=1, data_range=255)
    for data_range in (1, [255, 1], None):
        inr.fit_many([network(), network()], None, targets, steps=1, data_range=data_range, progress=False)
