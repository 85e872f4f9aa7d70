"""Coordinate grids: the points at which a signal is sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import as_tensor, is_array
from inrfast.errors import check_choice, check_float, check_int
from inrfast.memory import counted, require_free, tells_refusals

ENDPOINTS = ("inclusive", "exclusive", "center")


def check_bounds(bounds: Any, dimensions: int) -> list[tuple[float, float]]:
    """Return one ``(low, high)`` pair per axis from a single pair, a sequence of pairs, or an array of either."""
    if is_array(bounds):
        bounds = as_tensor("bounds", bounds).tolist()
    try:
        pairs = [tuple(pair) for pair in bounds] if isinstance(bounds[0], Sequence) else [tuple(bounds)] * dimensions
    except (TypeError, IndexError, KeyError):
        raise TypeError(f"bounds must be a pair (low, high) or one pair per axis, got {bounds!r}") from None
    if len(pairs) != dimensions or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"bounds must be a pair (low, high) or {dimensions} of them, got {bounds!r}")
    checked = [(check_float("bounds", low), check_float("bounds", high)) for low, high in pairs]
    if any(low >= high for low, high in checked):
        raise ValueError(f"bounds must have low < high on every axis, got {bounds!r}")
    return checked


def _axis(points: int, endpoint: str, low: float, high: float) -> Tensor:
    """Return the fp64 coordinates of one axis: every other dtype is rounded once from these."""
    if endpoint == "inclusive" and points > 1:
        if low == -high:  # symmetric to the last bit, with 0 in the middle: linspace has 5.6e-17 there
            return high * (torch.arange(1 - points, points, 2, dtype=torch.float64) / (points - 1))
        return torch.linspace(low, high, points, dtype=torch.float64)
    offset = {"inclusive": 0.5, "exclusive": 0.0, "center": 0.5}[endpoint]
    return low + (high - low) * (torch.arange(points, dtype=torch.float64) + offset) / points


def axes(
    shape: int | Sequence[int],
    endpoint: str = "inclusive",
    bounds: Any = (-1, 1),
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return the coordinates of each axis of :func:`grid`, on the CPU; arguments and errors as there."""
    if getattr(shape, "ndim", 0) == 1 and hasattr(shape, "tolist"):  # an array or a tensor
        shape = shape.tolist()
    points = [shape] if not isinstance(shape, Sequence) else list(shape)
    if not points:
        raise ValueError("shape must name at least one axis, got an empty sequence")
    sizes = [check_int("shape", n, minimum=1) for n in points]
    second: Any = endpoint
    if hasattr(second, "__index__"):
        raise TypeError(
            f"shape must hold the points of all axes together: grid(({shape}, {endpoint})), got two numbers"
        )
    check_choice("endpoint", endpoint, ENDPOINTS)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    pairs = check_bounds(bounds, len(sizes))
    # Counted: the coordinates in fp64, the rounded ones, and a copy in between.
    require_free(24 * sum(sizes), f"axes of {counted(sum(sizes))} points", "take fewer points")
    alike = {axis: _axis(axis[0], endpoint, *axis[1]).to(dtype) for axis in zip(sizes, pairs, strict=True)}
    return [alike[axis] for axis in zip(sizes, pairs, strict=True)]


@tells_refusals
def grid(
    shape: int | Sequence[int],
    endpoint: str = "inclusive",
    bounds: Any = (-1, 1),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the coordinates of a regular grid, row-major ("ij": the first axis is the slow one).

    Parameters
    ----------
    shape
        Points per axis, e.g. ``(256, 256)``; an int is a one-dimensional grid.
    endpoint
        ``"inclusive"``: both bounds are grid points (an axis of one point sits in the middle);
        ``"exclusive"``: the lower bound is, the upper is not; ``"center"``: the middles of equal cells.
    bounds
        ``(low, high)`` for every axis, or one such pair per axis.
    dtype, device
        Of the result; coordinates are computed in fp64 and rounded once.

    Returns
    -------
    Tensor
        Shape ``(N, d)`` with ``N = prod(shape)``.

    Raises
    ------
    ValueError, TypeError
        Empty shape, an axis below one point, low >= high, an unknown ``endpoint``, a non-floating dtype.
    MemoryBudgetError
        The coordinates would take more than half of what is free.

    Examples
    --------
    >>> grid((2, 2), bounds=(0, 1)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    columns = axes(shape, endpoint, bounds, dtype)
    points = math.prod(len(column) for column in columns)
    require_free(
        points * len(columns) * dtype.itemsize,
        f"a grid of {counted(points)} points",
        "take fewer points, or inrfast.signals.render, which needs no list of them",
    )
    # Axes of one point are left out: a view has one size per axis, and with very many axes these take longer than the
    # numbers.
    long = [index for index, column in enumerate(columns) if len(column) > 1] or [0]
    mesh = torch.meshgrid(*[columns[index] for index in long], indexing="ij")
    rows = torch.stack(mesh, dim=-1).reshape(-1, len(long))
    if len(long) < len(columns):
        some, rows = rows, torch.cat([column[:1] for column in columns]).repeat(points, 1)
        rows[:, long] = some
    return rows.to(device)


def shape_of(coords: Tensor) -> tuple[int, ...] | None:
    """Return the shape of the grid whose points are the rows of ``coords`` (N, d), or None if they are none.

    Points are a grid if they are all combinations of the coordinates of d axes, in any spacing, either with the first
    axis slow (``"ij"``) or with the first axis fast (``"xy"``; the shape is then that of an array indexed [..., y, x]).
    """
    values = coords.detach()
    counts = [len(torch.unique(column)) for column in values.t()]
    if math.prod(counts) != len(values):
        return None
    for order in (range(len(counts)), reversed(range(len(counts)))):
        axes_in_order = list(order)
        sizes = tuple(counts[axis] for axis in axes_in_order)
        planes = values.reshape(*sizes, len(counts))
        if all(_varies_alone(planes[..., axis], place) for place, axis in enumerate(axes_in_order)):
            return sizes
    return None


def check_shape(shape: Any, points: int, coords: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of the grid that is given, of so many points, or that of the coordinates; None: no grid."""
    found = None if coords is None else shape_of(coords)
    if shape is None:
        return found
    given = [shape] if not isinstance(shape, Iterable) else list(shape)
    sizes = tuple(check_int("shape", n, minimum=1) for n in given)
    if not sizes or math.prod(sizes) != points:
        raise ValueError(f"shape must hold the {points} points, got {sizes}")
    long, theirs = ([n for n in one if n > 1] for one in (sizes, found or ()))
    if len(theirs) > 1 and long != theirs:
        raise ValueError(f"shape must be {found}, of which the coords are a grid, or be left out, got {sizes}")
    return sizes


def _varies_alone(plane: Tensor, axis: int) -> bool:
    """Return whether entries depend on their place along one axis alone, and differ there."""
    line = plane.movedim(axis, 0).reshape(plane.shape[axis], -1)
    return bool((line == line[:, :1]).all()) and len(torch.unique(line[:, 0])) == len(line)
