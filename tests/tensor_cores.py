"""Tensor cores as an H100 has them, for interpreted kernels: sums in fp32 that truncate where a CPU would round.

Triton's interpreter multiplies matrices with NumPy, which rounds to nearest. A tensor core takes a step of 16 products
of fp16 or bf16 (8 of TF32) at a time: it aligns them and the accumulator to the largest exponent among them, cuts all
off two bits below the last that fp32 keeps of the largest, and rounds their sum toward zero. Errors of a long chain of
steps then add up with one sign. Model: M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci.
7:e330 (2021), with two more bits for the H100. Products in fp64 are IEEE there too, and stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

Array = npt.NDArray[Any]

STEP = {"fp16": 16, "bf16": 16, "tf32": 8}
"""Products that are added at a time."""

KEPT = 26
"""Bits of the largest number of a step to which all are cut: fp32's 24 and two more."""

SMALLEST = -149
"""Binary exponent of the smallest positive fp32 number."""


@contextlib.contextmanager
def truncating() -> Iterator[None]:
    """Within it, interpreted products of fp16, bf16 and TF32 add like an H100's tensor cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", _create_dot(InterpreterBuilder.create_dot))
        yield


def product(a: Array, b: Array, total: Array, kind: str) -> Array:
    """Return ``total + a b`` (..., m, n) in fp32 from a (..., m, k) and b (..., k, n): numbers that ``kind`` holds."""
    a, b, total = (np.asarray(t, dtype=np.float64) for t in (a, b, total))
    for k in range(0, a.shape[-1], STEP[kind]):
        total = _step(a[..., k : k + STEP[kind]], b[..., k : k + STEP[kind], :], total)
    return total.astype(np.float32)


def _step(a: Array, b: Array, total: Array) -> Array:
    """Add one step's products; fp64 holds each, and the sum of all that is left of them, exactly."""
    columns, rows = np.moveaxis(a, -1, 0)[..., None], np.moveaxis(b, -2, 0)[..., None, :]
    largest = np.abs(total)
    for x, y in zip(np.abs(columns), np.abs(rows), strict=True):
        np.maximum(largest, x * y, out=largest)
    exponent = np.maximum(np.frexp(largest)[1], SMALLEST)
    with np.errstate(invalid="ignore", over="ignore"):
        up = np.ldexp(1.0, KEPT - exponent)
        found = np.trunc(total * up)
        for x, y in zip(columns, rows, strict=True):
            part = x * y
            part *= up
            found += np.trunc(part, out=part)
        return _toward_zero(found / up)


def _toward_zero(x: Array) -> Array:
    """Round to fp32 toward zero."""
    unit = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 24, SMALLEST))
    return np.where(np.isfinite(x), np.trunc(x / unit) * unit, x)


def to_tf32(x: Array, nearest: bool) -> Array:
    """Round fp32 numbers to TF32, to nearest with ties away from zero; or cut them, as a core does by itself."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    finite = np.isfinite(x)
    with np.errstate(over="ignore"):
        rounded = (bits + np.where(finite, np.uint32(0x1000 if nearest else 0), np.uint32(0))) & np.uint32(0xFFFFE000)
    return np.where(finite, rounded.view(np.float32), x)


def product_tf32x3(a: Array, b: Array, total: Array) -> Array:
    """Return ``total + a b`` by three products of fp32 numbers split in two, the smallest first, in a sum of their own
    that is added in fp32: what Triton makes of ``input_precision="tf32x3"``. Of an infinite number no part is left."""
    (a_high, a_low), (b_high, b_low) = (_split(t) for t in (a, b))
    found = product(a_low, b_high, np.zeros(total.shape), "tf32")
    found = product(a_high, b_low, found, "tf32")
    found[np.isnan(found)] = 0
    return product(a_high, b_high, found, "tf32") + total


def _split(x: Array) -> tuple[Array, Array]:
    high = to_tf32(x, nearest=True)
    with np.errstate(invalid="ignore"):
        return high, to_tf32(x.astype(np.float32) - high, nearest=False)


def _create_dot(plain: Any) -> Any:
    """Return the interpreter's product, with tensor cores where a GPU has them."""

    def create_dot(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, most: int
    ) -> TensorHandle:
        x, y, total = a.data, b.data, d.data
        name, precision = a.dtype.scalar.name, str(precision).rpartition(".")[2].lower()
        if total.dtype == np.float64 or (name == "fp32" and precision == "ieee"):
            return plain(self, a, b, d, precision, most)
        if name == "bf16":
            x, y = (_from_bf16(t) for t in (x, y))
        if name in ("fp16", "bf16"):
            result = product(x, y, total, name)
        elif (name, precision) == ("fp32", "tf32"):
            result = product(to_tf32(x, nearest=False), to_tf32(y, nearest=False), total, "tf32")
        elif (name, precision) == ("fp32", "tf32x3"):
            result = product_tf32x3(x, y, total)
        else:
            raise NotImplementedError(f"no model of a product of {name} in {precision}")
        return TensorHandle(result.astype(total.dtype), d.dtype.scalar)

    return create_dot


def _from_bf16(x: Array) -> Array:
    """The interpreter holds bf16 as the upper half of fp32's bits."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x
