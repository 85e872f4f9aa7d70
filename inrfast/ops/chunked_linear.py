"""The fused layer on the torch backend, a chunk of rows at a time.

What lies between the product and the result stays in cache and is never written to memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import Activation, BoundActivation
from inrfast.memory import cached_rows, chunks
from inrfast.ops import gemm

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
    activation: BoundActivation,
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
                activation.value_in_place(u, scratch[:n])
            else:
                activation.in_place(u, value, scratch[:n])
            if half:
                y[place] = u if slope is None else value
                if slope is not None:
                    slope[place] = u


def backward_(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: Activation,
    precision: str,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
) -> None:
    """Write the gradients that are wanted; sums over rows are in fp32 at least, in a fixed order.

    ``saved`` is what the forward pass kept: the result or the slope (``Activation.keeps``).
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


def _errors(gradient: Tensor, saved: Tensor, activation: Activation, out: Tensor) -> Tensor:
    """Return ``dL/dy * act'(u)`` of some rows, written into ``out`` where it is not the gradient itself."""
    if activation.keeps == "nothing":
        return gradient
    if activation.times_slope is not None:
        return activation.times_slope(gradient, saved, out)
    return torch.mul(gradient, saved, out=out)
