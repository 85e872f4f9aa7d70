"""Ranges of values around holes in a picture, to which what fills them is clipped, so that no spots stand out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

OPPONENTS = torch.tensor([[0.299, 0.587, 0.114], [1, -1, 0], [0.5, 0.5, -1]], dtype=torch.float64)
"""Luma (ITU-R BT.601), red against green, and yellow against blue, of red, green and blue."""


class Ranges:
    """Clips what fills the holes of a picture to the values around each: of every channel and, of colours, of luma and
    the opponent colours, so that no green appears among reds.

    Parameters
    ----------
    values, known
        The picture, (H, W, C), and where it is known, booleans (H, W).
    """

    def __init__(self, values: Tensor, known: Tensor) -> None:
        self.channels = ranges_of_holes(values, known)
        colours = values.shape[2] == 3
        self.opponents = ranges_of_holes(values.cpu().double() @ OPPONENTS.mT, known) if colours else None

    def clipped(self, picture: Tensor) -> Tensor:
        """Return a picture (H, W, C), fp64, within the ranges."""
        found = picture.clamp(*self.channels)
        if self.opponents is None:
            return found
        within = (found @ OPPONENTS.mT).clamp(*self.opponents)
        return torch.linalg.solve(OPPONENTS, within.unsqueeze(-1)).squeeze(-1).clamp(*self.channels)


def ranges_of_holes(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest value, fp64 (H, W, C) each, among the known pixels around a pixel's hole.

    A hole is what is connected of the missing pixels, by edges and corners. Biharmonic interpolation overshoots in
    large ones, which shows as bright and coloured spots; within these ranges it does not. At known pixels both are
    their values.
    """
    from scipy import ndimage  # slow to import

    kept, missing = known.cpu().numpy(), ~known.cpu().numpy()
    holes, count = ndimage.label(missing, np.ones((3, 3)))
    pixels = values.detach().cpu().double().numpy()
    bounds = []
    for empty, near, among in (
        (np.inf, ndimage.minimum_filter, ndimage.minimum),
        (-np.inf, ndimage.maximum_filter, ndimage.maximum),
    ):
        bound = np.where(kept[..., None], pixels, 0.0)
        for channel in range(pixels.shape[2]):
            around = near(np.where(kept, pixels[..., channel], empty), size=3)
            bound[missing, channel] = among(around, holes, np.arange(1, count + 1))[holes[missing] - 1]
        bounds.append(torch.from_numpy(bound))
    return bounds[0], bounds[1]
