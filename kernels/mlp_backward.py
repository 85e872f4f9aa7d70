"""The backward pass of the training step: errors back through all layers, and the sums of the thin gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from inrfast.kernels.losses import MSE
from inrfast.kernels.mlp_layers import (
    add_sums,
    head_weight,
    kept_slope,
    layer_product,
    layer_product_on_chip,
    ones_and_coordinates,
    row_numbers,
    times_exact,
)

LARGEST_SCALE = tl.constexpr(24)
"""Largest exponent of the power of two that errors in 16 bits are multiplied by."""


@triton.jit
def _total(values, count):
    """Return the sum of ``count`` values, always in the same order."""
    i = tl.arange(0, 1024)
    total = tl.zeros((1024,), values.dtype.element_ty)
    for begin in range(0, count, 1024):
        total += tl.load(values + tl.cast(begin, tl.int64) + i, mask=begin + i < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _next_scale(square):
    """Return the power of two that scales errors of this mean square to about 1; NaN and Inf give the smallest."""
    exponent = ((square.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255) - 127
    up = tl.minimum(tl.maximum(-(exponent >> 1), -LARGEST_SCALE), LARGEST_SCALE)
    return ((up + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _behind_activation(
    error,
    slopes,
    errors,
    masks,
    sums,
    sides,
    r,
    start,
    layer,
    depth: tl.constexpr,
    width: tl.constexpr,
    hidden,
    later,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    COORDINATES: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return and write some columns of the error before a layer's activation, in the operands' dtype.

    Its product with ``sides`` is the gradient of the bias and, in a first layer that takes coordinates, of the weight.
    """
    columns = start + tl.arange(0, COLUMNS)
    slope = kept_slope(slopes, masks, r, start, width, ACTIVATION, ACCUMULATOR, ROWS, COLUMNS)
    error = (error * slope).to(slopes.dtype.element_ty)
    if BIAS or COORDINATES:
        none = tl.zeros((COLUMNS, 16), ACCUMULATOR)
        thin = times_exact(error.T, sides, none, PRECISION, ACCUMULATOR)
        j = tl.arange(0, 16)
        wanted = tl.where(j == 0, 1 if BIAS else 0, 0)
        place = tl.where(j == 0, layer, 0)
        if COORDINATES:
            wanted = tl.where((j > 0) & (j <= depth), tl.where(layer == 0, 1, 0), wanted)
            place = tl.where(j == 0, layer, hidden + j - 1)
        inside = (columns < width)[:, None] & (wanted != 0)[None, :]
        add_sums(sums + (place[None, :] * width + columns[:, None]), inside, thin, later)
    # Errors of a first layer that takes coordinates enter the sums alone: they are not stored.
    kept = tl.where(layer > 0, width, 0) if COORDINATES else width
    tl.store(errors + (r[:, None] * width + columns[None, :]), error, mask=(columns < kept)[None, :])
    return error


@triton.jit
def _corrected(error, features, corrections, r, alive, columns, width: tl.constexpr, wanted):
    """Return ``error - c - d z`` where ``wanted``: the error before a norm of features z, from that behind it."""
    inside = tl.where(columns < width, wanted, 0) != 0
    c = tl.load(corrections + columns, mask=inside, other=0.0)
    d = tl.load(corrections + width + columns, mask=inside, other=0.0)
    z = tl.load(features + (r[:, None] * width + columns[None, :]), mask=inside[None, :], other=0.0)
    return tl.where(alive[:, None], error - c[None, :] - d[None, :] * z.to(error.dtype), error)


