"""Known pixels held out as the missing ones lie, and the share of a network that they speak for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST = 0.1
"""Share of the known pixels that is held out, at most."""

USUAL, COUNT = 0.3, 100
"""The share of a network where nothing is held out, and how many held-out pixels weigh as much as it does."""


def held_out(known: Tensor, seed: int) -> Tensor:
    """Return some of the known pixels, booleans (H, W), in holes of the shape of the missing ones.

    The missing pixels, shifted, where they fall on known ones: all of them, or where that is more than a tenth of the
    known ones, patches at random, as wide as the holes; single pixels where those are scattered.
    """
    from scipy import ndimage  # slow to import

    draws = np.random.default_rng(seed)
    kept = known.cpu().numpy()
    shift = [int(draws.integers(max(side, 1))) for side in kept.shape]
    found = np.roll(~kept, shift, (0, 1)) & kept
    most = int(MOST * kept.sum())
    if found.sum() > most:
        depth = float(
            np.median(ndimage.distance_transform_edt(np.pad(~kept, 1, constant_values=True))[1:-1, 1:-1][~kept])
        )
        noise = ndimage.gaussian_filter(draws.standard_normal(kept.shape), 2 * max(depth - 1, 0))
        level = np.partition(noise[found], most)[most]
        found &= noise < level
    return torch.from_numpy(found)


def best_share(difference: Tensor, adds: Tensor) -> float:
    """Return the share s in [0, 1] of ``adds`` (n, C) that comes nearest to ``difference`` (n, C), by least squares.

    Of few pixels it is drawn to :data:`USUAL`.
    """
    size = float(adds.square().sum())
    if size == 0:
        return USUAL
    best = min(max(float((difference * adds).sum()) / size, 0.0), 1.0)
    return (len(adds) * best + COUNT * USUAL) / (len(adds) + COUNT)
