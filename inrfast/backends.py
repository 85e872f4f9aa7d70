"""Which backend computes where: the choice between ``torch`` and ``triton``, and the reasons against."""

from __future__ import annotations

import functools
import importlib.util

import torch

from inrfast.errors import NotAvailableError, check_choice

BACKENDS = ("auto", "torch", "triton")


@functools.cache
def _reason_against_triton(device_type: str) -> str | None:
    """Return why the Triton kernels cannot run on this kind of device, or None if they can."""
    if device_type != "cuda":
        return f"its kernels run on CUDA devices, and the tensors are on {device_type!r}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return "this version has no Triton kernel for tangent kernels yet"


def resolve(backend: str, device: torch.device | str) -> str:
    """Return the backend that will run: ``auto`` picks, a backend asked for by name runs or raises.

    Raises
    ------
    NotAvailableError
        If ``backend`` was named and cannot run on ``device``; the message gives the reason.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "triton":
        reason = _reason_against_triton(torch.device(device).type)
        if reason is not None:
            raise NotAvailableError(f"backend='triton' cannot run: {reason}; use backend='torch' or 'auto'")
        return "triton"
    return "torch"


def report(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return, for each backend, ``available`` or the reason why it cannot run on ``device``."""
    reason = _reason_against_triton(torch.device(device).type)
    return {"torch": "available", "triton": "available" if reason is None else f"not available: {reason}"}
