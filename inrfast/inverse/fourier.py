"""Fourier measurements: some coefficients of a signal, and the magnitudes of an oversampled transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import check_float
from inrfast.inverse.magnitudes import Magnitude
from inrfast.inverse.masks import Mask
from inrfast.inverse.operators import Operator, at_least_fp32, check_shape


class Fourier(Operator):
    """Some coefficients of the orthonormal discrete Fourier transform: (*shape, M) to (m, M), complex.

    The adjoint is the inverse transform of coefficients put to their places, zeros elsewhere; it is complex. With all
    coefficients the operator is unitary.

    Parameters
    ----------
    shape
        Sizes of the grid.
    known
        (*shape) of booleans: which coefficients are measured, in the order of ``torch.fft.fftn``, the constant first.
        None: all.

    Raises
    ------
    ValueError, TypeError
        As :class:`inrfast.inverse.Mask`.
    """

    complex_in = True
    complex_out = True

    def __init__(self, shape: int | Sequence[int], known: ArrayLike | None = None) -> None:
        sizes = check_shape("shape", shape)
        self.mask = Mask(torch.ones(sizes, dtype=torch.bool) if known is None else known, sizes)
        super().__init__(sizes, self.mask.shape_out)

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return self.mask.apply(torch.fft.fftn(at_least_fp32(x), dim=self._axes, norm="ortho"))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return torch.fft.ifftn(self.mask.apply_adjoint(at_least_fp32(y)), dim=self._axes, norm="ortho")

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape_in)))


class Pad(Operator):
    """Zeros behind the end of each axis: (*shape, M) to (*padded, M). The adjoint crops."""

    def __init__(self, shape: int | Sequence[int], padded: int | Sequence[int]) -> None:
        super().__init__(shape, padded)
        if len(self.shape_in) != len(self.shape_out) or any(map(int.__gt__, self.shape_in, self.shape_out)):
            raise ValueError(f"padded must be as large as shape along each axis, got {self.shape_out}, {self.shape_in}")

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        room = [side for n, m in zip(self.shape_in[::-1], self.shape_out[::-1], strict=True) for side in (0, m - n)]
        return torch.nn.functional.pad(x, (0, 0, *room))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return y[tuple(slice(size) for size in self.shape_in)]


class FourierMagnitude(Magnitude):
    """Oversampled Fourier phase retrieval: ``|F P x|`` of a signal padded with zeros, (*shape, M) to (*padded, M).

    ``padded`` is ``ceil(s n)`` along each axis. F is the plain discrete Fourier transform, not normalised, so that
    ``|F P x|^2`` sums to ``m |x|^2`` with m the number of coefficients: the data term of the paper's (B.2), with its
    1/(2 m), is then of the size of ``|x|^2 / 2`` and of its rho / 2 term.

    A signal cannot be told from its negative, from its mirror image through a point, nor from itself shifted in the
    padded grid: compare with :func:`inrfast.inverse.align_ambiguities`.

    Parameters
    ----------
    shape
        Sizes of the grid.
    oversampling
        s, 1 or more. From 2 on the magnitudes of the unpadded signal's autocorrelation are all there.
    epsilon
        Of the loss, which compares ``sqrt(|F P x|^2 + epsilon)`` with ``sqrt(y^2 + epsilon)``; the paper's 1e-3.
        Measurements are ``|F P x|`` itself.

    Attributes
    ----------
    padded
        Sizes of the padded grid.
    inner
        The linear operator whose magnitude it is, of padded signals (*padded, M).
    pad
        The zero padding P, with the crop as its adjoint.

    Raises
    ------
    ValueError, TypeError
        An oversampling below 1; a negative epsilon.

    References
    ----------
    Li, Ma, Wang, Zeng and Han, PEAK, appendix B.2.
    """

    ambiguities = ("sign", "flip", "shift")

    def __init__(self, shape: int | Sequence[int], oversampling: float = 2.0, epsilon: float = 1e-3) -> None:
        sizes = check_shape("shape", shape)
        self.oversampling = check_oversampling(oversampling)
        padded = tuple(math.ceil(round(self.oversampling * size, 9)) for size in sizes)
        super().__init__(sizes, padded, epsilon)
        self.padded = padded
        self.pad = Pad(sizes, padded)

    def linear_part(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.magnitudes.Magnitude`."""
        return self.transform(self.pad.apply(x))

    def transform(self, x: Tensor) -> Tensor:
        """Return the Fourier transform (*padded, M) of a padded signal, complex."""
        return torch.fft.fftn(at_least_fp32(x), dim=tuple(range(len(self.padded))))


def check_oversampling(given: float, argument: str = "oversampling") -> float:
    """Return the ratio of measurements to sizes per axis, of at least 1."""
    found = check_float(argument, given)
    if found < 1:
        raise ValueError(
            f"{argument} must be at least 1, the ratio of coefficients to pixels along each axis, got {found:g}"
        )
    return found
