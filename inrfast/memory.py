"""Memory: how much may be used, how large a chunk that allows, and a refusal before anything is allocated."""

from __future__ import annotations

import ctypes
import errno
import functools
import math
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from inrfast import system
from inrfast.errors import InrfastError, MemoryBudgetError, called, check_int

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_FRACTION = 0.5
"""Share of the free memory used when no ``memory_budget`` is given: the other half stays for the caller."""

SMALL = 2**26
"""Requests of up to so many bytes skip the question how much is free, which takes longer than a small allocation."""

HUGE = 2**22
"""Bytes from which NumPy asks for huge pages."""

CACHE_LINE = 64

CACHED_BYTES = 2**19
"""Bytes of one buffer of activations on a CPU: a few of them fit between the second and third level of cache."""

LEAST_ROWS, MOST_ROWS = 256, 8192

DEVICE_ROWS = 2**16
"""Rows per chunk on other devices: enough to fill a GPU, few enough to fit its memory."""


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Return the free memory of ``device`` in bytes (on Linux, within the limits of control group and process)."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if sys.platform != "linux":
        import psutil  # a dependency there

        return int(psutil.virtual_memory().available)
    told = _read("/proc/meminfo").partition(b"MemAvailable:")[2]
    free = 1024 * int(told.split(None, 1)[0])
    most = system.address_space()
    if most is not None:
        pages = int(_read("/proc/self/statm").split()[0])
        free = min(free, max(most - pages * mmap.PAGESIZE, 0))
    try:
        limit = _read("/sys/fs/cgroup/memory.max").strip()
        used = int(_read("/sys/fs/cgroup/memory.current"))
    except (OSError, ValueError):
        return free
    return free if limit == b"max" else min(free, max(int(limit) - used, 0))


def _read(path: str) -> bytes:
    """Return a small file of the kernel's, several times faster than by a stream of text."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def budget_bytes(memory_budget: int | None, device: torch.device | str = "cpu") -> int:
    """Return the budget in bytes: ``memory_budget`` itself, or half of what is free on ``device``."""
    if memory_budget is None:
        return int(DEFAULT_FRACTION * available_bytes(device))
    return check_int("memory_budget", memory_budget, minimum=1)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``size`` that cover ``range(n)``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def cached_rows(widest: int, like: Tensor, cached: int = CACHED_BYTES) -> int:
    """Return how many rows keep a buffer of ``widest`` columns, of the dtype and device of ``like``, in cache.

    ``cached`` is the share of a CPU's cache, in bytes, that the buffer may take.
    """
    if like.device.type != "cpu":
        return DEVICE_ROWS
    return min(max(cached // (widest * like.element_size()), LEAST_ROWS), MOST_ROWS)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialised tensor; large ones on the CPU use huge pages where the system provides them.

    NumPy requests huge pages, torch does not: first use of 64 MiB took 5 ms instead of 17 ms. The memory is aligned to
    a cache line, as torch's is.
    """
    device = torch.device(device)
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    raw = np.empty(size + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(*shape)


KEPT_SCRATCH = 2**23
"""Bytes of scratch of one name that a thread keeps at most."""

_kept = threading.local()


def scratch(name: str, numbers: int, dtype: torch.dtype) -> int:
    """Return the address of scratch on the CPU, a multiple of a cache line, for the next native call of this thread.

    Up to :data:`KEPT_SCRATCH` bytes are kept for the call after that, since fresh pages cost as much as a small call.
    The scratch lasts until the thread asks for that of the same ``name`` again.
    """
    held: dict[str, Tensor] = vars(_kept)
    size = numbers * dtype.itemsize + CACHE_LINE
    memory = held.get(name)
    if memory is None or len(memory) < size or len(memory) > max(size, KEPT_SCRATCH):
        held[name] = memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    return -(-memory.data_ptr() // CACHE_LINE) * CACHE_LINE


def trim() -> None:
    """Give freed memory back to the system, where the C library keeps some of it and takes such a request (glibc).

    It may keep 64 MiB, and more per thread, of blocks of up to 32 MiB that were freed.
    """
    give_back = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def require(needed: int, budget: int, what: str, instead: str) -> None:
    """Raise :class:`MemoryBudgetError` if ``needed`` bytes exceed ``budget``, naming what would fit ``instead``."""
    if needed > budget:
        raise over_budget(needed, budget, what, instead)


def over_budget(needed: int, budget: int, what: str, instead: str) -> MemoryBudgetError:
    """Return the error for a request beyond the budget."""
    error = MemoryBudgetError(f"{what} needs {told(needed)} but the budget is {told(budget)}; {instead}")
    error.needed, error.what, error.instead = needed, what, instead
    return error


def require_free(needed: int, what: str, instead: str, device: torch.device | str = "cpu") -> None:
    """Raise :class:`MemoryBudgetError` if ``needed`` bytes exceed half of the free memory (calls without a budget)."""
    if needed > SMALL and torch.device(device).type in ("cpu", "cuda"):
        free = budget_bytes(None, device)
        if needed > free:
            raise MemoryBudgetError(
                f"{what} needs {told(needed)}, and half of the memory that is free is {told(free)}; {instead}"
            )


class refusals_told:
    """Context that turns a refused allocation in its block, of any library, into :class:`MemoryBudgetError`.

    A class, as it stands around every public call: a generator takes several times as long.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, InrfastError) or not is_refusal(error):
            return
        try:
            free = told(available_bytes())
        except (MemoryError, OSError):  # too little memory even to read a line of source
            free = "0 B (0 bytes)"
        raise MemoryBudgetError(
            f"the system refused memory ({' '.join(str(error).split())[:200] or type(error).__name__}); "
            f"{free} are free. Take fewer points, a narrower network or a smaller "
            "memory_budget"
        ) from error


def is_refusal(error: BaseException) -> bool:
    """Return whether an error of torch, NumPy, Python or the C++ library means that an allocation failed."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("allocate memory", "not enough memory", "bad_alloc", "start new thread", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def tells_refusals(function: F) -> F:
    """Decorate a function so that it runs in :func:`refusals_told`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with refusals_told():
            return called(function, args, kwargs)

    return run  # type: ignore[return-value]


def told(n: int) -> str:
    """Return a number of bytes in units and in full: ``2 KiB (2048 bytes)``."""
    return f"{format_bytes(n)} ({counted(n)} bytes)"


def counted(n: int) -> str:
    """Return a count for a message: all digits, or a power of ten where there are too many."""
    return str(n) if n < 10**18 else f"about 10^{math.floor(math.log10(n))}"


def format_bytes(n: int) -> str:
    """Return ``n`` bytes for a message, in powers of 1024."""
    if n >= 10**18:
        return f"{counted(n)} B"
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
