"""What a fit is given: one signal in every form, weights, and what is shared stays shared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.training.data import ALIGNMENT, check_data, range_of, stacked

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


@settings(max_examples=60)
@given(
    grid=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    outputs=st.integers(1, 4),
    came=st.sampled_from(["flat", "grid"]),
    data=st.data(),
)
def test_weights_and_targets_are_taken_in_their_own_order_or_refused(
    grid: list[int], outputs: int, came: str, data: st.DataObject
) -> None:
    """Any order of the axes of any right number of entries: those that the docstring names are right, all others no."""
    coords, n = inr.grid(tuple(grid)), math.prod(grid)
    net = inr.INR(len(grid), outputs, width=2)
    values = torch.arange(float(n * outputs)).reshape(*grid, outputs) / 100
    target = values if came == "grid" else values.reshape(n, outputs)
    weight = 1 + torch.rand(*grid, data.draw(st.sampled_from([1, outputs])))
    order = data.draw(st.permutations(range(weight.ndim)))
    moved = weight.permute(order)
    moved = data.draw(st.sampled_from([moved, moved.squeeze(-1), moved.flatten(0, -2), moved.flatten(1)]))
    last = weight.shape[-1]
    named = [(n,), (n, 1)] * (last == 1) + [(n, last), (*grid, last)] + [tuple(grid)] * (last == 1)
    if tuple(moved.shape) in named:
        # A square grid whose axes are swapped looks like itself: no shape can tell.
        taken = check_data(net, coords, target, moved).weight
        assert torch.equal(taken[0], moved.reshape(n, last))
    else:
        with pytest.raises(ValueError, match="weight must hold one number a point"):
            check_data(net, coords, target, moved)
    swapped = values.movedim(-1, 0)
    if tuple(swapped.shape) == (*grid, outputs):
        return
    if outputs == 1 and swapped.numel() == n:
        assert torch.equal(check_data(net, coords, swapped).target[0], swapped.reshape(n, 1))  # one order of numbers
    else:
        with pytest.raises(ValueError, match=r"target (must have shape|has shape)"):
            check_data(net, coords, swapped)


def test_an_image_on_its_side_or_with_channels_first_is_refused_where_the_number_fits() -> None:
    coords = inr.grid((6, 3))
    for wrong in (torch.rand(3, 6, 3), torch.rand(3, 6, 3).contiguous()):
        with pytest.raises(ValueError, match=r"its points are a grid \(6, 3\) in row-major order"):
            check_data(inr.INR(2, 3, width=2), coords, wrong)
    with pytest.raises(ValueError, match=r"weight must hold one number a point \(18\)"):
        check_data(inr.INR(2, 3, width=2), coords, torch.rand(18, 3), torch.rand(3, 6))
    with pytest.raises(ValueError, match="its points are a grid"):
        check_data(inr.INR(2, 1, width=2), coords, torch.rand(3, 6))
    assert check_data(inr.INR(2, 1, width=2), torch.rand(18, 2), torch.rand(3, 6)).points == 18  # no grid to compare


def test_numbers_that_are_not_real_are_refused_by_name() -> None:
    for kind in ("parameter", "buffer"):
        net = nn.Sequential(nn.Linear(2, 3))
        phases = torch.ones(2, dtype=torch.complex64)
        net.register_parameter("phases", nn.Parameter(phases, False)) if kind == "parameter" else (
            net.register_buffer("phases", phases)
        )
        with pytest.raises(TypeError, match=r"net\.phases is torch\.complex64"):
            check_data(net, COORDS, VALUES)


@given(low=st.floats(-5, 5), spread=st.floats(1e-3, 5), masked=st.booleans())
def test_the_range_of_a_psnr_is_the_signal_s_own(low: float, spread: float, masked: bool) -> None:
    values = (low + spread * torch.linspace(0, 1, 24, dtype=torch.float64)).unsqueeze(1)
    weight = None
    if masked:  # entries of no weight are put to 0, and are no part of the range
        weight = torch.ones(24, 2, dtype=torch.float64)
        weight[3, 1] = 0
        values = values.expand(24, 2)
    net = inr.INR(2, values.shape[1], width=2, dtype=torch.float64)
    data = check_data(net, COORDS.double(), values, weight)
    found = range_of(data, None)
    assert found == pytest.approx(spread, rel=1e-9) or (found == 1.0 and 0.5 - 1e-9 <= spread <= 2 + 1e-9)
    assert range_of(data, 3) == 3.0
