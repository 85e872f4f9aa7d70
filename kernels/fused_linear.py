"""A linear layer and its activation in one pass, forward and backward: ``y = act(x W^T + b)``.

The forward kernel applies the activation to a tile while it is still in registers, and keeps for the backward what is
cheapest: a bit for ReLU, the slope ``act'(u)`` for sine and others, nothing where the slope is a function of the
result (tanh, softplus). The backward kernel makes ``e = dL/dy * act'(u)`` and ``dL/db = sum e`` in one pass; the
products ``dL/dx = e W`` and ``dL/dW = e^T x`` are the vendor library's, which cuts the second one's long sums over the
points. Sums over the rows go in fixed ranges with partial results: no atomics, so that a step can be repeated bit by
bit.

Every kernel takes a model axis: many networks of one shape in one launch.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl

from inrfast.kernels import tiles
from inrfast.kernels.activations import NUMBERS, SOFTPLUS, TANH, activate

FEW = 8
"""Columns of x up to which the product is summed by multiply-adds: coordinates would fill a tensor core with zeros."""

SHARED = 99 * 1024
"""Most bytes of shared memory that a program takes: every GPU since sm_86 has them."""

ERROR_ROWS, ERROR_COLUMNS, ERROR_WARPS = tiles.SIZES["layer_errors", "any", "any"][0]
"""Points and columns that a program of :func:`layer_errors` takes at once, and its warps."""

NOTHING = tl.constexpr(0)
MASK = tl.constexpr(1)
SLOPE = tl.constexpr(2)
RESULT = tl.constexpr(3)


@dataclass(frozen=True)
class Config:
    """Tile of a product (rows, columns, terms taken at once) and resources of one launch.

    ``registers``: the most per thread; named where the assembler, left to itself, would spill a few to fit more
    programs.
    """

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int
    registers: int | None = None


def config_of(kernel: str, kind: str) -> Config:
    """Return the tile of a kernel for wide layers, by kind of product; bf16 is as fp16."""
    return _as_config(tiles.LAYERS[kernel, kind, "any"])


@functools.cache
def _as_config(row: tiles.ProductRow) -> Config:
    return Config(*row[:-1])


@triton.jit
def _slope_of_result(y, ACTIVATION: tl.constexpr):
    """Return ``act'(u)`` of activations for which it is a function of ``y = act(u)``."""
    if ACTIVATION == TANH:
        return 1 - y * y
    else:
        tl.static_assert(ACTIVATION == SOFTPLUS)
        # 1 - e^-y, by its series where that cancels.
        series = y * (1 - y * (0.5 - y * (0.16666666666666666 - y * 0.041666666666666664)))
        small = 0.0001 if y.dtype == tl.float64 else 0.01
        return tl.where(y < small, series, 1 - tl.exp(-y))


