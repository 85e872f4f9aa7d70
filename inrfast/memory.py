"""Memory: how much may be used, how large a chunk that allows, and a refusal before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import MemoryBudgetError, check_int

DEFAULT_FRACTION = 0.5
"""Share of the free memory used when no ``memory_budget`` is given: the other half stays for the caller."""

HUGE = 2**22
"""Bytes from which NumPy asks for huge pages."""

CACHE_LINE = 64

CACHED_BYTES = 2**19
"""Size of one buffer of activations on a CPU: a handful of them live between the second and third cache level."""

LEAST_ROWS, MOST_ROWS = 256, 8192

DEVICE_ROWS = 2**16
"""Rows of a chunk elsewhere than on a CPU: enough to fill a GPU, few enough to fit it."""


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Return the free memory of ``device`` in bytes (on Linux, within the control group's limit)."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


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
    """Return an uninitialised tensor; a large one on the CPU lies on huge pages, where the system grants them.

    NumPy asks for them, torch does not: touching 64 MiB for the first time then took 5 ms in place of 17. The memory
    starts at a cache line, as torch's does.
    """
    device = torch.device(device)
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    raw = np.empty(size + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(*shape)


def require(needed: int, budget: int, what: str, instead: str) -> None:
    """Raise :class:`MemoryBudgetError` if ``needed`` bytes exceed ``budget``, naming what would fit ``instead``."""
    if needed > budget:
        raise MemoryBudgetError(
            f"{what} needs {format_bytes(needed)} ({needed} bytes) but the budget is {format_bytes(budget)} "
            f"({budget} bytes); {instead}"
        )


def format_bytes(n: int) -> str:
    """Return ``n`` bytes for a reader, in powers of 1024."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
