"""The probe that asks whether a network treats its points one by one.

The factors of a kernel, and fits, evaluations and renderings in chunks, are correct only for networks whose
prediction at a point depends on that point alone: not on the other points, their order or their number.
Batch statistics, attention over the batch, sorting, row numbers and "subtract the minimum" all break this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUMBER = "the outputs depend on the number of points, or on their places"
"""The answer for networks that use the length of their batch, or row numbers."""

RANDOM = "two forward passes over the same points differ"
"""The answer of :func:`dependence` for networks that draw random numbers."""

MOVED = "moving some points changes the outputs at others"
"""The answer where predictions depend on other points by more than rounding, with number and order unchanged."""

ROWS = 16
"""Most points of the probe; a power of two, for networks that take pairs of points or multiples of four."""

LONGEST = 2048
"""Points of the longest batch of the probe, several times those of a chunk."""

STIR, NOTHING = 0.05, 1e-6
"""Relative size of the perturbation of a copy's parameters, and the size that counts as zero."""

FLOOR_EXPONENT = 0.6
"""Differences below ``eps ** 0.6`` of the largest prediction count as rounding (1e-9 in fp64, 7e-5 in fp32). BLAS
sums in another order for another number of rows, and deep networks amplify the difference."""

AMPLIFIED = 16.0
"""Allowed rounding, in multiples of the effect of rounding one coordinate."""

LARGEST_TOLERANCE = 1e-2
"""Share of the largest prediction beyond which a difference is never rounding, even of a chaotic network."""


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


def stirred_(net: nn.Module) -> nn.Module:
    """Perturb the trainable parameters of a copy slightly, in place, and return it.

    A coupling of points behind zero weights (a zero-initialised head or branch) does not change the predictions, only
    the gradients, and so the predictions after one step. It changes those of the perturbed copy.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.requires_grad or not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            size = float(parameter.double().square().mean().sqrt())
            if not size > NOTHING:
                size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((STIR * size * noise).to(parameter))
    return net


def dependence(predict: Callable[[Tensor], Tensor], coords: Tensor, exact: bool = False, number: int = 0) -> str | None:
    """Return in words what predictions depend on beside their own point; None if on nothing.

    It takes a dozen forward passes over at most 32 points, and one over ``number`` points, at most :data:`LONGEST`.
    The caller takes care of gradients, modes and buffers.

    Parameters
    ----------
    predict
        Takes points (n, d), returns a tensor with n rows.
    coords
        The points (N, d) that the network is for; the probe moves points to others of them.
    exact
        Whether moved points may not change a single bit of the predictions at the others (for the same number of
        points nothing is rounded otherwise); False: up to rounding.
    number
        How many points the network will be given at a time: what begins beyond 32 of them (and is there up to
        :data:`LONGEST`) is seen if this is named.
    """
    rows = ROWS
    while rows > max(len(coords) // 2, 4):
        rows //= 2
    points = spread_points(coords, 2 * rows)
    base, others = points[::2], points[1::2]
    with torch.no_grad():
        try:
            before = _rows(predict, base)
            if not _equal(before, _rows(predict, base)):
                return RANDOM
            return _compared(predict, base, others, before, exact, min(number, LONGEST))
        except Exception as error:  # a network that only takes its full grid may raise anything
            return f"net does not take {len(base)} points of them, or not in every number and order ({error})"


def _compared(
    predict: Callable[[Tensor], Tensor], base: Tensor, others: Tensor, before: Tensor, exact: bool, longest: int
) -> str | None:
    n = len(base)
    number = torch.arange(n, device=base.device)
    some = [0, n // 2, n - 1]
    near = functools.partial(_near, tolerance=functools.cache(lambda: _tolerance(predict, base, before)))

    for kept in (number % 2 == 0, number % 2 == 1, *(number == index for index in some)):
        moved = _rows(predict, torch.where(kept.unsqueeze(1), base, others))
        if not (_equal if exact else near)(moved[kept], before[kept]):
            return MOVED

    order = (5 * number + 3) % n  # n is a power of two: every row moves, and no two neighbours stay together
    if not near(_rows(predict, base[order]), before[order]):
        return "the outputs depend on the order of the points"

    one = base[n // 2 : n // 2 + 1]
    batches = [base[: n - 1], torch.cat([base, others]), one.expand(2, -1)]
    places = [number[: n - 1], number, number[n // 2].expand(2)]
    for batch, place in zip(batches, places, strict=True):
        if not near(_rows(predict, batch)[: len(place)], before[place]):
            return NUMBER
    if longest > 2 * n:
        between = spread_points(torch.cat([base, others]), longest - 2 * n)
        found = _rows(predict, torch.cat([base, between, base]))
        if not near(found[:n], before) or not near(found[-n:], before):
            return NUMBER
    return None


def _rows(predict: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the predictions at copies of ``points`` as (n, M); copies, since a module may change its input."""
    return predict(points.clone()).detach().reshape(len(points), -1)


def _tolerance(predict: Callable[[Tensor], Tensor], base: Tensor, before: Tensor) -> float:
    """Return the difference that rounding may cause, from the effect of rounding one coordinate."""
    unit = torch.finfo(base.dtype).eps
    floor = max(unit, torch.finfo(before.dtype).eps) ** FLOOR_EXPONENT if before.is_floating_point() else 0.0
    scale, effect = _largest(before), 0.0
    for sign in (1, -1):
        effect = max(effect, _largest(_rows(predict, base * (1 + sign * unit)) - before))
    return min(floor * scale + AMPLIFIED * effect, max(LARGEST_TOLERANCE, floor) * scale)


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _near(got: Tensor, expected: Tensor, tolerance: Callable[[], float]) -> bool:
    """Return whether two tensors agree up to a tolerance, which is computed only if they differ."""
    if _equal(got, expected):
        return True
    if got.shape != expected.shape:
        return False
    same = (got == expected) | (got.isnan() & expected.isnan())
    return bool((same | ((got - expected).abs() <= tolerance())).all())


def _equal(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and bool(((got == expected) | (got.isnan() & expected.isnan())).all())
