"""Matrix products on the CPU through the fastest library present: chosen by measurement, and remembered.

Which library wins depends on the processor: MKL (``torch.mm``) runs at half speed on some, where the OpenBLAS inside
NumPy, oneDNN, or our own kernels in fp64 (``csrc/matrix_product*``, one thread) reach the peak. The choice is kept in
the user's cache folder. It is measured again when it is older than :data:`MAX_AGE` (:data:`MAX_AGE_BUSY` if other work
ran beside it), when a library or what steers it has changed, and when a short check at the first use in a process finds
the chosen library much slower or faster than it was. The environment variable ``INRFAST_GEMM`` (``torch``, ``numpy``,
``onednn`` or ``native``) overrides the choice. Tensors on other devices always go through ``torch``.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast import system
from inrfast.errors import NotAvailableError, check_choice
from inrfast.extension import load_extension, native_variant
from inrfast.files import write_whole
from inrfast.memory import scratch
from inrfast.modes import products
from inrfast.threads import MOST_THREADS, one_core

PROBE_SHAPE = (512, 512, 256)
PROBE_ROUNDS = 4
PROBE_REPEATS = 4
PROBE_MARGIN = 1.15
"""A library replaces ``torch`` only if it is this much faster: two thread pools in one process cost something too."""

MAX_AGE, MAX_AGE_BUSY = 30 * 24 * 3600.0, 3600.0
"""Seconds for which a measurement counts: a month, or an hour if the machine was busy."""

MAX_DRIFT = 1.5
"""Factor between a library's time now and when it was chosen from which all are measured again. Much slower: something
has changed. Much faster: the machine was busy then, and may have hidden which library is best."""

STEERED_BY = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
)
"""Environment variables that restrict the instructions or the threads of the libraries."""

BF16_SHAPE, BF16_GAIN = (2048, 256), 2.5

Gemm = Callable[[Tensor, Tensor, Tensor], None]


def _torch(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out=out)


def _numpy(a: Tensor, b: Tensor, out: Tensor) -> None:
    np.matmul(a.numpy(), b.numpy(), out=out.numpy())


def _onednn(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.copy_(_by_onednn(a, b))


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``; operands with gaps between their rows are copied: oneDNN is hundreds of times slower there."""
    a, b = (each if each.is_contiguous() or each.t().is_contiguous() else each.contiguous() for each in (a, b))
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return found


def _native(a: Tensor, b: Tensor, out: Tensor) -> None:
    _native_product(a, b, out, 1.0, False)


FEW = 2**15
"""Products of numbers up to which calling our own kernels costs more than they save."""


def _native_product(a: Tensor, b: Tensor, out: Tensor, scale: float, add: bool) -> None:
    """Write ``scale a b`` into ``out``, or add it: by our own kernels, by torch where they do not fit."""
    extension, instructions = _native_kernels(native_variant())
    (m, k), n = a.shape, b.shape[1]
    if extension is None or m * n * k <= FEW or n < 8 or out.stride(1) != 1 or a.dtype != torch.float64:
        out.addmm_(a, b, beta=float(add), alpha=scale)
        return
    memory = scratch("product", extension.matrix_product_workspace(m, n, k), torch.float64)
    places = (a.data_ptr(), *a.stride()), (b.data_ptr(), *b.stride())
    extension.matrix_product(instructions, (m, n, k), *places, scale, out.data_ptr(), out.stride(0), add, memory)


@functools.cache
def _native_kernels(variant: str) -> tuple[ModuleType | None, str]:
    """Return the extension and its best instructions here, or None where it has no products."""
    try:
        extension = None if variant == "plain" else load_extension()
    except NotAvailableError:
        extension = None
    if extension is None or not hasattr(extension, "matrix_product"):
        return None, ""
    best = extension.mlp_step_instructions()
    if best == "" or (variant == "avx512" and best != "avx512"):
        return None, ""
    return extension, best if variant == "auto" else variant


LIBRARIES: dict[str, Gemm] = {"torch": _torch, "numpy": _numpy, "onednn": _onednn, "native": _native}


def _works(name: str, dtype: torch.dtype) -> bool:
    """Return whether a library computes a small product right here; private entry points may be gone."""
    if dtype not in (torch.float32, torch.float64) or (name == "onednn" and dtype != torch.float32):
        return name == "torch"
    if name == "native" and (dtype != torch.float64 or _native_kernels(native_variant())[0] is None):
        return False
    a = torch.arange(12, dtype=dtype).reshape(3, 4)
    out = torch.empty(3, 3, dtype=dtype)
    try:
        LIBRARIES[name](a, a.t(), out)
    except Exception:  # a private operator may fail in any way; it is then simply not a candidate
        return False
    return torch.equal(out, (a[:, None, :] * a[None, :, :]).sum(-1))


