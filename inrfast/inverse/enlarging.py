"""Enlarging by classical means: area means at any ratio, and bicubic pictures whose area means are the given ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
"""Of the iterated back-projection, which leaves some 1e-4 of the difference."""


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
