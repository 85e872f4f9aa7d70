"""The file of a block LDL^T: a header, two states that take turns, the eliminations, and room for the lower half.

All numbers are little-endian. A page has 4,096 bytes, and every part begins at one:

- header: magic, version, length and BLAKE2 sum of a text in JSON, which says what is factored and how;
- two states: how far the factorisation is, and the columns that it passed on. A state is written over the older one,
  after everything that it speaks of is on the disk, and has a sum of its own. So at any time one of the two is whole;
- pivots (fp64), and for every column of W the sum of its entries read as integers;
- eliminations: rows, counts and a sum each, then their bases (fp64);
- entries: the blocks of rows of W, one after the other.

What an elimination has written of W is never changed by a later one (the factorisation looks left), so that a stopped
one goes on from its last state.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrfast import system
from inrfast.linalg.block_ldl import State
from inrfast.linalg.ldl_factor import Step
from inrfast.progress import progress_bar

MAGIC = b"inrfast LDL^T\r\n\x1a"
"""The last three bytes are spoilt by what changes the ends of lines."""

VERSION = 1

PAGE = 4096

SUM = 16
"""Bytes of a sum (BLAKE2b)."""

HEAD = struct.Struct(f"<{len(MAGIC)}sIQ{SUM}s")
"""Magic, version, length of the text, sum of both and the text."""

MOST_TEXT = 2**26
"""Bytes of a header's text: far more than one has."""

STATE = struct.Struct(f"<6Q{SUM}s")
"""Turn, eliminations, rows and columns done, directions passed on, whether it is finished; the sum of that and of what
was passed on."""

RECORD = struct.Struct(f"<5Q2d{SUM}s")
"""First row, row after the last, directions carried, first column, columns, and the two bounds of a step; the sum of
that, of the basis, the pivots and the sums of the columns."""


@dataclass(frozen=True)
class Layout:
    """Where what is in the file.

    Attributes
    ----------
    order
        Of the operator.
    shapes
        (rows, columns) of the blocks.
    windows
        Eliminations at most.
    widest
        Rows of a window at most; no more directions are passed on.
    dtype
        Of W.
    header
        Bytes of the header.
    """

    order: int
    shapes: tuple[tuple[int, int], ...]
    windows: int
    widest: int
    dtype: torch.dtype
    header: int

    def state(self, slot: int) -> int:
        """Return where the first or second state begins; what was passed on begins a page later."""
        return _pages(self.header) + slot * (PAGE + _pages(self._passed))

    @property
    def _passed(self) -> int:
        return self.widest * (self.order * self.dtype.itemsize + torch.float64.itemsize)

    @property
    def pivots(self) -> int:
        """Return where the pivots begin; the sums of the columns follow them."""
        return self.state(2)

    @property
    def records(self) -> int:
        """Return where the records of the eliminations begin."""
        return self.pivots + _pages(16 * self.order)

    def basis(self, step: int) -> int:
        """Return where the basis of an elimination begins."""
        return self.records + _pages(RECORD.size * self.windows) + step * _pages(8 * (2 * self.widest) ** 2)

    def block(self, number: int) -> int:
        """Return where a block of rows begins."""
        sizes = (_pages(rows * columns * self.dtype.itemsize) for rows, columns in self.shapes[:number])
        return self.basis(self.windows) + sum(sizes)

    @property
    def size(self) -> int:
        """Return the length of the file."""
        return self.block(len(self.shapes))


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class DamagedError(ValueError):
    """A file that is no factorisation, or not a whole one."""


# ---- reading and writing at a place --------------------------------------------------------------------------------


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """Return so many bytes from a place on."""
    parts = []
    while size:
        part = system.read_at(descriptor, size, place)
        if not part:
            raise DamagedError("it ends too early")
        parts.append(part)
        size, place = size - len(part), place + len(part)
    return b"".join(parts)


def write_at(descriptor: int, data: bytes, place: int) -> None:
    """Write all bytes to a place on."""
    view = memoryview(data)
    while view:
        count = system.write_at(descriptor, view, place)
        view, place = view[count:], place + count


def _sum(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=SUM)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype, *shape: int) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


# ---- the header ----------------------------------------------------------------------------------------------------


def header_of(about: Mapping[str, Any]) -> bytes:
    """Return the header that says what is factored and how."""
    text = json.dumps(about, allow_nan=False).encode()
    begun = HEAD.pack(MAGIC, VERSION, len(text), bytes(SUM))
    return HEAD.pack(MAGIC, VERSION, len(text), _sum(begun, text)) + text