@triton.jit(do_not_specialize=["n", "first", "step", "later", "top", "low", "norm"])
def mlp_backward(
    inputs,
    parameters,
    operands,
    order,
    features,
    slopes,
    masks,
    head_errors,
    errors,
    totals,
    factors,
    losses,
    scales,
    partials,
    corrections,
    n,
    first,
    size,
    step,
    later,
    hidden,
    capacity,
    input_model,
    order_model,
    parameter_model,
    partial_model,
    hidden_at,
    hidden_pitch,
    head,
    thin,
    thin_pitch,
    top,
    low,
    norm,
    norms,
    width: tl.constexpr,
    depth: tl.constexpr,
    outputs: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HEAD: tl.constexpr,
    SUMS: tl.constexpr,
    ERRORS: tl.constexpr,
    NORMED: tl.constexpr,
    BIAS: tl.constexpr,
    COORDINATES: tl.constexpr,
    GATHERED: tl.constexpr,
    LOSS: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ON_CHIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Take the errors of a tile of points back through the layers, and sum the gradients that are thin.

    Arguments as in ``mlp_forward``, of the same points; ``errors``: (models, hidden, capacity, width), those before
    the activations. Each tile's sums lie from ``thin`` on, ``thin_pitch`` apart: biases (hidden, width), columns of the
    first weight (depth, width), rows of the head (outputs, width). The first program writes ``losses`` (steps, models),
    the ``factors`` (models) that make gradients of sums, and the ``scales`` of the next step.

    HEAD: from the errors at the head on, else from those of layer ``top``, which are there; down to those of layer
    ``low``. SUMS: with the sums of the head, the losses and what follows from them; without ERRORS these alone.
    NORMED: behind the first layer that is reached stands a ``norm``, of ``corrections`` (models, norms, 2, width).
    """
    model = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    inputs += model * input_model
    order += model * order_model
    operands += model * parameter_model
    sums = partials + (model * partial_model + thin + tile * thin_pitch)
    head_sums = sums + hidden * width
    if COORDINATES:
        head_sums += depth * width
    plane = tl.cast(capacity, tl.int64) * width
    mask_plane = tl.cast(capacity, tl.int64) * ((width + 7) // 8)
    features += (model * hidden + hidden - 1) * plane
    slopes += model * hidden * plane
    masks += model * hidden * mask_plane
    head_errors += model * capacity * outputs
    errors += model * hidden * plane
    if SUMS and tl.program_id(0) == 0:
        tiles = capacity // ROWS
        totals += model * (2 if LOSS == MSE else 3) * tiles
        weights = _total(totals + tiles, tiles)
        loss = _total(totals, tiles) / weights
        factor = (2 if LOSS == MSE else 1) / weights
        at_step = step * tl.num_programs(1) + model
        if SCALED:
            factor /= tl.load(scales + at_step)
            square = loss
            if LOSS != MSE:
                square = _total(totals + 2 * tiles, tiles) / weights
            tl.store(scales + at_step + tl.num_programs(1), _next_scale(square))
        tl.store(losses + at_step, loss)
        tl.store(factors + model, factor)
    hidden_at, hidden_pitch = tl.cast(hidden_at, tl.int64), tl.cast(hidden_pitch, tl.int64)
    head = parameters + (model * parameter_model + head)
    o = tl.arange(0, 16)
    across: tl.constexpr = COLUMNS if ON_CHIP else width
    layers_at_once: tl.constexpr = STAGES if ON_CHIP else 1

    r = tl.arange(0, ROWS)
    p = tile * ROWS + r
    alive = p < n
    rows = row_numbers(order, step, size, first, p, alive, GATHERED)
    z = features + tile * ROWS * width
    s = slopes + tile * ROWS * width
    e = errors + tile * ROWS * width
    m = masks + tile * ROWS * ((width + 7) // 8)
    here = head_errors + tile * ROWS * outputs
    at_head = tl.load(here + (r[:, None] * outputs + o[None, :]), mask=(o < outputs)[None, :], other=0.0)
    sides = ones_and_coordinates(inputs, rows, depth, COORDINATES, ROWS, ACCUMULATOR)
    held = tl.zeros((ROWS, COLUMNS), features.dtype.element_ty)
    if NORMED:
        corrections += (model * norms + norm) * (2 * width)
    if HEAD:
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            places = r[:, None] * width + columns[None, :]
            if SUMS:
                value = tl.load(z + places, mask=(columns < width)[None, :], other=0.0)
                thin_head = tl.zeros((COLUMNS, 16), ACCUMULATOR)
                thin_head = tl.dot(value.T, at_head, thin_head, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                inside = (columns < width)[:, None] & (o < outputs)[None, :]
                add_sums(head_sums + (o[None, :] * width + columns[:, None]), inside, thin_head, later)
            if ERRORS:
                error = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
                error = times_exact(
                    at_head, head_weight(head, columns, width, outputs), error, PRECISION, ACCUMULATOR
                )  # fmt: skip
                if NORMED:
                    error = _corrected(error, z, corrections, r, alive, columns, width, 1)
                held = _behind_activation(
                    error, s + (hidden - 1) * plane, e + (hidden - 1) * plane, m + (hidden - 1) * mask_plane,
                    sums, sides, r, start, hidden - 1,
                    depth, width, hidden, later, ACTIVATION, BIAS, COORDINATES, PRECISION, ACCUMULATOR, ROWS, COLUMNS,
                )  # fmt: skip
    elif ON_CHIP:
        i = tl.arange(0, COLUMNS)
        above = e + tl.cast(top, tl.int64) * plane
        held = tl.load(above + (r[:, None] * width + i[None, :]), mask=(i < width)[None, :], other=0.0)
    if not ON_CHIP:
        tl.debug_barrier()
    for back in tl.range(0, top - low if ERRORS else 0, num_stages=layers_at_once):
        layer = top - back
        at = hidden_at + (layer - 1) * hidden_pitch
        above = tl.cast(layer, tl.int64) * plane
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if ON_CHIP:
                error = layer_product_on_chip(
                    held, operands + at, width, False, ROWS, COLUMNS, PRECISION, ACCUMULATOR
                )  # fmt: skip
            else:
                error = layer_product(
                    e + above, r, width, operands + at, columns, width, width, width,
                    False, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
                )  # fmt: skip
            if NORMED and not HEAD:
                below = z + (layer - hidden) * plane
                error = _corrected(error, below, corrections, r, alive, columns, width, tl.where(back == 0, 1, 0))
            held = _behind_activation(
                error, s + (above - plane), e + (above - plane), m + tl.cast(layer - 1, tl.int64) * mask_plane,
                sums, sides, r, start, layer - 1, depth, width, hidden, later,
                ACTIVATION, BIAS, COORDINATES, PRECISION, ACCUMULATOR, ROWS, COLUMNS,
            )  # fmt: skip
        if not ON_CHIP:
            tl.debug_barrier()
