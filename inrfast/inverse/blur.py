"""Blur: the convolution of a signal with a kernel, with a stated boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import check_choice, check_float, check_int, check_tensor
from inrfast.inverse.operators import Operator, Shape, check_shape

BOUNDARIES = {"zero": "constant", "edge": "replicate", "mirror": "reflect", "wrap": "circular"}
"""What lies beyond the signal, by the names of torch: zeros, the last value, the mirror image without the edge twice
(d c b | a b c d), the signal again."""

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

REACH = 4.0
"""A Gaussian is cut off after so many standard deviations, as in SciPy."""


class Blur(Operator):
    """Convolution with a kernel, ``(A x)_i = sum_j k_j x_(i + c - j)``, c the kernel's centre ``size // 2``.

    It is that of ``scipy.ndimage.convolve``, in one to three dimensions.

    Parameters
    ----------
    shape
        Sizes of the grid; measurements have the same.
    kernel
        As many axes as the grid, any numbers; not normalised. Or a sequence of such kernels, applied one after another.
    boundary
        ``"zero"``, ``"edge"``, ``"mirror"`` or ``"wrap"``: what lies beyond the signal. SciPy calls them constant,
        nearest, mirror and wrap.

    Raises
    ------
    ValueError, TypeError
        A kernel of other axes, or that reaches further than a mirrored or wrapped signal does; NaN; complex numbers.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> float(inr.inverse.Blur.gaussian((9, 9), 1.0, boundary="edge")(torch.ones(9, 9)).std()) < 1e-6
    True
    """

    def __init__(self, shape: int | Sequence[int], kernel: Any, boundary: str = "zero") -> None:
        sizes = check_shape("shape", shape)
        if len(sizes) > 3:
            raise ValueError(f"shape must have one to three axes, got {sizes}")
        super().__init__(sizes, sizes)
        self.boundary = check_choice("boundary", boundary, BOUNDARIES)
        several = isinstance(kernel, list | tuple)
        given = list(kernel) if several else [kernel]
        if not given:
            raise ValueError("kernel must be an array or a sequence of them, got none")
        self.kernels = [
            self._checked(f"kernel[{place}]" if several else "kernel", own) for place, own in enumerate(given)
        ]

    def _checked(self, argument: str, given: ArrayLike) -> Tensor:
        kernel = check_tensor(argument, given, floating=False).detach().cpu()
        if kernel.is_complex():
            raise TypeError(f"{argument} must be real, got {kernel.dtype}")
        if kernel.ndim != len(self.shape_in):
            raise ValueError(
                f"{argument} must have {len(self.shape_in)} axes, as the grid {self.shape_in}, got shape "
                f"{tuple(kernel.shape)}"
            )
        reach = [size // 2 for size in kernel.shape]
        most = [n - 1 if self.boundary == "mirror" else n for n in self.shape_in]
        if self.boundary in ("mirror", "wrap") and any(a > b for a, b in zip(reach, most, strict=True)):
            raise ValueError(
                f"{argument} of shape {tuple(kernel.shape)} reaches {reach} beyond a grid {self.shape_in}, and with "
                f"boundary={self.boundary!r} at most {most} are there; take a smaller kernel or boundary='zero'"
            )
        return kernel.to(torch.float64, copy=True)  # the caller may reuse its memory

    @classmethod
    def gaussian(cls, shape: int | Sequence[int], sigma: float | Sequence[float], boundary: str = "zero") -> Blur:
        """Return the blur by a Gaussian of standard deviation ``sigma`` (pixels; one, or one per axis), of sum 1.

        It is cut off after four standard deviations.
        """
        sizes = check_shape("shape", shape)
        widths = _per_axis("sigma", sigma, len(sizes), lambda name, own: check_float(name, own, minimum=0.0))
        kernels = []
        for width in widths:
            reach = int(REACH * width + 0.5)
            at = torch.arange(-reach, reach + 1, dtype=torch.float64)
            bell = torch.exp(-0.5 * (at / width).square()) if width else torch.ones(1, dtype=torch.float64)
            kernels.append(bell / bell.sum())
        return cls(sizes, _along_axes(kernels), boundary)

    @classmethod
    def box(cls, shape: int | Sequence[int], width: int | Sequence[int], boundary: str = "zero") -> Blur:
        """Return the mean over a box of ``width`` pixels (one number, or one per axis)."""
        sizes = check_shape("shape", shape)
        widths = _per_axis("width", width, len(sizes), lambda name, own: check_int(name, own, minimum=1))
        return cls(sizes, _along_axes([torch.full((own,), 1 / own, dtype=torch.float64) for own in widths]), boundary)

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        if x.is_complex():
            return torch.complex(self.apply(x.real), self.apply(x.imag))
        now = x.movedim(-1, 0).unsqueeze(1)
        for kernel in self.kernels:
            flipped = kernel.flip(tuple(range(kernel.ndim))).to(now)[None, None]
            now = CONVOLVE[kernel.ndim](self._padded(now, tuple(kernel.shape)), flipped)
        return now.squeeze(1).movedim(0, -1)

    def _padded(self, x: Tensor, kernel: Shape) -> Tensor:
        beyond = [side for size in reversed(kernel) for side in ((size - 1) - size // 2, size // 2)]
        return F.pad(x, beyond, mode=BOUNDARIES[self.boundary]) if any(beyond) else x


def _per_axis(argument: str, given: Any, axes: int, check: Any) -> list[Any]:
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * axes
    if len(numbers) != axes:
        raise ValueError(f"{argument} must be one number or one for each of {axes} axes, got {len(numbers)}")
    return [check(argument, own) for own in numbers]


def _along_axes(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Return 1-D kernels as kernels of all axes, each along its own."""
    axes = len(kernels)
    return [
        own.reshape([len(own) if axis == place else 1 for place in range(axes)]) for axis, own in enumerate(kernels)
    ]
