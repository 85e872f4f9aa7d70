"""The memory that a computation over many points takes at its peak, from runs over few of them.

Bytes that are alive after each operation are polynomials of the number of points, of degree two where points meet in
pairs. Three small runs give all of them, and their largest value at any other size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from inrfast.errors import MemoryBudgetError

STARTS = 128, 512, 16, 4
"""Points of the largest of the first three runs; the second where something takes no fewer, then where it is large."""

LEAST = 2**24
"""Bytes that a run over few points may take, however small the budget."""

SHARE = 3
"""A run that only refines what others let expect takes one part in so many of the budget."""

STEP = 4
"""Factor between such runs: what grows faster than expected still fits the budget."""

ROUNDS = 12

FRAGMENTS = 1.2
"""What an allocator holds at least for each byte of tensors: freed blocks lie between others."""

SCATTERED = 2.0, 2**27
"""What it holds while they are small, and the bytes that it loses so at most: the C library gives blocks of 32 MiB a
mapping of their own, and scatters smaller ones; 1.9 times, and 160 MB, were seen."""


def held(taken: float) -> float:
    """Return the bytes that a process grows by for tensors of ``taken`` bytes."""
    return min(SCATTERED[0] * taken, FRAGMENTS * taken + SCATTERED[1])


def holdable(room: float) -> float:
    """Return the bytes of tensors for which a process grows by ``room``: the inverse of :func:`held`."""
    return max(room / SCATTERED[0], (room - SCATTERED[1]) / FRAGMENTS)


class Live(TorchDispatchMode):
    """Counts the bytes of results that are alive after each operation, those of backward passes too.

    Parameters
    ----------
    most
        Bytes at which the block ends with :class:`MemoryBudgetError`.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.now = most, 0
        self.after: list[int] = []
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: dict[int, StorageWeakRef] = {}  # held weakly, which keeps their addresses from being given again

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return false: torch would load its compiler, 170 MB, to keep it from compiling what is here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count what it made."""
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                self._known.setdefault(storage._cdata, StorageWeakRef(storage))
        result = func(*args, **(kwargs or {}))
        for place in [place for place, (held, _) in self._live.items() if held.expired()]:
            self.now -= self._live.pop(place)[1]
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known and storage._cdata not in self._live:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.now += storage.nbytes()
        self.after.append(self.now)
        if self.now > self.most:
            raise MemoryBudgetError("a run exceeds its budget")
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


class Peak:
    """Bytes at the peak of a run as a function of its points.

    Parameters
    ----------
    sizes
        Three numbers of points, each twice the one before.
    traces
        The bytes alive after each operation of these runs. Where their operations differ in number, as of a loop over
        chunks, the peaks alone are compared.
    """

    def __init__(self, sizes: Sequence[int], traces: Sequence[Sequence[int]]) -> None:
        if len({len(trace) for trace in traces}) > 1:
            traces = [[max(trace, default=0)] for trace in traces]
        few, more, most = np.array(traces, dtype=np.float64)
        first, second, third = sizes
        early, late = (more - few) / (second - first), (most - more) / (third - second)
        # Never concave: of what grows more slowly than in proportion, the last two runs tell.
        self._square = np.maximum((late - early) / (third - first), 0.0)
        self._row = np.maximum(late - self._square * (second + third), 0.0)
        self._fixed = np.maximum(most - third * (self._row + self._square * third), 0.0)

    def __call__(self, points: int) -> float:
        """Return the bytes that a run over so many points takes."""
        return float((self._fixed + points * (self._row + points * self._square)).max(initial=0.0))

    def most(self, room: float, points: int) -> int:
        """Return the largest number of points, at most ``points``, that takes ``room`` bytes; 0 if none does."""
        low, high = 0, points
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self(middle) <= room else (low, middle - 1)
        return low


def peak_of(run: Callable[[int], object], points: int, room: float) -> Peak | None:
    """Return what ``run``, called with a number of points, takes at its peak; None if it runs on few points nowhere.

    Where so many ``points`` seem to take more than ``room`` bytes, larger runs must confirm it: a loss may look at
    pairs of a thousand points, however many there are.
    """
    found, size = None, 0
    for start in STARTS:
        size = min(start, points)
        found = _measured(run, size, max(room, LEAST))
        if found is not None:
            break
    for _ in range(ROUNDS):
        if found is None or found(points) <= room:
            break
        larger = min(found.most(max(room, LEAST) / SHARE, points), STEP * size)
        again = _measured(run, larger, max(room, LEAST)) if larger >= 2 * size else None
        if again is None:
            break
        found, size = again, larger
    return found


def _measured(run: Callable[[int], object], size: int, room: float) -> Peak | None:
    least = size // 4
    sizes, traces = (least, 2 * least, 4 * least), []
    if least == 0:
        return None
    try:
        for count in sizes:
            live = Live(int(room))
            with generators_kept(), live:
                run(count)
            traces.append(live.after)
    except Exception:  # it takes nothing but all its points, or more of them, or is larger than expected
        return None
    return Peak(sizes, traces)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the generators of torch, NumPy and Python as they were before the block."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
