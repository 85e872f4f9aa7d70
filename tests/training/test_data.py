"""What a fit is given: one signal in every form, weights, and what is shared stays shared."""

import pytest
import torch
from torch import nn

import inrfast as inr
from inrfast.training.data import ALIGNMENT, check_data, stacked

COORDS = inr.grid((4, 6))
NET = inr.INR(2, 3, width=4)
VALUES = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))


def test_weights_of_every_form_are_one_a_point_or_one_a_target() -> None:
    weight = torch.rand(24, generator=torch.Generator().manual_seed(1)) + 0.1
    for form in (weight, weight.reshape(24, 1), weight.reshape(4, 6), weight.reshape(4, 6, 1)):
        data = check_data(NET, COORDS, VALUES, form)
        assert torch.equal(data.weight[0, :, 0], weight)
    own = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.equal(check_data(NET, COORDS, VALUES, own).weight[0], own.reshape(24, 3))
    assert check_data(NET, COORDS, VALUES).weight is None


def test_points_and_values_of_no_weight_may_be_anything() -> None:
    mask = torch.arange(24) % 3 > 0
    broken = VALUES.clone()
    broken[~mask] = float("nan")
    data = check_data(NET, COORDS, broken, mask)
    assert (data.points, data.weight.shape) == (16, (1, 16, 1))
    assert torch.equal(data.target[0], VALUES[mask])
    assert torch.equal(data.coords[0], COORDS[mask])
    one = torch.ones(24, 3)
    one[5, 1] = 0
    broken = VALUES.clone()
    broken[5, 1] = float("inf")
    data = check_data(NET, COORDS, broken, one)
    assert data.points == 24
    assert bool(data.target.isfinite().all())
    broken[6, 1] = float("inf")
    with pytest.raises(ValueError, match="target must be finite, got 1 NaN or Inf"):
        check_data(NET, COORDS, broken, one)


def test_rows_lie_where_matrix_libraries_repeat_their_digits() -> None:
    room = torch.zeros(24 * 2 + 1)
    crooked = room[1:].view(24, 2)
    crooked.copy_(COORDS)
    data = check_data(NET, crooked, VALUES.T.contiguous().T)
    assert data.coords.data_ptr() % ALIGNMENT == data.target.data_ptr() % ALIGNMENT == 0
    assert torch.equal(data.coords[0], COORDS) and torch.equal(data.target[0], VALUES)
    straight = check_data(NET, COORDS, VALUES)
    assert straight.coords.data_ptr() == COORDS.data_ptr()  # no copy where none is needed


def test_what_networks_share_is_one_tensor() -> None:
    other = torch.rand(24, 3, generator=torch.Generator().manual_seed(2))
    data = stacked([check_data(NET, COORDS, values) for values in (VALUES, other, VALUES)])
    assert data.coords.shape == (1, 24, 2)
    assert data.target.shape == (3, 24, 3)
    kept = data.keep([2, 1])
    assert kept.coords.data_ptr() == data.coords.data_ptr()
    assert torch.equal(kept.target, torch.stack([VALUES, other]))
    coords, target, weight = stacked([check_data(NET, COORDS, VALUES)]).rows(torch.tensor([3, 1]))
    assert torch.equal(coords, COORDS[[3, 1]]) and torch.equal(target, VALUES[[3, 1]]) and weight is None


def test_a_network_that_takes_its_full_grid_alone_is_asked_for_it() -> None:
    class Whole(nn.Sequential):
        def forward(self, coords: torch.Tensor) -> torch.Tensor:
            return super().forward(coords.reshape(4, 6, 2)).reshape(24, 3)

    assert check_data(Whole(nn.Linear(2, 3)), COORDS, VALUES).target.shape == (1, 24, 3)
