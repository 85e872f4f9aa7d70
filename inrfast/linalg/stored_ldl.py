"""A block LDL^T kept in memory, in an array or in a file, where a stopped one goes on and a finished one is opened."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import NotAvailableError, warn
from inrfast.files import shown, sole_writer, target_of, whole_file, writing_told
from inrfast.linalg import block_ldl as elimination
from inrfast.linalg.block_ldl import BlockLDL, State, block_ldl
from inrfast.linalg.factor_file import DamagedError, FactorFile, Layout, Turn, header_of, read_header
from inrfast.linalg.lower_rows import LowerRows, in_array, need_cpu
from inrfast.linalg.operators import SymmetricOperator, shape_of
from inrfast.ops import gemm
from inrfast.words import shortened

SAVING = 0.03
"""Share of the time that waiting for the disk may take: a state is written when so much has passed since the last."""

PROBES = 16
"""Rows and columns of an operator that are compared with those of the one in a file."""

ALIKE = 1e-8
"""Difference between entries, relative to ``sqrt(K_ii K_jj)``, up to which they are those of the same operator."""

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
    BlockingIOError
        Another process, or another thread of this one, is writing it.
    OSError
        The folder is missing or read-only, the disk is full, the path is that of a folder, pipe or device.
    NotAvailableError
        The kernel is on another device than the CPU, or other processes have rows of it.
    TypeError
        ``out`` is neither.
    """
    n, device, run = shape_of(operator), operator.device, {"budget": budget, "progress": progress}
    if not operator.partition.whole:
        raise NotAvailableError("out= is for kernels whose rows are all in one process; leave it away")
    need_cpu(device)
    sizes = elimination.sizes(n, device, window, panel)
    if isinstance(out, (str, os.PathLike)):
        about = {
            "order": n,
            "dtype": str(dtype).removeprefix("torch."),
            "shift": shift,
            "delay": elimination.DELAY * abs(shift) if delay is None else delay,
            "window": None if window is None else sizes[0],
            "panel": None if panel is None else sizes[1],
            "byteorder": sys.byteorder,
            **identity_of(operator),
        }
        return _in_file(Path(out), about, operator, dtype, {"delay": delay, **run})
    lower = in_array(out, elimination.shapes(n, sizes[2]), dtype, device)
    return block_ldl(operator, shift, dtype, delay, *sizes[:2], lower, **run)


def _in_file(
    path: Path, about: dict[str, Any], operator: SymmetricOperator, dtype: torch.dtype, run: dict[str, Any]
) -> BlockLDL:
    with ExitStack() as stack:
        found = _look(path, about, dtype, stack)
        if found is None or found.turn is None or not found.turn.finished:
            stack.enter_context(sole_writer(path, "factorisation"))
            found = _look(path, about, dtype, stack, lambda: _made(path, about, operator, dtype, run["budget"]))
        assert found is not None
        file, turn, said, state = found.file, found.turn, found.about, None
        finished = turn is not None and turn.finished
        blocks = file.blocks(writable=not finished)
        lower = LowerRows(file.layout.shapes, dtype, operator.device, blocks)
        if turn is not None:
            with _damage_told(path):
                state = file.read(turn)
                file.check_entries(blocks, state)
        if state is not None and finished:
            return BlockLDL(said["shift"], state.pivots, state.steps, lower)
        with _same_digits(path, said, again=state is not None):
            run |= {"window": said["window"], "panel": said["panel"], "out": lower, "state": state}
            saver = _Saver(path, file, blocks)
            result = block_ldl(operator, said["shift"], dtype, **run, save=saver)
            saver.write(_whole(result, dtype), finished=True)
        return result


def _whole(result: BlockLDL, dtype: torch.dtype) -> State:
    """Return the state of a finished factorisation."""
    n, none = result.size, torch.empty(0, dtype=torch.float64)
    return State(n, n, result.pivots, result.steps, none, torch.empty(0, 0, dtype=dtype))


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


@dataclass(frozen=True)
class _Found:
    """An open file of the factorisation that is asked for, its newest state, and what it says of itself."""

    file: FactorFile
    turn: Turn | None
    about: dict[str, Any]


