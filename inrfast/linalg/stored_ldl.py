"""A block LDL^T kept in memory, in an array or in a file, where a stopped one goes on and a finished one is opened."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast import system
from inrfast.errors import NotAvailableError, check_float, warn
from inrfast.files import opened, shown, sole_writer, target_of, whole_file, writing_told
from inrfast.linalg import block_ldl as elimination
from inrfast.linalg.block_ldl import State, block_ldl
from inrfast.linalg.factor_file import DamagedError, FactorFile, Layout, Turn, header_of, read_header
from inrfast.linalg.ldl_factor import BlockLDL
from inrfast.linalg.lower_rows import LowerRows, in_array, need_cpu, require_room
from inrfast.linalg.operators import SymmetricOperator, shape_of
from inrfast.memory import available_bytes
from inrfast.ops import gemm
from inrfast.words import one_line, shortened

SAVING = 0.03
"""Share of the time that waiting for the disk may take: a state is written when so much has passed since the last."""

WIDER = 4
"""Times as many rows per panel in files that memory does not hold: all of W is read once per panel."""

PROBES = 16
"""Rows and columns of an operator that are compared with those of the one in a file."""

ALIKE = 1e-8
"""Difference between entries, relative to ``sqrt(K_ii K_jj)``, up to which they are those of the same operator."""

DTYPES = ("float32", "float64")

ANEW = "To factor anew, delete the file or name another one"


def stored_ldl(
    operator: SymmetricOperator,
    shift: float,
    dtype: torch.dtype,
    out: str | os.PathLike[str] | np.ndarray,
    delay: float | None = None,
    window: int | None = None,
    panel: int | None = None,
    budget: int | None = None,
    progress: bool | None = None,
) -> BlockLDL:
    """Factor ``K - shift I`` into a file or an array: :func:`inrfast.linalg.block_ldl.block_ldl`, which see.

    Parameters
    ----------
    operator, shift, dtype, delay, window, panel, budget, progress
        As there. A file keeps to the window and panel that it was begun with.
    out
        A path: the file is made with all its space. If it is there already and of the same factorisation, a stopped one
        goes on where it was last on the disk, with the same digits on the same machine, and a finished one is read
        instead. Or a one-dimensional array of ``dtype``, such as a ``numpy.memmap``, which can do neither.

    Raises
    ------
    ValueError
        The file is of another factorisation (the message says what differs), damaged, or no such file.
    RangeError
        As there; then no file is made.
    BlockingIOError
        Another process, or another thread of this one, is writing it.
    OSError
        The folder is missing or read-only, the disk is full, the path is that of a folder, pipe or device.
    NotAvailableError
        The kernel is on another device than the CPU, or other processes have rows of it.
    TypeError
        ``out`` is neither.

    Notes
    -----
    What is stored stays mapped: whoever makes its file shorter while the factorisation is in use ends the process, and
    before Python 3.13 each one holds a file descriptor.
    """
    if not operator.partition.whole:
        raise NotAvailableError("out= is for kernels whose rows are all in one process; leave it away")
    need_cpu(operator.device)
    shift = check_float("shift", shift)
    if isinstance(out, (str, os.PathLike)):
        if not os.fspath(out):
            raise ValueError("out is an empty path; name a file")
        return _InFile(Path(out), operator, shift, dtype, delay, window, panel, budget, progress).run()
    window, panel, height = elimination.sizes(shape_of(operator), operator.device, window, panel)
    _need_room(operator, dtype, window, panel, budget)
    lower = in_array(out, elimination.shapes(shape_of(operator), height), dtype, operator.device)
    return block_ldl(operator, shift, dtype, delay, window, panel, lower, budget, progress)


def stored_bytes(operator: SymmetricOperator, shift: float, dtype: torch.dtype) -> tuple[int, int]:
    """Return the length of the file that :func:`stored_ldl` would make, and the bytes of memory beside it."""
    _, layout, sizes = _InFile(Path(), operator, shift, dtype, None, None, None, None, None).planned()
    return layout.size, elimination.room(shape_of(operator), dtype, operator.device, *sizes)[1]


def _need_room(operator: SymmetricOperator, dtype: torch.dtype, window: int, panel: int, budget: int | None) -> None:
    """Refuse what the budget does not hold beside the lower half."""
    if budget is not None:
        room = partial(elimination.room, device=operator.device, window=window, panel=panel)
        require_room(shape_of(operator), dtype, budget, room, stored=True)


@dataclass(frozen=True)
class _Found:
    """An open file of the factorisation that is asked for, its newest state, and what it says of itself."""

    file: FactorFile
    turn: Turn | None
    about: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.turn is not None and self.turn.finished


@dataclass(frozen=True)
class _InFile:
    """A factorisation that is made in a file, or read from it, with arguments as in :func:`stored_ldl`."""

    path: Path
    operator: SymmetricOperator
    shift: float
    dtype: torch.dtype
    delay: float | None
    window: int | None
    panel: int | None
    budget: int | None
    progress: bool | None

    def run(self) -> BlockLDL:
        """Return the factorisation."""
        with ExitStack() as stack:
            found = self._look(stack, writing=False)
            if found is None or not found.finished:
                stack.enter_context(sole_writer(self.path, "factorisation"))
                found = self._look(stack, writing=True)
            assert found is not None
            file, said, state = found.file, found.about, None
            sizes = said["window"], said["panel"]
            _need_room(self.operator, self.dtype, *sizes, self.budget)
            with writing_told(self.path, "map"):
                blocks = file.blocks(writable=not found.finished)
            lower = LowerRows(file.layout.shapes, self.dtype, self.operator.device, blocks)
            if found.turn is not None:
                with _damage_told(self.path):
                    state = file.read(found.turn)
                    file.check_entries(blocks, state, self.progress)
                if found.finished:
                    return BlockLDL(self.shift, state.pivots, state.steps, lower)
            saver = _Saver(self.path, file, blocks)
            with _same_digits(self.path, said, again=state is not None):
                result = block_ldl(
                    self.operator, self.shift, self.dtype, self.delay, *sizes, lower, None, self.progress, state, saver
                )
                saver.write(_whole(result), finished=True)
            return result

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What the file must say."""
        n, delay = shape_of(self.operator), self.delay
        window, panel, _ = elimination.sizes(n, self.operator.device, self.window, self.panel)
        about = {
            "order": n,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shift": self.shift,
            "delay": elimination.DELAY * abs(self.shift) if delay is None else delay,
            **({} if self.window is None else {"window": window}),
            **({} if self.panel is None else {"panel": panel}),
            "byteorder": sys.byteorder,
            **identity_of(self.operator),
        }
        return dict(json.loads(json.dumps(about)))  # as it is read again

    def _look(self, stack: ExitStack, writing: bool) -> _Found | None:
        """Open the file and check what it says; where there is none, or an empty one, make it for ``writing``."""
        target = target_of(self.path)
        if not target.exists() or target.stat().st_size == 0:
            if not writing:
                return None
            self._make()
        if writing:
            with writing_told(self.path):
                descriptor = os.open(target, os.O_RDWR | system.NO_LINK | system.NO_WAIT | system.PLAIN)
            stack.callback(os.close, descriptor)
        else:
            descriptor = stack.enter_context(opened(target, "the file of a factorisation")).fileno()
        with _damage_told(self.path):
            said, header = read_header(descriptor)
            changed = _differences(self._about, said)
            if changed:
                words = _listed(changed)
                raise ValueError(f"out: {shown(self.path)} is of another factorisation, with other {words}. {ANEW}")
            _check_settings(said)
            file = FactorFile(descriptor, self._layout(said, header))
            return _Found(file, file.turn(), said)

    def _make(self) -> None:
        """Make the file with its header and all its space; only then it has its name."""
        header, layout, sizes = self.planned()
        elimination.largest_entry(self.operator, self.shift, self.dtype)
        _need_room(self.operator, self.dtype, *sizes, self.budget)
        with whole_file(self.path, size=layout.size, durable=True) as file:
            file.write(header)

    def planned(self) -> tuple[bytes, Layout, tuple[int, int]]:
        """Return the header and layout of a new file, and the rows of a window and of a panel."""
        n, device, panel = shape_of(self.operator), self.operator.device, self.panel
        if panel is None and elimination.room(n, self.dtype, device, self.window)[0] > available_bytes():
            panel = WIDER * elimination.sizes(n, device, self.window)[1]
        window, panel, _ = elimination.sizes(n, device, self.window, panel)
        run = {"window": window, "panel": panel, "machine": _machine(), "libraries": _libraries()}
        header = header_of({**self._about, **run})
        return header, self._layout(run, len(header)), (window, panel)

    def _layout(self, said: Mapping[str, Any], header: int) -> Layout:
        """Return the layout of a file with these widths."""
        n, window, panel = shape_of(self.operator), said.get("window"), said.get("panel")
        if type(window) is not int or type(panel) is not int:
            raise DamagedError("its header is damaged")
        try:
            window, panel, height = elimination.sizes(n, self.operator.device, window, panel)
        except ValueError:
            raise DamagedError("its header is damaged") from None
        blocks = tuple(elimination.shapes(n, height))
        return Layout(n, blocks, -(-n // window), min(window, n), self.dtype, header)


def _whole(result: BlockLDL) -> State:
    """Return the state of a finished factorisation."""
    none = torch.empty(0, dtype=torch.float64)
    return State(result.size, result.size, result.pivots, result.steps, none, torch.empty(0, 0, dtype=result.dtype))


class _Saver:
    """Writes the states of a running factorisation, as often as that costs little.

    Parameters
    ----------
    path
        For the messages.
    file, blocks
        The file, and the map of its entries.
    """

    def __init__(self, path: Path, file: FactorFile, blocks: Sequence[Tensor]) -> None:
        self._path, self._file, self._blocks, self._due = path, file, blocks, 0.0

    def __call__(self, state: State) -> None:
        """Write a state if one is due; the last one comes by :meth:`write`."""
        begun = time.monotonic()
        if begun >= self._due and state.row < self._file.layout.order:
            self.write(state, finished=False)
            ended = time.monotonic()
            self._due = ended + (ended - begun) / SAVING

    def write(self, state: State, finished: bool) -> None:
        """Write a state."""
        with writing_told(self._path):
            self._file.write(state, self._blocks, finished)


# ---- the file and what it says -------------------------------------------------------------------------------------


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Name the file in the errors of a damaged one."""
    try:
        yield
    except DamagedError as error:
        raise ValueError(f"out: {shown(path)}: {error}. {ANEW}") from None


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return, in words, where a description differs from that in a file, which may say more."""
    found: list[str] = []
    for name, mine in now.items():
        other = then.get(name)
        if mine == other or (name == "delay" and now.get("shift") != then.get("shift")):  # it follows from the shift
            continue
        if name == "entries":
            if not found and not _alike(mine, other):
                found.append("entries of the kernel")
        elif isinstance(mine, dict) and isinstance(other, dict):
            found += _differences({**dict.fromkeys(other, "unknown"), **mine}, other)
        else:
            short = [shortened(repr(side), 40) for side in (mine, other)]
            values = f" (now {short[0]}, in the file {short[1]})"
            found.append(name + ("" if _is_digest(mine) and _is_digest(other) else values))
    return found


def _listed(changed: Sequence[str]) -> str:
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return "; ".join(one_line(entry, 100) for entry in changed[:4]) + more


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def _alike(mine: list[list[float]], other: Any) -> bool:
    """Return whether entries of two operators are the same but for rounding."""
    try:
        one, two = (torch.tensor(side, dtype=torch.float64) for side in (mine, other))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    if one.shape != two.shape:
        return False
    size = one.diagonal().abs().sqrt()
    return bool(((one - two).abs() <= ALIKE * torch.outer(size, size)).all())


# ---- the same digits -----------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    return {"processor": gemm.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _libraries() -> dict[str, dict[str, str]]:
    """Return the matrix libraries in use: they are chosen by measurement, and another one has other digits."""
    return {name: gemm.choices(getattr(torch, name)) for name in DTYPES}


def _check_settings(said: Mapping[str, Any]) -> None:
    """Check what a file says of the machine that it was begun on."""
    libraries = said.get("libraries")
    if not isinstance(said.get("machine"), dict) or not isinstance(libraries, dict):
        raise DamagedError("its header is damaged")
    for choice in map(libraries.get, DTYPES):
        if not isinstance(choice, dict) or not all(map(_is_choice, choice.items())):
            raise DamagedError("its header is damaged")


def _is_choice(entry: tuple[str, Any]) -> bool:
    """Return whether an entry names a number of threads and a matrix library."""
    threads, library = entry
    return threads.isascii() and threads.isdecimal() and len(threads) < 6 and library in list(gemm.LIBRARIES)


@contextmanager
def _same_digits(path: Path, said: Mapping[str, Any], again: bool) -> Iterator[None]:
    """Multiply as the file was begun; warn where it cannot be gone on ``again`` with the same digits."""
    changed = _differences(_machine(), said["machine"]) if again else []
    with ExitStack() as stack:
        for name in DTYPES:
            try:
                stack.enter_context(gemm.forced(getattr(torch, name), said["libraries"][name]))
            except NotAvailableError as error:
                changed.append(str(error))
        if changed:
            warn(f"the factorisation goes on from {shown(path)}, but not bit by bit: other {_listed(changed)}")
        yield


# ---- what is factored ----------------------------------------------------------------------------------------------


def identity_of(operator: SymmetricOperator) -> dict[str, Any]:
    """Return what tells an operator from others, as plain values.

    What the operator says of itself (``identity()``, where it has that), and some entries in fp64.
    """
    own: dict[str, Any] = getattr(operator, "identity", dict)()
    index = torch.linspace(0, shape_of(operator) - 1, PROBES, dtype=torch.float64).round().long().unique()
    entries = operator.submatrix(index.to(operator.device)).cpu()
    if not bool(torch.isfinite(entries).all()):
        raise ValueError("the operator must be finite, got NaN or Inf among its entries")
    return {"operator": own, "entries": entries.tolist()}
