"""The images of a reproduction: of a folder or bundled, all brought to one size, and what was done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.experiments.paper import Request
from inrfast.files import shown
from inrfast.signals.image import load_image

BUNDLED = ("astronaut", "chelsea", "coffee", "rocket")
"""Photographs of scikit-image that are inside its wheel, free of rights (public domain and CC0)."""


@dataclass(frozen=True)
class Pictures:
    """Images of one size.

    Attributes
    ----------
    names
        File names, without suffix where that tells them apart.
    values
        (B, side, side, 3), fp32, in [0, 1].
    notes
        For each image, how it came to its size.
    asked
        How many were asked for.
    between
        (B, 2 side - 1, 2 side - 1, 3): the pixels at the points of the images and halfway between them, where every
        image has twice the size; None where one does not.
    """

    names: tuple[str, ...]
    values: Tensor
    notes: tuple[str, ...]
    asked: int
    between: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell's result depends on."""
        return {"images": list(self.names), "side": self.values.shape[1], "sampling": sorted(set(self.notes))}

    @property
    def shortage(self) -> str:
        """A sentence if there are fewer images than asked for; empty otherwise."""
        if len(self) >= self.asked:
            return ""
        return f"{self.asked} images were asked for and {len(self)} are there: all numbers are of {len(self)}."


def pictures(request: Request, count: int, side: int) -> Pictures:
    """Return the first ``count`` images of a request, or all where there are fewer, as ``side`` x ``side`` pixels.

    An image of exactly twice the size gives every second pixel, as the first author's code takes DIV2K at 512 x 512;
    any other is cropped to its central square and averaged over areas.
    """
    stems = [path.stem for path in request.images]
    loaders: dict[str, Callable[[], Tensor]] = {
        path.name if stems.count(path.stem) > 1 else path.stem: _of_file(path) for path in request.images
    }
    if not loaders:
        loaders = {name: _bundled(name) for name in BUNDLED}
    read = {name: loaders[name]() for name in list(loaders)[:count]}
    made = {name: _sized(name, image, side) for name, image in read.items()}
    values = torch.stack([value for value, _ in made.values()])
    dense = None
    if all(image.shape[:2] == (2 * side, 2 * side) for image in read.values()):
        dense = torch.stack([image[:-1, :-1] for image in read.values()])
    return Pictures(tuple(made), values, tuple(note for _, note in made.values()), count, dense)


def _of_file(path: Any) -> Callable[[], Tensor]:
    def load() -> Tensor:
        image = load_image(path)
        return image.expand(*image.shape[:2], 3) if image.shape[2] == 1 else image

    return load


def _bundled(name: str) -> Callable[[], Tensor]:
    def load() -> Tensor:
        from skimage import data  # slow to import

        return torch.from_numpy(getattr(data, name)()).float() / 255

    return load


def _sized(name: str, image: Tensor, side: int) -> tuple[Tensor, str]:
    height, width = image.shape[:2]
    if height == width == 2 * side:
        return image[::2, ::2].clone(), f"every second pixel of {height}x{width}"
    if height == width == side:
        return image, f"{height}x{width} as it is"
    edge = min(height, width)
    if edge < side:
        raise ValueError(f"images must be at least {side} pixels high and wide, and {shown(name)} is {height}x{width}")
    top, left = (height - edge) // 2, (width - edge) // 2
    square = image[top : top + edge, left : left + edge].permute(2, 0, 1)[None]
    averaged = F.interpolate(square, size=(side, side), mode="area")[0].permute(1, 2, 0)
    return averaged.contiguous(), f"central square of {height}x{width}, averaged over areas"
