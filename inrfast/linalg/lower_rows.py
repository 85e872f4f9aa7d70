"""The lower half of a square matrix as blocks of rows of growing length: half the memory of the whole."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast import system
from inrfast.errors import NotAvailableError
from inrfast.files import shown
from inrfast.memory import CACHE_LINE, empty, format_bytes, over_budget

Shapes = Sequence[tuple[int, int]]


class LowerRows:
    """Blocks of rows, in memory or where others keep them.

    Parameters
    ----------
    shapes
        (rows, columns) of every block.
    dtype, device
        Of the entries.
    blocks
        Tensors of these shapes; None: new ones.
    """

    def __init__(
        self, shapes: Shapes, dtype: torch.dtype, device: torch.device, blocks: Sequence[Tensor] | None = None
    ) -> None:
        self.dtype, self.device = dtype, device
        self._blocks = [empty(shape, dtype, device) for shape in shapes] if blocks is None else list(blocks)
        self._overwritten = False

    @property
    def blocks(self) -> list[Tensor]:
        """The blocks.

        Raises
        ------
        ValueError
            They lie in an array that others were put into since.
        """
        if self._overwritten:
            raise ValueError("another factorisation was written to the array of this one; give each its own array")
        return self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(block.nbytes for block in self._blocks)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def __getitem__(self, block: int) -> Tensor:
        """Return a block (rows, columns): a view."""
        return self.blocks[block]

    def take_over(self, address: int, stop: int) -> None:
        """Say that the blocks lie at these addresses: all others that overlap them cannot be used any more."""
        for other, (first, last) in list(_places.items()):
            if first < stop and address < last:
                other._overwritten = True
        _places[self] = address, stop


_places: weakref.WeakKeyDictionary[LowerRows, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Addresses of the blocks in arrays of users; they keep their array alive."""


def array_length(shapes: Shapes, dtype: torch.dtype) -> int:
    """Return how many entries an array must have that the blocks begin at cache lines of, as they do in memory."""
    line = CACHE_LINE // dtype.itemsize
    return sum(-(-rows * columns // line) * line for rows, columns in shapes) + line


def in_array(array: Any, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> LowerRows:
    """Return blocks that lie in an array of the user's, one after the other.

    Parameters
    ----------
    array
        One-dimensional, of this dtype, contiguous and writable, of :func:`array_length` entries or more: a
        ``numpy.memmap``, say, whose file, if it still has its name, gets its space now: writing to a map on a full disk
        ends the process. Blocks that were put into the same memory before cannot be used any more.

    Raises
    ------
    TypeError, ValueError
        It is no such array.
    NotAvailableError
        The blocks are to be on another device than the CPU.
    OSError
        The disk is full.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"out must be a path or a one-dimensional NumPy array, got {type(array).__name__}")
    need_cpu(device)
    wanted, name = array_length(shapes, dtype), str(dtype).removeprefix("torch.")
    if array.dtype != np.dtype(name) or not array.dtype.isnative:
        raise ValueError(
            f"out must have dtype {name}, got {array.dtype.str if not array.dtype.isnative else array.dtype}"
        )
    if array.ndim != 1 or array.size < wanted:
        raise ValueError(f"out must have one dimension and {wanted:,} entries or more, got shape {array.shape}")
    if not (array.flags.writeable and array.flags.c_contiguous and array.flags.aligned):
        raise ValueError("out must be writable, contiguous and aligned to its entries")
    _reserve_file_of(array)
    line = CACHE_LINE // dtype.itemsize
    place = -array.ctypes.data % CACHE_LINE // dtype.itemsize
    flat, found = torch.from_numpy(array), []
    for rows, columns in shapes:
        found.append(flat[place : place + rows * columns].view(rows, columns))
        place += -(-rows * columns // line) * line
    lower = LowerRows(shapes, dtype, device, found)
    lower.take_over(array.ctypes.data, array.ctypes.data + array.nbytes)
    return lower


def need_cpu(device: torch.device) -> None:
    """Refuse ``out=`` for kernels on other devices."""
    if device.type != "cpu":
        raise NotAvailableError(
            f"out= keeps a factor in a file or array of the CPU, and the kernel is on {device}; leave out= away, or "
            "move network and coordinates to the CPU"
        )


def _reserve_file_of(array: np.ndarray) -> None:
    """Reserve the space of a memory map's file, whose contents stay."""
    path, mode = getattr(array, "filename", None), getattr(array, "mode", None)
    if path is None or mode == "c":
        return
    try:
        descriptor = os.open(path, os.O_RDWR | system.PLAIN)
    except FileNotFoundError:  # the map is valid all the same
        return
    except OSError as error:
        raise type(error)(error.errno, f"out: cannot open {shown(path)}: {error.strerror}") from error
    try:
        system.reserve(descriptor, os.fstat(descriptor).st_size)
    except OSError as error:
        if error.errno not in system.UNSUPPORTED:
            raise type(error)(error.errno, f"out: no space for all of {shown(path)}: {error.strerror}") from error
    finally:
        os.close(descriptor)


# ---- the budget ----------------------------------------------------------------------------------------------------

Room = Callable[[int, torch.dtype], tuple[int, int]]
"""From an order and a dtype to the bytes of the lower half, and of what is beside it in memory."""


def require_room(order: int, dtype: torch.dtype, budget: int, room: Room, stored: bool = False) -> None:
    """Refuse a factorisation that the budget does not hold, and say what would fit.

    Parameters
    ----------
    order, dtype
        Of the factor.
    budget
        Bytes.
    room
        Bytes that are needed.
    stored
        Whether the lower half is in a file, whose pages do not count.

    Raises
    ------
    MemoryBudgetError
        It does not fit.
    """

    def needed(n: int, kind: torch.dtype) -> int:
        lower, rest = room(n, kind)
        return rest if stored else lower + rest

    if needed(order, dtype) <= budget:
        return
    name = {torch.float32: "fp32", torch.float64: "fp64"}
    most = _largest(lambda n: needed(n, dtype) <= budget, order)
    ways = [f"order {most} fits" if most else "no order fits"]
    if dtype == torch.float64:
        single = needed(order, torch.float32)
        fits = "fits" if single <= budget else "does not fit either"
        ways.append(f'in fp32 (precision="high", {format_bytes(single)}) it {fits}')
    what = f"the factor of order {order} in {name[dtype]}"
    raise over_budget(needed(order, dtype), budget, what, "; ".join(ways))


def _largest(fits: Callable[[int], bool], above: int) -> int:
    """Return the largest number below ``above`` that fits, 0 where none does."""
    low, high = 0, above
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
