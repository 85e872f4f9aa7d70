"""Image files to rasters: formats by their content and by a fixed list, sizes checked before anything is decoded."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from inrfast.memory import require
from inrfast.signals.formats import headers, png, tiff
from inrfast.signals.formats.decoding import decoding
from inrfast.signals.formats.raster import Box, Demand, Raster, Stated, check_page, from_array, oriented

FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MSP", "PCX", "PNG", "PPM", "PSD",
    "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM",
)  # fmt: skip
"""Formats that are read, by Pillow's names: none that starts a program (EPS), runs a script or renders vectors."""

STILL = frozenset({"ICO", "MPO", "PSD"})
"""Formats whose frames, in Pillow, are sizes, previews or layers of one picture, which comes first."""

WHOLE = frozenset({"AVIF", "DDS", "ICO", "JPEG2000", "QOI", "WEBP"})
"""Formats whose decoders hold all pixels beside Pillow's copy."""

EIGHT_BITS = frozenset({"1", "CMYK", "HSV", "L", "LA", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"})

GREYS = frozenset({"1", "L", "LA", "La"})
"""Modes of Pillow with one channel beside the opacity, but those that begin with I."""

ORIENTATION = 0x0112

NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")

COMMENT = re.compile(rb"#[^\n]*")

WORD_BYTES = 64
"""Bytes per sample that is written in digits: as a Python object, and in two arrays."""


def formats() -> list[str]:
    """Return those of :data:`FORMATS` that the installed Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read(file: Path, page: int | None, demand: Demand) -> Raster:
    """Return a picture, turned as the camera says.

    Parameters
    ----------
    page
        Which of several, from 0; None if there is only one.
    demand
        The memory that it may take.

    Raises
    ------
    ValueError
        The file is no picture in one of :data:`FORMATS`, truncated or damaged; it holds several, or not this one;
        samples without a stated range, or of more bits than would be read.
    MemoryBudgetError
        The decoded pixels exceed the budget; nothing was decoded.
    """
    with open(file, "rb") as opened:
        if opened.read(4) in tiff.SIGNATURES:
            opened.seek(0)
            found = tiff.read(opened, file, page, demand)
            return found if isinstance(found, Raster) else _by_pillow(opened, ["TIFF"], file, found, demand)
        size = os.fstat(opened.fileno()).st_size
        require(size, demand.budget, f"reading {file}", "no part of such a file can be read alone")
        opened.seek(0)
        content = opened.read()
    if content.startswith(png.SIGNATURE):
        header = png.check(content, file)
        if header.bits == 16:
            return _deep_png(content, header, file, page, demand)
        return _by_pillow(io.BytesIO(png.without_texts(content)), ["PNG"], file, page, demand, header)
    headers.check(content, file, demand)
    netpbm = NETPBM.match(content)
    if not netpbm and content[:2] in (b"P2", b"P3", b"P5", b"P6"):  # Pillow would round what it finds to 8 bits
        raise ValueError(f"{file} is truncated or damaged: sides and white are missing in the header of a PGM or PPM")
    if netpbm and netpbm[4] != b"255":
        return _netpbm(content, netpbm, file, page, demand)
    return _by_pillow(io.BytesIO(content), formats(), file, page, demand)


def _by_pillow(
    content: BinaryIO, names: list[str], file: Path, page: int | None, demand: Demand, header: png.Header | None = None
) -> Raster:
    """Return a picture of 8 bits per channel (or one grey of 16), decoded by Pillow; ``header``: of a PNG."""
    with decoding(file):
        try:
            picture = Image.open(content, formats=names)
            mode, name, (width, height) = picture.mode, str(picture.format), picture.size
            frames = (
                1 if name in STILL or not getattr(picture, "is_animated", False) else getattr(picture, "n_frames", 1)
            )
            turned = _turned(picture, None if header is None else header.exif)
            progressive = bool(picture.info.get("progressive"))
        except UnidentifiedImageError:
            name = ""
        except Image.DecompressionBombError:
            raise ValueError(
                f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, twice PIL.Image.MAX_IMAGE_PIXELS, which "
                "Pillow refuses for all that it decodes; set that, or convert the picture to a TIFF of RGB or grey"
            ) from None
    if not name:
        raise ValueError(f"{file} is not an image in a format that is read: {', '.join(FORMATS)}")
    if mode not in EIGHT_BITS and not (mode.startswith("I") and name in ("PPM", "JPEG2000")):
        raise ValueError(f"{file} holds pixels without a stated range (mode {mode}); convert it to 8 or 16 bits first")
    if str(getattr(picture, "pixel_format", "")).startswith("BC6H"):
        raise ValueError(f"{file} holds floating-point pixels without a stated range; convert it to 8 or 16 bits first")
    index = check_page(file, page, frames)
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(mode, 4)
    copies = 1 + 2 * (name in WHOLE or frames > 1) + (turned != 1)
    bytes_each = stored * copies + 6 * progressive  # libjpeg keeps the coefficients of all scans
    demand.check(file, *((width, height) if turned >= 5 else (height, width)), width * height * bytes_each)
    if header is not None:
        png.check_pixels(header, file)
        if header.kind == 0 and header.bits in (2, 4) and "transparency" in picture.info:
            # Pillow scales the greys to 8 bits, but not the one that stands for transparent.
            picture.info["transparency"] *= 255 // (2**header.bits - 1)
    with decoding(file):
        if index:
            picture.seek(index)
        picture.load()
        stated = Stated.of(picture.info.get("icc_profile"), picture.info.get("dpi"), turned)
        if turned != 1:
            ImageOps.exif_transpose(picture, in_place=True)
    return replace(_raster(picture), stated=stated)


def _turned(picture: Image.Image, exif: bytes | None) -> int:
    """Return the camera's orientation of a picture that is not decoded yet, 1 if its Exif data cannot be read.

    ``exif`` may stand after its pixels.
    """
    if exif is not None:
        picture.info["exif"] = exif
    try:
        return int(Image.Image.getexif(picture).get(ORIENTATION, 1))  # PNG's own method decodes all pixels
    except Exception:  # unreadable Exif data say nothing about the pixels; the parser raises all kinds of errors
        return 1


def _raster(picture: Image.Image) -> Raster:
    palette = getattr(picture.palette, "mode", "")
    bands = () if picture.mode == "LAB" else picture.getbands()  # its A is a colour
    see_through = "transparency" in picture.info or palette.endswith("A") or bool({"A", "a"} & {*bands})

    def part(box: Box) -> Image.Image:
        (rows, columns) = box
        edges = (columns.start, rows.start, columns.stop, rows.stop)
        return picture if edges == (0, 0, *picture.size) else picture.crop(edges)

    def colours(box: Box) -> Tensor:
        cut = part(box)
        if cut.mode.startswith("I"):  # 16 bits per pixel, which Pillow's own conversions clip to 8
            return torch.from_numpy(np.asarray(cut).astype(np.float32)).div(65535).unsqueeze(-1).expand(-1, -1, 3)
        if cut.mode == "P" and see_through:
            cut = cut.convert("RGBA")
        cut = cut if cut.mode == "RGB" else cut.convert("RGB")
        return torch.from_numpy(np.asarray(cut).astype(np.float32)).div_(255)

    def opacity(box: Box) -> Tensor:
        cut = part(box)
        alpha = (cut if "A" in cut.getbands() else cut.convert("RGBA")).getchannel("A")
        return torch.from_numpy(np.asarray(alpha).astype(np.float32)).div_(255).unsqueeze(-1)

    grey, bits = picture.mode in GREYS or picture.mode.startswith("I"), 16 if picture.mode.startswith("I") else 8
    return Raster(picture.height, picture.width, colours, opacity if see_through else None, grey, bits)


def _deep_png(content: bytes, header: png.Header, file: Path, page: int | None, demand: Demand) -> Raster:
    if header.frames > 1:
        raise ValueError(
            f"{file} holds {header.frames} frames of 16 bits per channel; convert one of them to a PNG first"
        )
    check_page(file, page, 1)
    with decoding(file):
        opened = Image.open(io.BytesIO(png.without_texts(content)), formats=["PNG"])
        turned = _turned(opened, header.exif)
        stated = Stated.of(opened.info.get("icc_profile"), opened.info.get("dpi"), turned)
    channels = png.CHANNELS[header.kind] + header.transparent
    sides = (header.height, header.width)
    demand.check(file, *(sides[::-1] if turned >= 5 else sides), 2 * channels * header.height * header.width)
    png.check_pixels(header, file)
    with decoding(file):
        samples = oriented(png.decode_deep(content), turned)
    base = 1 if samples.shape[2] < 3 else 3
    return replace(from_array(samples, 65535, base, alpha=base if samples.shape[2] > base else None), stated=stated)


def _netpbm(content: bytes, header: re.Match[bytes], file: Path, page: int | None, demand: Demand) -> Raster:
    """Return a PGM or PPM whose white is not 255: Pillow rounds it to 8 bits."""
    check_page(file, page, 1)
    channels = 1 if header[1] in b"25" else 3
    width, height, white = (int(number[:20]) for number in header.groups()[1:])
    if not (width and height and 0 < white < 2**16):
        raise ValueError(f"{file} is damaged: its header states {height}x{width} pixels, white as {white}")
    written_out, count = header[1] in b"23", height * width * channels
    dtype = np.dtype(">u2" if white > 255 else "u1")
    least = 2 * count - 1 if written_out else count * dtype.itemsize  # digits, and a space between each two
    if header.end() + least > len(content):
        raise ValueError(f"{file} is truncated: its header states {height}x{width} pixels, more than it holds")
    demand.check(file, height, width, len(content) + (len(content) + WORD_BYTES * count) * written_out)
    if written_out:
        words = COMMENT.sub(b"", content[header.end() :]).split(maxsplit=count)[:count]
        if len(words) < count or not all(word.isdigit() and len(word) <= 5 for word in words):
            raise ValueError(f"{file} is truncated or damaged: it does not hold {count} numbers of up to 5 digits")
        samples = np.array(words).astype(np.uint32)
    else:
        samples = np.frombuffer(content, dtype, count, header.end())
    samples = samples.reshape(height, width, channels)
    if int(samples.max()) > white:
        raise ValueError(f"{file} is damaged: it holds {samples.max()}, and its header states white as {white}")
    return from_array(samples, white, channels)
