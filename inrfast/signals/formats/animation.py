"""Animations (GIF, WebP, PNG): all frames of a file as it is seen, by Pillow, sizes checked before they are decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from inrfast.signals.formats import headers, png
from inrfast.signals.formats.decoding import decoding
from inrfast.signals.formats.raster import Demand

FORMATS = ("GIF", "PNG", "WEBP")
"""By Pillow's names."""

SUFFIXES = (".apng", ".gif", ".png", ".webp")

DECODED = 12
"""Bytes per pixel of a frame while it is decoded: in the decoder, as it was before, and in Pillow."""

UNSTATED = 100.0
"""Milliseconds of a frame for which a file states none, or 0: what browsers take."""


@dataclass(frozen=True)
class Animation:
    """An opened file of ``count`` frames of ``height`` x ``width`` pixels, not yet decoded.

    ``first`` is the first of them in Pillow's count: 1 in a PNG whose picture for old viewers is no frame of it.
    """

    picture: Image.Image
    file: Path
    count: int
    height: int
    width: int
    first: int = 0

    def frames(self, numbers: range) -> Iterator[tuple[np.ndarray, float]]:
        """Yield frames, uint8 (H, W, 4) with the opacity, and the milliseconds for which each is shown.

        Raises
        ------
        ValueError
            A frame is damaged; the message names it.
        """
        for number in range(numbers.stop):  # frames build on those before them
            with decoding(self.file, f"is truncated or damaged in frame {number}"):
                self.picture.seek(number + self.first)
                self.picture.load()
                shown = float(self.picture.info.get("duration") or UNSTATED)
                if number in numbers:
                    pixels = np.asarray(self.picture.convert("RGBA"))
            if number in numbers:
                if pixels.shape != (self.height, self.width, 4):
                    sides = "x".join(map(str, pixels.shape[:2]))
                    raise ValueError(f"{self.file} is damaged: frame {number} has {sides} pixels")
                yield pixels, shown


def is_animated(file: Path) -> bool:
    """Return whether a file holds several frames; False if it is no such file at all."""
    if file.suffix.lower() not in SUFFIXES or not os.path.isfile(file):
        return False
    try:
        with Image.open(file, formats=FORMATS) as picture:
            return bool(getattr(picture, "is_animated", False))
    except Exception:  # whoever reads it says what is wrong
        return False


def opened(content: bytes, file: Path, demand: Demand) -> Animation:
    """Return an animation whose frames can be decoded; a picture alone is one of one frame.

    Raises
    ------
    ValueError
        It is no animation, or truncated or damaged where its format tells.
    MemoryBudgetError
        A frame exceeds the budget.
    """
    if content.startswith(png.SIGNATURE):
        header = png.check(content, file)
        if header.bits == 16:
            raise ValueError(f"{file} holds frames of 16 bits per channel; convert them to 8")
        content = png.without_texts(content)
    elif content.startswith(b"RIFF"):
        stated = int.from_bytes(content[4:8], "little") + 8
        if stated > len(content):
            raise ValueError(f"{file} is truncated: it states {stated} bytes and has {len(content)}")
    else:
        headers.check(content, file, demand)
    with decoding(file, "is not a GIF, WebP or PNG that can be read"):
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = picture.size
    demand.check(file, height, width, DECODED * height * width)
    with decoding(file):
        count = int(getattr(picture, "n_frames", 1))
        first = int(getattr(picture, "default_image", False) and count > 1)
    return Animation(picture, file, count - first, height, width, first)


def rate_of(shown: list[float]) -> float:
    """Return the frames per second of frames that are shown for so many milliseconds."""
    return 1000.0 * len(shown) / sum(shown)


def encoded(frames: np.ndarray, rate: float, suffix: str) -> bytes:
    """Return the content of an animation that repeats: frames uint8 (T, H, W, 3), WebP and PNG without loss.

    A GIF has 256 colours per frame, and durations of whole hundredths of a second; of both others, milliseconds.
    """
    unit = 10 if suffix == ".gif" else 1
    edges = [round(1000 * k / rate / unit) * unit for k in range(len(frames) + 1)]
    shown = [max(after - before, unit) for before, after in pairwise(edges)]
    pictures = [Image.fromarray(frame) for frame in frames]
    stream = io.BytesIO()
    name = {".gif": "GIF", ".webp": "WEBP"}.get(suffix, "PNG")
    options = {"lossless": True} if name == "WEBP" else {}
    pictures[0].save(stream, format=name, save_all=True, append_images=pictures[1:], duration=shown, loop=0, **options)
    return stream.getvalue()
