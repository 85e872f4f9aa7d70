"""Volumes: NumPy files to float tensors (D, H, W, C) and back; the kind of signal "volume"."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast import spelling
from inrfast.errors import check_tensor
from inrfast.files import whole_file
from inrfast.grids import grid
from inrfast.memory import budget_bytes, chunks, require
from inrfast.signals.formats.decoding import decoding
from inrfast.signals.formats.png import MOST_INFLATED
from inrfast.signals.kinds import SIGNALS, Option, Signal, SignalKind, unscaled
from inrfast.signals.paths import readable, writable
from inrfast.signals.views import of_volume

READ = (".npy", ".npz")
WRITTEN = (".npy",)
"""The suffixes of what :func:`load_volume` and :func:`save_volume` take."""

MOST_CHANNELS = 4
"""Most channels: a longer last axis is more likely a fourth dimension."""

BLOCK = 2**20
"""Numbers converted at a time, or one row (W, C) if that is longer."""

ARCHIVE = b"PK"
"""What a ``.npz`` begins with."""

NO_ARRAY = "is not a NumPy array that can be read"


@dataclass(frozen=True)
class Header:
    """The header of a NumPy file, and the offset of its numbers."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def stored(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def load_volume(path: str | os.PathLike[str], memory_budget: int | None = None) -> Tensor:
    """Return the volume in a NumPy file as an fp32 tensor (D, H, W, C).

    Parameters
    ----------
    path
        A ``.npy`` file, or a ``.npz`` file with one array (the content decides which of the two), (D, H, W) or (D, H,
        W, C) with C <= 4, in any byte and memory order. Unsigned integers and booleans are divided by the largest value
        of their dtype, to [0, 1]; floats stay as they are, rounded to fp32. Objects are never unpickled.
    memory_budget
        Bytes that reading may take; None is half of the free memory. The size in the header is checked first.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, truncated, longer than it states, or no NumPy array; an archive of several; another shape;
        NaN, Inf or values beyond fp32; signed integers (their range is not stated: convert them to floats), complex
        numbers or objects.
    MemoryBudgetError
        The volume is larger than the budget allows; nothing was read.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a NumPy array", READ)
    budget = budget_bytes(memory_budget)
    with open(file, "rb") as opened:
        if opened.read(2) == ARCHIVE:
            return _from_archive(opened, file, budget)
        opened.seek(0)
        about = _header(opened, file)
        size = os.fstat(opened.fileno()).st_size
        if size != about.start + about.stored:
            what = "truncated" if size < about.start + about.stored else "longer than it states, damaged or overwritten"
            raise ValueError(
                f"{file} {NO_ARRAY}: it is {what}: its header of {about.start} bytes states {about.stored} bytes of "
                f"numbers, and it has {size} bytes"
            )
        return _numbers(opened, about, file, budget)


def save_volume(values: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a volume as a NumPy file of fp32 numbers. The file is whole or absent.

    Parameters
    ----------
    values
        Floating tensor (D, H, W) or (D, H, W, C) with C <= 4, any device.
    path
        Ends in ``.npy``; its folder must exist. An older file is replaced.

    Raises
    ------
    ValueError, TypeError
        Another shape, NaN or Inf (also those that only fp32 makes), another suffix.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    values = check_tensor("values", values).detach()
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] > MOST_CHANNELS):
        raise ValueError(
            f"values must have shape (D, H, W) or (D, H, W, C) with C <= {MOST_CHANNELS}, got {tuple(values.shape)}"
        )
    target = writable(path, "a NumPy array", WRITTEN)
    single = check_tensor("values in fp32", values.float()).cpu().contiguous().numpy()
    with whole_file(target) as opened:
        np.lib.format.write_array(opened, single, allow_pickle=False)


def _header(opened: IO[bytes], file: Path) -> Header:
    """Read what an array's file states about it."""
    with decoding(file, NO_ARRAY):
        version = np.lib.format.read_magic(opened)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(opened)
        else:  # version 3.0 is for structures with field names beyond Latin-1
            raise ValueError(f"it is of version {version}, which no array of numbers needs")
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape is {shape}")
        about = Header(shape, fortran, dtype, opened.tell())
    _divisor(file, dtype)
    return about


def _from_archive(opened: IO[bytes], file: Path, budget: int) -> Tensor:
    """Return the volume of an archive of one array."""
    with decoding(file, NO_ARRAY):
        archive = zipfile.ZipFile(opened)
        entries = archive.infolist()
    if len(entries) != 1:
        names = ", ".join(entry.filename.removesuffix(".npy")[:40] for entry in entries[:8])
        raise ValueError(f"{file} holds {len(entries)} arrays ({names}): save the one volume with numpy.save")
    entry = entries[0]
    with decoding(file, NO_ARRAY):
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in a way that NumPy does not write")
        member = archive.open(entry)
    with archive, member:
        about = _header(member, file)
        stated = about.start + about.stored
        if stated != entry.file_size or stated > MOST_INFLATED * max(entry.compress_size, 1):
            raise ValueError(
                f"{file} {NO_ARRAY}: its array states {stated} bytes, its archive {entry.file_size}, packed into "
                f"{entry.compress_size}"
            )
        return _numbers(member, about, file, budget)


