"""The units of rank-expanding initialisation by NumPy, for where the native extension is missing: the same to the bit.

As ``csrc/grid_geometry.h`` has it: integers, and fp64 with one rounding per operation (sums in its order, the last axis
first; division and square root are correctly rounded), so both agree bit for bit; fp32 results are rounded once. Blocks
of units are computed together, axis after axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BLOCK, LEAST = 2**16, 2**8
"""Components of points in work at once, which fit the cache, and units of a block at least."""


def fill_units(
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    gain: float,
    bounds: Sequence[tuple[float, float]],
    coords: np.ndarray | None,
    points_per_axis: int,
) -> None:
    """Fill ``weight`` (width, d) and ``bias`` (width,), both fp32 or both fp64, with checked arguments.

    Parameters
    ----------
    weight, bias
        Where the result goes.
    eps, gain, bounds
        As of :func:`inrfast.ops.grid_init.rank_expanding`; one pair of bounds per axis.
    coords
        The points (width,) of the form for d = 1 in fp64; None is a uniform grid.
    points_per_axis
        Those of the grid, ``ceil(width^(1/d))``.
    """
    width, axes = weight.shape
    scales = np.array([2.0 / (high - low) for low, high in bounds])[:, None]
    shifts = np.array([(low + high) / (high - low) for low, high in bounds])[:, None]
    steps = _steps(axes) if 1 < width < 2**axes else None
    rows = max(LEAST, BLOCK // axes)
    with np.errstate(all="ignore"):  # what leaves the range of the result is found by the caller
        for start in range(0, width, rows):
            k = np.arange(start, min(start + rows, width), dtype=np.int64)
            block = slice(start, start + len(k))
            if axes == 1:
                points = _uniform(k, width) if coords is None else coords[block]
                weight[block] = scales * gain
                bias[block] = ((eps - points) - shifts[0]) * gain
                continue
            vectors = _on_grid(k, width, axes, points_per_axis) if steps is None else _of_sequence(k, steps)
            norm = np.sqrt(_sum_from_last(vectors * vectors))
            directions = np.divide(vectors, norm, out=vectors)
            directions[:, norm == 0] = (np.arange(axes) == 0)[:, None]
            offset = _sum_from_last(directions * shifts)
            weight[block] = (directions * scales * gain).T
            distance = norm / float(points_per_axis + 1) if steps is None else norm
            bias[block] = ((eps - distance) - offset) * gain


def _uniform(k: np.ndarray, width: int) -> np.ndarray:
    """Return the points of units ``k`` of a uniform grid on [-1, 1] with both ends; one unit is in the middle."""
    return np.zeros(1) if width == 1 else (2 * k - (width - 1)).astype(np.float64) / float(width - 1)


def _on_grid(k: np.ndarray, width: int, axes: int, points: int) -> np.ndarray:
    """Return the integers ``2 i - p - 1`` (axes, n) of units on the grid of p^d points, i from 1 to p."""
    whole, part = divmod(points**axes, width)
    index = k * whole + k * part // width  # floor(k p^d / width) without forming k p^d, below 2^63
    found = np.empty((axes, len(k)))
    for axis in reversed(range(axes)):
        index, digit = np.divmod(index, points)
        found[axis] = 2 * digit + (1 - points)
    return found


def _of_sequence(k: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the points (axes, n) of Richtmyer's sequence: fixed point modulo 1, read as signed, in [-1, 1)."""
    turns = (k + 1).astype(np.uint64) * steps[:, None]
    return turns.view(np.int64).astype(np.float64) * 2.0**-63


def _steps(axes: int) -> np.ndarray:
    """Return the fractions of the square roots of the first primes in units of 2^-64, as uint64."""
    most = 14 if axes < 6 else int(axes * (math.log(axes) + math.log(math.log(axes)))) + 1
    sieve = np.ones(most + 1, dtype=bool)
    sieve[:2] = False
    for factor in range(2, math.isqrt(most) + 1):
        sieve[factor * factor :: factor] = False
    primes = np.flatnonzero(sieve)[:axes]
    return np.array([int(math.modf(math.sqrt(prime))[0] * 2**64) for prime in primes.tolist()], dtype=np.uint64)


def _sum_from_last(terms: np.ndarray) -> np.ndarray:
    """Return the sums over the axes in the order in which the native code meets them, the last one first."""
    total = np.zeros(terms.shape[1])
    for term in terms[::-1]:
        total += term
    return total
