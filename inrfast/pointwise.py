"""The probe that asks whether a network treats its points one by one.

The factors of a kernel, and fits, evaluations and pictures that are computed chunk by chunk, are right only for
networks whose prediction at a point depends on that point alone: not on the other points, their order or their number.
Batch statistics, attention over the batch, sorting, row numbers and "subtract the minimum" all break this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RANDOM = "two forward passes over the same points differ"
"""What :func:`dependence` says of networks that draw random numbers."""

ROWS = 16
"""Points of the probe at most; a power of two, for networks that take pairs of points or multiples of four."""

FLOOR_EXPONENT = 0.6
"""Differences below ``eps ** 0.6`` of the largest prediction count as rounding (1e-9 in fp64, 7e-5 in fp32). BLAS adds
up in another order for another number of rows, and deep networks amplify that."""

AMPLIFIED = 16.0
"""How many times the effect of one rounded coordinate may stand for rounding inside the network."""

LARGEST_TOLERANCE = 1e-2
"""Of the largest prediction: beyond this even a chaotic network counts as one that depends on its batch."""


def spread_points(coords: Tensor, count: int) -> Tensor:
    """Return ``count`` rows spread over ``coords`` (N, d), a copy; where it has fewer, points near them as well.

    The added points lie nearer to 0, or next to it, so that they stay inside the usual domains.
    """
    n = len(coords)
    if n >= count:
        return coords[_spread(n, count, coords.device)].clone()
    step = 0.01 * (torch.arange(count, device=coords.device) // n).to(coords.dtype).unsqueeze(1)
    rows = coords[torch.arange(count, device=coords.device) % n]
    return torch.where(rows.abs() > 0.1, rows * (1 - step), rows + 0.1 * step)


def _spread(n: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` different row numbers from 0 to n - 1."""
    return torch.arange(count, device=device) * (n - 1) // max(count - 1, 1)


def dependence(
    predict: Callable[[Tensor], Tensor], coords: Tensor, exact: bool = False, alone: bool = False
) -> str | None:
    """Return what a network's predictions depend on beside their own point, in words; None: on nothing.

    About 20 forward passes over at most 32 points. Gradients, modes and buffers are the caller's business.

    Parameters
    ----------
    predict
        Takes points (n, d), returns a tensor with n rows.
    coords
        The points (N, d) that the network is for; the probe moves points to others of them.
    exact
        Whether moved points may not change a single bit of the predictions at the others (for the same number of
        points nothing is rounded otherwise); False: up to rounding.
    alone
        Whether the network must take one point alone too; otherwise two copies of it stand for one.

    Raises
    ------
    Exception
        What the network raises for the first points; later errors are part of the answer.
    """
    rows = ROWS
    while rows > max(len(coords) // 2, 4):
        rows //= 2
    points = spread_points(coords, 2 * rows)
    base, others = points[::2], points[1::2]
    n = len(base)
    with torch.no_grad():
        before = _rows(predict, base)
        if not _equal(before, _rows(predict, base)):
            return RANDOM
        try:
            return _compared(predict, base, others, before, _tolerance(predict, base, before), exact, alone)
        except Exception as error:  # a network may take nothing but its full grid
            return f"net takes {n} points but not some other number or order of them ({type(error).__name__}: {error})"


def _compared(
    predict: Callable[[Tensor], Tensor],
    base: Tensor,
    others: Tensor,
    before: Tensor,
    tolerance: float,
    exact: bool,
    alone: bool,
) -> str | None:
    n = len(base)
    number = torch.arange(n, device=base.device)
    some = [0, n // 2, n - 1]

    for kept in (number % 2 == 0, number % 2 == 1, *(number == index for index in some)):
        moved = _rows(predict, torch.where(kept.unsqueeze(1), base, others))
        if not _near(moved[kept], before[kept], 0.0 if exact else tolerance):
            return "moving some points changes the outputs at others"

    for order in (number.flip(0), number.roll(n // 3 + 1)):
        if not _near(_rows(predict, base[order]), before[order], tolerance):
            return "the outputs depend on the order of the points"

    changed = "the outputs depend on the number of points"
    for count in (n - 1, max(n // 2, 2)):
        if not _near(_rows(predict, base[:count]), before[:count], tolerance):
            return changed
    if not _near(_rows(predict, torch.cat([base, others]))[:n], before, tolerance):
        return changed
    for index in some:
        for copies in (2, 1)[: 1 + alone]:
            found = _rows(predict, base[index : index + 1].expand(copies, -1).clone())
            if not _near(found, before[index : index + 1].expand(copies, -1), tolerance):
                return changed
    return None


def _rows(predict: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the predictions at copies of ``points`` as (n, M): a module may write to what it is given."""
    return predict(points.clone()).detach().reshape(len(points), -1)


def _tolerance(predict: Callable[[Tensor], Tensor], base: Tensor, before: Tensor) -> float:
    """Return the difference that rounding may make, from what one rounded coordinate makes."""
    eps = torch.finfo(before.dtype).eps if before.is_floating_point() else 0.0
    scale = float(before.abs().nan_to_num(0.0, 0.0, 0.0).max())
    unit = torch.finfo(base.dtype).eps
    effect = 0.0
    for sign in (1, -1):
        difference = (_rows(predict, base * (1 + sign * unit)) - before).abs()
        effect = max(effect, float(difference.nan_to_num(0.0, 0.0, 0.0).max()))
    floor = max(eps, unit if eps else 0.0) ** FLOOR_EXPONENT if eps else 0.0
    return min(floor * scale + AMPLIFIED * effect, max(LARGEST_TOLERANCE, floor) * scale)


def _near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    if got.shape != expected.shape:
        return False
    same = (got == expected) | (got.isnan() & expected.isnan())
    return bool((same | ((got - expected).abs() <= tolerance)).all())


def _equal(got: Tensor, expected: Tensor) -> bool:
    return _near(got, expected, 0.0)
