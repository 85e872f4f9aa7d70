"""The factor pass of a coordinate MLP in one launch: features and sensitivities of every layer, in fp64, as slabs.

A program takes a few points through the whole network and back. What it needs again (the features of the layer before,
the slopes, the sensitivities) goes to a scratch of its own, which stays in the second-level cache: no width is too
large for it, as it would be for registers, and nothing but the operands of :mod:`inrfast.kernels.gram_tiles` is written
to memory. Every product is fp64 on the tensor cores: in fp32 a ReLU's gate flips and a sine layer amplifies rounding;
only a factor rounded once, at its end, has a known error; the pass is a small part of a kernel's cost.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from inrfast.kernels import formats, tiles
from inrfast.kernels.activations import GELU, HALVED, NUMBERS, activate

POINTS, BLOCK, DEPTH, WARPS, STAGES, REGISTERS = tiles.SIZES["mlp_slabs", "any", "any"][0]
"""Points that a program takes at once; columns of a product at most, and the granularity of the scratch; terms of a
product taken at once; warps; stages; registers, the most per thread: the assembler, left to itself, would spill some to
fit more programs."""


def block_for(name: str, activation: str) -> int:
    """Return the columns of a product for a format and an activation."""
    if name == "fp16" and activation == GELU.value:
        return BLOCK // 4
    return BLOCK // 2 if name == "fp16" or activation in HALVED[name] else BLOCK


TOP = tl.constexpr(formats.TOP)
LARGEST_EXPONENT = tl.constexpr(formats.LARGEST_EXPONENT)


@triton.jit
def _exponent(x):
    """Return ``floor(log2 x)`` of normal positive fp64 numbers."""
    return ((x.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023


@triton.jit
def _power(exponent):
    """Return ``2^exponent`` in fp64, exactly, for exponents of normal numbers."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _product(
    source,
    weight,
    depth,
    columns,
    stride,
    weight_row,
    weight_column,
    inside,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return ``source @ weight`` for some columns of the weight, (depth, columns) by the given strides."""
    total = tl.zeros((POINTS, BLOCK), tl.float64)
    p = tl.arange(0, POINTS).to(tl.int64)
    for start in range(0, depth, DEPTH):
        k = (start + tl.arange(0, DEPTH)).to(tl.int64)
        left = tl.load(source + p[:, None] * stride + k[None, :], mask=(k < depth)[None, :], other=0.0)
        right = tl.load(
            weight + k[:, None] * weight_row + columns[None, :] * weight_column,
            mask=(k < depth)[:, None] & inside[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit
def _write(
    slabs, low, x, points, start, mask, rows, SLAB: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write scaled numbers into the slabs from column ``start`` on: rounded once, or split in two halves."""
    slabs += (start // SLAB) * (rows * SLAB)
    b = tl.arange(0, BLOCK)
    if SLAB >= BLOCK:
        places = points[:, None] * SLAB + (start % SLAB + b)[None, :]
    else:
        places = (b // SLAB)[None, :] * (rows * SLAB) + points[:, None] * SLAB + (b % SLAB)[None, :]
    high = x.to(slabs.dtype.element_ty)
    tl.store(slabs + places, high, mask=mask)
    if PLANES == 2:
        tl.store(slabs + low + places, (x - high.to(tl.float64)).to(slabs.dtype.element_ty), mask=mask)


@triton.jit
def _squares(x, factor, mask, slabs):
    """Return each row's sum of squares, as it is and as the slabs hold it."""
    rounded = (x * factor).to(slabs.dtype.element_ty).to(tl.float64) / factor
    return tl.sum(tl.where(mask, x * x, 0.0), 1), tl.sum(tl.where(mask, rounded * rounded, 0.0), 1)


@triton.jit(do_not_specialize=["n", "slab_count", "depth", "hidden", "head", "outputs", "first_output"])
def mlp_slabs(
    inputs,
    parameters,
    table,
    constants,
    slabs,
    scale,
    scratch,
    n,
    rows,
    slab_count,
    depth,
    hidden,
    width,
    head,
    outputs,
    first_output,
    floor,
    input_scale,
    input_model,
    parameter_model,
    ACTIVATION: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    SCALED: tl.constexpr,
    CORRECTED: tl.constexpr,
    FULL: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Write the slabs of every hidden layer's features and sensitivities, and the scales that undo theirs.

    ``inputs``: (models, n, depth) fp64; ``parameters``: (models, Q) fp64, found through ``table`` (hidden, 6): inputs,
    outputs, places of weight (outputs, inputs) and bias (-1: none), slabs at which the features and the sensitivities
    begin; ``constants`` (hidden, 2 + NUMBERS): scale of the features, reciprocal of the scale of the layer's own input,
    and the numbers of its activation. ``head``: place of the head's weight. ``slabs``: (models, PLANES, slab_count,
    rows, SLAB), zero where nothing is written; ``scale``: (models, rows). With FULL a row is a pair of a point and an
    output, else a point, its outputs each from a slab of their own on. ``scratch``: (models, programs, slots, POINTS,
    width) fp64 with 2 + (1 + outputs) hidden slots, and more for 2 (hidden + 1) numbers per point. ``floor`` bounds the
    largest sensitivity of a row from below; ``input_scale`` is that of the inputs' slabs, 0 where they have none.
    """
    model = tl.program_id(1).to(tl.int64)
    programs = tl.num_programs(0)
    rows = rows.to(tl.int64)
    slots = 2 + hidden + hidden * outputs + tl.cdiv(2 * hidden + 2, width)
    size = POINTS * width.to(tl.int64)
    scratch += (model * programs + tl.program_id(0)) * slots * size
    slopes = scratch + 2 * size
    gradients = slopes + hidden * size
    norms = gradients + hidden * outputs * size
    inputs += model * input_model
    parameters += model * parameter_model
    plane = slab_count.to(tl.int64) * rows * SLAB
    slabs += model * PLANES * plane
    scale += model * rows
    p = tl.arange(0, POINTS).to(tl.int64)
    b = tl.arange(0, BLOCK).to(tl.int64)

    for block in range(tl.program_id(0), tl.cdiv(n, POINTS), programs):
        points = tl.cast(block, tl.int64) * POINTS + p
        alive = points < n
        exact = tl.zeros((POINTS,), tl.float64)
        rounded = tl.zeros((POINTS,), tl.float64)
        for start in range(0, depth, BLOCK):
            columns = start + b
            mask = alive[:, None] & (columns < depth)[None, :]
            x = tl.load(inputs + points[:, None] * depth + columns[None, :], mask=mask, other=0.0)
            tl.store(scratch + p[:, None] * width + columns[None, :], x)
            if CORRECTED:
                more, about = _squares(x, tl.where(input_scale > 0, input_scale, 1.0), mask, slabs)
                exact += more
                rounded += tl.where(input_scale > 0, about, more)
        if CORRECTED:
            tl.store(norms + p, exact)
            tl.store(norms + POINTS + p, rounded)
        tl.debug_barrier()

        for layer in range(0, hidden):
            fan_in = tl.load(table + 6 * layer).to(tl.int32)
            fan_out = tl.load(table + 6 * layer + 1).to(tl.int32)
            weight = parameters + tl.load(table + 6 * layer + 2)
            bias = tl.load(table + 6 * layer + 3)
            slab = tl.load(table + 6 * layer + 4)
            numbers = constants + (2 + NUMBERS) * layer
            omega, second = tl.load(numbers + 2), tl.load(numbers + 3)
            factor = tl.load(numbers)
            source = scratch + (layer % 2) * size
            target = scratch + (1 - layer % 2) * size
            exact = tl.zeros((POINTS,), tl.float64)
            rounded = tl.zeros((POINTS,), tl.float64)
            for start in range(0, fan_out, BLOCK):
                columns = start + b
                inside = columns < fan_out
                u = _product(source, weight, fan_in, columns, width, 1, fan_in, inside, POINTS, BLOCK, DEPTH)
                u += tl.load(parameters + bias + columns, mask=columns < tl.where(bias >= 0, fan_out, 0), other=0.0)[
                    None, :
                ]
                z, slope = activate(u, omega, 0.0, second, ACTIVATION, False)
                places = p[:, None] * width + columns[None, :]
                tl.store(target + places, z)
                tl.store(slopes + layer * size + places, slope)
                mask = alive[:, None] & inside[None, :]
                here = slabs + slab * rows * SLAB
                if FULL:
                    for m in range(0, outputs):
                        pair = points * outputs + m
                        _write(here, plane, z * factor, pair, start, mask, rows, SLAB, PLANES, BLOCK)
                else:
                    _write(here, plane, z * factor, points, start, mask, rows, SLAB, PLANES, BLOCK)
                if CORRECTED:
                    more, about = _squares(z, factor, mask, slabs)
                    exact += more
                    rounded += about
            if CORRECTED:
                tl.store(norms + (2 * tl.cast(layer, tl.int64) + 2) * POINTS + p, exact)
                tl.store(norms + (2 * tl.cast(layer, tl.int64) + 3) * POINTS + p, rounded)
            tl.debug_barrier()

        largest = tl.zeros((POINTS,), tl.float64) + floor
        for m in range(0, outputs):
            for step in range(0, hidden):
                layer = hidden - 1 - step
                fan_out = tl.load(table + 6 * layer + 1).to(tl.int32)
                relative = tl.load(constants + (2 + NUMBERS) * layer + 1)
                target = gradients + (m * hidden + layer) * size
                above = tl.minimum(layer + 1, hidden - 1)
                # The last layer has the head's row in place of a product: no term of it is taken.
                terms = tl.where(step == 0, 0, tl.load(table + 6 * above + 1)).to(tl.int32)
                weight = parameters + tl.load(table + 6 * above + 2)
                row = parameters + (tl.cast(head, tl.int64) + tl.cast(first_output + m, tl.int64) * fan_out)
                for start in range(0, fan_out, BLOCK):
                    columns = start + b
                    inside = columns < fan_out
                    gradient = _product(
                        target + size, weight, terms, columns, width, fan_out, 1, inside, POINTS, BLOCK, DEPTH
                    )
                    gradient += tl.load(row + columns, mask=columns < tl.where(step == 0, fan_out, 0), other=0.0)[
                        None, :
                    ]
                    places = p[:, None] * width + columns[None, :]
                    gradient *= tl.load(slopes + layer * size + places)
                    tl.store(target + places, gradient)
                    known = tl.where(inside[None, :], tl.abs(gradient), 0.0)
                    largest = tl.maximum(largest, tl.max(known, 1) * relative)
                tl.debug_barrier()
            if FULL:
                exact, rounded = _sensitivities(
                    slabs, gradients + m * hidden * size, table, constants, norms, largest, points * outputs + m, alive,
                    plane, rows, hidden, width, 0, SLAB, PLANES, SCALED, CORRECTED, POINTS, BLOCK,
                )  # fmt: skip
                _scale(
                    scale, points * outputs + m, alive, largest, exact, rounded, norms, table, hidden, 1,
                    SCALED, CORRECTED, POINTS,
                )  # fmt: skip
                largest = tl.zeros((POINTS,), tl.float64) + floor
        if not FULL:
            exact = tl.zeros((POINTS,), tl.float64)
            rounded = tl.zeros((POINTS,), tl.float64)
            for m in range(0, outputs):
                more, about = _sensitivities(
                    slabs, gradients + m * hidden * size, table, constants, norms, largest, points, alive,
                    plane, rows, hidden, width, m, SLAB, PLANES, SCALED, CORRECTED, POINTS, BLOCK,
                )  # fmt: skip
                exact += more
                rounded += about
            _scale(
                scale, points, alive, largest, exact, rounded, norms, table, hidden, outputs,
                SCALED, CORRECTED, POINTS,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _up(largest, SCALED: tl.constexpr):
    """Return the exponent of the power of two that brings ``largest`` to about 2^TOP."""
    if SCALED:
        return tl.minimum(tl.maximum(TOP - _exponent(largest), -LARGEST_EXPONENT), LARGEST_EXPONENT)
    else:
        return tl.zeros(largest.shape, tl.int64)


@triton.jit
def _sensitivities(
    slabs,
    gradients,
    table,
    constants,
    norms,
    largest,
    points,
    alive,
    plane,
    rows,
    hidden,
    width,
    output,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    SCALED: tl.constexpr,
    CORRECTED: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one output's sensitivities; return their layers' part of the kernel's diagonal, exact and as rounded."""
    p = tl.arange(0, POINTS).to(tl.int64)
    b = tl.arange(0, BLOCK).to(tl.int64)
    up = _power(_up(largest, SCALED))
    exact = tl.zeros((POINTS,), tl.float64)
    rounded = tl.zeros((POINTS,), tl.float64)
    for layer in range(0, hidden):
        fan_out = tl.load(table + 6 * layer + 1).to(tl.int32)
        start_slab = tl.load(table + 6 * layer + 5) + output * tl.cdiv(fan_out, SLAB)
        factor = up * tl.load(constants + (2 + NUMBERS) * layer + 1)
        squares = tl.zeros((POINTS,), tl.float64)
        about = tl.zeros((POINTS,), tl.float64)
        for start in range(0, fan_out, BLOCK):
            columns = start + b
            mask = alive[:, None] & (columns < fan_out)[None, :]
            s = tl.load(gradients + layer * (POINTS * tl.cast(width, tl.int64)) + p[:, None] * width + columns[None, :])
            _write(
                slabs + start_slab * rows * SLAB, plane, s * factor[:, None], points, start, mask,
                rows, SLAB, PLANES, BLOCK,
            )  # fmt: skip
            if CORRECTED:
                more, less = _squares(s, factor[:, None], mask, slabs)
                squares += more
                about += less
        if CORRECTED:
            bias = tl.where(tl.load(table + 6 * layer + 3) >= 0, 1.0, 0.0)
            exact += (tl.load(norms + 2 * tl.cast(layer, tl.int64) * POINTS + p) + bias) * squares
            rounded += (tl.load(norms + (2 * tl.cast(layer, tl.int64) + 1) * POINTS + p) + bias) * about
    return exact, rounded


@triton.jit
def _scale(
    scale,
    points,
    alive,
    largest,
    exact,
    rounded,
    norms,
    table,
    hidden,
    weight,
    SCALED: tl.constexpr,
    CORRECTED: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Write the scales that undo the rows' powers of two, and make the diagonal what it was before rounding."""
    if SCALED:
        down = _power(-_up(largest, SCALED))
        if CORRECTED:
            p = tl.arange(0, POINTS).to(tl.int64)
            bias = tl.where(tl.load(table + 3) >= 0, 1.0, 0.0)
            exact += weight * (tl.load(norms + 2 * tl.cast(hidden, tl.int64) * POINTS + p) + bias)
            rounded += weight * (tl.load(norms + (2 * tl.cast(hidden, tl.int64) + 1) * POINTS + p) + bias)
            down *= tl.where(rounded > 0, tl.sqrt(exact / tl.where(rounded > 0, rounded, 1.0)), 1.0)
        tl.store(scale + points, down.to(scale.dtype.element_ty), mask=alive)


def launch(
    name: str,
    inputs: Any,
    parameters: Any,
    table: Any,
    constants: Any,
    slabs: Any,
    scale: Any,
    scratch: Any,
    head: int,
    outputs: int,
    first_output: int,
    floor: float,
    input_scale: float,
    activation: str,
    full: bool,
) -> None:
    """Run :func:`mlp_slabs` for the format called ``name``.

    Shapes as there; ``inputs`` is (1 or models, n, depth), and there are as many programs as ``scratch`` has.
    """
    models, planes, slab_count, rows, slab = slabs.shape
    layout = formats.FORMATS[name]
    mlp_slabs[(scratch.shape[1], models)](
        inputs,
        parameters,
        table,
        constants,
        slabs,
        scale,
        scratch,
        inputs.shape[1],
        rows,
        slab_count,
        inputs.shape[2],
        len(table),
        scratch.shape[-1],
        head,
        outputs,
        first_output,
        floor,
        input_scale,
        inputs.stride(0) if len(inputs) > 1 else 0,
        parameters.stride(0),
        ACTIVATION=activation,
        SLAB=slab,
        PLANES=planes,
        SCALED=layout.dtype == "fp16",
        CORRECTED=layout.corrected,
        FULL=full,
        POINTS=POINTS,
        BLOCK=block_for(name, activation),
        DEPTH=DEPTH,
        num_warps=WARPS,
        num_stages=STAGES,
        maxnreg=REGISTERS,
        enable_fp_fusion=True,
    )
