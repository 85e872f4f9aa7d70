"""Pictures and pixels of whole numbers as the floating-point values that networks are fitted to."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.arrays import as_tensor
from inrfast.errors import check_float, check_readable, check_tensor, warn

WHITE = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
"""The largest value of dtypes whose values are shares of it: masks, and pixels of 8 and 16 bits."""

PLAIN = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
"""Modes of Pillow that stand for another one with the same picture; of modes not named here, what they turn into."""

ORIENTATION = 0x0112
"""The tag of Exif that says how a camera was held; 1: upright."""

TAKEN = ("L", "LA", "RGB", "RGBA", "F")


def is_picture(given: Any) -> bool:
    """Return whether something is an image of Pillow's, whose library is not imported for it."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(given, module.Image)


def is_mask(given: Any) -> bool:
    """Return whether a picture or tensor holds booleans."""
    return isinstance(given, Tensor) and given.dtype == torch.bool


def as_values(
    argument: str,
    given: Any,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    told: bool = True,
) -> tuple[Tensor, int | None]:
    """Return values as a tensor, and the white that whole numbers were divided by; None where they are as they came.

    Pixels of 8 and 16 bits become ``value / 255`` and ``value / 65535`` in [0, 1], as
    :func:`inrfast.signals.image.load_image` has them, and a warning says so; masks of booleans become 0 and 1.

    Parameters
    ----------
    argument
        What it is called in messages.
    given
        A tensor or array of any dtype, or an image of Pillow's: (H, W) of one channel, else (H, W, C).
    dtype
        Of the values that are made of whole numbers.
    device
        Where pictures and NumPy arrays go.
    told
        Whether to warn.

    Raises
    ------
    TypeError
        It is neither, no dense tensor, or a picture of 32-bit integers, whose white is not known.
    ValueError
        It is empty, or holds no numbers.
    """
    array = _samples(argument, given) if is_picture(given) else given
    tensor = as_tensor(argument, array, device)
    check_tensor(argument, tensor, floating=False, finite=False)
    check_readable(argument, tensor)
    white = WHITE.get(tensor.dtype)
    if white is None:
        return tensor, None
    if white == 1:
        return tensor.to(dtype), None
    if told:
        bits = white.bit_length()
        warn(
            f"{argument} holds pixels of {bits} bits ({str(tensor.dtype).removeprefix('torch.')}); they are taken as "
            f"value / {white}, in [0, 1], and so are the outputs of a network that is fitted to them",
            UserWarning,
        )
    return tensor.to(dtype) / white, white


def range_of_pixels(data_range: Any, white: int | None, argument: str = "data_range") -> Any:
    """Return a range for values that were divided by ``white``: 1, given for them, for the pixels, or not at all.

    Raises
    ------
    ValueError
        It is neither 1 nor the white.
    """
    if white is None:
        return data_range
    if data_range is None:
        return 1.0
    given = check_float(argument, data_range, minimum=0.0, exclusive=True)
    if given not in (1.0, white):
        raise ValueError(
            f"{argument} must be {white} for pixels of {white.bit_length()} bits, or 1 for their share of white, got "
            f"{given:g}; scale them yourself for another range"
        )
    return 1.0


def one_white(argument: str, white: int | None, other: str, others: int | None) -> int | None:
    """Return the white of two arguments, of which one PSNR is stated for one range.

    Raises
    ------
    ValueError
        One holds pixels and the other does not, or pixels of other bits.
    """
    if white != others:
        raise ValueError(
            f"{argument} and {other} must be of one kind, got {kind_of(white)} and {kind_of(others)}: give both as "
            "pixels of one dtype, or both as floating-point values"
        )
    return white


def kind_of(white: int | None) -> str:
    """Return what values are whose white this is."""
    return "values that are no pixels" if white is None else f"pixels of {white.bit_length()} bits"


def _samples(argument: str, picture: Any) -> np.ndarray:
    """Return the samples of a picture as it is meant to be seen: upright and without a palette.

    A camera's orientation is applied, as :func:`inrfast.signals.image.load_image` does.
    """
    if picture.getexif().get(ORIENTATION, 1) != 1:
        from PIL import ImageOps  # loaded with the picture's library alone

        picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode.startswith("I;16"):
        return np.asarray(picture)
    if mode == "I":
        raise TypeError(
            f"{argument} is an image of 32-bit integers (mode I), whose white is not known; divide "
            "numpy.asarray(image) by it"
        )
    if mode == "P" and "transparency" in picture.info:
        mode = "RGBA"
    wanted = mode if mode in TAKEN else PLAIN.get(mode, "RGB")
    return np.asarray(picture if wanted == picture.mode else picture.convert(wanted))
