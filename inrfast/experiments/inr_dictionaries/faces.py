"""The faces of the paper's experiments, grey and of one size: those to learn from and those held out."""

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
from inrfast.signals.image import MID_GREY, load_image

BUNDLED, BUNDLED_HELD_OUT = 100, 25
"""Faces of scikit-image's ``lfw_subset``, the first of its 200 images (the others show none), and those held out."""

HELD_OUT_SHARE = 0.25
"""Of images of the user's own."""


@dataclass(frozen=True)
class Faces:
    """Grey images of ``side`` x ``side`` pixels.

    Attributes
    ----------
    learned, held_out
        (B, side, side), fp64, in [0, 1].
    names
        Of all of them, first those to learn from.
    source
        Where they come from, in words.
    """

    learned: Tensor
    held_out: Tensor
    names: tuple[str, ...]
    source: str

    @property
    def side(self) -> int:
        """Pixels along an axis."""
        return self.learned.shape[-1]

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell's result depends on; names of the user's own images alone, of the bundled ones their number."""
        return {"side": self.side, "learned": len(self.learned), "held_out": len(self.held_out), "faces": self.source}

    @property
    def centred(self) -> Tensor:
        """The held-out images, each minus its mean as in the authors' code, (B, side, side)."""
        return self.held_out - self.held_out.mean((1, 2), keepdim=True)


def targets(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images (B, side, side) as values for networks, (B, side * side, 1).

    Minus 0.5, which the authors' sine networks add to their output.
    """
    return (images.flatten(1) - MID_GREY).to(dtype).unsqueeze(2)


def faces(request: Request, side: int, learned: int, held_out: int) -> Faces:
    """Return at most so many faces to learn from and held out, as ``side`` x ``side`` pixels.

    Of the bundled faces the last quarter is held out; each stands beside its mirror image in the same part. Of images
    of the user's own, sorted by name, the last quarter is held out too, and no mirror images are added.

    Raises
    ------
    ValueError
        A single image, one that is smaller than ``side``, or one that cannot be read.
    """
    if request.images:
        return _of_files(request.images, side, learned, held_out)
    from skimage import data  # slow to import

    kept = data.lfw_subset()[:BUNDLED]
    first = BUNDLED - BUNDLED_HELD_OUT
    parts = (kept[:first], learned, 0), (kept[first:], held_out, first)
    values, names = [], []
    for images, count, start in parts:
        pairs = [(f"lfw{start + i:02d}", image) for i, image in enumerate(images)]
        both = [pair for name, image in pairs for pair in ((name, image), (f"{name}-mirrored", image[:, ::-1]))][:count]
        values.append(torch.stack([_resized(image, side) for _, image in both]))
        names += [name for name, _ in both]
    source = (
        f"scikit-image's lfw_subset in place of CelebA, {kept.shape[1]}x{kept.shape[2]} pixels resized to {side}x{side}"
        f": {_mirrored(len(values[0]))} to learn from and {_mirrored(len(values[1]))} held out, no face in both"
    )
    return Faces(values[0], values[1], tuple(names), source)


def _mirrored(count: int) -> str:
    return f"{(count + 1) // 2} faces with their mirror images ({count} images)"


def _of_files(files: Sequence[Path], side: int, learned: int, held_out: int) -> Faces:
    if len(files) < 2:
        raise ValueError(f"images must hold at least two images, one of them held out, and {shown(files[0])} is alone")
    apart = max(1, round(HELD_OUT_SHARE * len(files)))
    parts = files[: len(files) - apart][:learned], files[len(files) - apart :][:held_out]
    values = [torch.stack([_of_file(path, side) for path in part]) for part in parts]
    source = (
        f"central squares of the images given, resized to {side}x{side}: the first {len(values[0])} to learn from, "
        f"{len(values[1])} of the last {apart} held out"
    )
    return Faces(values[0], values[1], tuple(path.name for part in parts for path in part), source)


def _of_file(path: Path, side: int) -> Tensor:
    image = load_image(path, grey=True)[..., 0].double().numpy()
    edge = min(image.shape)
    if edge < side:
        height, width = image.shape
        raise ValueError(f"images must be at least {side} pixels high and wide, and {shown(path)} is {height}x{width}")
    top, left = ((size - edge) // 2 for size in image.shape)
    return _resized(image[top : top + edge, left : left + edge], side)


def _resized(image: np.ndarray, side: int) -> Tensor:
    """Return a square image as the authors' code resizes it: bilinear, smoothed before it where it shrinks."""
    from skimage.transform import resize  # slow to import

    return torch.from_numpy(resize(image.astype(np.float64), (side, side), anti_aliasing=True))
