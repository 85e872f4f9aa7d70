"""Which pixels are missing: at random, in patches, along strokes, or all of these by quadrants; True is observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.experiments.paper import Request
from inrfast.files import shown
from inrfast.signals.image import load_image

KINDS = ("random", "patch", "textural", "combined")
"""Of the paper's table 1, and of its figures 3 and 9."""

COMBINED = "combin"
"""In the names of files that are combined masks; all others are textural ones."""

RANDOM_SHARE, SPARSE_SHARE, STROKE_SHARE = 0.5, 0.2, 0.25
"""Observed pixels of a random mask, and of the random quadrant of a combined one; missing ones of a stroke pattern."""

PATCHES, PATCH_PARTS = 8, 8
"""Square patches, each of 1 / PATCH_PARTS of the side, at cells of a grid: PATCHES / PATCH_PARTS^2 of all pixels."""

GRID = 4
"""Of the third quadrant of a combined mask, one pixel in so many along either axis is observed."""


@dataclass(frozen=True)
class Mask:
    """Observed pixels.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    observed
        (side, side), bool.
    source
        A file's name, or a formula in words.
    """

    kind: str
    observed: Tensor
    source: str

    @property
    def share(self) -> float:
        """Of the pixels, those that are observed."""
        return float(self.observed.double().mean())

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell's result depends on."""
        return {"mask": self.kind, "mask_source": self.source, "observed": int(self.observed.sum())}


def mask(request: Request, kind: str, side: int, seed: int | None = None) -> Mask:
    """Return a mask of one of :data:`KINDS`; ``seed``, by default that of the request, draws those made by formula.

    Of the files of the request the first with :data:`COMBINED` in its name is the combined mask, and the first of the
    others the textural one, white observed, black missing; random and patch masks are always made by formula. A file
    of another size gives the pixel at ``floor(i height / side)``, which keeps the share of what is missing.

    Raises
    ------
    FileNotFoundError
        There are files, and none of them is of this kind.
    ValueError
        A file that is not square or smaller than half of ``side``, with no observed or no missing pixel, or one that
        cannot be read.
    """
    if kind in ("textural", "combined") and request.masks:
        return _of_file(_file_of(request.masks, kind), kind, side)
    rng = np.random.default_rng([request.seed if seed is None else seed, KINDS.index(kind)])
    made = {"random": _random, "patch": _patches, "textural": _textural, "combined": _combined}[kind]
    observed, source = made(side, rng)
    return Mask(kind, torch.from_numpy(observed), source)


def _file_of(files: Sequence[Path], kind: str) -> Path:
    own = [path for path in files if (COMBINED in path.name.lower()) == (kind == "combined")]
    if not own:
        name = f"with {COMBINED!r} in its name" if kind == "combined" else f"without {COMBINED!r} in its name"
        listed = ", ".join(shown(path.name) for path in files[:5])
        raise FileNotFoundError(f"masks must hold a file {name} for the {kind} mask, got {listed}")
    return own[0]


def _of_file(path: Path, kind: str, side: int) -> Mask:
    values = load_image(path, grey=True)[..., 0]
    height, width = values.shape
    if height != width or 2 * height < side:
        told = f"square and at least {(side + 1) // 2} pixels high and wide"
        raise ValueError(f"masks must be {told}, and {shown(path.name)} is {height}x{width}")
    picked = torch.arange(side) * height // side
    observed = (values > 0.5)[picked][:, picked].contiguous()
    if observed.all() or not observed.any():
        said = "misses no pixel" if observed.all() else "misses all pixels"
        raise ValueError(f"masks must be white where pixels are observed and black elsewhere, and {shown(path)} {said}")
    taken = "of" if side < height else "from"
    sampled = "" if height == side else f", {side}x{side} {taken} its {height}x{width} pixels"
    return Mask(kind, observed, f"{path.name}{sampled}")


def _random(side: int, rng: np.random.Generator, share: float = RANDOM_SHARE) -> tuple[np.ndarray, str]:
    observed = np.zeros(side * side, dtype=bool)
    observed[rng.permutation(side * side)[: round(share * side * side)]] = True
    return observed.reshape(side, side), f"{share:.0%} of the pixels, at random"


def _patches(side: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Squares at cells of a grid, never at the border: a network must bridge them, not go on beyond its data."""
    edge, inner = side // PATCH_PARTS, PATCH_PARTS - 1
    observed = np.ones((side, side), dtype=bool)
    for cell in rng.permutation(inner * inner)[:PATCHES]:
        top, left = (edge // 2 + edge * int(place) for place in divmod(int(cell), inner))
        observed[top : top + edge, left : left + edge] = False
    return observed, f"all but {PATCHES} squares of {edge}x{edge} pixels"


def _textural(side: int, rng: np.random.Generator, width: float = 0.015) -> tuple[np.ndarray, str]:
    """Missing are the pixels next to the zero lines of smooth noise: curved strokes of one width."""
    from scipy.ndimage import gaussian_filter  # slow to import

    noise = np.abs(gaussian_filter(rng.standard_normal((side, side)), max(width * side, 1.0), mode="wrap"))
    share = STROKE_SHARE
    return noise > np.quantile(noise, share), f"all but strokes over {share:.0%} of the pixels, zero lines of noise"


def _combined(side: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Four quadrants: strokes, few random pixels, a grid of pixels, thin strokes."""
    half = side // 2
    observed = np.zeros((side, side), dtype=bool)
    observed[:half, :half] = _textural(half, rng)[0]
    observed[:half, half:] = _random(half, rng, SPARSE_SHARE)[0][:, : side - half]
    observed[half::GRID, :half:GRID] = True
    observed[half:, half:] = _textural(side - half, rng, 0.03)[0]
    return observed, "quadrants: strokes, a fifth at random, a grid of one in 16, strokes"
