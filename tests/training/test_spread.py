"""What ``fit_many`` is given belongs to each network as it would in a fit of its own."""

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
