"""Missing pixels: the operator that keeps some points of a grid, at random, outside patches, or as an array says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import check_float, check_int, check_seed
from inrfast.inverse.operators import Operator, check_shape


class Mask(Operator):
    """Keeps the points of a grid where a mask is True: signals (*shape, M) to their values there, (m, M).

    The adjoint puts values back to their places, with zeros elsewhere.

    Parameters
    ----------
    known
        (*shape) of booleans, or of numbers that are 0 (missing) or not (known): a mask image of 0 and 255 does.
    shape
        Grid that it must have; None: its own.

    Attributes
    ----------
    known
        The mask as booleans, on the CPU.
    share
        Share of the points that are known.

    Raises
    ------
    ValueError, TypeError
        Another size than ``shape``; all points missing; complex numbers, NaN.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> A = inr.inverse.Mask.random((8, 8), 0.5)
    >>> A(torch.ones(8, 8, 3)).shape
    torch.Size([32, 3])
    """

    def __init__(self, known: ArrayLike, shape: Sequence[int] | None = None) -> None:
        given = as_tensor("known", known).detach().cpu()
        if given.is_complex():
            raise TypeError(f"known must hold booleans or real numbers, got {given.dtype}")
        if given.is_floating_point() and bool(given.isnan().any()):
            raise ValueError("known must hold booleans or numbers, got NaN")
        if given.numel() == 0 or given.ndim == 0:
            raise ValueError(f"known must be a grid of at least one point, got shape {tuple(given.shape)}")
        if shape is not None and tuple(given.shape) != check_shape("shape", shape):
            raise ValueError(f"known must have the size of the signal, {tuple(shape)}, got {tuple(given.shape)}")
        self.known = given != 0
        if not bool(self.known.any()):
            raise ValueError(f"known must be True somewhere, got a mask with all {given.numel()} points missing")
        self.places = self.known.flatten().nonzero()[:, 0]
        super().__init__(tuple(given.shape), (len(self.places),))

    @property
    def share(self) -> float:
        """Share of the points that are known."""
        return len(self.places) / self.known.numel()

    @classmethod
    def random(cls, shape: int | Sequence[int], share: float, seed: int = 0) -> Mask:
        """Return a mask that keeps a random ``share`` of the points, exactly ``round(share N)`` of them.

        Parameters
        ----------
        shape
            Sizes of the grid.
        share
            Above 0, at most 1.
        seed
            Of the draw.
        """
        sizes = check_shape("shape", shape)
        share = check_float("share", share, minimum=0.0, exclusive=True)
        count = math.prod(sizes)
        kept = round(share * count)
        if share > 1 or kept < 1:
            raise ValueError(f"share must keep between 1 and {count} points, got {share:g}, which keeps {kept}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(check_seed("seed", seed)))
        known = torch.zeros(count, dtype=torch.bool)
        known[order[:kept]] = True
        return cls(known.reshape(sizes))

    @classmethod
    def patches(cls, shape: int | Sequence[int], patches: Sequence[Sequence[Any]]) -> Mask:
        """Return a mask without some boxes.

        Parameters
        ----------
        shape
            Sizes of the grid.
        patches
            Boxes that are missing, each a start and a size per axis: ``[((10, 20), (8, 8))]``. They must lie in the
            grid.
        """
        sizes = check_shape("shape", shape)
        known = torch.ones(sizes, dtype=torch.bool)
        for number, patch in enumerate(patches):
            place = f"patches[{number}]"
            if len(patch) != 2 or any(len(own) != len(sizes) for own in patch):
                raise ValueError(f"{place} must be a start and a size for each of {len(sizes)} axes, got {patch!r}")
            start = [check_int(place, own, minimum=0) for own in patch[0]]
            size = [check_int(place, own, minimum=1) for own in patch[1]]
            if any(a + b > n for a, b, n in zip(start, size, sizes, strict=True)):
                raise ValueError(f"{place} must lie in the grid {sizes}, got start {start} and size {size}")
            known[tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))] = False
        return cls(known)

    @classmethod
    def texture(cls, shape: Sequence[int], share: float = 0.7, width: float = 2.0, seed: int = 0) -> Mask:
        """Return a mask with a random texture missing: where smoothed noise is lowest, ``share`` of the points kept.

        Parameters
        ----------
        shape
            Sizes of the grid.
        share
            Of the points that are kept, above 0, at most 1.
        width
            Standard deviation of the Gaussian that smooths the noise, in pixels: half of a blot's size or so.
        seed
            Of the noise.
        """
        from scipy import ndimage  # slow to import

        sizes = check_shape("shape", shape)
        share = check_float("share", share, minimum=0.0, exclusive=True)
        width = check_float("width", width, minimum=0.0)
        kept = round(share * math.prod(sizes))
        if share > 1 or kept < 1:
            raise ValueError(f"share must keep between 1 and {math.prod(sizes)} points, got {share:g}")
        noise = torch.randn(
            sizes, generator=torch.Generator().manual_seed(check_seed("seed", seed)), dtype=torch.float64
        )
        smooth = torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), width, mode="wrap"))
        known = torch.zeros(math.prod(sizes), dtype=torch.bool)
        known[smooth.flatten().argsort(descending=True, stable=True)[:kept]] = True
        return cls(known.reshape(sizes))

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.places.to(x.device))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        back = y.new_zeros(self.known.numel(), y.shape[-1])
        return back.index_copy(0, self.places.to(y.device), y).reshape(*self.shape_in, y.shape[-1])
