"""Coordinate grids against NumPy, axis by axis."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inrfast as inr
from inrfast.grids import shape_of

AXES = {
    "inclusive": lambda n, low, high: np.linspace(low, high, n) if n > 1 else np.array([(low + high) / 2]),
    "exclusive": lambda n, low, high: np.linspace(low, high, n, endpoint=False),
    "center": lambda n, low, high: low + (high - low) * (np.arange(n) + 0.5) / n,
}


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(sorted(AXES)),
    st.floats(-3, 0),
    st.floats(0.5, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_grid_is_the_row_major_product_of_its_axes(shape, endpoint, low, high, dtype):
    got = inr.grid(shape, endpoint, (low, high), dtype)
    axes = np.meshgrid(*[AXES[endpoint](n, low, high) for n in shape], indexing="ij")
    assert got.dtype == dtype
    np.testing.assert_allclose(got.numpy(), np.stack([a.ravel() for a in axes], 1), rtol=1e-6, atol=1e-6)


@given(st.integers(1, 500), st.floats(0.1, 10), st.sampled_from([torch.float32, torch.float64]))
def test_an_interval_around_0_is_symmetric_to_the_last_bit(points, half, dtype):
    got = inr.grid(points, bounds=(-half, half), dtype=dtype)
    assert torch.equal(got, -got.flip(0))
    if points > 1:
        assert float(got[-1]) == float(torch.tensor(half, dtype=dtype))


def test_axes_of_one_point_cost_next_to_nothing():
    start = time.perf_counter()
    got = inr.grid((1,) * 10**4 + (3,) + (1,) * 10**4 + (2,))
    assert time.perf_counter() - start < 2
    few = inr.grid((1, 3, 1, 2))
    assert torch.equal(got[:, [0, 10**4, -2, -1]], few)
    assert bool((got[:, 1 : 10**4] == few[0, 0]).all())


def test_bounds_an_axis_and_one_dimension():
    got = inr.grid((2, 3), bounds=[(0, 1), (10, 12)])
    assert got.tolist() == [[0, 10], [0, 11], [0, 12], [1, 10], [1, 11], [1, 12]]
    assert inr.grid(5).shape == (5, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": ()}, ValueError, "at least one axis"),
        ({"shape": (0, 4)}, ValueError, "shape must be at least 1"),
        ({"shape": (2.5, 4)}, TypeError, "shape must be an integer"),
        ({"shape": (2, 2), "endpoint": "inclusiv"}, ValueError, "Did you mean 'inclusive'"),
        ({"shape": (2, 2), "bounds": (1, -1)}, ValueError, "low < high"),
        ({"shape": (2, 2), "bounds": (0, float("inf"))}, ValueError, "finite"),
        ({"shape": (2, 2), "bounds": [(0, 1)] * 3}, ValueError, "bounds must be"),
        ({"shape": (2, 2), "bounds": 3}, TypeError, "bounds must be"),
        ({"shape": (2, 2), "dtype": torch.int64}, TypeError, "floating-point"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        inr.grid(**arguments)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(list(AXES)), st.integers(0, 10**6))
def test_the_shape_of_a_grid_is_found_in_both_orders_and_of_no_other_points(shape, endpoint, seed):
    points = inr.grid(shape, endpoint, (-0.3, 1.7))
    swapped = points.flip(1)  # rows as they were, the first coordinate fast
    assert shape_of(points) == tuple(shape)
    assert shape_of(points.square() * points.sign()) == tuple(shape)  # in any spacing
    assert math.prod(shape_of(swapped)) == len(points)
    if sum(n > 1 for n in shape) > 1:
        assert shape_of(swapped) == tuple(shape)
        moved = points.clone()
        moved[-1, seed % len(shape)] += 0.01
        assert shape_of(moved) is None
        assert shape_of(points[torch.tensor([*range(1, len(points)), 0])]) is None
        assert shape_of(points[1:]) is None
        assert shape_of(torch.cat([points, points])) is None


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_bounds_may_be_an_array(kind):
    for bounds in ((0.0, 2.0), ((0.0, 2.0), (-1.0, 3.0))):
        assert torch.equal(inr.grid((3, 4), bounds=kind(bounds)), inr.grid((3, 4), bounds=bounds))
        assert inr.INR(2, 1, bounds=kind(bounds)).bounds == inr.INR(2, 1, bounds=bounds).bounds
    for bad, error in ((0.5, TypeError), ((1.0, 0.0), ValueError), (((0.0, 1.0),) * 3, ValueError)):
        with pytest.raises(error, match="bounds must"):
            inr.INR(2, 1, bounds=kind(bad))
