"""TIFF: greys, colours, palettes of 1 to 64 bits in every layout, floats in [0, 1]; the rest is refused or Pillow's."""

from __future__ import annotations

import logging
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from inrfast.errors import needs
from inrfast.signals.formats import jpeg
from inrfast.signals.formats.decoding import decoding
from inrfast.signals.formats.png import MOST_INFLATED
from inrfast.signals.formats.raster import Demand, Raster, Stated, check_page, from_array, oriented

SIGNATURES = frozenset({b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"})

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
"""What samples mean, by TIFF's numbers."""

OWN = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
"""Those that are read here; others are left to Pillow."""

UNSIGNED, SIGNED, FLOATING = 1, 2, 3
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
UNCOMPRESSED, FAX, JPEG, DEFLATE = 1, (2, 3, 4), (6, 7), (8, 32946)

PLAIN = frozenset({UNCOMPRESSED, 5, *DEFLATE, 32773, 34925, 34926, 50000})
"""Codes of bytes (LZW, deflate, PackBits, LZMA, zstd), whose decoders stop at the size of a strip or tile. Others hold
a picture of a size of its own (JPEG 2000, JPEG XL, JPEG XR, LERC, PNG, WebP), which would be decoded whatever it is."""

REDUCED_OR_MASK = 1 | 4
"""Bits of the kind of a subfile that is no page of its own: a smaller copy, or a mask."""

SUBFILE, WIDTH, LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES_PER_PIXEL, PLANAR, COLOURS = 274, 277, 284, 320
STRIPS, ROWS_PER_STRIP, STRIP_BYTES, TILES, TILE_BYTES = 273, 278, 279, 324, 325
RESOLUTIONS, RESOLUTION_UNIT, ICC = (282, 283), 296, 34675


@dataclass(frozen=True)
class Page:
    """What a page states about itself."""

    tags: tuple[int, ...]
    height: int
    width: int
    depth: int
    samples: int
    bits: set[int]
    sample_format: int
    meaning: int | None
    compression: int
    orientation: int
    planar: int
    extra: tuple[int, ...]
    palette: Any
    segments: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    segment_sides: tuple[int, int]
    decoded: int  # bytes

    @classmethod
    def of(cls, page: Any) -> Page:
        """Read the tags that matter of a page of tifffile."""
        bits, meaning = page.tags.valueof(BITS_PER_SAMPLE, 1), page.tags.valueof(PHOTOMETRIC)
        itemsize = 8 if page.dtype is None else page.dtype.itemsize
        segment = math.prod((page.tilelength, page.tilewidth, page.tiledepth)) if page.is_tiled else 0
        return cls(
            tuple(tag.code for tag in page.tags),
            int(page.imagelength),
            int(page.imagewidth),
            int(page.imagedepth),
            int(page.samplesperpixel),
            {int(each) for each in (bits if isinstance(bits, tuple) else (bits,))},
            int(page.sampleformat),
            None if meaning is None else int(meaning),
            int(page.compression),
            int(page.tags.valueof(ORIENTATION, 1)),
            int(page.tags.valueof(PLANAR, 1)),
            tuple(int(kind) for kind in page.extrasamples),
            page.tags.valueof(COLOURS),
            int(math.prod(page.chunked)),
            tuple(int(offset) for offset in page.dataoffsets),
            tuple(int(count) for count in page.databytecounts),
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (int(page.rowsperstrip), int(page.imagewidth)),
            int((math.prod(page.shaped) + segment * page.samplesperpixel) * itemsize),
        )


def read(opened: BinaryIO, file: Path, page: int | None, demand: Demand) -> Raster | int:
    """Return a page of an open TIFF, oriented, or its index among all if its colours are left to Pillow.

    Parameters and errors are those of :func:`inrfast.signals.formats.picture.read`.
    """
    with needs("images", f"reading {file}"):
        import tifffile  # slow to import, and needed for this one format only

    # Faults of a file become errors or do not matter; a handler keeps tifffile's log off stderr.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    tif: Any
    with decoding(file):
        listed = _count(opened)
        opened.seek(0)
        tif = tifffile.TiffFile(opened)
    with decoding(file):
        pages = [i for i in range(listed) if not tif.pages[i].tags.valueof(SUBFILE, 0) & REDUCED_OR_MASK]
        stack = int((tif.imagej_metadata or {}).get("images", 1)) if tif.is_imagej else 1
    if not pages:
        raise ValueError(f"{file} holds smaller copies or masks of a picture only; convert the picture to PNG first")
    if stack > len(pages):
        raise ValueError(f"{file} is a stack of {stack} images in one page; save them as pages, or one as PNG")
    index = pages[check_page(file, page, len(pages))]
    with decoding(file):
        chosen = tif.pages[index]
        about = Page.of(chosen)
    _check_tags(about, file)
    _check_meaning(about, file)
    _check_stored(about, file, os.fstat(opened.fileno()).st_size)
    _check_compression(about, file, opened)
    if about.meaning in (CMYK, YCBCR, LAB) or about.compression in FAX:
        opened.seek(0)
        return index
    height, width = (about.width, about.height) if about.orientation >= 5 else (about.height, about.width)
    demand.check(file, height, width, about.decoded)
    with decoding(file):
        planes = chosen.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, samples); one of both is 1
        samples = planes[:, 0, ..., 0].transpose(1, 2, 0) if planes.shape[0] > 1 else planes[0, 0]
    _check_range(samples, about, file)
    _check_unnamed(samples, about, file)
    return replace(_raster(oriented(samples, about.orientation), about), stated=_stated(chosen, about))


def _stated(page: Any, about: Page) -> Stated:
    """Return the profile of the colours and the resolution; none in another unit than inches or centimetres."""
    try:
        inches = {2: 1.0, 3: 2.54}.get(page.tags.valueof(RESOLUTION_UNIT, 2))
        lengths = [page.tags.valueof(tag) for tag in RESOLUTIONS]
        dpi = [inches * length[0] / length[1] for length in lengths] if inches else None
    except (TypeError, LookupError, ArithmeticError):  # of a tag that is missing or damaged
        dpi = None
    return Stated.of(page.tags.valueof(ICC), dpi, about.orientation)


def _count(opened: BinaryIO) -> int:
    """Return how many pages, copies and masks the file lists; a cyclic list is refused."""
    start = opened.read(16)
    order = "<" if start[:2] == b"II" else ">"
    number, offset, entry, at = ("Q", "Q", 20, 8) if start[2] == 43 or start[3] == 43 else ("H", "I", 12, 4)
    (where,) = struct.unpack_from(order + offset, start, at)
    seen: set[int] = set()
    while where:
        if where in seen:
            raise ValueError("its list of pages comes back on itself")
        seen.add(where)
        opened.seek(where)
        (tags,) = struct.unpack(order + number, opened.read(struct.calcsize(number)))
        opened.seek(tags * entry, os.SEEK_CUR)
        (where,) = struct.unpack(order + offset, opened.read(struct.calcsize(offset)))
    return len(seen)


def _check_tags(about: Page, file: Path) -> None:
    """Refuse a page without what says how its bytes are to be read; the defaults of TIFF would give other pixels."""
    needed = {WIDTH, LENGTH, COMPRESSION, PHOTOMETRIC}
    # One bit per sample is the default. If the number of bytes fits single bits, no tag was lost.
    single = about.compression == UNCOMPRESSED and sum(about.counts) == about.height * -(-about.width // 8)
    if about.compression not in FAX and not single:
        needed.add(BITS_PER_SAMPLE)
    if about.meaning == RGB:
        needed.add(SAMPLES_PER_PIXEL)
    needed |= {TILES, TILE_BYTES} if TILES in about.tags else {STRIPS, STRIP_BYTES}
    if STRIPS in needed and about.compression != UNCOMPRESSED:
        needed.add(ROWS_PER_STRIP)
    missing, twice = needed - set(about.tags), len(about.tags) - len(set(about.tags))
    if missing or twice:
        raise ValueError(f"{file} is damaged: the tags {sorted(missing)} are missing, and {twice} are there twice")
    if about.orientation not in range(1, 9) or about.planar not in (1, 2):
        raise ValueError(
            f"{file} is damaged: it states the orientation {about.orientation} and the planar configuration "
            f"{about.planar}"
        )


def _check_meaning(about: Page, file: Path) -> None:
    """Refuse samples of unknown meaning."""
    if len(about.bits) != 1 or about.depth != 1:
        raise ValueError(
            f"{file} holds samples of {str(about.bits)[:40]} bits in {about.depth} layers; convert it to PNG first"
        )
    if about.sample_format not in (UNSIGNED, FLOATING):
        kind = "signed integers" if about.sample_format == SIGNED else "complex pixels"
        raise ValueError(
            f"{file} holds {kind} of {max(about.bits)} bits, without a stated range; convert it to 8 or 16 bits first"
        )
    left_to_pillow = about.meaning in (CMYK, LAB) or (about.meaning == YCBCR and about.compression in JPEG)
    if left_to_pillow and about.bits == {8}:
        return
    read = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) if about.sample_format == FLOATING else OWN
    if about.meaning not in read:
        raise ValueError(
            f"{file} holds {max(about.bits)} bits per sample of the photometric interpretation {about.meaning}, which "
            "is not read; convert it to PNG first"
        )
    further = about.samples - _base(about)
    if further < 0 or (_base(about) == 1 and further > 1):
        raise ValueError(f"{file} holds {about.samples} samples per pixel for {'colours' if further < 0 else 'a grey'}")
    if about.meaning == PALETTE and (about.palette is None or np.size(about.palette) != 3 * 2 ** max(about.bits)):
        raise ValueError(f"{file} is damaged: its palette is missing, or not of {2 ** max(about.bits)} colours")


def _check_stored(about: Page, file: Path, size: int) -> None:
    """Refuse a page that is not in the file as a whole."""
    if len(about.offsets) != about.segments or len(about.counts) != about.segments:
        raise ValueError(f"{file} is damaged: it names {len(about.offsets)} of its {about.segments} strips or tiles")
    if not all(about.counts) or not all(about.offsets):
        raise ValueError(f"{file} is damaged, or a sparse TIFF: it holds nothing for some of its strips or tiles")
    end = max(offset + count for offset, count in zip(about.offsets, about.counts, strict=True))
    if end > size:
        raise ValueError(f"{file} is truncated: it has {size} bytes, and its pixels reach to byte {end}")
    most = {UNCOMPRESSED: 1} | dict.fromkeys(DEFLATE, MOST_INFLATED)
    stated = about.height * about.width * about.samples * max(about.bits) // 8
    if about.compression in most and about.meaning != YCBCR and stated > most[about.compression] * sum(about.counts):
        raise ValueError(
            f"{file} is damaged: it states {about.height}x{about.width} pixels, more than its {sum(about.counts)} "
            "bytes hold"
        )


def _check_compression(about: Page, file: Path, opened: BinaryIO) -> None:
    """Refuse what would be decoded to another size than that of a strip or tile, and JPEGs that lack data."""
    if about.compression not in (*PLAIN, *FAX, *JPEG) or (about.compression == 6 and about.meaning != YCBCR):
        raise ValueError(
            f"{file} holds strips or tiles of the compression {about.compression}; of TIFF those with LZW, deflate, "
            "PackBits, LZMA, zstd, JPEG and fax codes are read; convert it to PNG first"
        )
    if about.compression != 7:
        return
    for offset, count in zip(about.offsets, about.counts, strict=True):
        opened.seek(offset)
        content = opened.read(count)
        found = jpeg.frame(content)
        sides = (0, 0) if found is None else (found.height, found.width)
        if not all(0 < side <= most for side, most in zip(sides, about.segment_sides, strict=True)):
            raise ValueError(
                f"{file} is damaged: it holds a JPEG of {sides[0]}x{sides[1]} pixels for a strip or tile of "
                f"{about.segment_sides[0]}x{about.segment_sides[1]}"
            )
        jpeg.check_data(content, found, file)


def _check_range(samples: np.ndarray[Any, Any], about: Page, file: Path) -> None:
    """Refuse floats beyond [0, 1]: the file does not say which of them is white."""
    if about.sample_format != FLOATING:
        return
    low, high = float(samples.min()), float(samples.max())  # NaN where one is
    if not (low >= 0 and high <= 1):
        held = "NaN" if math.isnan(low + high) else f"values from {low:.6g} to {high:.6g}"
        raise ValueError(
            f"{file} holds floating-point pixels with {held}, without a stated range; scale them to [0, 1], where 1 is "
            "white, or convert it to 8 or 16 bits first"
        )


def _check_unnamed(samples: np.ndarray[Any, Any], about: Page, file: Path) -> None:
    """Refuse samples beside the colours of which the file does not say what they are, unless all are the largest.

    As an opacity they then say nothing, and some programs write such.
    """
    for index in range(_base(about), about.samples):
        place = index - _base(about)
        named = place < len(about.extra) and about.extra[place] in (UNSPECIFIED, ASSOCIATED, UNASSOCIATED)
        if not named and samples[..., index].min() != _largest(about):
            raise ValueError(f"{file} does not say what sample {index + 1} of its {about.samples} per pixel stands for")


def _base(about: Page) -> int:
    return 3 if about.meaning == RGB else 1


def _largest(about: Page) -> int:
    """Return the sample that stands for 1."""
    return 1 if about.sample_format == FLOATING else 2 ** max(about.bits) - 1


def _raster(samples: np.ndarray[Any, Any], about: Page) -> Raster:
    base = _base(about)
    kinds = [kind in (ASSOCIATED, UNASSOCIATED) for kind in about.extra]
    alpha = base + kinds.index(True) if any(kinds) and base + kinds.index(True) < about.samples else None
    raster = from_array(
        samples,
        _largest(about),
        base,
        alpha,
        premultiplied=alpha is not None and about.extra[alpha - base] == ASSOCIATED and about.meaning != PALETTE,
        inverted=about.meaning == WHITE_IS_ZERO,
    )
    further = [index for index in range(base, about.samples) if index != alpha]
    said = [index for index in further if bool((samples[..., index] != _largest(about)).any())]
    raster = replace(raster, left_out=len(said))
    if about.meaning != PALETTE:
        return raster
    table = np.asarray(about.palette).reshape(3, -1).T.astype(np.float32)
    if table.max() < 256:  # old writers put 8 bits where 16 belong; libtiff detects them in the same way
        table /= 255
    else:  # others put 8 bits into the upper half and nothing into the lower
        table /= 65535 if (table % 256).any() else 65280
    return replace(
        raster, grey=False, colours=lambda box: torch.from_numpy(table[samples[box][..., 0].astype(np.intp)])
    )