class _Tile:
    """One Gram tile as the loop computes it, on which libraries are timed: two products and an elementwise pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        m, n, k = PROBE_SHAPE
        generator = torch.Generator().manual_seed(0)  # the global one is the caller's
        self.a, self.b = (torch.rand(rows, k, dtype=dtype, generator=generator) for rows in (m, n))
        self.left, self.right, self.tile = (torch.zeros(m, n, dtype=dtype) for _ in range(3))

    def best_seconds(self, name: str) -> float:
        """Return the best time of a few runs, after two while another library's idle threads may still spin."""
        best = math.inf
        for repeat in range(2 + PROBE_REPEATS):
            start = time.perf_counter()
            LIBRARIES[name](self.a, self.b.t(), self.left)
            LIBRARIES[name](self.b, self.a.t(), self.right)
            self.tile.addcmul_(self.left, self.right)
            if repeat >= 2:
                best = min(best, time.perf_counter() - start)
        return best


def _probe(names: list[str], dtype: torch.dtype) -> dict[str, float]:
    """Return the best seconds of one tile per library.

    The best of interleaved rounds, not the median: another process can only slow a library down, and must not decide
    the choice.
    """
    tile = _Tile(dtype)
    best = dict.fromkeys(names, math.inf)
    for _ in range(PROBE_ROUNDS):
        for name in names:
            time.sleep(0.02)
            best[name] = min(best[name], tile.best_seconds(name))
    return best


def _drifted(name: str, dtype: torch.dtype, then: float) -> bool:
    """Return whether a library's time differs from ``then`` by more than :data:`MAX_DRIFT`."""
    return not then / MAX_DRIFT <= _Tile(dtype).best_seconds(name) <= then * MAX_DRIFT


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "inrfast" / "gemm.json"


def processor() -> str:
    """Return the name of this machine's processor; ``platform.processor()`` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _numpy_blas() -> str:
    """Return the name and version of the BLAS that NumPy was linked with, as far as it tells."""
    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except Exception:  # a report for readers, whose form may change
        return "unknown"


def _machine() -> str:
    """Return what the choice depends on, as the key of the cache."""
    parts = [processor(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    parts += [f"numpy {np.__version__} with {_numpy_blas()}"]
    parts += [f"own kernels {_native_kernels(native_variant())[1] or 'none'}"]
    parts += [f"{name}={os.environ[name]}" for name in STEERED_BY if os.environ.get(name)]
    return " | ".join(parts)


def _cache() -> dict[str, Any]:
    try:
        content = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remembered(key: str, dtype: str) -> dict[str, float] | None:
    """Return the seconds per library that were measured here, None if never or too long ago."""
    entry = _cache().get(key)
    if not isinstance(entry, dict) or not isinstance(entry.get("valid until"), dict):
        return None
    seconds, until = entry.get(dtype), entry["valid until"].get(dtype)
    if not isinstance(until, (int, float)) or not 0 <= until - time.time() <= MAX_AGE:
        return None  # old, or the clock was set back
    if not isinstance(seconds, dict) or "torch" not in seconds:
        return None
    return seconds if all(isinstance(t, (int, float)) and 0 < t < math.inf for t in seconds.values()) else None


def _remember(key: str, dtype: str, seconds: dict[str, float]) -> None:
    """Write the measurement and how long it counts; a read-only home is no reason to fail."""
    content = _cache()
    entry = content.get(key)
    entry = entry if isinstance(entry, dict) else {}
    ends = entry.get("valid until")
    until = time.time() + (MAX_AGE_BUSY if _busy() else MAX_AGE)
    content[key] = {**entry, dtype: seconds, "valid until": {**(ends if isinstance(ends, dict) else {}), dtype: until}}
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache_file(), json.dumps(content, indent=1).encode())
    except OSError:
        pass


def _busy() -> bool:
    """Return whether more than half of the cores had work in the last minute: libraries with threads then look slow."""
    return system.load() > 0.5 * _cores()


_chosen: dict[tuple[torch.dtype, int], str] = {}
_seconds: dict[torch.dtype, dict[str, float]] = {}
_forced: dict[tuple[torch.dtype, int], str] = {}


def _cores() -> int:
    return system.cores()


def _candidates(dtype: torch.dtype) -> list[str]:
    """Return the libraries that work here on as many threads as torch may use.

    NumPy's always takes every core, our own kernels take one.
    """
    threads = torch.get_num_threads()
    fitting = {"numpy": threads >= _cores(), "native": threads == 1}
    return [name for name in LIBRARIES if fitting.get(name, True) and _works(name, dtype)]


def choose(dtype: torch.dtype) -> str:
    """Return the library for CPU products of ``dtype`` on the threads that torch now uses.

    Decided at first use in a process, by the measurement in the cache folder or by a new one.

    Raises
    ------
    ValueError
        ``INRFAST_GEMM`` names no library, or one that does not work here for ``dtype``.
    """
    if dtype not in (torch.float32, torch.float64):
        return "torch"
    key = (dtype, torch.get_num_threads())
    if key in _forced:
        return _forced[key]
    override = os.environ.get("INRFAST_GEMM")
    if override:
        check_choice("INRFAST_GEMM", override, LIBRARIES)
        # A library without this dtype leaves it to torch; one that is broken here is the user's to know.
        if not _works(override, dtype) and any(_works(override, other) for other in (torch.float32, torch.float64)):
            return "torch"
        if not _works(override, dtype):
            raise ValueError(f"INRFAST_GEMM={override} does not work on this machine; unset it or use 'torch'")
        return override
    if key not in _chosen:
        _chosen[key] = _measure(dtype)
    return _chosen[key]


def choices(dtype: torch.dtype) -> dict[str, str]:
    """Return the libraries in use for ``dtype``, by the number of threads: a worker's one, and all that torch has."""
    found = {str(torch.get_num_threads()): choose(dtype)}
    with one_core():
        return {"1": choose(dtype), **found}


