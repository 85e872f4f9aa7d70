"""Device functions: the value of every named loss and its slope in the prediction, in fp64 or fp32, entry by entry."""

from __future__ import annotations

import triton
import triton.language as tl

from inrfast.kernels.activations import log1p

MSE = tl.constexpr("mse")
L1 = tl.constexpr("l1")
HUBER = tl.constexpr("huber")
BCE = tl.constexpr("bce")


@triton.jit
def loss_and_slope(y, target, numbers, LOSS: tl.constexpr):
    """Return the loss of predictions ``y`` and its derivative in them; ``numbers`` points to those of the loss.

    The fused step has the mean squared error's own path, whose errors are half the slope. NaN stays NaN.
    """
    error = y - target
    if LOSS == L1:
        return tl.abs(error), tl.where(error > 0, 1.0, tl.where(error < 0, -1.0, error)).to(y.dtype)
    elif LOSS == HUBER:
        delta = tl.load(numbers)
        size = tl.abs(error)
        inner = tl.where(size < delta, size, delta)
        slope = tl.where(error > delta, delta, tl.where(error < -delta, -delta, error))
        return inner * (size - 0.5 * inner), slope
    else:
        tl.static_assert(LOSS == BCE)
        power = tl.exp(-tl.abs(y))
        probability = tl.where(y >= 0, tl.full(y.shape, 1.0, y.dtype), power) / (1 + power)
        return tl.where(y > 0, y, 0.0).to(y.dtype) - y * target + log1p(power), probability - target
