"""Downsampling by a whole factor: means over areas, or bicubic with antialiasing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.errors import check_choice, check_int
from inrfast.inverse.operators import Operator, at_least_fp32, check_shape

METHODS = ("area", "bicubic")

MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Downsample(Operator):
    """Fewer pixels: (*shape, M) to (*(shape / factor), M), in one to three dimensions.

    Parameters
    ----------
    shape
        Sizes of the grid, which ``factor`` divides.
    factor
        Whole, 1 or more: one, or one per axis.
    method
        ``"area"``: the mean over the pixels of each new one. ``"bicubic"``: cubic interpolation along each axis, with a
        kernel widened by the factor against aliasing, as Pillow's ``resize`` with ``BICUBIC``.

    Raises
    ------
    ValueError, TypeError
        A factor that is not whole, or does not divide; an unknown method; a grid of more than three axes.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> A = inr.inverse.Downsample((8, 6), 2)
    >>> A(torch.rand(8, 6, 3)).shape
    torch.Size([4, 3, 3])
    """

    def __init__(self, shape: int | Sequence[int], factor: int | Sequence[int], method: str = "area") -> None:
        sizes = check_shape("shape", shape)
        given = list(factor) if isinstance(factor, Sequence) else [factor] * len(sizes)
        if len(given) != len(sizes):
            raise ValueError(f"factor must be one number or one for each of {len(sizes)} axes, got {len(given)}")
        self.factors = tuple(check_int("factor", own, minimum=1) for own in given)
        self.method = check_choice("method", method, METHODS)
        if len(sizes) > 3:
            raise ValueError(f"shape must have one to three axes, got {sizes}")
        if any(size % own for size, own in zip(sizes, self.factors, strict=True)):
            raise ValueError(f"factor must divide the sizes of the grid, got {self.factors} for {sizes}")
        super().__init__(sizes, tuple(size // own for size, own in zip(sizes, self.factors, strict=True)))
        self.matrices = [] if method == "area" else list(map(_cubic, self.shape_in, self.shape_out))

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        if x.is_complex():
            return torch.complex(self.apply(x.real), self.apply(x.imag))
        if self.method == "area":
            means, images = MEANS[len(self.factors)], x.movedim(-1, 0).unsqueeze(1)
            if len(self.factors) == 3:  # torch has no means of volumes in 16 bits
                images = at_least_fp32(images)
            return means(images, self.factors).squeeze(1).movedim(0, -1).to(x.dtype)
        for axis, matrix in enumerate(self.matrices):
            x = torch.tensordot(matrix.to(x), x, ([1], [axis])).movedim(0, axis)
        return x


def _cubic(size: int, fewer: int) -> Tensor:
    """Return the matrix (fewer, size) of the interpolation along one axis.

    Along one axis, since torch 2.13 takes images of one column for another memory layout and is then wrong, in the
    backward pass too: here each unit vector is an image of two columns.
    """
    units = torch.eye(size, dtype=torch.float64)[:, None, :, None].repeat(1, 1, 1, 2)
    taken = F.interpolate(units, size=(fewer, 2), mode="bicubic", align_corners=False, antialias=True)
    return taken[:, 0, :, 0].mT.contiguous()