@contextmanager
def forced(dtype: torch.dtype, libraries: dict[str, str]) -> Iterator[None]:
    """Take these :func:`choices` inside, whatever is measured: a resumed fit repeats its digits.

    Raises
    ------
    NotAvailableError
        One of the libraries does not work here.
    """
    for library in libraries.values():
        if not _works(check_choice("library", library, LIBRARIES), dtype):
            raise NotAvailableError(f"the matrix library {library!r} does not work here for {dtype}")
    before = dict(_forced)
    _forced.update({(dtype, int(threads)): library for threads, library in libraries.items()})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@functools.cache
def multiplies_bf16() -> bool:
    """Return whether bf16 products pay here, measured once a process: as they do with AMX, and without hardly anywhere.

    They must be :data:`BF16_GAIN` times as fast as those in fp32: around them nothing gets faster.
    """
    rows, width = BF16_SHAPE
    best: dict[torch.dtype, float] = {}
    with one_core():
        for dtype in (torch.float32, torch.bfloat16):
            x, weight, out = (torch.ones(n, width, dtype=dtype) for n in (rows, width, rows))
            seconds = []
            for _ in range(PROBE_REPEATS):
                start = time.perf_counter()
                torch.mm(x, weight.t(), out=out)
                seconds.append(time.perf_counter() - start)
            best[dtype] = min(seconds)
    return best[torch.float32] >= BF16_GAIN * best[torch.bfloat16]


def _measure(dtype: torch.dtype) -> str:
    key, name = _machine(), str(dtype).removeprefix("torch.")
    candidates = _candidates(dtype)
    seconds = _remembered(key, name)
    if seconds is not None:
        best = _best(seconds, candidates)
        if _drifted(best, dtype, seconds[best]):
            seconds = None
    if seconds is None:
        seconds = _probe(candidates, dtype)
        _remember(key, name, seconds)
    _seconds[dtype] = seconds
    return _best(seconds, candidates)


def _best(seconds: dict[str, float], candidates: list[str]) -> str:
    """Return the fastest candidate, torch unless another is faster by :data:`PROBE_MARGIN`."""
    own = {library: t for library, t in seconds.items() if library in candidates}
    best = min(own, key=own.__getitem__, default="torch")
    return best if own.get("torch", math.inf) > PROBE_MARGIN * own.get(best, 0.0) else "torch"


def report() -> dict[str, dict[str, object]]:
    """Return, per dtype, the library in use and the measured GFLOP/s of each (measures if it was not done before)."""
    flops = 4 * PROBE_SHAPE[0] * PROBE_SHAPE[1] * PROBE_SHAPE[2]
    table: dict[str, dict[str, object]] = {}
    for dtype in (torch.float32, torch.float64):
        library = choose(dtype)
        rates = {name: round(flops / t / 1e9, 1) for name, t in _seconds.get(dtype, {}).items()}
        table[str(dtype).removeprefix("torch.")] = {"library": library, "gflops": rates}
    return table


def threads(dtype: torch.dtype, device: torch.device) -> int:
    """Return how many single-threaded workers may share products: 1 if the library has its own threads, or on a GPU."""
    if device.type != "cpu" or choose(dtype) == "numpy":
        return 1
    count = min(torch.get_num_threads(), MOST_THREADS)
    if count > 1 and (dtype, 1) not in _chosen:
        with one_core():
            choose(dtype)  # measured here and now, not by every worker while the others work
    return count


def mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write ``a @ b`` into ``out`` and return it.

    Shapes ``(m, k)``, ``(k, n)``, ``(m, n)``, one dtype; any strides that a BLAS takes without a copy. On a GPU,
    TF32 is switched off for the call, whatever torch's global flags say.
    """
    if a.device.type == "cpu":
        LIBRARIES[choose(a.dtype)](a, b, out)
        return out
    with exact_products(a.device):
        torch.mm(a, b, out=out)
    return out


def addmm_(out: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
    """Add ``alpha a @ b`` to ``out`` in place and return it (shapes as in :func:`mm`)."""
    if a.device.type == "cpu":
        library = choose(a.dtype)
        if library == "torch":
            return out.addmm_(a, b, alpha=alpha)
        if library == "native":
            _native_product(a, b, out, alpha, True)
            return out
        if library == "onednn":
            return out.add_(_by_onednn(a, b), alpha=alpha)
        return out.add_(mm(a, b, torch.empty_like(out)), alpha=alpha)
    with exact_products(a.device):
        return out.addmm_(a, b, alpha=alpha)


def product(a: Tensor, b: Tensor, spare: Tensor | None = None) -> Tensor:
    """Return ``a @ b`` (shapes as in :func:`mm`), in ``spare`` memory if it is given, unless oneDNN has its own.

    Whose result would have to be copied.
    """
    if a.device.type == "cpu" and choose(a.dtype) == "onednn":
        return _by_onednn(a, b)
    return mm(a, b, a.new_empty(len(a), b.shape[1]) if spare is None else spare)


def _by_torch(out: Tensor) -> bool:
    return out.device.type != "cpu" or choose(out.dtype) == "torch"


def bmm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write the products of a batch into ``out``: shapes (k, m, i), (k, i, n), (k, m, n).

    Several products go through torch, whose batched routine takes small ones at the speed of large ones; a single one
    through the fastest library.
    """
    if len(out) == 1 and not (_by_torch(out) and out.is_contiguous()):
        mm(a[0], b[0], out[0])
        return out
    with exact_products(out.device):
        torch.bmm(a, b, out=out)
    return out


def baddbmm_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add the products of a batch to ``out`` in place (shapes as in :func:`bmm`)."""
    if len(out) == 1 and not _by_torch(out):
        addmm_(out[0], a[0], b[0])
        return out
    with exact_products(out.device):
        return out.baddbmm_(a, b)


ROWS_AT_ONCE, PRODUCTS_AT_ONCE = 2**12, 128
"""On a GPU a sum over rows is divided into products of so many rows at least, until there are so many products."""


def summed_over_rows(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a^T b`` (k, p, q) of matrices (k, n, p) and (k, n, q): sums over many rows of small products.

    A batched product of cuBLAS gives each entry's sum to one multiprocessor, and leaves the others idle where p and q
    are small: there the rows are divided, and the parts added up in the operands' dtype.
    """
    k, n = a.shape[:2]
    out = a.new_empty(k, a.shape[2], b.shape[2])
    parts = row_parts(k, n, a.device)
    if parts == 1:
        return bmm(a.mT, b, out)
    a, b = (each.unflatten(1, (parts, n // parts)).flatten(0, 1) for each in (a, b))
    several = a.new_empty(k * parts, *out.shape[1:])
    return torch.sum(bmm(a.mT, b, several).unflatten(0, (k, parts)), 1, out=out)


def row_parts(k: int, n: int, device: torch.device) -> int:
    """Return into how many equal parts n rows of k products are divided: a power of 2; on a CPU one."""
    parts = 1
    while (
        device.type != "cpu"
        and n % (2 * parts) == 0
        and n // (2 * parts) >= ROWS_AT_ONCE
        and k * parts < PRODUCTS_AT_ONCE
    ):
        parts *= 2
    return parts


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write ``x weight^T + bias`` into ``out`` and return it: shapes (n, a), (b, a), (b,) or None, (n, b).

    On a GPU torch's TF32 flags count: see :func:`exact_products`.
    """
    if bias is None and x.device.type == "cpu":
        return mm(x, weight.t(), out)
    if x.device.type != "cpu" or choose(x.dtype) == "torch":
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    mm(x, weight.t(), out)
    return out if bias is None else out.add_(bias)


def exact_products(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which fp32 products on a GPU are IEEE fp32, whatever torch's settings: see ``products``.

    On a CPU it changes nothing: there the library's doors see to it. Within :func:`products_chosen` it changes nothing
    either.
    """
    return products() if device.type == "cuda" and not _set_by_engine.get() else nullcontext()


_set_by_engine: ContextVar[bool] = ContextVar("products_chosen", default=False)


@contextmanager
def products_chosen(tf32: bool = False) -> Iterator[None]:
    """Let all fp32 products of a block on a GPU be IEEE fp32 or, with ``tf32``, TF32; set once, and not for each."""
    if _set_by_engine.get():  # by an engine around this one
        yield
        return
    token = _set_by_engine.set(True)
    try:
        with products("high" if tf32 else "highest"):
            yield
    finally:
        _set_by_engine.reset(token)