@triton.jit
def add_product(total, left, right, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Return ``total + left right``, the product summed for itself and then added in the accumulator's dtype.

    Tensor cores truncate where they add to an accumulator of fp32: over a long chain of products that is an error in
    one direction, over the few steps of one product it is small. Products of fp64 are rounded as IEEE says, and the
    three of TF32 that make one of fp32 are added up by themselves in any case. The bound on inexact steps keeps the
    compiler from taking ``total`` for the accumulator; for these dtypes it says nothing else.
    """
    if total.dtype == tl.float64 or PRECISION == "tf32x3":
        return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    else:
        none = tl.zeros_like(total)
        return total + tl.dot(
            left, right, none, input_precision=PRECISION, max_num_imprecise_acc=1 << 20, out_dtype=ACCUMULATOR
        )


@triton.jit
def _errors(
    gradient, saved, points, columns, outputs, inside, SAVED: tl.constexpr, ACTIVATION: tl.constexpr
):  # fmt: skip
    """Return ``e = dL/dy * act'(u)`` of some points and columns, in the dtype of the gradient."""
    g = tl.load(gradient + points[:, None] * outputs + columns[None, :], mask=inside, other=0.0)
    if SAVED == NOTHING:
        return g
    elif SAVED == MASK:
        width = tl.cdiv(outputs, 8)
        bytes = tl.load(saved + points[:, None] * width + (columns // 8)[None, :], mask=inside, other=0)
        e = tl.where((bytes.to(tl.int32) >> (columns % 8).to(tl.int32)[None, :]) & 1 == 1, g, 0.0).to(g.dtype)
        if g.dtype == tl.float64:
            # Sums of one number: Triton 3.6 would lay out an operand made of bytes for fp64 products that no GPU has.
            e = tl.sum(e[:, :, None], 2)
        return e
    else:
        slope = tl.load(saved + points[:, None] * outputs + columns[None, :], mask=inside, other=0.0)
        if g.dtype != tl.float64:
            slope = slope.to(tl.float32)
        if SAVED == RESULT:
            slope = _slope_of_result(slope, ACTIVATION)
        return (g.to(slope.dtype) * slope).to(g.dtype)


@triton.jit
def fused_linear(
    x,
    weight,
    bias,
    out,
    saved,
    n,
    inputs,
    outputs,
    x_row,
    x_model,
    omega,
    omega_middle,
    omega_low,
    second,
    second_middle,
    second_low,
    ACTIVATION: tl.constexpr,
    SAVED: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write one tile of ``act(x W^T + b)``, and what its backward needs.

    ``x``: (models or 1, n, inputs), rows ``x_row`` and models ``x_model`` elements apart; ``weight``: (models, outputs,
    inputs); ``bias``: (models, outputs); ``out``: (models, n, outputs); ``saved``: like ``out``, or the bits of eight
    columns per byte. Each number of the activation is the sum of three fp32 numbers, so that fp64 loses no digit.
    """
    model = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0)
    # Tiles of the same rows follow each other: the second finds x in the cache.
    points = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    x += model * x_model
    weight += model * outputs * inputs
    out += model * n * outputs
    alive = points < n
    present = columns < outputs

    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    if FEW:
        for k in range(0, inputs):
            left = tl.load(x + (points * x_row + k), mask=alive, other=0.0).to(ACCUMULATOR)
            right = tl.load(weight + (columns * inputs + k), mask=present, other=0.0).to(ACCUMULATOR)
            total = tl.fma(left[:, None].broadcast_to(ROWS, COLUMNS), right[None, :].broadcast_to(ROWS, COLUMNS), total)
    else:
        for start in tl.range(0, inputs, TERMS, num_stages=STAGES):
            k = (start + tl.arange(0, TERMS)).to(tl.int64)
            within = k < inputs
            left = tl.load(x + points[:, None] * x_row + k[None, :], mask=alive[:, None] & within[None, :], other=0.0)
            right = tl.load(
                weight + columns[:, None] * inputs + k[None, :],
                mask=present[:, None] & within[None, :],
                other=0.0,
            )
            total = add_product(total, left, right.T, PRECISION, ACCUMULATOR)
    if BIAS:
        total += tl.load(bias + model * outputs + columns, mask=present, other=0.0).to(ACCUMULATOR)[None, :]

    if total.dtype == tl.float64:
        frequency = tl.cast(omega, tl.float64) + tl.cast(omega_middle, tl.float64) + tl.cast(omega_low, tl.float64)
        other = tl.cast(second, tl.float64) + tl.cast(second_middle, tl.float64) + tl.cast(second_low, tl.float64)
        value, slope = activate(total, frequency, 0.0, other, ACTIVATION, False)
    else:
        SHORT: tl.constexpr = out.dtype.element_ty.primitive_bitwidth == 16
        value, slope = activate(total, omega, omega_middle, second, ACTIVATION, SHORT)
    inside = alive[:, None] & present[None, :]
    places = points[:, None] * outputs + columns[None, :]
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)
    if SAVED == SLOPE:
        tl.store(saved + model * n * outputs + places, slope.to(saved.dtype.element_ty), mask=inside)
    elif SAVED == MASK:
        width = tl.cdiv(outputs, 8)
        bits = tl.where(present[None, :], (slope > 0).to(tl.int32), 0) << (columns % 8).to(tl.int32)[None, :]
        bytes = tl.sum(tl.reshape(bits, (ROWS, COLUMNS // 8, 8)), 2)
        chosen = (tile % across).to(tl.int64) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        tl.store(
            saved + model * n * width + points[:, None] * width + chosen[None, :],
            bytes.to(tl.uint8),
            mask=alive[:, None] & (chosen < width)[None, :],
        )


@triton.jit
def layer_errors(
    gradient,
    saved,
    errors,
    sums,
    n,
    outputs,
    saved_model,
    length,
    ACTIVATION: tl.constexpr,
    SAVED: tl.constexpr,
    BIAS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ``e = dL/dy * act'(u)`` of one range of points and some columns, and their sums for ``dL/db = sum e``.

    ``gradient`` and ``errors``: (models, n, outputs); ``sums``: (models, ranges, outputs), to be added up over the
    ranges of ``length`` points, a multiple of ROWS.
    """
    model = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    gradient += model * n * outputs
    errors += model * n * outputs
    saved += model * saved_model
    present = columns < outputs
    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    first = part * length
    last = tl.minimum(first + length, n)
    for start in range(first, last, ROWS):
        points = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (points < last)[:, None] & present[None, :]
        e = _errors(gradient, saved, points, columns, outputs, inside, SAVED, ACTIVATION)
        tl.store(errors + points[:, None] * outputs + columns[None, :], e, mask=inside)
        if BIAS:
            total += e.to(ACCUMULATOR)
    if BIAS:
        at = model * tl.num_programs(1) + part
        tl.store(sums + at * outputs + columns, tl.sum(total, 0), mask=present)


def kind_of(dtype: str, precision: str) -> str:
    """Return the kind of product for tensors of a dtype (``"float32"``, ...) and ``"high"`` or ``"medium"``."""
    if dtype == "float32":
        return "tf32" if precision == "medium" else "tf32x3"
    return "fp64" if dtype == "float64" else "fp16"


@functools.cache
def fitting(config: Config, columns: int) -> Config:
    """Return a configuration whose tile is not wider than the columns there are, but 16 at least."""
    return replace(config, columns=min(config.columns, max(16, triton.next_power_of_2(columns))))


def common(kind: str, config: Config) -> dict[str, Any]:
    """Return the compile-time choices that kernels with products share."""
    return {
        "PRECISION": {"tf32": "tf32", "tf32x3": "tf32x3"}.get(kind, "ieee"),
        "ACCUMULATOR": tl.float64 if kind == "fp64" else tl.float32,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "TERMS": config.terms,
        "STAGES": config.stages,
    }


def resources(config: Config) -> dict[str, Any]:
    """Return the options of a launch."""
    most = {} if config.registers is None else {"maxnreg": config.registers}
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True, **most}


def forward_config(kind: str, inputs: int, outputs: int) -> Config:
    """Return the tile of :func:`fused_linear`."""
    return fitting(config_of("fused_linear_few" if inputs <= FEW else "fused_linear", kind), outputs)


@functools.cache
def _options(kind: str, config: Config) -> dict[str, Any]:
    """Return choices and options of a launch together, made once: a dictionary takes as long as a small kernel."""
    return common(kind, config) | resources(config)


def launch_forward(
    kind: str,
    x: Any,
    weight: Any,
    bias: Any,
    out: Any,
    saved: Any,
    keep: int,
    activation: str,
    numbers: Sequence[float],
) -> None:
    """Run :func:`fused_linear`: shapes as there, ``x`` with columns next to each other, ``saved`` empty for none."""
    models, n, outputs = out.shape
    config = forward_config(kind, x.shape[2], outputs)
    if out.numel() == 0:
        return
    fused_linear[(-(-n // config.rows) * -(-outputs // config.columns), models)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        saved if saved.numel() else out,
        n,
        x.shape[2],
        outputs,
        x.stride(1),
        x.stride(0) if len(x) > 1 else 0,
        *_parts(tuple(numbers)),
        ACTIVATION=activation,
        SAVED=keep,
        BIAS=bias is not None,
        FEW=x.shape[2] <= FEW,
        **_options(kind, config),
    )


@functools.cache
def _parts(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return each of the :data:`NUMBERS` numbers, 0 beyond those given, as three of fp32 whose sum it is."""
    parts: list[float] = []
    for number in (*numbers, *[0.0] * (NUMBERS.value - len(numbers))):
        high = _fp32(number)
        middle = _fp32(number - high)
        parts += [high, middle, number - high - middle]
    return tuple(parts)


def _fp32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


def ranges_of(models: int, n: int, outputs: int, programs: int) -> tuple[int, int]:
    """Return into how many ranges, of how many points, the rows of :func:`layer_errors` fall for so many programs."""
    places = -(-outputs // ERROR_COLUMNS) * models
    wanted = max(1, programs // max(places, 1))
    length = max(1, -(-n // (wanted * ERROR_ROWS))) * ERROR_ROWS
    return max(1, -(-n // length)), length


def launch_errors(
    gradient: Any, saved: Any, errors: Any, sums: Any, length: int, keep: int, activation: str
) -> None:  # fmt: skip
    """Run :func:`layer_errors` for ranges of ``length`` points; ``sums`` is None where it is not wanted."""
    models, n, outputs = gradient.shape
    ranges = max(1, -(-n // length))
    if models * outputs == 0:
        return
    layer_errors[(-(-outputs // ERROR_COLUMNS), ranges, models)](
        gradient,
        saved,
        errors,
        errors if sums is None else sums,
        n,
        outputs,
        saved.stride(0),
        length,
        ACTIVATION=activation,
        SAVED=keep,
        BIAS=sums is not None,
        ACCUMULATOR=tl.float64 if gradient.element_size() == 8 else tl.float32,
        ROWS=ERROR_ROWS,
        COLUMNS=ERROR_COLUMNS,
        num_warps=ERROR_WARPS,
    )
