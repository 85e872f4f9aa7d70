"""Pictures of a page: figures of matplotlib and arrays of pixels, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inrfast.errors import MissingLibraryError
from inrfast.pages.page import Picture, Pictures, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 192
"""Of figures: two pixels for one of the page, as screens of today have them."""

MOST_PIXELS = 1024
"""Pixels of the longer side of an image in a page; larger ones are averaged down."""


def drawn(draw: Callable[[], Sequence[Picture]]) -> Pictures | Text:
    """Return the pictures that a function draws with matplotlib, or, where that is not installed, a line that says so.

    A page is worth having without them.
    """
    try:
        return Pictures(draw())
    except MissingLibraryError as error:
        return Text(f"The figures are left out: {error}.", tone="warning")


def figure_picture(figure: Figure, alt: str, caption: str = "", wide: bool = False) -> Picture:
    """Return a figure as a picture of a page, on white."""
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=DPI, facecolor="white")
    return Picture(made.getvalue(), alt, caption, wide=wide)


def image_picture(image: np.ndarray | Tensor, alt: str, caption: str = "") -> Picture:
    """Return an image as a picture of a page, its pixels shown as squares.

    Parameters
    ----------
    image
        Shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), in [0, 1], clipped to it; NaN is black.
    alt, caption
        As of :class:`Picture`. An image with a side above ``MOST_PIXELS`` is made smaller, and the caption says so.
    """
    from PIL import Image

    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    pixels = (np.nan_to_num(np.asarray(values, dtype=float), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round()
    picture = Image.fromarray(pixels.astype(np.uint8))
    longest = max(picture.size)
    if longest > MOST_PIXELS:
        width, height = picture.size
        picture = picture.resize(
            [max(1, round(side * MOST_PIXELS / longest)) for side in picture.size], Image.Resampling.BOX
        )
        caption = f"{caption} Shown at {picture.width}x{picture.height} of {width}x{height} pixels.".strip()
    made = io.BytesIO()
    picture.save(made, "PNG")
    return Picture(made.getvalue(), alt, caption, pixels=longest < 512)
