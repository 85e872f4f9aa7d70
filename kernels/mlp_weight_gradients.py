"""Gradients of the weights of the training step: one grouped product over layers, ranges of points and networks."""

from __future__ import annotations

import triton
import triton.language as tl

from inrfast.kernels.mlp_layers import row_numbers


@triton.jit(do_not_specialize=["n", "first", "step", "later", "length", "bottom", "end_layer"])
def mlp_weight_gradients(
    inputs,
    order,
    features,
    errors,
    partials,
    n,
    first,
    size,
    step,
    later,
    length,
    hidden,
    capacity,
    input_model,
    order_model,
    partial_model,
    dense,
    dense_pitch,
    bottom,
    end_layer,
    width: tl.constexpr,
    depth: tl.constexpr,
    ENCODED: tl.constexpr,
    GATHERED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write what one range of points adds to one tile of ``errors^T features``, for one layer of one network.

    Arguments as in ``mlp_forward`` and ``mlp_backward``. The parts lie at ``dense`` in a model's partial sums,
    ``dense_pitch`` apart: the weights (width, width) of all layers between hidden ones and, ENCODED, (width, depth) of
    the first. A launch takes the layers from ``bottom`` up to, not including, ``end_layer``, and then as many tiles of
    the first as it has. Ranges have ``length`` points, a multiple of TERMS.
    """
    model = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    down: tl.constexpr = (width + ROWS - 1) // ROWS
    across = (width + COLUMNS - 1) // COLUMNS
    within = tile % (down * across)
    layer = bottom + tile // (down * across)
    plane = tl.cast(capacity, tl.int64) * width
    features += model * hidden * plane
    errors += model * hidden * plane
    out = partials + (model * partial_model + dense + part * dense_pitch)
    begin = part * length
    end = tl.minimum(begin + length, n)
    if ENCODED:
        first_layer = layer >= end_layer
        if first_layer:
            across = tl.cdiv(depth, COLUMNS)
            within = tile - (end_layer - bottom) * down * tl.cdiv(width, COLUMNS)
            layer = tl.zeros_like(layer)
    rows = (within // across) * ROWS + tl.arange(0, ROWS)
    columns = (within % across) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, TERMS)
    there = rows < width
    wide_rows = rows.to(tl.int64)[:, None]
    errors += tl.cast(layer, tl.int64) * plane
    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    if ENCODED:
        if first_layer:
            inputs += model * input_model
            order += model * order_model
            present = columns < depth
            for start in range(begin, end, TERMS):
                p = tl.cast(start, tl.int64) + r
                numbers = row_numbers(order, step, size, first, p, p < n, GATHERED)
                skipped = tl.cast(start, tl.int64) * width
                left = tl.load(errors + skipped + (r[:, None] * width + rows[None, :]), mask=there[None, :], other=0.0)
                right = tl.load(inputs + numbers[:, None] * depth + columns[None, :], mask=present[None, :], other=0.0)
                total = tl.dot(left.T, right, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            at = out + (hidden - 1) * tl.cast(width, tl.int64) * width
            places = at + (wide_rows * depth + columns[None, :])
            inside = there[:, None] & present[None, :]
            if later != 0:
                total += tl.load(places, mask=inside, other=0.0)
            tl.store(places, total, mask=inside)
    kept = width
    if ENCODED:
        kept = tl.where(first_layer, 0, width)
        end = tl.where(first_layer, begin, end)
    present = columns < kept
    features += (tl.cast(layer, tl.int64) - 1) * plane
    for start in tl.range(begin, end, TERMS, num_stages=STAGES):
        skipped = tl.cast(start, tl.int64) * width
        left = tl.load(errors + skipped + (r[:, None] * width + rows[None, :]), mask=there[None, :], other=0.0)
        right = tl.load(features + skipped + (r[:, None] * width + columns[None, :]), mask=present[None, :], other=0.0)
        total = tl.dot(left.T, right, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    places = out + (layer - 1) * tl.cast(width, tl.int64) * width + (wide_rows * width + columns[None, :])
    inside = there[:, None] & present[None, :]
    if later != 0:
        total += tl.load(places, mask=inside, other=0.0)
    tl.store(places, total, mask=inside)
