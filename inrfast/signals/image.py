"""Images: files to float tensors (H, W, C) in [0, 1] and back; the kind of signal "image"."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inrfast import spelling
from inrfast.errors import check_int, check_tensor, needs
from inrfast.files import write_whole
from inrfast.grids import grid
from inrfast.memory import budget_bytes, chunks
from inrfast.signals.formats import png
from inrfast.signals.formats.picture import formats, read
from inrfast.signals.formats.raster import NOTHING, Box, Demand, Raster, Stated, from_array
from inrfast.signals.kinds import FRAME_SIZE, SIGNALS, Option, Signal, SignalKind, picture_grid, unscaled
from inrfast.signals.paths import readable, writable
from inrfast.signals.views import of_image

LUMA = (0.299, 0.587, 0.114)
"""Grey from red, green and blue, ITU-R BT.601: the weights of Pillow, and of most papers on image regression."""

MID_GREY = 0.5
"""Subtracted from the pixels before a fit and added again after it: a network's outputs start near 0, the mean of an
image does not."""

LONGEST = 512
"""Pixels of the longer side of a fitted image at most, unless a size is asked for."""

TRANSPARENT = frozenset({"JPEG2000", "PNG", "TGA", "TIFF", "WEBP"})
"""Formats, by Pillow's names, that store eight bits of transparency without loss."""

ICONS = frozenset({"ICNS", "ICO"})
"""Formats, by Pillow's names, with fixed sizes, to which it silently resizes."""

DEEP = (".png", ".tif", ".tiff")
"""Suffixes of files that are written with 16 bits per channel."""

LAYERS = 7
"""Most channels that are averaged: colours, opacity, and colours weighted by opacity."""

STRIP, LEAST_STRIP, STRIPS = 2**24, 2**16, 16
"""Most and fewest bytes of a strip of rows with all layers, in fp32, and strips per budget. A strip is copied up to
seven times while it is processed; the other half of the budget is for everything else."""