def read_header(descriptor: int) -> tuple[dict[str, Any], int]:
    """Return what a header says, and its bytes.

    Raises
    ------
    DamagedError
        This is no such file, it is of another version, or its header is damaged.
    """
    if os.fstat(descriptor).st_size < HEAD.size:
        raise DamagedError("it is not the file of a factorisation")
    magic, version, length, found = HEAD.unpack(read_at(descriptor, HEAD.size, 0))
    if magic != MAGIC:
        raise DamagedError("it is not the file of a factorisation")
    if version != VERSION:
        raise DamagedError(f"it has version {version} of the format, and this inrfast reads version {VERSION}")
    if length > min(MOST_TEXT, os.fstat(descriptor).st_size):
        raise DamagedError("its header is damaged")
    text = read_at(descriptor, length, HEAD.size)
    if found != _sum(HEAD.pack(magic, version, length, bytes(SUM)), text):
        raise DamagedError("its header is damaged")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedError("its header is damaged") from None
    if not isinstance(about, dict):
        raise DamagedError("its header is damaged")
    return about, HEAD.size + length


# ---- the file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One of the two states: which of them it is, its number, and what it says."""

    slot: int
    number: int
    steps: int
    row: int
    start: int
    passed: int
    finished: bool

    def packed(self, values: bytes, passed: bytes) -> bytes:
        """Return it as it is written, with the sum of it and of what was passed on."""
        counts = (self.number, self.steps, self.row, self.start, self.passed, int(self.finished))
        return STATE.pack(*counts, _sum(STATE.pack(*counts, bytes(SUM)), values, passed))


