"""The fused layer on the Triton backend: the forward pass is one kernel; the backward pass is one, and two products.

The products of the backward pass are torch's (cuBLAS on a GPU): over a large grid ``e^T x`` is a short matrix of very
long sums, which that library cuts into pieces. On an H100, 65,536 points and 256 units, a backward pass with products
by Triton took 1.6 (fp16 sine) to 2.4 times (fp16 ReLU) what eager PyTorch's takes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from inrfast import backends
from inrfast.activations import ACTIVATIONS
from inrfast.modes import products

PROGRAMS = 4
"""Programs of the errors' kernel per multiprocessor: as many as are on it at a time."""


def forward_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    numbers: Sequence[float],
    precision: str,
    y: Tensor,
    saved: Tensor,
    kept: str,
) -> None:
    """Write ``y = act(x W^T + b)`` (models, n, D_out), and into ``saved`` what the backward pass keeps beside it.

    ``x`` is (models or 1, n, D_in), ``weight`` (models, D_out, D_in), ``bias`` (models, D_out).
    """
    from inrfast.kernels import fused_linear as kernel  # imports triton

    x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    kind, number = _kind(x.dtype, precision), _number("nothing" if saved.numel() == 0 else kept)
    with backends.launching_on(x.device):
        name = ACTIVATIONS[activation].device_name
        kernel.launch_forward(kind, x, weight.contiguous(), bias, y, saved, number, name, numbers)


def backward_(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    precision: str,
    kept: str,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
) -> None:
    """Write the gradients that are wanted: ``e W``, ``e^T x`` and ``sum e`` with ``e = dL/dy * act'(u)``.

    ``saved`` is what the forward pass kept, or y. The sums of a bias are in fp32 at least, in fixed ranges of points;
    fp32 products are IEEE fp32, whatever torch's settings, with precision "medium" TF32.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if kept == "nothing":
        errors = gradient
        sums = None if db is None else gradient.sum(1, dtype=wide)
    else:
        errors, parts = _errors(gradient.contiguous(), saved.contiguous(), activation, kept, wide, db is not None)
        sums = None if parts is None else parts.sum(1)
    if db is not None and sums is not None:
        db.copy_(sums)
    if dx is None and dw is None:
        return
    with _products(x, precision):  # ``out`` goes past autocast
        if len(weight) == 1 and len(x) == 1:
            if dx is not None:
                torch.mm(errors[0], weight[0], out=dx[0])
            if dw is not None:
                torch.mm(errors[0].t(), x[0], out=dw[0])
            return
        if dx is not None:
            torch.bmm(errors, weight, out=dx)
        if dw is not None:
            torch.bmm(errors.mT, x.expand(len(weight), -1, -1), out=dw)


def _errors(
    gradient: Tensor, saved: Tensor, activation: str, kept: str, wide: torch.dtype, summed: bool
) -> tuple[Tensor, Tensor | None]:
    """Return ``e`` like the gradient, and its sums over each range of points (models, ranges, D_out) if wanted."""
    from inrfast.kernels import fused_linear as kernel  # imports triton

    models, n, outputs = gradient.shape
    ranges, length = kernel.ranges_of(models, n, outputs, _programs(gradient.device))
    errors = torch.empty_like(gradient)
    sums = gradient.new_empty(models, ranges, outputs, dtype=wide) if summed else None
    with backends.launching_on(gradient.device):
        name = ACTIVATIONS[activation].device_name
        kernel.launch_errors(gradient, saved, errors, sums, length, _number(kept), name)
    return errors, sums


def _products(x: Tensor, precision: str) -> AbstractContextManager[Any]:
    """Return the context of the backward pass's products."""
    if x.dtype != torch.float32 or x.device.type != "cuda":
        return nullcontext()
    return products("high" if precision == "medium" else "highest")


@functools.cache
def _kind(dtype: torch.dtype, precision: str) -> str:
    from inrfast.kernels import fused_linear as kernel  # imports triton

    return kernel.kind_of(str(dtype).removeprefix("torch."), precision)


@functools.cache
def _number(what: str) -> int:
    from inrfast.kernels import fused_linear as kernel  # imports triton

    return {"nothing": kernel.NOTHING, "mask": kernel.MASK, "slope": kernel.SLOPE, "result": kernel.RESULT}[what].value


@functools.cache
def _programs(device: torch.device) -> int:
    """Return how many programs of the errors' kernel fill the device."""
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