def load_image(
    path: str | os.PathLike[str],
    size: int | Sequence[int] | None = None,
    grey: bool | None = False,
    alpha: bool | None = False,
    page: int | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """Return the image in a file as an fp32 tensor (H, W, C) with values in [0, 1].

    Parameters
    ----------
    path
        A raster image by its content, whatever its name: AVIF, BMP, DDS, GIF, ICO, JPEG, JPEG 2000, MSP, PCX,
        PNG, PBM, PGM, PPM, PSD, QOI, SGI, TGA, TIFF, WebP or XBM. Formats that another program would have to render
        (EPS, PDF, WMF) are refused. PNG, PGM and PPM are read with up to 16 bits per channel, TIFF with up to
        64; the largest number of so many bits becomes 1. Floats of a TIFF stay as they are, if all lie in [0, 1]. The
        camera's orientation is applied.
    size
        ``(H, W)``, or one int for a square; None keeps the file's. The image is cropped about its centre to that
        aspect, so it is never distorted, then averaged over areas.
    grey
        True: one channel (ITU-R BT.601 luma). False: three, which are alike where the file has greys. None: one where
        the file has greys, else three.
    alpha
        False drops transparency, as most papers do: the colours stay as they are in the file. True returns the opacity
        as a last channel, 1 where the file has none. None returns it where the file is transparent somewhere, and
        drops it where it is opaque everywhere or ``grey=True`` is asked for. Averages over areas weigh colours by their
        opacity, so that the colours of invisible pixels do not bleed into visible ones.
    page
        Page of a TIFF or frame of an animation, from 0; None if there is only one. Smaller copies and masks
        beside a TIFF's pages are not counted; of the previews beside a photograph, the photograph is read.
    memory_budget
        Bytes that decoding may take; None is half of the free memory. The size in the header is checked before
        decoding. Pillow, which decodes all but TIFF, PNG of 16 bits and deep PGM and PPM, has its own limit beside the
        budget: twice ``PIL.Image.MAX_IMAGE_PIXELS``, 178,956,970 pixels unless it is set.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, not such an image, truncated or damaged (a PNG states checksums, and all are checked; a JPEG
        states none: fewer bytes than its blocks need are refused, other damage within its data may pass); signed
        samples, or floats beyond [0, 1], whose range is not stated; more than 8 bits per channel in a format that loses
        them; several pages and no ``page``; a size below 1; ``grey`` together with ``alpha=True``.
    MemoryBudgetError
        The image is larger than the budget allows; nothing was decoded.
    TypeError
        ``path`` is no path, ``size`` or ``page`` no integers, ``alpha`` neither True, False nor None.
    """
    return load(path, size, grey, alpha, page, memory_budget).pixels


@dataclass(frozen=True)
class Loaded:
    """An image as :func:`load_image` gives it, and what its file states: (H, W), bits per sample, further things.

    ``grey``: the file has greys. ``transparent``: it is not opaque everywhere, which is looked at for ``alpha=None``;
    None: it was not. ``left_out`` counts samples per pixel that are neither colours nor the opacity, and are not read.
    """

    pixels: Tensor
    stored: tuple[int, int]
    bits: int
    grey: bool
    transparent: bool | None
    stated: Stated
    left_out: int


def load(
    path: str | os.PathLike[str],
    size: int | Sequence[int] | None = None,
    grey: bool | None = False,
    alpha: bool | None = False,
    page: int | None = None,
    memory_budget: int | None = None,
    longest: int | None = None,
) -> Loaded:
    """Return what :func:`load_image` does, with what the file states of itself.

    Without a size, an image whose longer side has more than ``longest`` pixels is averaged down to so many.
    """
    if alpha is not None and not isinstance(alpha, bool):
        raise TypeError(f"alpha must be True, False or None, got {alpha!r}")
    if grey and alpha:
        raise ValueError("alpha=True returns the opacity too and grey=True one channel: leave one of them out")
    if page is not None:
        page = check_int("page", page, minimum=0)
    file = readable(path, "an image")
    shape = None if size is None else _check_size(size)
    budget = budget_bytes(memory_budget)
    strip = min(STRIP, max(budget // STRIPS, LEAST_STRIP))
    layers = LAYERS if alpha is not False and not grey else 1 if grey else 3

    def asked(*sides: int) -> tuple[int, int] | None:
        return _within(sides, longest) if shape is None and longest is not None else shape

    raster = read(file, page, Demand(budget, lambda *sides: _room(sides, asked(*sides), layers, strip)))
    seen_through = _transparent(raster, strip) if alpha is None else None
    one = raster.grey if grey is None else grey
    sides = (raster.height, raster.width)
    pixels = _fit_to(raster, asked(*sides), one, alpha is True or (seen_through is True and not grey), strip)
    return Loaded(pixels, sides, raster.bits, raster.grey, seen_through, raster.stated, raster.left_out)


def astronaut(size: int | Sequence[int] = 256, grey: bool = False) -> Tensor:
    """Return the photograph of Eileen Collins bundled with scikit-image (512x512, public domain, NASA), resized.

    Shape (H, W, C), fp32, values in [0, 1]; ``size`` and ``grey`` as in :func:`load_image`.
    """
    shape = _check_size(size)
    with needs("images", "the bundled photograph"):
        from skimage import data  # slow to import, and needed for this one photograph only

    return _fit_to(from_array(data.astronaut(), 255, base=3), shape, grey, transparent=False, strip=STRIP)


def save_image(image: Tensor, path: str | os.PathLike[str], bits: int = 8) -> None:
    """Write an image with 8 or 16 bits per channel; values outside [0, 1] are clipped. The file is whole or absent.

    Parameters
    ----------
    image
        Floating tensor (H, W), (H, W, 1), (H, W, 3) or, with the opacity in a fourth channel, (H, W, 4); any device.
    path
        Its suffix (``.png``, ``.jpg``, ...) names the format; its folder must exist. An older file is replaced.
    bits
        Per channel, 8 or 16; 16 are for PNG and TIFF.

    Raises
    ------
    ValueError, TypeError
        Wrong shape, NaN or Inf, a suffix that names no format, or for four channels one without transparency (.jpg); a
        size that the format has not (an icon has up to 256x256 pixels); 16 bits in a format without them.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    save(image, path, bits)


def save(image: Tensor, path: str | os.PathLike[str], bits: int = 8, stated: Stated = NOTHING) -> Stated:
    """Write an image as :func:`save_image` does, with what ``stated`` says, and return what of it the file holds.

    A profile of other channels than those of the image is left out, and what the format does not take.
    """
    image = check_tensor("image", image).detach()
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"image must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {tuple(image.shape)}")
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits!r}")
    transparent = image.ndim == 3 and image.shape[2] == 4
    what = "a transparent image" if transparent else "an image"
    deep = bits == 16
    target = writable(path, f"{what} of 16 bits" if deep else what, DEEP if deep else image_suffixes(transparent))
    scaled = (image.double().clamp(0, 1) * (2**bits - 1)).round().cpu().numpy()
    pixels = scaled[..., 0] if scaled.ndim == 3 and scaled.shape[2] == 1 else scaled
    name = Image.registered_extensions()[target.suffix.lower()]
    if deep:
        said = _meant(stated, pixels.ndim == 3)
        content = _encoded_deep(pixels.astype(np.uint16), name, said)
    else:
        picture = Image.fromarray(pixels.astype(np.uint8))
        if picture.mode == "L" and not _writes(name, "L"):
            picture = picture.convert("RGB")
        said = _meant(stated, picture.mode != "L")
        # Encoded in memory: Pillow writes files without Python, and ignores a full disk.
        content = _encoded(picture, name, said)
    write_whole(target, content)
    return _held(content, name, said)


def _meant(stated: Stated, colours: bool) -> Stated:
    """Return what is stated without a profile of other channels, as that of a picture in CMYK is."""
    space = b"RGB " if colours else b"GRAY"
    return stated if stated.icc is None or stated.icc[16:20] == space else replace(stated, icc=None)


def _held(content: bytes, name: str, said: Stated) -> Stated:
    """Return what of ``said`` the content of a file holds."""
    if said == NOTHING:
        return said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = Image.open(io.BytesIO(content), formats=[name]).info
    found = Stated.of(info.get("icc_profile"), info.get("dpi"))
    near = said.dpi is not None and found.dpi is not None and np.allclose(said.dpi, found.dpi, rtol=0.01, atol=0.5)
    return Stated(said.icc if found.icc == said.icc else None, said.dpi if near else None)


def _encoded_deep(pixels: np.ndarray[Any, Any], name: str, stated: Stated) -> bytes:
    """Return the content of a PNG or TIFF of 16 bits, which Pillow writes of greys only."""
    if name == "PNG":
        with needs("images", "writing a PNG of 16 bits"):
            from imagecodecs import png_encode  # slow to import, and needed for few files

        return png.stating(bytes(png_encode(np.ascontiguousarray(pixels))), stated.icc, stated.dpi)
    with needs("images", "writing a TIFF of 16 bits"):
        import tifffile  # slow to import, and needed for this one format only

    content, colours = io.BytesIO(), pixels.ndim == 3
    extra = ["unassalpha"] if colours and pixels.shape[2] == 4 else None
    told: dict[str, Any] = {} if stated.dpi is None else {"resolution": stated.dpi, "resolutionunit": "inch"}
    told |= {} if stated.icc is None else {"iccprofile": stated.icc}
    meaning = "rgb" if colours else "minisblack"
    tifffile.imwrite(content, pixels, photometric=meaning, extrasamples=extra, metadata=None, **told)
    return content.getvalue()


def image_suffixes(transparent: bool = False) -> list[str]:
    """Return the suffixes that :func:`save_image` takes, sorted; ``transparent``: for images with an opacity."""
    mode = "RGBA" if transparent else "RGB"
    return sorted(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if (name in TRANSPARENT or not transparent) and _writes(name, mode)
    )


@cache
def _writes(name: str, mode: str) -> bool:
    """Return whether Pillow writes pixels of this mode in a format: some have no colours, some are read-only."""
    try:
        return name in Image.SAVE and bool(_encoded(Image.new(mode, (16, 16)), name))
    except ValueError:
        return False


def _encoded(picture: Image.Image, name: str, stated: Stated = NOTHING) -> bytes:
    """Return the content of a file that holds a picture in a format, at its own size."""
    content, options = io.BytesIO(), dict[str, Any]({"sizes": [picture.size]} if name == "ICO" else {})
    options |= {} if stated.icc is None else {"icc_profile": stated.icc}
    options |= {} if stated.dpi is None else {"dpi": stated.dpi}
    what = f"an image of {picture.height}x{picture.width} pixels cannot be written as {name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.save(content, format=name, **options)
            written = Image.open(content, formats=[name]).size if name in ICONS else picture.size
    except MemoryError:
        raise
    except Exception as error:  # encoders raise all kinds of errors
        raise ValueError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if written != picture.size:
        raise ValueError(f"{what}: such a file would hold {written[1]}x{written[0]}")
    return content.getvalue()


def readable_suffixes() -> list[str]:
    """Return the usual suffixes of what :func:`load_image` reads, sorted; the content decides."""
    names = {*formats(), "MPO"}
    return sorted(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def _check_size(size: Any) -> tuple[int, int]:
    """Return ``(H, W)`` from an int or a pair."""
    if isinstance(size, Sequence) and not isinstance(size, str):
        if len(size) != 2:
            raise ValueError(f"size must be an int or a pair (H, W), got {size!r}")
        return check_int("size", size[0], minimum=1), check_int("size", size[1], minimum=1)
    side = check_int("size", size, minimum=1)
    return side, side


def _within(sides: Sequence[int], longest: int) -> tuple[int, int] | None:
    """Return the (H, W) of this aspect whose longer side has ``longest`` pixels; None where the sides are within it."""
    if max(sides) <= longest:
        return None
    height, width = (max(round(side * longest / max(sides)), 1) for side in sides)
    return height, width


def _room(sides: tuple[int, int], shape: tuple[int, int] | None, layers: int, strip: int) -> int:
    """Return the bytes that the fp32 tensors of an image of ``sides`` pixels take, until it is in ``shape``."""
    pixels = sides[0] * sides[1]
    held = min(max(strip, 4 * LAYERS * sides[1]), 4 * LAYERS * pixels)  # one row at least
    if shape is not None:
        pixels = 2 * shape[0] * shape[1] + _crop(sides, shape)[0] * shape[1]
    return STRIPS // 2 * held + 4 * layers * pixels


def _transparent(raster: Raster, strip: int) -> bool:
    """Return whether a part of the image is not opaque."""
    if raster.opacity is None:
        return False
    whole = slice(0, raster.width)
    rows = chunks(raster.height, _strip_rows(raster.width, strip))
    return any(bool((raster.opacity((strip, whole)) < 1).any()) for strip in rows)


def _strip_rows(width: int, strip: int) -> int:
    return max(strip // (4 * LAYERS * width), 1)


def _fit_to(raster: Raster, shape: tuple[int, int] | None, grey: bool, transparent: bool, strip: int) -> Tensor:
    """Crop about the centre to the aspect of ``shape``, average areas, and turn to grey where asked."""
    height, width = (raster.height, raster.width) if shape is None else _crop((raster.height, raster.width), shape)
    top, left = (raster.height - height) // 2, (raster.width - width) // 2
    columns = slice(left, left + width)
    strips = list(chunks(height, _strip_rows(width, strip)))

    def layers(rows: slice) -> Tensor:
        return _layers(
            raster, (slice(top + rows.start, top + rows.stop), columns), grey, transparent, shape is not None
        )

    if len(strips) == 1:
        image = layers(strips[0])
        return image.contiguous() if shape is None else _seen(_averaged(image, shape), transparent)
    base = 1 if grey else 3
    channels = base if not transparent else base + 1 if shape is None else 2 * base + 1
    image = torch.empty(height, width if shape is None else shape[1], channels)
    for rows in strips:
        part = layers(rows)
        image[rows] = part if shape is None else _averaged(part, (len(part), shape[1]))
    return image if shape is None else _seen(_averaged(image, shape), transparent)


def _crop(sides: Sequence[int], shape: tuple[int, int]) -> list[int]:
    """Return the largest (H, W) within ``sides`` of the aspect of ``shape``."""
    scale = min(side / wanted for side, wanted in zip(sides, shape, strict=True))
    return [max(1, math.floor(wanted * scale + 1e-9)) for wanted in shape]


def _layers(raster: Raster, box: Box, grey: bool, transparent: bool, weighed: bool) -> Tensor:
    """Return a box's channels to average: grey or colours; also opacity and, if ``weighed``, their products."""
    colours = raster.colours(box)
    if grey:
        # Of greys the three are alike, and luma would round.
        colours = colours[..., :1] if raster.grey else (colours @ colours.new_tensor(LUMA)).unsqueeze(-1)
    if not transparent:
        return colours
    opacity = torch.ones_like(colours[..., :1]) if raster.opacity is None else raster.opacity(box)
    return torch.cat([colours, opacity, colours * opacity] if weighed else [colours, opacity], -1)


def _averaged(image: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(image.permute(2, 0, 1), shape).permute(1, 2, 0).contiguous()


def _seen(image: Tensor, transparent: bool) -> Tensor:
    """Return colours and opacity (H, W, C + 1) of averages of :func:`_layers`: colours are weighted by opacity."""
    if not transparent:
        return image
    base = image.shape[-1] // 2
    plain, opacity, seen = image.split([base, 1, base], -1)
    # Invisible pixels keep their plain average.
    visible = torch.where(opacity > 0, seen / opacity.clamp_min(torch.finfo(opacity.dtype).tiny), plain)
    return torch.cat([visible.clamp(0, 1), opacity], -1)


# ---- the kind of signal ------------------------------------------------------------------------------------------


def _load(
    path: Path,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
    size: tuple[int, ...] | None = None,
    grey: bool = False,
    page: int | None = None,
    weight: Path | None = None,
) -> Signal:
    """Return the pixels minus mid-grey, and the mask's values as weights."""
    size = size * 2 if size is not None and len(size) == 1 else size
    if size is not None and len(size) != 2:
        got = "x".join(map(str, size))
        raise ValueError(f"--size of an image must be one size or two, such as 240x320, got {got}")
    loaded = load(path, size, grey, None, page, memory_budget, LONGEST)
    pixels, whole = loaded.pixels, loaded.stored
    height, width = pixels.shape[:2]
    weights = None if weight is None else _weights(weight, (height, width), whole, memory_budget)
    about = {"shape": list(pixels.shape[:2]), "offset": MID_GREY, "scale": 1.0}
    return Signal(grid(pixels.shape[:2]), pixels - MID_GREY, about, weights, data_range=1.0, stored=whole)


def _weights(path: Path, size: tuple[int, ...], whole: tuple[int, int], memory_budget: int | None) -> Tensor:
    """Return a mask's grey values (N,), if it is of the ``whole`` image's size or of the fitted one."""
    loaded = load(path, size, grey=True, memory_budget=memory_budget)
    mask, given = loaded.pixels, loaded.stored
    if given not in (whole, size):
        raise ValueError(
            f"--weight must have the size of the image ({whole[0]}x{whole[1]}) or of the fit "
            f"({size[0]}x{size[1]}), got {given[0]}x{given[1]} in {path}"
        )
    weight = mask.flatten()
    if not bool((weight > 0).any()):
        raise ValueError(f"--weight: {path} is black everywhere, so that nothing of the image is known")
    return weight


SIGNALS.add(
    "image",
    SignalKind(
        called="an image",
        summary="PNG, JPEG, TIFF, WebP, ...; transparency is kept unless --grey; --size, --grey, --page, --weight",
        ending=".png",
        axes=2,
        readable=readable_suffixes,
        writable=lambda outputs: image_suffixes(transparent=outputs == 4),
        load=_load,
        write=lambda predictions, about, path: save_image(unscaled(predictions, about), path),
        options={
            "size": Option(
                f"height x width to fit, like 240x320, or 256 for a square from its centre "
                f"(its own, the longer side at most {LONGEST})",
                spelling.shape,
            ),
            "grey": Option("one channel instead of three or four"),
            "page": Option("page of a TIFF or frame of an animation, from 0", spelling.whole(0)),
            "weight": Option("grey mask of its size, 0 where it is missing; the PSNR is of all pixels", spelling.path),
        },
        render_options={"size": FRAME_SIZE},
        grid=picture_grid,
        view=of_image,
    ),
)