def _numbers(opened: IO[bytes], about: Header, file: Path, budget: int) -> Tensor:
    """Return the numbers that follow, in fp32, read and converted block by block: a file may nearly fill the memory."""
    shape = about.shape
    if len(shape) not in (3, 4) or math.prod(shape) == 0 or (len(shape) == 4 and shape[3] > MOST_CHANNELS):
        raise ValueError(
            f"{file} must hold a volume (D, H, W) or (D, H, W, C) with C <= {MOST_CHANNELS}, got shape {shape}"
        )
    largest = min(max(BLOCK, math.prod(shape[2:]), math.prod(shape[:-2])), math.prod(shape))
    block = (2 * about.dtype.itemsize + 16) * largest
    fit = max(budget - block, 0) // 4
    require(4 * math.prod(shape) + block, budget, f"reading {file} of shape {shape}", f"{fit} voxels fit")
    values, divisor = torch.empty(shape), _divisor(file, about.dtype)
    # Fortran order: the file has the axes in reverse order.
    stored = values.permute(*reversed(range(len(shape)))) if about.fortran else values
    finite = True
    with decoding(file, NO_ARRAY):
        for rows in _blocks(stored.shape):
            into = stored[rows]
            part = np.frombuffer(opened.read(into.numel() * about.dtype.itemsize), about.dtype)
            with np.errstate(over="ignore"):  # overflow to Inf is refused below
                single = (part.astype(np.float64) / divisor).astype(np.float32)
            into.copy_(torch.from_numpy(single).view(into.shape))
            finite &= bool(np.isfinite(single).all())
        if opened.read(1):  # reading to the end also makes zipfile check the CRC
            raise ValueError("it is longer than it states")
    if not finite:
        raise ValueError(f"{file} holds NaN, Inf or values beyond fp32")
    return values.view(*shape[:3], -1)


def _blocks(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the parts of the first two axes that are read at a time, in the order of the file."""
    each = math.prod(shape[2:])
    if shape[1] * each <= BLOCK:
        for some in chunks(shape[0], BLOCK // (shape[1] * each)):
            yield some, slice(0, shape[1])
        return
    for first in range(shape[0]):
        for some in chunks(shape[1], max(BLOCK // each, 1)):
            yield slice(first, first + 1), some


def _divisor(file: Path, dtype: np.dtype[Any]) -> float:
    """Return the value that is mapped to 1."""
    if dtype.kind == "u":
        return float(np.iinfo(dtype).max)
    if dtype.kind in "bf":
        return 1.0
    if dtype.kind == "i":
        raise ValueError(f"{file} holds signed integers ({dtype}), whose range is not stated; convert them to floats")
    raise ValueError(f"{file} holds {dtype}; a volume has real numbers (floats, unsigned integers or booleans)")


# ---- the kind of signal ------------------------------------------------------------------------------------------


def _load(
    path: Path,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
    size: tuple[int, ...] | None = None,
) -> Signal:
    """Return the voxels, averaged down to ``size``."""
    values = load_volume(path, memory_budget)
    if size is not None:
        sides = size * 3 if len(size) == 1 else size
        if len(sides) != 3 or any(side > whole for side, whole in zip(sides, values.shape[:3], strict=True)):
            whole = "x".join(map(str, values.shape[:3]))
            got = "x".join(map(str, sides))
            raise ValueError(f"--size must be sizes from 1 to the volume's {whole}, got {got}")
        values = F.adaptive_avg_pool3d(values.movedim(3, 0), sides).movedim(0, 3).contiguous()
    low, high = float(values.min()), float(values.max())
    offset, scale = (low + high) / 2, high - low if high > low else 1.0
    target = ((values.double() - offset) / scale).float()
    about = {"shape": list(values.shape[:3]), "offset": offset, "scale": scale}
    return Signal(grid(values.shape[:3]), target, about)


SIGNALS.add(
    "volume",
    SignalKind(
        called="a NumPy array",
        summary=".npy, or .npz with one array, of shape (D, H, W) or (D, H, W, C); --size averages it down",
        ending=".npy",
        axes=3,
        readable=lambda: READ,
        writable=lambda outputs: WRITTEN,
        load=_load,
        write=lambda predictions, about, path: save_volume(unscaled(predictions, about), path),
        options={"size": Option("voxels to fit (all)", spelling.shape)},
        view=of_volume,
    ),
)
