"""The training step of coordinate MLPs in four launches, each for all networks at once.

1. :func:`mlp_forward`: a program takes a tile of points through all layers, to the error at the head, and keeps the
   features of every hidden layer in 16 bits (or fp32, fp64), and their slopes, those of ReLU as single bits.
2. :func:`mlp_backward`: takes the errors back through all layers, keeps them too, and adds up the gradients that are
   thin: of biases, of a first layer that takes coordinates, and of the head.
3. :func:`mlp_weight_gradients`: one grouped product for the weights between hidden layers, its points split in ranges.
4. :func:`mlp_update`: adds up what tiles and ranges left, in a fixed order, and takes the optimiser's step on the fp32
   weights, of which it leaves a copy in 16 bits for the next step.

Of narrow layers in 16 bits, features and errors stay on the chip on their way from layer to layer, while the next
weight is on its way from the cache; others pass through the second-level cache themselves. The networks' shape is a
compile-time choice: offsets are then constants, where run-time widths would take more registers than there are. What is
thin is multiplied on the tensor cores too, 16 columns at a time: ones and coordinates beside each other.

No sum depends on which program comes first: a step repeats bit for bit. Errors in 16 bits are scaled by a power of two
that follows their mean square, step by step, so that they keep clear of underflow (the idea of loss scaling:
Micikevicius et al., Mixed precision training, ICLR 2018). Coordinates, and the weights of the first layer that takes
them and of the head, go through products of 16 bits as two halves each: next to nothing of fp32 is lost.

Rows beyond the last point are computed as if they were the first one, and have no error: no load or store of features
needs a mask for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.activations import HEAVY, NUMBERS, RELU, activate
from inrfast.kernels.fused_linear import Config
from inrfast.kernels.losses import MSE, loss_and_slope
from inrfast.kernels.tiles import SIZES, STEPS, ProductRow

LARGE_SHARED = 200 * 1024
"""Bytes of shared memory that a program may have on GPUs that take the large tiles."""

SMALL_SHARED = 99 * 1024
"""Bytes of shared memory that a program takes elsewhere: every GPU since sm_86 has them."""

LARGEST_SCALE = tl.constexpr(24)
"""Largest exponent of the power of two that errors in 16 bits are multiplied by."""

RAGGED_ROWS = 64
"""Rows of tiles on the chip where a layer is wide and no power of two: the masks of its columns take registers."""

HEAVY_ON_CHIP = 64
"""Columns up to which features of activations that leave fewer registers stay on the chip."""

BLOCK, PARTS, UPDATE_WARPS = SIZES["mlp_update", "any", "any"][0]
"""Parameters of a program of the update, and partial sums that it takes at once."""


# ---- passes ------------------------------------------------------------------------------------------------------


@triton.jit
def _row_numbers(order, step, size, first, p, alive, GATHERED: tl.constexpr):
    """Return which points the rows of a tile are: consecutive ones, or those drawn for this step."""
    if GATHERED:
        return tl.load(order + (tl.cast(step, tl.int64) * size + first + p), mask=alive, other=0)
    else:
        return tl.where(alive, first + p, 0)


@triton.jit
def _product(
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

    ``rows`` of ``left`` lie ``pitch`` elements apart; ``limit`` is the number of columns there are.
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
def _product_on_chip(
    left,
    weight,
    width: tl.constexpr,
    FORWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Return ``left W^T`` (FORWARD) or ``left W`` of a tile that is at hand; W: (width, width)."""
    i = tl.arange(0, COLUMNS)
    within = i < width
    whole = tl.load(weight + i[:, None] * width + i[None, :], mask=within[:, None] & within[None, :], other=0.0)
    total = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    if FORWARD:
        return tl.dot(left, whole.T, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    else:
        return tl.dot(left, whole, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)


@triton.jit
def _exact_product(left, right, like, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Return ``left right`` of full precision; operands of 16 bits, as ``like`` points to, in two halves each."""
    total = tl.zeros((left.shape[0], right.shape[1]), ACCUMULATOR)
    operand: tl.constexpr = like.dtype.element_ty
    if operand.primitive_bitwidth == 16:
        high, below = left.to(operand), right.to(operand)
        low = (left - high.to(left.dtype)).to(operand)
        lower = (right - below.to(right.dtype)).to(operand)
        total = tl.dot(low, below, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        total = tl.dot(high, lower, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        return tl.dot(high, below, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    else:
        return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)


@triton.jit
def _first_weight(parameters, bias, columns, width: tl.constexpr, depth: tl.constexpr, BIAS: tl.constexpr):
    """Return some columns of a first layer that takes coordinates as (16, columns): its bias, then its weight."""
    j = tl.arange(0, 16)
    present = columns < width
    column = tl.where(j == 0, 0, j - 1)
    inside = ((j > 0) & (j <= depth))[:, None] & present[None, :]
    weight = tl.load(parameters + (columns[None, :] * depth + column[:, None]), mask=inside, other=0.0)
    if BIAS:
        weight += tl.load(bias + columns[None, :], mask=(j == 0)[:, None] & present[None, :], other=0.0)
    return weight


@triton.jit
def _activated(u, numbers, layer, ACTIVATION: tl.constexpr, SHORT: tl.constexpr):
    """Return value and slope at ``u``; each number of a layer is the sum of three fp32 numbers."""
    if ACTIVATION == RELU:
        return activate(u, 1.0, 0.0, 0.0, ACTIVATION, SHORT)
    else:
        numbers += 3 * NUMBERS * layer
        if u.dtype == tl.float64:
            return activate(u, _whole(numbers), 0.0, _whole(numbers + 3), ACTIVATION, SHORT)
        else:
            return activate(u, tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 3), ACTIVATION, SHORT)


@triton.jit
def _whole(parts):
    """Return the fp64 number that is the sum of three fp32 numbers."""
    return tl.load(parts).to(tl.float64) + tl.load(parts + 1).to(tl.float64) + tl.load(parts + 2).to(tl.float64)


@triton.jit
def _keep(
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
    """Write the features of some columns, and their slopes or, of ReLU, the bits of eight columns per byte."""
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
def _slope(
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
    """Return the slopes that :func:`_keep` wrote."""
    if ACTIVATION == RELU:
        pitch: tl.constexpr = (width + 7) // 8
        chosen = start // 8 + tl.arange(0, COLUMNS // 8)
        bytes = tl.load(masks + r[:, None] * pitch + chosen[None, :], mask=(chosen < pitch)[None, :], other=0)
        bits = (bytes.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        slope = tl.reshape(bits, (ROWS, COLUMNS)).to(ACCUMULATOR)
        if slope.dtype == tl.float64:
            # Sums of one number: Triton 3.6 would lay out an operand made of bytes for fp64 products that no GPU has.
            slope = tl.sum(slope[:, :, None], 2)
        return slope
    else:
        columns = start + tl.arange(0, COLUMNS)
        places = r[:, None] * width + columns[None, :]
        return tl.load(slopes + places, mask=(columns < width)[None, :], other=0.0).to(ACCUMULATOR)


@triton.jit
def _times_exact(left, right, total, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Return ``total + left right``, where ``right`` has more digits than an operand of 16 bits: in two halves."""
    high = right.to(left.dtype)
    total = tl.dot(left, high, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    if left.dtype.primitive_bitwidth == 16:
        low = (right - high.to(right.dtype)).to(left.dtype)
        total = tl.dot(left, low, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return total


@triton.jit
def _add(places, inside, values, later):
    """Write a tile's sums, or (``later`` is 1, else 0) add them to what a tile of an earlier launch left."""
    before = tl.load(places, mask=tl.where(inside, later, 0) != 0, other=0.0)
    tl.store(places, before + values, mask=inside)


@triton.jit
def _head_weight(head, columns, width: tl.constexpr, outputs: tl.constexpr):
    """Return some columns of the head's weight, padded to (16, columns)."""
    o = tl.arange(0, 16)
    inside = (o < outputs)[:, None] & (columns < width)[None, :]
    return tl.load(head + o[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _sides(
    inputs, rows, depth: tl.constexpr, COORDINATES: tl.constexpr, ROWS: tl.constexpr, ACCUMULATOR: tl.constexpr
):  # fmt: skip
    """Return (ROWS, 16): a column of ones, then the coordinates; errors times these are the thin gradients."""
    j = tl.arange(0, 16)
    sides = tl.where(j == 0, 1.0, 0.0).to(ACCUMULATOR)[None, :].broadcast_to(ROWS, 16)
    if COORDINATES:
        column = tl.where(j == 0, 0, j - 1)
        inside = (j > 0) & (j <= depth)
        x = tl.load(inputs + rows[:, None] * depth + column[None, :], mask=inside[None, :], other=0.0)
        sides += x.to(ACCUMULATOR)
    return sides


@triton.jit
def _errors(
    y,
    target,
    weight,
    numbers,
    rows,
    alive,
    outputs: tl.constexpr,
    weight_columns,
    totals,
    tiles,
    later,
    WEIGHTED: tl.constexpr,
    LOSS: tl.constexpr,
):
    """Return errors at the head (ROWS, 16): weighted slopes of the loss, of the mean squared error half of them.

    Write the sums of a tile: the weighted losses, ``tiles`` further on the weights, and behind those the weighted
    squares of the slopes, which for the mean squared error are its losses.
    """
    o = tl.arange(0, 16)
    there = alive[:, None] & (o < outputs)[None, :]
    places = rows[:, None] * outputs + o[None, :]
    goal = tl.load(target + places, mask=there, other=0.0)
    if LOSS == MSE:
        error = tl.where(there, y - goal, 0.0)
    else:
        values, error = loss_and_slope(y, goal, numbers, LOSS)
        values = tl.where(there, values, 0.0)
        error = tl.where(there, error, 0.0)
    weighted = error
    count = tl.where(there, 1.0, 0.0).to(y.dtype)
    if WEIGHTED:
        column = tl.where(weight_columns == 1, 0, o)
        count = tl.load(weight + (rows[:, None] * weight_columns + column[None, :]), mask=there, other=0.0)
        weighted = error * count
    if LOSS == MSE:
        losses = tl.sum(tl.sum(error * weighted, 1), 0)
    else:
        losses = tl.sum(tl.sum(values * count, 1), 0)
        squares = tl.sum(tl.sum(error * weighted, 1), 0)
        if later != 0:
            squares += tl.load(totals + 2 * tiles)
        tl.store(totals + 2 * tiles, squares)
    weights = tl.sum(tl.sum(count, 1), 0)
    if later != 0:
        losses += tl.load(totals)
        weights += tl.load(totals + tiles)
    tl.store(totals, losses)
    tl.store(totals + tiles, weights)
    return weighted


@triton.jit
def _total(values, count):
    """Return the sum of numbers, always in the same order."""
    i = tl.arange(0, 1024)
    total = tl.zeros((1024,), values.dtype.element_ty)
    for begin in range(0, count, 1024):
        total += tl.load(values + tl.cast(begin, tl.int64) + i, mask=begin + i < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _next_scale(square):
    """Return the power of two that brings errors of this mean square near 1; NaN and Inf give the smallest."""
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
    """Return some columns of the error before the activation of a layer, an operand, and write it.

    Its product with ``sides`` is the gradient of the bias and, of a first layer that takes coordinates, of the weight.
    """
    columns = start + tl.arange(0, COLUMNS)
    slope = _slope(slopes, masks, r, start, width, ACTIVATION, ACCUMULATOR, ROWS, COLUMNS)
    error = (error * slope).to(slopes.dtype.element_ty)
    if BIAS or COORDINATES:
        none = tl.zeros((COLUMNS, 16), ACCUMULATOR)
        thin = _times_exact(error.T, sides, none, PRECISION, ACCUMULATOR)
        j = tl.arange(0, 16)
        wanted = tl.where(j == 0, 1 if BIAS else 0, 0)
        place = tl.where(j == 0, layer, 0)
        if COORDINATES:
            wanted = tl.where((j > 0) & (j <= depth), tl.where(layer == 0, 1, 0), wanted)
            place = tl.where(j == 0, layer, hidden + j - 1)
        inside = (columns < width)[:, None] & (wanted != 0)[None, :]
        _add(sums + (place[None, :] * width + columns[:, None]), inside, thin, later)
    # Errors of a first layer that takes coordinates are needed in the sums alone.
    kept = tl.where(layer > 0, width, 0) if COORDINATES else width
    tl.store(errors + (r[:, None] * width + columns[None, :]), error, mask=(columns < kept)[None, :])
    return error


@triton.jit(do_not_specialize=["n", "first", "step", "later"])
def mlp_forward(
    inputs,
    target,
    weight,
    numbers,
    parameters,
    operands,
    activation_numbers,
    order,
    scales,
    features,
    slopes,
    masks,
    head_errors,
    totals,
    partials,
    n,
    first,
    size,
    step,
    later,
    hidden,
    weight_columns,
    capacity,
    input_model,
    target_model,
    weight_model,
    order_model,
    parameter_model,
    partial_model,
    first_bias,
    hidden_at,
    hidden_pitch,
    bias_at,
    head,
    head_bias,
    tail,
    thin_pitch,
    width: tl.constexpr,
    depth: tl.constexpr,
    outputs: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GRADIENT: tl.constexpr,
    BIAS: tl.constexpr,
    COORDINATES: tl.constexpr,
    GATHERED: tl.constexpr,
    WEIGHTED: tl.constexpr,
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
    """Take tiles of points of one network to its predictions and, with GRADIENT, keep what the way back needs.

    ON_CHIP: one block of COLUMNS holds all columns of a layer, and a tile's features go from product to product.

    ``inputs``: (models or 1, N, depth), coordinates or, without COORDINATES, their encodings in the operands' dtype;
    ``target``: (models or 1, N, outputs); ``weight``: (models or 1, N, weight_columns); ``numbers``: those of the loss,
    in full precision; ``parameters``: (models, Q) in full precision, ``operands``: the same in the operands' dtype,
    each parameter at its place; ``activation_numbers``: (hidden, NUMBERS, 3) fp32. The ``n`` rows of the launch are the
    points from ``first`` on or, GATHERED, those of ``order`` (models or 1, draws), of which each step takes ``size``
    consecutive. ``scales``: (steps, models) powers of two for the errors.

    ``features``, ``slopes``: (models, hidden, capacity, width); ``masks``: (models, hidden, capacity, bytes);
    ``head_errors``: (models, capacity, outputs), those of the predictions; ``totals``: (models, 2 or 3, tiles), see
    :func:`_errors`; ``partials``: (models, partial_model), where each tile leaves
    the gradient of the head's bias (outputs), from ``tail`` on and ``thin_pitch`` apart. ``later``: add to what is
    there.
    """
    model = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    models = tl.num_programs(1)
    inputs += model * input_model
    target += model * target_model
    weight += model * weight_model
    order += model * order_model
    parameters += model * parameter_model
    operands += model * parameter_model
    sums = partials + (model * partial_model + tail + tile * thin_pitch)
    plane = tl.cast(capacity, tl.int64) * width
    mask_plane = tl.cast(capacity, tl.int64) * ((width + 7) // 8)
    features += model * hidden * plane
    slopes += model * hidden * plane
    masks += model * hidden * mask_plane
    head_errors += model * capacity * outputs
    tiles = capacity // ROWS
    totals += model * (2 if LOSS == MSE else 3) * tiles + tile
    hidden_at, hidden_pitch = tl.cast(hidden_at, tl.int64), tl.cast(hidden_pitch, tl.int64)
    first_bias = parameters + tl.cast(first_bias, tl.int64)
    head = parameters + tl.cast(head, tl.int64)
    head_bias = parameters + tl.cast(head_bias, tl.int64)
    o = tl.arange(0, 16)
    short: tl.constexpr = features.dtype.element_ty.primitive_bitwidth == 16
    across: tl.constexpr = COLUMNS if ON_CHIP else width
    layers_at_once: tl.constexpr = STAGES if ON_CHIP else 1

    r = tl.arange(0, ROWS)
    p = tile * ROWS + r
    alive = p < n
    rows = _row_numbers(order, step, size, first, p, alive, GATHERED)
    # From here on offsets are within a tile of points or a layer's weight, and fit 32 bits.
    z = features + tile * ROWS * width
    s = slopes + tile * ROWS * width
    m = masks + tile * ROWS * ((width + 7) // 8)
    held = tl.zeros((ROWS, COLUMNS), features.dtype.element_ty)
    for start in tl.range(0, across, COLUMNS, num_stages=1):
        columns = start + tl.arange(0, COLUMNS)
        if COORDINATES:
            first_weight = _first_weight(parameters, first_bias, columns, width, depth, BIAS)
            sides = _sides(inputs, rows, depth, COORDINATES, ROWS, ACCUMULATOR)
            u = _exact_product(sides, first_weight, features, PRECISION, ACCUMULATOR)
        else:
            u = _product(
                inputs, rows, depth, operands, columns, depth, width, width,
                True, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
            )  # fmt: skip
            if BIAS:
                u += tl.load(first_bias + columns, mask=columns < width, other=0.0)[None, :]
        value, slope = _activated(u, activation_numbers, 0, ACTIVATION, short)
        _keep(z, s, m, value, slope, r, start, width, ACTIVATION, GRADIENT, ROWS, COLUMNS)
        if ON_CHIP:
            held = value.to(held.dtype)
    if not ON_CHIP:
        tl.debug_barrier()
    for layer in tl.range(1, hidden, num_stages=layers_at_once):
        at = hidden_at + (layer - 1) * hidden_pitch
        above = tl.cast(layer, tl.int64) * plane
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if ON_CHIP:
                u = _product_on_chip(
                    held, operands + at, width, True, ROWS, COLUMNS, PRECISION, ACCUMULATOR
                )  # fmt: skip
            else:
                u = _product(
                    z + (above - plane), r, width, operands + at, columns, width, width, width,
                    True, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
                )  # fmt: skip
            if BIAS:
                u += tl.load(parameters + (at + bias_at) + columns, mask=columns < width, other=0.0)[None, :]
            value, slope = _activated(u, activation_numbers, layer, ACTIVATION, short)
            _keep(
                z + above, s + above, m + tl.cast(layer, tl.int64) * mask_plane, value, slope, r, start,
                width, ACTIVATION, GRADIENT, ROWS, COLUMNS,
            )  # fmt: skip
            if ON_CHIP:
                held = value.to(held.dtype)
        if not ON_CHIP:
            tl.debug_barrier()

    y = tl.zeros((ROWS, 16), ACCUMULATOR)
    for start in tl.range(0, across, COLUMNS, num_stages=1):
        columns = start + tl.arange(0, COLUMNS)
        if not ON_CHIP:
            places = r[:, None] * width + columns[None, :]
            held = tl.load(z + (hidden - 1) * plane + places, mask=(columns < width)[None, :], other=0.0)
        y = _times_exact(held, _head_weight(head, columns, width, outputs).T, y, PRECISION, ACCUMULATOR)
    if BIAS:
        y += tl.load(head_bias + o, mask=o < outputs, other=0.0)[None, :]
    weighted = _errors(
        y, target, weight, numbers, rows, alive, outputs, weight_columns, totals, tiles, later, WEIGHTED, LOSS
    )  # fmt: skip
    if GRADIENT:
        if SCALED:
            weighted *= tl.load(scales + step * models + model)
        if BIAS:
            _add(sums + o, o < outputs, tl.sum(weighted, 0), later)
        here = head_errors + tile * ROWS * outputs
        places = r[:, None] * outputs + o[None, :]
        tl.store(here + places, weighted.to(head_errors.dtype.element_ty), mask=(o < outputs)[None, :])


@triton.jit(do_not_specialize=["n", "first", "step", "later"])
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
    width: tl.constexpr,
    depth: tl.constexpr,
    outputs: tl.constexpr,
    ACTIVATION: tl.constexpr,
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
    """Take the errors of tiles of points back through the layers, and add up the gradients that are thin.

    Arguments as in :func:`mlp_forward`, of the same points; ``errors``: (models, hidden, capacity, width), those before
    the activations. Each tile's sums lie from ``thin`` on, ``thin_pitch`` apart: biases (hidden, width), columns of the
    first weight (depth, width), rows of the head (outputs, width). The first program writes ``losses`` (steps, models),
    the ``factors`` (models) that make gradients of sums, and the ``scales`` of the next step.
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
    if tl.program_id(0) == 0:
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
    rows = _row_numbers(order, step, size, first, p, p < n, GATHERED)
    z = features + tile * ROWS * width
    s = slopes + tile * ROWS * width
    e = errors + tile * ROWS * width
    m = masks + tile * ROWS * ((width + 7) // 8)
    here = head_errors + tile * ROWS * outputs
    at_head = tl.load(here + (r[:, None] * outputs + o[None, :]), mask=(o < outputs)[None, :], other=0.0)
    sides = _sides(inputs, rows, depth, COORDINATES, ROWS, ACCUMULATOR)
    held = tl.zeros((ROWS, COLUMNS), features.dtype.element_ty)
    for start in tl.range(0, across, COLUMNS, num_stages=1):
        columns = start + tl.arange(0, COLUMNS)
        places = r[:, None] * width + columns[None, :]
        value = tl.load(z + places, mask=(columns < width)[None, :], other=0.0)
        thin_head = tl.zeros((COLUMNS, 16), ACCUMULATOR)
        thin_head = tl.dot(value.T, at_head, thin_head, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        inside = (columns < width)[:, None] & (o < outputs)[None, :]
        _add(head_sums + (o[None, :] * width + columns[:, None]), inside, thin_head, later)
        error = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
        error = _times_exact(
            at_head, _head_weight(head, columns, width, outputs), error, PRECISION, ACCUMULATOR
        )  # fmt: skip
        held = _behind_activation(
            error, s + (hidden - 1) * plane, e + (hidden - 1) * plane, m + (hidden - 1) * mask_plane,
            sums, sides, r, start, hidden - 1,
            depth, width, hidden, later, ACTIVATION, BIAS, COORDINATES, PRECISION, ACCUMULATOR, ROWS, COLUMNS,
        )  # fmt: skip
    if not ON_CHIP:
        tl.debug_barrier()
    for back in tl.range(1, hidden, num_stages=layers_at_once):
        layer = hidden - back
        at = hidden_at + (layer - 1) * hidden_pitch
        above = tl.cast(layer, tl.int64) * plane
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if ON_CHIP:
                error = _product_on_chip(
                    held, operands + at, width, False, ROWS, COLUMNS, PRECISION, ACCUMULATOR
                )  # fmt: skip
            else:
                error = _product(
                    e + above, r, width, operands + at, columns, width, width, width,
                    False, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
                )  # fmt: skip
            held = _behind_activation(
                error, s + (above - plane), e + (above - plane), m + tl.cast(layer - 1, tl.int64) * mask_plane,
                sums, sides, r, start, layer - 1, depth, width, hidden, later,
                ACTIVATION, BIAS, COORDINATES, PRECISION, ACCUMULATOR, ROWS, COLUMNS,
            )  # fmt: skip
        if not ON_CHIP:
            tl.debug_barrier()


# ---- weight gradients --------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "first", "step", "later", "length"])
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
    """Write one range of points' part of a tile of ``errors^T features`` of one layer of one network.

    Arguments as in :func:`mlp_forward` and :func:`mlp_backward`. The parts lie at ``dense`` in a model's partial sums,
    ``dense_pitch`` apart: the weights (width, width) of all layers between hidden ones and, ENCODED, (width, depth) of
    the first. Ranges have ``length`` points, a multiple of TERMS.
    """
    model = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    down: tl.constexpr = (width + ROWS - 1) // ROWS
    across = (width + COLUMNS - 1) // COLUMNS
    within = tile % (down * across)
    layer = 1 + tile // (down * across)
    plane = tl.cast(capacity, tl.int64) * width
    features += model * hidden * plane
    errors += model * hidden * plane
    out = partials + (model * partial_model + dense + part * dense_pitch)
    begin = part * length
    end = tl.minimum(begin + length, n)
    if ENCODED:
        first_layer = layer >= hidden
        if first_layer:
            across = tl.cdiv(depth, COLUMNS)
            within = tile - (hidden - 1) * down * tl.cdiv(width, COLUMNS)
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
                numbers = _row_numbers(order, step, size, first, p, p < n, GATHERED)
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


# ---- update ------------------------------------------------------------------------------------------------------


@triton.jit
def _constant(x, VALUE: tl.constexpr):
    """Return a constant in all digits of the numbers of ``x``: a bare one is taken as fp32."""
    return tl.full(x.shape, VALUE, x.dtype)


@triton.jit(do_not_specialize=["step"])
def mlp_update(
    parameters,
    operands,
    gradients,
    means,
    squares,
    trained,
    partials,
    table,
    rates,
    factors,
    step,
    parameter_model,
    partial_model,
    REDUCE: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    COPY: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add up the partial sums of some parameters (REDUCE), and take the step of an OPTIMIZER on them.

    It is "adam", "adamw", "sgd" or "none"; Adam's constants are BETA1, BETA2 and EPSILON.

    ``parameters``, ``gradients``, ``means``, ``squares``: (models, Q); ``operands``: their copy for products (COPY);
    ``trained``: (Q,) bytes, 0 for frozen ones. ``table``: one row per program: place of the parameter, first element,
    number of elements, columns; where the first part of its gradient lies, how far apart its rows, columns and parts
    are, and how many parts there are. ``rates``: (steps, models, 4), the learning rate, the rate over Adam's first bias
    correction, the root of its second, the weight decay; ``factors``: (models,), of the sums. Without REDUCE gradients
    are read, else written where there is no OPTIMIZER.
    """
    model = tl.program_id(1).to(tl.int64)
    models = tl.num_programs(1)
    partials += model * partial_model
    table += 9 * tl.program_id(0)
    element = tl.load(table + 1) + tl.arange(0, BLOCK)
    there = element < tl.load(table + 2)
    places = tl.load(table) + element
    moved = there & (tl.load(trained + places, mask=there, other=0) != 0)
    places += model * parameter_model
    if REDUCE:
        columns = tl.load(table + 3)
        source = (
            tl.load(table + 4) + (element // columns) * tl.load(table + 5) + (element % columns) * tl.load(table + 6)
        )
        pitch, count = tl.load(table + 7), tl.load(table + 8)
        gradient = tl.zeros((BLOCK,), ACCUMULATOR)
        for begin in range(0, count, PARTS):
            part = begin + tl.arange(0, PARTS).to(tl.int64)
            some = tl.load(
                partials + part[:, None] * pitch + source[None, :],
                mask=(part < count)[:, None] & there[None, :],
                other=0.0,
            )
            gradient += tl.sum(some, 0)
        gradient *= tl.load(factors + model)
        if OPTIMIZER == "none":
            tl.store(gradients + places, gradient, mask=there)
    else:
        gradient = tl.load(gradients + places, mask=there, other=0.0)
    if OPTIMIZER != "none":
        rates += (step * models + model) * 4
        rate = tl.load(rates)
        weight_decay = tl.load(rates + 3)
        parameter = tl.load(parameters + places, mask=there, other=0.0)
        if OPTIMIZER == "sgd":
            parameter -= rate * (gradient + weight_decay * parameter)
        else:
            if OPTIMIZER == "adam":
                gradient += weight_decay * parameter
            else:
                parameter -= rate * weight_decay * parameter
            mean = tl.load(means + places, mask=there, other=0.0)
            square = tl.load(squares + places, mask=there, other=0.0)
            mean += _constant(mean, 1 - BETA1) * (gradient - mean)
            square = _constant(square, BETA2) * square + _constant(square, 1 - BETA2) * (gradient * gradient)
            tl.store(means + places, mean, mask=moved)
            tl.store(squares + places, square, mask=moved)
            size = tl.sqrt(square) / tl.load(rates + 2) + _constant(square, EPSILON)
            parameter -= tl.load(rates + 1) * (mean / size)
        tl.store(parameters + places, parameter, mask=moved)
        if COPY:
            tl.store(operands + places, parameter.to(operands.dtype.element_ty), mask=moved)


# ---- launches ----------------------------------------------------------------------------------------------------


def passes_configs(kind: str, width: int, activation: str, large: bool) -> tuple[Config, Config, bool]:
    """Return the tiles of the passes, forward and backward, for a layer, and whether features stay on the chip.

    ``large``: a GPU since sm_90 with :data:`LARGE_SHARED` bytes per program.
    """
    columns = max(16, triton.next_power_of_2(width))
    size = "large" if large else "small"
    on_chip = _config("mlp_on_chip", kind, size)
    heavy = activation in HEAVY
    if on_chip is not None and columns <= (HEAVY_ON_CHIP if heavy else on_chip.columns):
        ragged = width < columns and columns > RAGGED_ROWS
        on_chip = replace(on_chip, rows=RAGGED_ROWS if ragged else on_chip.rows, columns=columns)
        return on_chip, on_chip, True
    forward = _as_config(STEPS["mlp_forward", kind, size])
    if heavy:
        forward = _config("mlp_forward_heavy", kind, size) or forward
    backward = _config("mlp_backward", kind, size) or forward
    forward = replace(forward, columns=min(forward.columns, columns))
    return forward, replace(backward, columns=min(backward.columns, columns)), False


def _config(kernel: str, kind: str, size: str) -> Config | None:
    """Return the tile of a pass, or None where the table has none of its own."""
    row = STEPS.get((kernel, kind, size))
    return None if row is None else _as_config(row)


def _as_config(row: ProductRow) -> Config:
    return Config(*row[:-1])


def weight_gradients_config(kind: str, width: int, encoded: bool) -> Config:
    """Return the tile of :func:`mlp_weight_gradients` for a width, where the first layer is one of its own or not."""
    config = _as_config(STEPS["mlp_weight_gradients" + "_encoded" * encoded, kind, "any"])
    side = max(16, triton.next_power_of_2(width))
    return replace(config, rows=min(config.rows, side), columns=min(config.columns, side))


def update_constants(kind: str) -> dict[str, Any]:
    """Return the compile-time choices of :func:`mlp_update` and its resources.

    No product is fused with a sum: whether a gradient was stored in between or not, an update has the same bits.
    """
    return {
        "ACCUMULATOR": tl.float64 if kind == "fp64" else tl.float32,
        "BLOCK": BLOCK,
        "PARTS": PARTS,
        "num_warps": UPDATE_WARPS,
        "enable_fp_fusion": False,
    }
