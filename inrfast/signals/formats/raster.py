"""Decoded pictures in the numbers of their files, converted to fp32 box by box, so that copies stay small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.memory import require

Box = tuple[slice, slice]
"""Rows and columns of a picture, with both ends given."""


MOST_DPI = 2**16
"""Dots per inch that a JPEG has room for; a picture of so many is none."""


@dataclass(frozen=True)
class Stated:
    """What a file states of its picture beside the pixels: an ICC profile of its colours, and dots per inch (x, y)."""

    icc: bytes | None = None
    dpi: tuple[float, float] | None = None

    @classmethod
    def of(cls, icc: Any, dpi: Any, orientation: int = 1) -> Stated:
        """Return what was found, as far as it can be meant; ``dpi`` of a picture that is turned by ``orientation``."""
        try:
            across, down = (float(each) for each in dpi)
        except (TypeError, ValueError, ArithmeticError):
            across = down = 0.0
        right = 1 < across < MOST_DPI and 1 < down < MOST_DPI  # 1 stands for unknown
        turned = (down, across) if orientation >= 5 else (across, down)
        return cls(icc if isinstance(icc, bytes) and icc else None, turned if right else None)


NOTHING = Stated()


@dataclass(frozen=True)
class Raster:
    """A picture of ``height`` x ``width`` pixels.

    ``colours`` gives a box's colours, fp32 (h, w, 3) in [0, 1], ``opacity`` its opacity, fp32 (h, w, 1) in [0, 1]; None
    where the file has none. ``grey``: the file has one channel of greys, and the three are alike. ``bits``: per sample.
    ``left_out``: samples per pixel that are neither.
    """

    height: int
    width: int
    colours: Callable[[Box], Tensor]
    opacity: Callable[[Box], Tensor] | None = None
    grey: bool = False
    bits: int = 8
    stated: Stated = NOTHING
    left_out: int = 0


@dataclass(frozen=True)
class Demand:
    """Memory for a picture: ``budget`` bytes, of which ``beside(height, width)`` go into the results."""

    budget: int
    beside: Callable[[int, int], int]

    def check(self, file: Path, height: int, width: int, decoded: int) -> None:
        """Refuse a picture whose ``decoded`` bytes and results exceed the budget, before it is decoded."""
        needed = decoded + self.beside(height, width)
        fit = int(self.budget / max(needed, 1) * height * width)
        instead = f"at most about {fit} pixels fit at this size; a smaller size= takes less beside the decoded pixels"
        require(needed, self.budget, f"decoding {file} ({height}x{width} pixels)", instead)


def from_array(
    samples: np.ndarray[Any, Any],
    largest: int,
    base: int,
    alpha: int | None = None,
    *,
    premultiplied: bool = False,
    inverted: bool = False,
) -> Raster:
    """Return the raster of unsigned integers, or of floats in [0, 1], (H, W, S).

    Parameters
    ----------
    samples
        In the file's numbers, ``largest`` of which is 1.
    base
        How many samples are colours, 1 or 3; they come first.
    alpha
        Index of the samples with the opacity; None if there is none.
    premultiplied
        The colours are multiplied by the opacity already, and are divided by it.
    inverted
        A colour's 0 is white.
    """

    def part(box: Box, channels: slice, inverted: bool = False) -> Tensor:
        values = samples[box][..., channels]
        if values.dtype.itemsize <= 2:  # exact in fp32
            exact = torch.from_numpy(values.astype(np.float32))
            return (largest - exact if inverted else exact).div_(largest)
        wide = values.astype(np.float64)
        return torch.from_numpy(((largest - wide if inverted else wide) / largest).astype(np.float32))

    def opacity(box: Box) -> Tensor:
        assert alpha is not None
        return part(box, slice(alpha, alpha + 1))

    def colours(box: Box) -> Tensor:
        values = part(box, slice(base), inverted)
        if premultiplied:
            seen = opacity(box)
            values = torch.where(seen > 0, values / seen.clamp_min(torch.finfo(seen.dtype).tiny), 0).clamp(max=1)
        return values.expand(-1, -1, 3)

    bits = 8 * samples.itemsize if samples.dtype.kind == "f" else largest.bit_length()
    height, width = samples.shape[:2]
    return Raster(height, width, colours, None if alpha is None else opacity, base == 1, bits)


class PagesError(ValueError):
    """A file holds ``pages`` pages or frames, and none was asked for."""

    def __init__(self, file: Path, pages: int) -> None:
        super().__init__(f"{file} holds {pages} pages or frames: say which one, page 0 to page {pages - 1}")
        self.pages = pages


def check_page(file: Path, page: int | None, pages: int) -> int:
    """Return the index of the page asked for; None is right where there is only one."""
    if page is None and pages != 1:
        raise PagesError(file, pages)
    if page is not None and page >= pages:
        raise ValueError(f"page must be below the number of pages or frames of {file}, {pages}, got {page}")
    return page or 0


def oriented(samples: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Return (H, W, ...) as it is to be seen, by the number that Exif and TIFF give the camera's orientation."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8) if orientation < 5 else orientation in (7, 8)
    right = orientation in (2, 3) if orientation < 5 else orientation in (6, 7)
    return samples[:: -1 if down else 1, :: -1 if right else 1]