class FactorFile:
    """An open file.

    Parameters
    ----------
    descriptor
        Of the file; it stays the caller's.
    layout
        Of the factorisation that it should hold.

    Raises
    ------
    DamagedError
        The file has another length.
    """

    def __init__(self, descriptor: int, layout: Layout) -> None:
        self.descriptor, self.layout = descriptor, layout
        size = os.fstat(descriptor).st_size
        if size != layout.size:
            raise DamagedError(f"it has {size:,} bytes in place of {layout.size:,}")
        self._written = 0
        self._sums = torch.zeros(layout.order, dtype=_integer(layout.dtype))
        self._last: Turn | None = None

    def blocks(self, writable: bool) -> list[Tensor]:
        """Return the blocks of W as views of a memory map."""
        layout, first = self.layout, self.layout.block(0)
        if layout.size == first:
            return [torch.empty(shape, dtype=layout.dtype) for shape in layout.shapes]
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        keep: dict[str, Any] = {} if sys.version_info < (3, 13) else {"trackfd": False}
        first -= first % mmap.ALLOCATIONGRANULARITY  # a map begins at a page, and pages of other systems are larger
        mapped = mmap.mmap(self.descriptor, layout.size - first, access=access, offset=first, **keep)
        found = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nothing writes to a finished file
            for number, (rows, columns) in enumerate(layout.shapes):
                if rows * columns == 0:
                    found.append(torch.empty(rows, columns, dtype=layout.dtype))
                    continue
                place = layout.block(number) - first
                flat = torch.frombuffer(mapped, dtype=layout.dtype, count=rows * columns, offset=place)
                found.append(flat.view(rows, columns))
        return found

    # ---- states --------------------------------------------------------------------------------------------------

    def turn(self) -> Turn | None:
        """Return the newest whole state; None where nothing was eliminated yet.

        Raises
        ------
        DamagedError
            Both states are damaged.
        """
        whole, empty = [], 0
        for slot in range(2):
            head = read_at(self.descriptor, STATE.size, self.layout.state(slot))
            if not any(head):
                empty += 1
                continue
            number, steps, row, start, passed, finished, _ = STATE.unpack(head)
            turn = Turn(slot, number, steps, row, start, passed, bool(finished))
            if self._fits(turn) and head == turn.packed(*self._passed_bytes(turn)):
                whole.append(turn)
        if not whole and not empty:
            raise DamagedError("its state is damaged")
        return max(whole, key=lambda turn: turn.number, default=None)

    def _fits(self, turn: Turn) -> bool:
        layout = self.layout
        ends = {0, layout.order, *itertools.accumulate(rows for rows, _ in layout.shapes)}
        return (
            turn.number < 2**63
            and turn.steps <= layout.windows
            and turn.row in ends
            and 0 <= turn.row - turn.start == turn.passed <= layout.widest
            and (not turn.finished or turn.start == layout.order)
        )

    def _passed_bytes(self, turn: Turn) -> tuple[bytes, bytes]:
        """Return the values and the columns that were passed on."""
        place, values = self.layout.state(turn.slot) + PAGE, 8 * turn.passed
        columns = (self.layout.order - turn.row) * turn.passed * self.layout.dtype.itemsize
        return read_at(self.descriptor, values, place), read_at(self.descriptor, columns, place + values)

    def read(self, turn: Turn) -> State:
        """Return everything that a state speaks of but W itself.

        Raises
        ------
        DamagedError
            An elimination is damaged.
        """
        layout, steps = self.layout, []
        pivots = read_at(self.descriptor, 8 * layout.order, layout.pivots)
        sums = read_at(self.descriptor, 8 * layout.order, layout.pivots + 8 * layout.order)
        row = column = passed = 0
        for number in range(turn.steps):
            record = read_at(self.descriptor, RECORD.size, layout.records + number * RECORD.size)
            first, last, carried, start, kept, defect, through, found = RECORD.unpack(record)
            count = carried + last - first
            if (first, start, carried) != (row, column, passed) or not (
                first < last <= layout.order and last - first <= layout.widest and kept <= count
            ):
                raise DamagedError("an elimination is damaged")
            basis = read_at(self.descriptor, 8 * count**2, layout.basis(number))
            own = slice(8 * start, 8 * (start + kept))
            if found != _sum(record[:-SUM], basis, pivots[own], sums[own]):
                raise DamagedError("an elimination is damaged")
            turned = _tensor(basis, torch.float64, count, count)
            steps.append(Step(slice(first, last), carried, start, kept, turned, defect, through))
            row, column, passed = last, start + kept, count - kept
            if passed > layout.widest:
                raise DamagedError("an elimination is damaged")
        if (row, column, passed) != (turn.row, turn.start, turn.passed):
            raise DamagedError("its state is damaged")
        values, columns = self._passed_bytes(turn)
        self._written, self._last = turn.steps, turn
        self._sums = _tensor(sums, torch.int64, layout.order).to(_integer(layout.dtype))
        return State(
            turn.row,
            turn.start,
            _tensor(pivots[: 8 * turn.start], torch.float64, turn.start),
            steps,
            _tensor(values, torch.float64, turn.passed),
            _tensor(columns, layout.dtype, layout.order - turn.row, turn.passed),
        )

    def write(self, state: State, blocks: Sequence[Tensor], finished: bool) -> None:
        """Write what was eliminated since the last state, wait for the disk, then write the state, and wait again."""
        layout, descriptor = self.layout, self.descriptor
        before = self._last
        number, slot = (1, 0) if before is None else (before.number + 1, 1 - before.slot)
        for index in range(self._written, len(state.steps)):
            step = state.steps[index]
            self._sums[step.start : step.start + step.kept] = self._column_sums(blocks, step)
            own = slice(step.start, step.start + step.kept)
            basis, pivots, sums = (_bytes(part) for part in (step.basis, state.pivots[own], self._sums[own].long()))
            place = (step.rows.start, step.rows.stop, step.carried, step.start, step.kept, step.defect, step.through)
            record = RECORD.pack(*place, bytes(SUM))
            record = RECORD.pack(*place, _sum(record[:-SUM], basis, pivots, sums))
            write_at(descriptor, basis, layout.basis(index))
            write_at(descriptor, pivots, layout.pivots + 8 * step.start)
            write_at(descriptor, sums, layout.pivots + 8 * (layout.order + step.start))
            write_at(descriptor, record, layout.records + index * RECORD.size)
        values, passed = _bytes(state.values), _bytes(state.passed)
        write_at(descriptor, values + passed, layout.state(slot) + PAGE)
        system.sync(descriptor, data=True)  # the pages of the map too
        turn = Turn(slot, number, len(state.steps), state.row, state.start, len(state.values), finished)
        write_at(descriptor, turn.packed(values, passed), layout.state(slot))
        system.sync(descriptor, data=True)
        self._written = len(state.steps)
        self._last = turn

    # ---- sums of columns -------------------------------------------------------------------------------------------

    def _rows_from(self, blocks: Sequence[Tensor], row: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of W from one on, block by block, with the number of the first."""
        first = 0
        for block in blocks:
            if first + len(block) > row:
                begun = max(row - first, 0)
                yield first + begun, block[begun:]
            first += len(block)

    def _column_sums(self, blocks: Sequence[Tensor], step: Step) -> Tensor:
        """Return the sums of the columns of one elimination, over the rows after it."""
        own = slice(step.start, step.start + step.kept)
        total = torch.zeros(step.kept, dtype=self._sums.dtype)
        for _, rows in self._rows_from(blocks, step.rows.stop):
            total += rows.view(total.dtype)[:, own].sum(0, dtype=total.dtype)
        return total

    def check_entries(self, blocks: Sequence[Tensor], state: State, progress: bool | None = None) -> None:
        """Read all of W that was written, once and in order; with a bar where that takes long.

        Raises
        ------
        DamagedError
            The sums of the columns are others.
        """
        kind = self._sums.dtype
        found = torch.zeros(self.layout.order, dtype=kind)
        parts = list(self._rows_from(blocks, 0))
        for first, rows in progress_bar(parts, desc="reading the factor", progress=progress, leave=False, delay=1.0):
            done = min(max(state.row - first, 0), len(rows))  # these end in zeros, the others are not all written
            found[: rows.shape[1]] += rows[:done].view(kind).sum(0, dtype=kind)
            final = min(state.start, rows.shape[1])
            found[:final] += rows[done:].view(kind)[:, :final].sum(0, dtype=kind)
        if found[state.start :].any() or not torch.equal(found[: state.start], self._sums[: state.start]):
            raise DamagedError("entries of the factor are damaged")


def _integer(dtype: torch.dtype) -> torch.dtype:
    """Return the integers as which the entries of a column are added up, and their sum (modulo 2^32 or 2^64) kept."""
    return torch.int32 if dtype == torch.float32 else torch.int64
