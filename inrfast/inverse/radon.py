"""Tomography: sums of an image along parallel lines at some angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.arrays import is_array
from inrfast.errors import check_flag, check_float, check_int, check_tensor
from inrfast.inverse.operators import Operator, check_shape

SAMPLES_AT_ONCE = 2**20
"""Points of turned images that are sampled together."""


class Radon(Operator):
    """Parallel beams: square images (n, n, M) to sinograms (detectors, angles, M).

    For each angle the image is turned about pixel ``(n // 2, n // 2)`` with bilinear interpolation, zero beyond its
    border, and summed along columns: the discretisation and the geometry of ``skimage.transform.radon``. Beams are one
    pixel apart, sums are in pixels. The adjoint is the transposed matrix of just this map, no filtered back projection.

    Parameters
    ----------
    shape
        (n, n), or n.
    angles
        Degrees (a,), or a number of angles, which are then spread evenly over [0, 180).
    circle
        True, as in scikit-image: n detectors, what lies outside the circle inscribed in the image should be zero.
        False: as many detectors as the diagonal is long, so that every beam is measured.

    Raises
    ------
    ValueError, TypeError
        An image that is not square; no angles, NaN among them.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> A = inr.inverse.Radon((16, 16), 8)
    >>> A(torch.ones(16, 16)).shape
    torch.Size([16, 8])
    """

    def __init__(self, shape: int | Sequence[int], angles: Any = 180, circle: bool = True) -> None:
        sizes = check_shape("shape", shape)
        sizes = sizes * 2 if len(sizes) == 1 else sizes
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            raise ValueError(f"shape must be that of a square image, got {sizes}")
        self.angles = _degrees(angles)
        self.circle = check_flag("circle", circle)
        side = sizes[0]
        detectors = side if circle else math.ceil(math.sqrt(2) * side)
        new, old = detectors // 2, side // 2
        self.before = new - old  # as skimage's radon pads: centre upon centre
        super().__init__(sizes, (detectors, len(self.angles)))

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        if x.is_complex():
            return torch.complex(self.apply(x.real), self.apply(x.imag))
        detectors, angles = self.shape_out
        after = detectors - self.shape_in[0] - self.before
        images = F.pad(x.movedim(-1, 0), (self.before, after, self.before, after))
        at_once = max(1, SAMPLES_AT_ONCE // detectors**2)
        blocks = [self._sums(images, first, min(first + at_once, angles)) for first in range(0, angles, at_once)]
        return torch.cat(blocks, 1).movedim(0, -1).movedim(0, 1)

    def _sums(self, images: Tensor, first: int, last: int) -> Tensor:
        """Return the sums (M, angles, detectors) at some angles."""
        points = self._points(first, last).to(images)
        turned = F.grid_sample(
            images[None].expand(last - first, *images.shape), points, mode="bilinear", align_corners=True
        )
        return turned.sum(2).movedim(0, 1)

    def _points(self, first: int, last: int) -> Tensor:
        """Return where turned images are sampled, (angles, detectors, detectors, 2), in torch's units: (x, y)."""
        side = self.shape_out[0]
        centre = side // 2
        turn = torch.deg2rad(self.angles[first:last])[:, None, None]
        at = torch.arange(side, dtype=torch.float64) - centre
        y, x = torch.meshgrid(at, at, indexing="ij")
        across = turn.cos() * x + turn.sin() * y + centre
        down = -turn.sin() * x + turn.cos() * y + centre
        return torch.stack([across, down], -1) * (2 / max(side - 1, 1)) - 1


def _degrees(given: Any) -> Tensor:
    """Return angles in degrees (a,), fp64, of their own memory."""
    if hasattr(given, "__index__") and not is_array(given):
        count = check_int("angles", given, minimum=1)
        return torch.arange(count, dtype=torch.float64) * (180 / count)
    accepted = "angles must be a whole number of angles, or their degrees, a sequence or an array (a,)"
    if is_array(given):
        found = check_tensor("angles", given, floating=False).detach()
        if found.ndim != 1 or found.is_complex():
            raise ValueError(f"{accepted}; got {found.dtype} of shape {tuple(found.shape)}")
        return found.to("cpu", torch.float64, copy=True)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{accepted}; got {given!r} ({type(given).__name__})")
    degrees = [check_float(f"angles[{place}]", own) for place, own in enumerate(given)]
    return check_tensor("angles", torch.tensor(degrees, dtype=torch.float64))
