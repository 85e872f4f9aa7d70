"""Which backend computes where: the choice between ``torch`` and ``triton``, and the reasons against."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from inrfast.errors import NotAvailableError, check_choice, warn
from inrfast.kernels.tiles import SMALLEST_SHARED

BACKENDS = ("auto", "torch", "triton")

OLDEST = (8, 0)
"""Compute capability from which a GPU multiplies fp64 on its tensor cores."""

OLDEST_TRITON = (3, 6)
"""Oldest Triton that compiles the kernels, and interprets them with the rounding of a GPU."""


NO_CONTEXT = nullcontext()


def interpreted() -> bool:
    """Return whether Triton interprets its kernels, on CPU tensors: slow, for tests (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def reason_against_triton(device: torch.device | str) -> str | None:
    """Return why the Triton kernels cannot run on this device, or None if they can."""
    device = torch.device(device)
    reason = reason_against_package()
    if reason is not None:
        return reason
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels run on CUDA devices, and the tensors are on {device.type!r}"
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs, and this PyTorch was built for ROCm"
    return too_little(*gpu(device))


@functools.cache
def reason_against_package() -> str | None:
    """Return why the installed Triton cannot compile the kernels for any device, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    found = triton_version()
    numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
    if numbers < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return (
            f"triton {found} is installed, and its kernels need {wanted} or newer, which PyTorch 2.10 and newer bring"
        )
    return None


def triton_version() -> str:
    """Return the version of the installed Triton."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # nightly builds of PyTorch use another package name
        return str(importlib.import_module("triton").__version__)


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which Triton launches on this device; Triton always takes the current GPU."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return NO_CONTEXT


@contextmanager
def capturing(graph: Any, device: torch.device) -> Iterator[None]:
    """Capture the launches of this block on this GPU as a CUDA graph; device and stream are restored in any case.

    By default torch captures on a stream of the first device: on another device the graph would stay empty and the
    kernels would run at once. A failed capture leaves torch on the capture stream. Other threads may keep working.
    """
    stream = torch.cuda.Stream(device)
    capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    with torch.cuda.device(device), torch.cuda.stream(stream), capture:
        if not torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the current stream of {device} is not the one that is captured")
        yield


def gpu(device: torch.device) -> tuple[str, tuple[int, int], int]:
    """Return a CUDA device's name, compute capability, and bytes of shared memory that one program may have."""
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.name, (properties.major, properties.minor), properties.shared_memory_per_block_optin


def too_little(name: str, capability: tuple[int, int], shared: int) -> str | None:
    """Return why a GPU of this compute capability and shared memory per program (bytes) is too little, or None."""
    if capability < OLDEST:
        return (
            f"{name} has compute capability {capability[0]}.{capability[1]}; the kernels need {OLDEST[0]}.{OLDEST[1]} "
            "(fp64 on the tensor cores)"
        )
    if shared < SMALLEST_SHARED:
        return f"{name} gives a program {shared} bytes of shared memory; the kernels need {SMALLEST_SHARED}"
    return None


def resolve(backend: str, device: torch.device | str, against: str | None = None) -> str:
    """Return the backend that will run: ``auto`` picks, a backend asked for by name runs or raises.

    ``auto`` is ``"triton"`` on a CUDA device whose GPU can run it, else ``"torch"``; on a CUDA device it says once, by
    a warning, why it is not ``"triton"``. ``against`` is a reason of the caller's own, such as a missing kernel.

    Raises
    ------
    NotAvailableError
        If ``backend`` was named and cannot run on ``device``; the message gives the reason.
    """
    check_choice("backend", backend, BACKENDS)
    kind = torch.device(device).type
    if backend == "torch" or (backend == "auto" and kind != "cuda"):
        return "torch"
    reason = against or reason_against_triton(device)
    if reason is None:
        return "triton"
    if backend == "triton":
        raise NotAvailableError(f"backend='triton' cannot run: {reason}; use backend='torch' or 'auto'")
    warn_once(f"backend='auto' takes 'torch': {reason}")
    return "torch"


@functools.cache
def warn_once(message: str) -> None:
    """Warn of a fallback, each message once per process."""
    warn(message)


def report(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return, for each backend, ``available`` or the reason why it cannot run on ``device``."""
    reason = reason_against_triton(device)
    return {"torch": "available", "triton": "available" if reason is None else f"not available: {reason}"}
