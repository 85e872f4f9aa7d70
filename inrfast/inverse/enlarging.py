"""Enlarging by classical means: area means at any ratio, and bicubic pictures whose area means are the given ones.

They may leave [0, 1]; :func:`within` finds the like in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
"""Of the iterated back-projection, which leaves some 1e-4 of the difference."""

MOST_ROUNDS, PATIENCE, EXACT = 100, 10, 1e-6
"""Of :func:`within`, which ends after rounds that gain nothing, or as soon as no mean differs by more."""


def area_means(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the means (h, w, C) of a picture (H, W, C) over equal areas, parts of pixels weighed by their part.

    fp64; for whole ratios those are means over blocks of pixels.
    """
    found = picture.double()
    for axis, count in enumerate(shape):
        size = found.shape[axis]
        if size == count:
            continue
        total = F.pad(found.movedim(axis, 0).flatten(1).cumsum(0), (0, 0, 1, 0))
        edge = torch.arange(count + 1, dtype=torch.float64, device=found.device) * (size / count)
        below = edge.floor().long().clamp_max(size - 1)
        at = torch.lerp(total[below], total[below + 1], (edge - below).unsqueeze(1))
        rest = found.movedim(axis, 0).shape[1:]
        found = (at.diff(dim=0) * (count / size)).view(count, *rest).movedim(0, axis)
    return found


def bicubic(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a picture (h, w, C) enlarged to (H, W, C) by Keys' cubic with a = -0.75, fp64, as torch has it."""
    grid = picture.double().permute(2, 0, 1)[None]
    return F.interpolate(grid, size=shape, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)


def back_projected(means: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a picture (H, W, C), fp64, whose area means are ``means`` (h, w, C) nearly; linear in them.

    The bicubic enlargement, to which the enlarged differences of the means are added again and again.

    Source: Irani and Peleg, Improving resolution by image registration, CVGIP 1991.
    """
    means = means.double()
    found = bicubic(means, shape)
    for _ in range(ROUNDS):
        found += bicubic(means - area_means(found, (means.shape[0], means.shape[1])), shape)
    return found


def within(picture: Tensor, means: Tensor) -> tuple[Tensor, float]:
    """Return a picture (H, W, C) in [0, 1], fp64, near to ``picture``, and how far its area means are from ``means``.

    The largest difference from ``means`` (h, w, C), in [0, 1], is at most 1e-6 at whole ratios. At others a pixel may
    lie in several areas, and where one is to be black and the next one white there is no such picture; the differences
    that remain are of the size of the least ones. What an area lacks is shared out among its pixels that are not at a
    bound.
    """
    small, large = (means.shape[0], means.shape[1]), (picture.shape[0], picture.shape[1])
    means = means.double()
    found = best = picture.double().clamp(0, 1)
    least, idle = float("inf"), 0
    for _ in range(MOST_ROUNDS):
        lacks = means - area_means(found, small)
        left = float(lacks.abs().max())
        idle = 0 if left < 0.99 * least else idle + 1
        if left < least:
            best, least = found, left
        if left <= EXACT or idle >= PATIENCE:
            break
        up = area_means(lacks, large) > 0
        free = (up & (found < 1)) | (~up & (found > 0))
        part = area_means(free, small)
        per_free = torch.where(part > 0, lacks / part.clamp_min(1e-9), 0)
        found = torch.where(free, found + area_means(per_free, large), found).clamp(0, 1)
    return best, least


def contrast(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return how far values differ within two pixels of a picture (h, w, C), for each pixel of (H, W, C), fp64.

    Where the picture is constant it is 0.
    """
    grid = picture.double().permute(2, 0, 1)[None]
    found = F.max_pool2d(grid, 5, 1, 2) + F.max_pool2d(-grid, 5, 1, 2)
    return F.interpolate(found, size=shape, mode="nearest-exact")[0].permute(1, 2, 0)