def _look(
    path: Path, about: dict[str, Any], dtype: torch.dtype, stack: ExitStack, make: Callable[[], None] | None = None
) -> _Found | None:
    """Open a file and check what it says; None where there is none, or an empty one, and nothing makes it.

    It is opened for writing if something would make it.
    """
    target = target_of(path)
    if not target.exists() or target.stat().st_size == 0:
        if make is None:
            return None
        make()
    with writing_told(path):
        access = os.O_RDONLY if make is None else os.O_RDWR
        descriptor = os.open(target, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    stack.callback(os.close, descriptor)
    with _damage_told(path):
        said, header = read_header(descriptor)
        changed = _differences(about, said)
        if changed:
            raise ValueError(f"out: {shown(path)} is of another factorisation, with other {'; '.join(changed)}. {ANEW}")
        file = FactorFile(descriptor, _layout(said, dtype, header))
        return _Found(file, file.turn(), said)


def _made(
    path: Path, about: dict[str, Any], operator: SymmetricOperator, dtype: torch.dtype, budget: int | None
) -> None:
    """Make the file with its header and all its space; only then it has its name."""
    n, device = about["order"], operator.device
    window, panel, height = elimination.sizes(n, device, about["window"], about["panel"])
    needed, lower = elimination.bytes_needed(n, dtype, device, window, panel), elimination.shapes(n, height)
    said = {**about, "window": window, "panel": panel, "machine": _machine(), "libraries": _libraries()}
    header = header_of(said)
    with whole_file(path, size=_layout(said, dtype, len(header)).size, durable=True) as file:
        file.write(header)


def _layout(said: Mapping[str, Any], dtype: torch.dtype, header: int) -> Layout:
    window, panel, n = said.get("window"), said.get("panel"), said["order"]
    for size in (window, panel):
        if type(size) is not int or not 0 < size < 2**31:
            raise DamagedError("its header is damaged")
    blocks = tuple(elimination.shapes(n, panel))
    windows = sum(-(-rows // window) for rows, _ in blocks)
    return Layout(n, blocks, windows, min(window, n), dtype, header)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Name the file in the errors of a damaged one."""
    try:
        yield
    except DamagedError as error:
        raise ValueError(f"out: {shown(path)}: {error}. {ANEW}") from None


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return, in words, in what two descriptions differ; what is None now is as it was."""
    found = []
    for name, mine in now.items():
        other = then.get(name)
        if mine is None or mine == other:
            continue
        if name == "entries":
            if not _alike(mine, other):
                found.append("entries of the kernel")
        elif isinstance(mine, dict) and isinstance(other, dict):
            found += _differences(mine, other)
        else:
            short = [shortened(repr(side), 40) for side in (mine, other)]
            values = f" (now {short[0]}, in the file {short[1]})"
            found.append(name + ("" if _is_digest(mine) and _is_digest(other) else values))
    return found


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def _alike(mine: list[list[float]], other: Any) -> bool:
    """Return whether entries of two operators are the same but for rounding."""
    try:
        one, two = (torch.tensor(side, dtype=torch.float64) for side in (mine, other))
    except (TypeError, ValueError):
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
    return {name: gemm.choices(getattr(torch, name)) for name in ("float32", "float64")}


@contextmanager
def _same_digits(path: Path, said: Mapping[str, Any], again: bool) -> Iterator[None]:
    """Multiply as the file was begun; warn where it cannot be gone on ``again`` with the same digits."""
    changed = _differences(_machine(), said["machine"]) if again else []
    with ExitStack() as stack:
        for name, libraries in said["libraries"].items():
            try:
                stack.enter_context(gemm.forced(getattr(torch, name), libraries))
            except NotAvailableError as error:
                changed.append(str(error))
        if changed:
            warn(f"the factorisation goes on from {shown(path)}, but not bit by bit: other {'; '.join(changed)}")
        yield


# ---- what is factored ----------------------------------------------------------------------------------------------


def identity_of(operator: SymmetricOperator) -> dict[str, Any]:
    """Return what tells an operator from others, as plain values.

    What the operator says of itself (``identity()``, where it has that), and some entries in fp64.
    """
    own: dict[str, Any] = getattr(operator, "identity", dict)()
    index = torch.linspace(0, shape_of(operator) - 1, PROBES, dtype=torch.float64).round().long().unique()
    entries = operator.submatrix(index.to(operator.device)).cpu()
    return {"operator": own, "entries": entries.tolist()}
