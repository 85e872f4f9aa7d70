"""Device functions that the passes of the training step share: points of a tile, products with layers, stored slopes.

Rows beyond the last point are computed as if they were the first point, and have no error: loads and stores of features
need no mask for them. Thin matrices are padded to 16 columns and multiplied on the tensor cores too: a column of ones
and the coordinates side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from inrfast.kernels.activations import RELU


@triton.jit
def row_numbers(order, step, size, first, p, alive, GATHERED: tl.constexpr):
    """Return the points of a tile's rows: consecutive ones, or GATHERED those drawn for this step."""
    if GATHERED:
        return tl.load(order + (tl.cast(step, tl.int64) * size + first + p), mask=alive, other=0)
    else:
        return tl.where(alive, first + p, 0)


@triton.jit
def layer_product(
    left,
    rows,
    pitch: tl.constexpr,
    weight,
    columns,
    depth: tl.constexpr,
    across: tl.constexpr,
    limit: tl.constexpr,
    FORWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Return some columns of ``left W^T`` (FORWARD, W: (across, depth)) or ``left W`` (W: (depth, across)).

    ``rows`` of ``left`` lie ``pitch`` elements apart; ``limit`` is the number of columns of the result.
    """
    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    present = columns < limit
    for start in tl.range(0, depth, TERMS, num_stages=STAGES):
        k = start + tl.arange(0, TERMS)
        within = k < depth
        features = tl.load(left + rows[:, None] * pitch + k[None, :], mask=within[None, :], other=0.0)
        if FORWARD:
            part = tl.load(
                weight + columns[:, None] * depth + k[None, :], mask=present[:, None] & within[None, :], other=0.0
            ).T
        else:
            part = tl.load(
                weight + k[:, None] * across + columns[None, :], mask=within[:, None] & present[None, :], other=0.0
            )
        total = tl.dot(features, part, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return total


@triton.jit
def layer_product_on_chip(
    left,
    weight,
    width: tl.constexpr,
    FORWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Return ``left W^T`` (FORWARD) or ``left W``, where the tile ``left`` is in registers; W: (width, width)."""
    i = tl.arange(0, COLUMNS)
    within = i < width
    whole = tl.load(weight + i[:, None] * width + i[None, :], mask=within[:, None] & within[None, :], other=0.0)
    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    if FORWARD:
        return tl.dot(left, whole.T, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    else:
        return tl.dot(left, whole, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)


@triton.jit
def keep(
    features,
    slopes,
    masks,
    value,
    slope,
    r,
    start,
    width: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the features of some columns and, with GRADIENT, their slopes; for ReLU eight columns per byte."""
    columns = start + tl.arange(0, COLUMNS)
    present = (columns < width)[None, :]
    places = r[:, None] * width + columns[None, :]
    tl.store(features + places, value.to(features.dtype.element_ty), mask=present)
    if GRADIENT:
        if ACTIVATION == RELU:
            pitch: tl.constexpr = (width + 7) // 8
            bits = tl.where(present & (value > 0), 1, 0) << (tl.arange(0, COLUMNS) % 8)[None, :]
            bytes = tl.sum(tl.reshape(bits, (ROWS, COLUMNS // 8, 8)), 2)
            chosen = start // 8 + tl.arange(0, COLUMNS // 8)
            tl.store(masks + r[:, None] * pitch + chosen[None, :], bytes.to(tl.uint8), mask=(chosen < pitch)[None, :])
        else:
            tl.store(slopes + places, slope.to(slopes.dtype.element_ty), mask=present)


@triton.jit
def kept_slope(
    slopes,
    masks,
    r,
    start,
    width: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the slopes that :func:`keep` wrote."""
    if ACTIVATION == RELU:
        pitch: tl.constexpr = (width + 7) // 8
        chosen = start // 8 + tl.arange(0, COLUMNS // 8)
        bytes = tl.load(masks + r[:, None] * pitch + chosen[None, :], mask=(chosen < pitch)[None, :], other=0)
        bits = (bytes.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        slope = tl.reshape(bits, (ROWS, COLUMNS)).to(ACCUMULATOR)
        if slope.dtype == tl.float64:
            # A sum over one element changes the layout: Triton 3.6 would otherwise choose one for fp64 products that no
            # GPU has, since the operand is made of bytes.
            slope = tl.sum(slope[:, :, None], 2)
        return slope
    else:
        columns = start + tl.arange(0, COLUMNS)
        places = r[:, None] * width + columns[None, :]
        return tl.load(slopes + places, mask=(columns < width)[None, :], other=0.0).to(ACCUMULATOR)


@triton.jit
def times_exact(left, right, total, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Return ``total + left right`` with ``right`` in full precision: two halves where ``left`` has 16 bits."""
    high = right.to(left.dtype)
    total = tl.dot(left, high, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    if left.dtype.primitive_bitwidth == 16:
        low = (right - high.to(right.dtype)).to(left.dtype)
        total = tl.dot(left, low, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return total


@triton.jit
def add_sums(places, inside, values, later):
    """Write a tile's sums (``later`` is 0), or add them to those of an earlier launch (``later`` is 1)."""
    before = tl.load(places, mask=tl.where(inside, later, 0) != 0, other=0.0)
    tl.store(places, before + values, mask=inside)


@triton.jit
def head_weight(head, columns, width: tl.constexpr, outputs: tl.constexpr):
    """Return some columns of the head's weight, padded to (16, columns)."""
    o = tl.arange(0, 16)
    inside = (o < outputs)[:, None] & (columns < width)[None, :]
    return tl.load(head + o[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def ones_and_coordinates(
    inputs, rows, depth: tl.constexpr, COORDINATES: tl.constexpr, ROWS: tl.constexpr, ACCUMULATOR: tl.constexpr
):  # fmt: skip
    """Return (ROWS, 16): a column of ones, then the coordinates. Errors times these are the thin gradients."""
    j = tl.arange(0, 16)
    sides = tl.where(j == 0, 1.0, 0.0).to(ACCUMULATOR)[None, :].broadcast_to(ROWS, 16)
    if COORDINATES:
        column = tl.where(j == 0, 0, j - 1)
        inside = (j > 0) & (j <= depth)
        x = tl.load(inputs + rows[:, None] * depth + column[None, :], mask=inside[None, :], other=0.0)
        sides += x.to(ACCUMULATOR)
    return sides
