"""Posed images: what a scene is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.errors import check_int, check_tensor
from inrfast.scenes.cameras import Camera

WHITE = (1.0, 1.0, 1.0)

ROUNDING = 1e-3
"""By which images may leave [0, 1]: means in half precision are off by so much."""


@dataclass(frozen=True, eq=False)
class Views:
    """Images and the cameras that took them.

    Parameters
    ----------
    images
        fp32 (V, H, W, 4), in [0, 1]: colours, not multiplied by the opacity in the last channel; or (V, H, W, 3), which
        is opaque everywhere. They are copied.
    cameras
        One per image, of its size.
    names
        Of the images, for messages; empty: numbers.

    Raises
    ------
    ValueError, TypeError
        Other shapes, values outside [0, 1], another number of cameras, cameras of another size.
    """

    images: Tensor
    cameras: Sequence[Camera]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        images = check_tensor("images", self.images, ndim=4).detach()
        if images.shape[-1] not in (3, 4):
            raise ValueError(f"images must have shape (V, H, W, 3) or (V, H, W, 4), got {tuple(images.shape)}")
        low, high = (float(end) for end in torch.aminmax(images))
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(f"images must be in [0, 1], got {low:g} to {high:g}; pixels of 8 bits: .float() / 255")
        cameras = tuple(self.cameras)
        if len(cameras) != len(images):
            raise ValueError(f"cameras must be one per image, {len(images)} of them, got {len(cameras)}")
        for index, camera in enumerate(cameras):
            if not isinstance(camera, Camera):
                raise TypeError(f"cameras[{index}] must be a Camera, got {type(camera).__name__}")
            if (camera.height, camera.width) != tuple(images.shape[1:3]):
                raise ValueError(
                    f"cameras[{index}] is of {camera.height}x{camera.width} pixels and its image of "
                    f"{images.shape[1]}x{images.shape[2]}; camera.resized(height, width) makes one of another size"
                )
        names = tuple(self.names) or tuple(map(str, range(len(images))))
        if len(names) != len(images):
            raise ValueError(f"names must be one per image, {len(images)} of them, got {len(names)}")
        opaque = images.shape[-1] == 3
        images = F.pad(images.float(), (0, 1), value=1.0) if opaque else images.to(torch.float32, copy=True)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "cameras", cameras)
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.cameras)

    def colours(self, background: Sequence[float] = WHITE) -> Tensor:
        """Return the images before a background, (V, H, W, 3)."""
        opacity = self.images[..., 3:]
        return self.images[..., :3] * opacity + self.images.new_tensor(background) * (1 - opacity)

    def rays(self) -> Tensor:
        """Return the rays of all pixels, (V H W, 6): images, rows and columns in their order."""
        return torch.cat([camera.rays().reshape(-1, 6) for camera in self.cameras])

    def some(self, count: int) -> Views:
        """Return ``count`` of the views, evenly spaced in their order, the first among them.

        Raises
        ------
        ValueError
            More than there are, or less than 1.
        """
        count = check_int("count", count, minimum=1)
        if count > len(self):
            raise ValueError(f"count must be at most the number of views, {len(self)}, got {count}")
        return self.at([index * len(self) // count for index in range(count)])

    def at(self, indices: Sequence[int]) -> Views:
        """Return the views of these numbers."""
        own: dict[str, Any] = {
            "cameras": [self.cameras[index] for index in indices], "names": [self.names[index] for index in indices],
        }  # fmt: skip
        return replace(self, images=self.images[list(indices)], **own)
