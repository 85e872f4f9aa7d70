"""What phase retrieval cannot tell apart: the sign, the mirror image through a point and the place of a signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import check_choice
from inrfast.inverse.operators import Operator, Shape, at_least_fp32, check_operator, check_shape, in_form, on_grid

AMBIGUITIES = ("sign", "flip", "shift")


def align_ambiguities(
    found: ArrayLike,
    target: ArrayLike,
    ambiguities: Sequence[str] | Operator = AMBIGUITIES,
    padded: int | Sequence[int] | None = None,
) -> Tensor:
    """Return a reconstruction after the sign, flip and shift that bring it nearest to the truth, channel by channel.

    Magnitudes of a Fourier transform are the same for a signal x, for -x, for its mirror image ``x(-i)`` (an image
    turned by 180 degrees) and for its circular shifts on the padded grid; those of a real matrix for x and -x. A score
    against the truth, such as a PSNR, is only meaningful after that choice is made. It is made by the truth: never use
    it to choose between reconstructions. Of a wrong reconstruction it raises the score, of noise by some tenths of a
    dB.

    Parameters
    ----------
    found, target
        The reconstruction and the truth, (*shape, M) or (*shape), alike.
    ambiguities
        Names out of ``"sign"``, ``"flip"``, ``"shift"``, or the operator of the measurements, which knows its own.
    padded
        Sizes of the grid on which shifts are circular; None: that of the operator, else that of the signal.

    Returns
    -------
    Tensor
        As ``found``; what a shift moves out of the signal's grid is cut off, what it moves in comes from the padding.

    Raises
    ------
    ValueError, TypeError
        Shapes that differ, a complex truth of a real reconstruction, NaN, unknown names, a padded grid smaller than the
        signal.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> truth = torch.rand(8, 8)
    >>> torch.equal(inr.inverse.align_ambiguities(-truth.flip(0, 1), truth), truth)
    True
    """
    names, grid = _checked(ambiguities, padded)
    target = as_tensor("target", target)
    target_grid, target_form = on_grid("target", target, _shape_of(target, grid), "the truth")
    shape = tuple(target_grid.shape[:-1])
    values, form = on_grid("found", found, shape, "the reconstruction")
    if values.shape != target_grid.shape or form != target_form:
        raise ValueError(f"found must have the shape of target, got {tuple(values.shape)}, {tuple(target_grid.shape)}")
    if target_grid.is_complex() and not values.is_complex():
        raise TypeError(f"target must be real, as found is, got {target_grid.dtype}")
    grid = shape if grid is None else grid
    if len(grid) != len(shape) or any(map(int.__lt__, grid, shape)):
        raise ValueError(f"padded must be as large as the signal along each axis, got {grid} for {shape}")
    truth = target_grid.to(values)
    aligned = [_aligned(values[..., c], truth[..., c], names, grid) for c in range(values.shape[-1])]
    return in_form(torch.stack(aligned, -1), form, shape)


def _checked(ambiguities: Any, padded: Any) -> tuple[tuple[str, ...], Shape | None]:
    grid = None if padded is None else check_shape("padded", padded)
    if isinstance(ambiguities, str):
        ambiguities = (ambiguities,)
    if not isinstance(ambiguities, Sequence):
        operator = check_operator(ambiguities, "ambiguities")
        return operator.ambiguities, getattr(operator, "padded", None) if grid is None else grid
    return tuple(check_choice("ambiguities", own, AMBIGUITIES) for own in ambiguities), grid


def _shape_of(target: Tensor, grid: Shape | None) -> Shape:
    """Return the sizes of a truth: the channels are its last axis where there is one more than the grid has."""
    shape = tuple(target.shape)
    if grid is None:
        return shape[:-1] if len(shape) > 2 else shape
    return shape[: len(grid)]


def _aligned(found: Tensor, truth: Tensor, names: Sequence[str], grid: Shape) -> Tensor:
    """Return the best of one channel: of all signs, flips and shifts that with the largest correlation."""
    axes = tuple(range(found.ndim))
    best, best_value = found, -torch.inf
    for flipped in (found, found.flip(axes)) if "flip" in names else (found,):
        if "shift" in names:
            wide = at_least_fp32(truth), at_least_fp32(flipped)
            spectrum = torch.fft.fftn(wide[0], s=grid) * torch.fft.fftn(wide[1], s=grid).conj()
            correlation = torch.fft.ifftn(spectrum).real
        else:
            correlation = (at_least_fp32(truth) * at_least_fp32(flipped)).sum().reshape((1,) * found.ndim)
        score = correlation.abs() if "sign" in names else correlation
        place = int(score.argmax())
        if float(score.flatten()[place]) > best_value:
            best_value = float(score.flatten()[place])
            sign = -1.0 if float(correlation.flatten()[place]) < 0 and "sign" in names else 1.0
            shift = [int(own) for own in torch.unravel_index(torch.tensor(place), correlation.shape)]
            room = found.new_zeros(grid)
            room[tuple(slice(size) for size in found.shape)] = flipped
            moved = room.roll(shift, axes)
            best = sign * moved[tuple(slice(size) for size in found.shape)]
    return best
