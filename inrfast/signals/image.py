"""Images: files to float tensors (H, W, C) in [0, 1] and back, with or without transparency."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from inrfast.errors import check_int, check_tensor
from inrfast.files import whole_file
from inrfast.signals.paths import readable, writable

LUMA = (0.299, 0.587, 0.114)
"""Grey from red, green and blue, ITU-R BT.601: the weights of Pillow, and of most papers on image regression."""

MID_GREY = 0.5
"""Taken from the pixels before a fit and given back after it: a network's outputs start near 0, an image's mean does
not."""

TRANSPARENT = frozenset({"JPEG2000", "PNG", "TGA", "TIFF", "WEBP"})
"""Formats, by Pillow's names, that give eight bits of transparency back as they were written."""


def load_image(
    path: str | os.PathLike[str],
    size: int | Sequence[int] | None = None,
    grey: bool = False,
    alpha: bool | None = False,
) -> Tensor:
    """Return the image in a file as an fp32 tensor (H, W, C) with values in [0, 1].

    Parameters
    ----------
    path
        Any format Pillow reads, 8 or 16 bits; the camera's orientation is applied.
    size
        ``(H, W)``, or one int for a square; None keeps the file's. The image is cropped about its centre to that
        aspect, so it is never distorted, then averaged over areas.
    grey
        One channel (ITU-R BT.601 luma) instead of three.
    alpha
        False drops transparency, as most papers do: the colours stay as they are in the file. True returns the opacity
        as a fourth channel, 1 where the file has none. None returns it where the file is transparent somewhere, and
        drops it where it is opaque everywhere or ``grey`` is asked for. Averages over areas weigh colours by their
        opacity, so that the colours of invisible pixels do not bleed into visible ones.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, not an image, truncated or damaged; a size below 1; ``grey`` together with ``alpha=True``.
    TypeError
        ``path`` is no path, ``size`` no integers, ``alpha`` neither True, False nor None.
    """
    if alpha is not None and not isinstance(alpha, bool):
        raise TypeError(f"alpha must be True, False or None, got {alpha!r}")
    if grey and alpha:
        raise ValueError("alpha=True returns four channels and grey=True one: leave one of them out")
    file = readable(path, "an image")
    shape = None if size is None else _check_size(size)
    picture = _open(file)
    opacity = _opacity(picture) if alpha is None and not grey else None
    if alpha or (opacity is not None and bool((opacity < 1).any())):
        return _fit_transparent(_pixels(picture, file), _opacity(picture), shape)
    return _fit_to(_pixels(picture, file), shape, grey)


def astronaut(size: int | Sequence[int] = 256, grey: bool = False) -> Tensor:
    """Return the photograph of Eileen Collins bundled with scikit-image (512x512, public domain, NASA), resized.

    Shape (H, W, C), fp32, values in [0, 1]; ``size`` and ``grey`` as in :func:`load_image`.
    """
    shape = _check_size(size)
    from skimage import data  # slow to import, and needed for this one photograph only

    return _fit_to(torch.from_numpy(data.astronaut()).float() / 255, shape, grey)


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write an image with 8 bits a channel; values outside [0, 1] are clipped. The file is whole or absent.

    Parameters
    ----------
    image
        Floating tensor (H, W), (H, W, 1), (H, W, 3) or, with the opacity in a fourth channel, (H, W, 4); any device.
    path
        Its suffix (``.png``, ``.jpg``, ...) names the format; its folder must exist. An older file is replaced.

    Raises
    ------
    ValueError, TypeError
        Wrong shape, NaN or Inf, a suffix that names no format, or for four channels one without transparency (.jpg).
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    image = check_tensor("image", image).detach()
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"image must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {tuple(image.shape)}")
    transparent = image.ndim == 3 and image.shape[2] == 4
    target = writable(path, "a transparent image" if transparent else "an image", image_suffixes(transparent))
    pixels = (image.double().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    with whole_file(target) as file:
        picture.save(file, format=Image.registered_extensions()[target.suffix.lower()])


def image_suffixes(transparent: bool = False) -> list[str]:
    """Return the suffixes that :func:`save_image` takes, sorted; ``transparent``: for images with an opacity."""
    formats = Image.registered_extensions().items()
    return sorted(s for s, name in formats if name in Image.SAVE and (name in TRANSPARENT or not transparent))


def _check_size(size: Any) -> tuple[int, int]:
    """Return ``(H, W)`` from an int or a pair."""
    if isinstance(size, Sequence) and not isinstance(size, str):
        if len(size) != 2:
            raise ValueError(f"size must be an int or a pair (H, W), got {size!r}")
        return check_int("size", size[0], minimum=1), check_int("size", size[1], minimum=1)
    side = check_int("size", size, minimum=1)
    return side, side


def _open(file: Path) -> Image.Image:
    """Return the decoded picture, turned as the camera says."""
    try:
        with Image.open(file) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not an image in a format that Pillow reads") from None
    except PermissionError:
        raise
    # Each decoder of Pillow reports damage in its own way.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is truncated, damaged or too large to decode: {error}") from error


def _pixels(picture: Image.Image, file: Path) -> Tensor:
    """Return the colours, (H, W, 3), fp32 in [0, 1]."""
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversions clip to 8
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32)) / 65535
        return grey.clamp(0, 1).unsqueeze(-1).expand(-1, -1, 3)
    if picture.mode == "F":
        raise ValueError(f"{file} holds floating-point pixels without a stated range; convert it to 8 or 16 bits first")
    return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255


def _opacity(picture: Image.Image) -> Tensor:
    """Return the opacity, (H, W, 1), fp32 in [0, 1]; 1 where the file has none."""
    if not picture.has_transparency_data:
        return torch.ones(picture.height, picture.width, 1)
    if picture.mode.startswith("I"):  # one of the 16-bit greys stands for "transparent"
        return torch.from_numpy(np.asarray(picture) != picture.info["transparency"]).float().unsqueeze(-1)
    return torch.from_numpy(np.array(picture.convert("RGBA"))[..., 3:]).float() / 255


def _fit_transparent(colours: Tensor, opacity: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """Return colours and opacity (H, W, 4) in ``shape``; colours are averaged by what is seen of them."""
    if shape is None:
        return torch.cat([colours, opacity], -1)
    plain, seen, opacity = (_fit_to(image, shape, False) for image in (colours, colours * opacity, opacity))
    # What nobody sees has no right colour: it keeps its own.
    visible = torch.where(opacity > 0, seen / opacity.clamp_min(torch.finfo(opacity.dtype).tiny), plain)
    return torch.cat([visible.clamp(0, 1), opacity], -1)


def _fit_to(image: Tensor, shape: tuple[int, int] | None, grey: bool) -> Tensor:
    """Crop about the centre to the aspect of ``shape``, average areas, and turn to grey where asked."""
    if grey:
        image = (image @ image.new_tensor(LUMA)).unsqueeze(-1)
    if shape is None:
        return image.contiguous()
    height, width = image.shape[:2]
    scale = min(height / shape[0], width / shape[1])
    crop = [max(1, math.floor(side * scale + 1e-9)) for side in shape]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    image = image[top : top + crop[0], left : left + crop[1]]
    return F.adaptive_avg_pool2d(image.permute(2, 0, 1), shape).permute(1, 2, 0).contiguous()
