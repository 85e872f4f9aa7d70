"""WAV: a header that is checked against the file, and PCM of every width and floats to fp32, rounded once."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from inrfast.memory import chunks

BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}
"""By a file's first four bytes; the last two state sizes of 64 bits in a chunk of their own."""

LONG_SIZES = (b"RF64", b"BW64")

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID_TAILS = (bytes.fromhex("000000001000800000aa00389b71"), bytes.fromhex("00002107d3118644c8c1ca000000"))
"""What follows the number of the format in an extensible header: of plain channels, and of Ambisonic ones."""

UNKNOWN_SIZES = (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x7FFFF000)
"""Sizes of the data that programs write to a pipe, where they cannot seek back; ffmpeg's first and SoX's last."""

BLOCK = 2**18
"""Samples that are converted at a time."""


@dataclass(frozen=True)
class Header:
    """What a WAV file states about its samples, and where they lie."""

    order: str  # of bytes, in NumPy's letters
    floating: bool
    channels: int
    rate: int
    width: int  # bytes per sample
    start: int
    frames: int


def header(opened: BinaryIO, size: int, file: Path) -> Header:
    """Return the header of an open WAV file of ``size`` bytes.

    The size that a header states for the whole file is ignored (many programs get it wrong), and so are bytes after
    the data; a byte that fills up an odd number may be counted. Data of unknown size, written to a pipe, reach to the
    file's end.

    Raises
    ------
    ValueError
        There is no format, or there are no data, or data in several chunks; samples that are not read (compressed
        ones); data that are cut.
    """
    order, form, at, stated = _to_data(opened, size, file)
    floating, channels, rate, width = _format(form, order, file)
    frame, held = channels * width, size - at
    if stated in UNKNOWN_SIZES and stated > held:
        stated = held
    elif stated % frame == 1 and stated % 2 == 0 and frame < stated <= held:
        stated -= 1  # some programs count the byte that fills up an odd number
    if stated == 0:
        raise ValueError(
            f"{file} states 0 samples, as of a recorder that was cut off, and {held} bytes follow: no sound"
        )
    if stated > held or stated % frame:
        raise ValueError(
            f"{file} is truncated or damaged: it states {stated} bytes of samples in frames of {frame}, and has {held}"
        )
    _check_alone(opened, at + stated + stated % 2, order, file)
    return Header(order, floating, channels, rate, width, at, stated // frame)


def read(opened: BinaryIO, about: Header) -> Tensor:
    """Return the samples, fp32 (T, C): integers divided by the full scale of their bytes."""
    opened.seek(about.start)
    values = torch.empty(about.frames, about.channels)
    for rows in chunks(about.frames, max(BLOCK // about.channels, 1)):
        count = (rows.stop - rows.start) * about.channels
        part = opened.read(count * about.width)
        if len(part) != count * about.width:
            raise EOFError(f"{len(part)} of {count * about.width} bytes of a block")  # the file shrank meanwhile
        values[rows] = torch.from_numpy(_numbers(part, about)).view(-1, about.channels)
    return values


def _numbers(part: bytes, about: Header) -> np.ndarray[Any, Any]:
    if about.floating:
        with np.errstate(over="ignore"):  # the caller refuses what is Inf in fp32
            return np.frombuffer(part, f"{about.order}f{about.width}").astype(np.float32)
    if about.width == 1:
        return (np.frombuffer(part, np.uint8).astype(np.float32) - 128) / 128
    # Odd widths go into the upper bytes of the next one; a power of two then divides them exactly.
    whole = 2 if about.width == 2 else 4 if about.width <= 4 else 8
    if whole == about.width:
        numbers = np.frombuffer(part, f"{about.order}i{whole}")
    else:
        padded = np.zeros((len(part) // about.width, whole), dtype=np.uint8)
        bytes_ = np.frombuffer(part, np.uint8).reshape(-1, about.width)
        padded[:, slice(whole - about.width, None) if about.order == "<" else slice(about.width)] = bytes_
        numbers = padded.reshape(-1).view(f"{about.order}i{whole}")
    return numbers.astype(np.float32) * np.float32(2.0 ** (1 - 8 * whole))


def _to_data(opened: BinaryIO, size: int, file: Path) -> tuple[str, bytes, int, int]:
    """Return the order of bytes, the chunk with the format, and where the data begin, with their stated size."""
    opened.seek(0)
    start = opened.read(12)
    order = BYTE_ORDERS.get(start[:4], "")
    if not order or start[8:] != b"WAVE":
        raise ValueError(f"{file} is not a WAV file")
    form, long_size, at = b"", 0, 12
    while True:
        opened.seek(at)
        head = opened.read(8)
        if len(head) < 8:
            raise ValueError(f"{file} is truncated or damaged: it ends before its samples, after {size} bytes")
        name, stated = struct.unpack(f"{order}4sI", head)
        at += 8
        if name == b"data":
            long = start[:4] in LONG_SIZES and stated == 0xFFFFFFFF
            return order, form, at, long_size if long else stated
        if at + stated > size or not all(0x20 <= letter < 0x7F for letter in name):
            raise ValueError(f"{file} is truncated or damaged: its chunk {name!r} of {stated} bytes is cut, or none")
        if name == b"fmt ":
            form = opened.read(min(stated, 40))
        elif name == b"ds64" and stated >= 16:
            long_size = int.from_bytes(opened.read(16)[8:], "little")
        at += stated + stated % 2


def _check_alone(opened: BinaryIO, at: int, order: str, file: Path) -> None:
    """Refuse more data after the data, as far as chunks follow there: programs do not agree on which to take."""
    while True:
        opened.seek(at)
        head = opened.read(8)
        if len(head) < 8 or not all(0x20 <= letter < 0x7F for letter in head[:4]):
            return
        if head[:4] == b"data":
            raise ValueError(
                f"{file} holds samples in several chunks, where a WAV has one; it is damaged, or two in one"
            )
        at += 8 + (stated := struct.unpack(f"{order}I", head[4:])[0]) + stated % 2


def _format(form: bytes, order: str, file: Path) -> tuple[bool, int, int, int]:
    """Return whether samples are floats, the channels, the rate, and the bytes per sample, or say what is not read."""
    if len(form) < 16:
        raise ValueError(f"{file} is damaged: what it states about its samples is missing, or {len(form)} bytes long")
    code, channels, rate, _, frame, bits = struct.unpack(f"{order}HHIIHH", form[:16])
    if code == EXTENSIBLE and len(form) == 40 and form[26:] in GUID_TAILS:
        code = struct.unpack(f"{order}H", form[24:26])[0]
    if code not in (PCM, FLOAT):
        raise ValueError(f"{file} holds compressed or unknown samples (format {code:#x}); a WAV has PCM or floats here")
    if not channels or not 0 < rate < 2**31 or not bits or frame % channels:
        raise ValueError(f"{file} is damaged: it states {channels} channels in {frame} bytes at {rate} Hz, {bits} bits")
    width = frame // channels
    unclear = bits <= 8 < 8 * width  # whether such samples have a sign
    if bits > 8 * width or width > 8 or unclear or (code == FLOAT and (bits not in (32, 64) or bits != 8 * width)):
        raise ValueError(
            f"{file} holds samples of {bits} bits in {width} bytes: PCM has up to 64, floats have 32 or 64"
        )
    return code == FLOAT, channels, rate, width
