"""The fused layer on the torch backend, a chunk of rows at a time.
stays in cache and is never written to memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from inrfast.memory import cached_rows, chunks
from inrfast.ops import gemm
from inrfast.ops.in_place import IN_PLACE, VALUE_IN_PLACE, times_relu_slope, times_tanh_slope

CHUNK_BYTES = 1 << 22
"""Size of one buffer of a chunk of rows on a CPU: what lies between product and result stays in the cores' caches."""


def _products(device: torch.device, precision: str) -> Any:
    """Return the context of this backend's products: on a GPU exact, whatever torch's flags, unless TF32 will do."""
    return nullcontext() if precision == "medium" and device.type == "cuda" else gemm.exact_products(device)


def _rows(x: Tensor, outputs: int) -> int:
    """Return the rows of a chunk."""
    return min(cached_rows(max(x.shape[1], outputs), x, CHUNK_BYTES), max(len(x), 1))


def forward_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    omega: float,
    precision: str,
    y: Tensor,
    slope: Tensor | None,
) -> None:
    """Write ``y = act(x W^T + b)`` (n, D_out), and the activation's slope at every pre-activation if it is wanted.

    Activations of 16-bit numbers are computed in fp32 and rounded once.
    """
    rows, outputs, half = _rows(x, len(weight)), len(weight), x.dtype.itemsize == 2
    dtype = torch.float32 if half else x.dtype
    scratch, *wide = (x.new_empty(rows, outputs, dtype=dtype) for _ in range(3 if half else 1))
    with torch.no_grad(), _products(x.device, precision):
        for place in chunks(len(x), rows):
            n = place.stop - place.start
            value = y[place]
            u = gemm.linear(x[place], weight, bias, (y if slope is None else slope)[place])
            if half:
                u, value = wide[0][:n].copy_(u), wide[1][:n]
            if slope is None:
                VALUE_IN_PLACE[activation](u, omega, scratch[:n])
            else:
                IN_PLACE[activation](u, omega, value, scratch[:n])
            if half:
                y[place] = u if slope is None else value
                if slope is not None:
                    slope[place] = u


def backward_(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    precision: str,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
) -> None:
    """Write the gradients that are wanted; sums over rows are in fp32 at least, in a fixed order.

    ``saved`` is what the forward pass kept: the result for ReLU, tanh and softplus, else the slope.
    """
    rows, half = _rows(x, len(weight)), x.dtype.itemsize == 2
    dtype = torch.float32 if half else x.dtype
    memory = x.new_empty(rows, len(weight))
    weights, biases = (t if t is None or not half else torch.empty_like(t, dtype=dtype) for t in (dw, db))
    for sums in (weights, biases):
        if sums is not None:
            sums.zero_()
    with torch.no_grad(), _products(x.device, precision):
        for place in chunks(len(x), rows):
            errors = _errors(gradient[place], saved[place], activation, memory[: place.stop - place.start])
            if dx is not None:
                gemm.mm(errors, weight, dx[place])
            if weights is not None and half:
                weights.add_(errors.t() @ x[place])
            elif weights is not None:
                gemm.addmm_(weights, errors.t(), x[place])
            if biases is not None:
                biases.add_(errors.sum(0, dtype=dtype))
    for target, sums in ((dw, weights), (db, biases)):
        if target is not None and sums is not None and sums is not target:
            target.copy_(sums)


def _errors(gradient: Tensor, saved: Tensor, activation: str, out: Tensor) -> Tensor:
    """Return ``dL/dy * act'(u)`` of some rows, written into ``out`` where it is not the gradient itself."""
    if activation == "identity":
        return gradient
    if activation == "relu":
        return times_relu_slope(gradient, saved, out)
    if activation == "tanh":
        return times_tanh_slope(gradient, saved, out)
    if activation == "softplus":
        return torch.neg(saved, out=out).expm1_().neg_().mul_(gradient)
    return torch.mul(gradient, saved, out=out)
