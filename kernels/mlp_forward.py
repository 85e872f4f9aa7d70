"""The forward pass of the training step: tiles of points through all layers, to the errors at the head."""

from __future__ import annotations

import triton
import triton.language as tl

from inrfast.kernels.activations import NUMBERS, RELU, activate
from inrfast.kernels.losses import MSE, loss_and_slope
from inrfast.kernels.mlp_layers import (
    add_sums,
    head_weight,
    keep,
    layer_product,
    layer_product_on_chip,
    ones_and_coordinates,
    row_numbers,
    times_exact,
)


@triton.jit
def _exact_product(left, right, like, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Return ``left right`` in full precision; where ``like`` points to 16 bits, both are split in two halves."""
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
    """Return some columns of a first layer that takes coordinates, (16, columns): its bias, then its weight."""
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
    """Return value and slope at ``u``; each number of a layer's activation is stored as a sum of three fp32 numbers."""
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
    """Return errors at the head (ROWS, 16): weighted slopes of the loss, for the mean squared error half of them.

    Write a tile's sums, ``tiles`` elements apart: of the weighted losses, of the weights, and (except for the mean
    squared error, where they equal the losses) of the weighted squares of the slopes.
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
def _add_moments(values, alive, out, columns, width: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Write the sums of a tile's features and, ``width`` elements on, of their squared deviations from their mean."""
    counted = alive[:, None]
    wide = tl.where(counted, values.to(ACCUMULATOR), 0.0)
    total = tl.sum(wide, 0)
    count = tl.sum(alive.to(tl.int32), 0).to(ACCUMULATOR)
    away = tl.where(counted, wide - (total / count)[None, :], 0.0)
    tl.store(out + columns, total, mask=columns < width)
    tl.store(out + width + columns, tl.sum(away * away, 0), mask=columns < width)


@triton.jit(do_not_specialize=["n", "first", "step", "later", "begin", "end", "norm"])
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
    moments,
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
    begin,
    end,
    norm,
    norms,
    width: tl.constexpr,
    depth: tl.constexpr,
    outputs: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST: tl.constexpr,
    HEAD: tl.constexpr,
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
    """Take a tile of points of one network to its predictions; with GRADIENT, store what the backward pass needs.

    ON_CHIP: one block of COLUMNS holds all columns of a layer, and a tile's features go from product to product.

    ``inputs``: (models or 1, N, depth), coordinates or, without COORDINATES, their encodings in the operands' dtype;
    ``target``: (models or 1, N, outputs); ``weight``: (models or 1, N, weight_columns); ``numbers``: those of the loss,
    in full precision; ``parameters``: (models, Q) in full precision, ``operands``: the same in the operands' dtype,
    each parameter at its place; ``activation_numbers``: (hidden, NUMBERS, 3) fp32. The ``n`` rows of the launch are the
    points from ``first`` on or, GATHERED, those of ``order`` (models or 1, draws), of which each step takes ``size``
    consecutive. ``scales``: (steps, models) powers of two for the errors.

    ``features``, ``slopes``: (models, hidden, capacity, width); ``masks``: (models, hidden, capacity, bytes);
    ``head_errors``: (models, capacity, outputs), those of the predictions; ``totals``: (models, 2 or 3, tiles), see
    :func:`_errors`; ``partials``: (models, partial_model), where each tile writes the gradient of the head's bias
    (outputs), from ``tail`` on and ``thin_pitch`` apart. ``later``: add to what is there.

    FIRST: from the inputs on, else from the features of layer ``begin - 1``, which are there; HEAD: to the predictions,
    else to those of layer ``end - 1``, whose sums and squared deviations go to ``moments`` (models, norms, tiles, 2,
    width), for that layer's ``norm``.
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
    rows = row_numbers(order, step, size, first, p, alive, GATHERED)
    # From here on offsets are within a tile of points or a layer's weight, and fit 32 bits.
    z = features + tile * ROWS * width
    s = slopes + tile * ROWS * width
    m = masks + tile * ROWS * ((width + 7) // 8)
    held = tl.zeros((ROWS, COLUMNS), features.dtype.element_ty)
    if FIRST:
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if COORDINATES:
                first_weight = _first_weight(parameters, first_bias, columns, width, depth, BIAS)
                sides = ones_and_coordinates(inputs, rows, depth, COORDINATES, ROWS, ACCUMULATOR)
                u = _exact_product(sides, first_weight, features, PRECISION, ACCUMULATOR)
            else:
                u = layer_product(
                    inputs, rows, depth, operands, columns, depth, width, width,
                    True, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
                )  # fmt: skip
                if BIAS:
                    u += tl.load(first_bias + columns, mask=columns < width, other=0.0)[None, :]
            value, slope = _activated(u, activation_numbers, 0, ACTIVATION, short)
            keep(z, s, m, value, slope, r, start, width, ACTIVATION, GRADIENT, ROWS, COLUMNS)
            if ON_CHIP:
                held = value.to(held.dtype)
        if not ON_CHIP:
            tl.debug_barrier()
    elif ON_CHIP:
        i = tl.arange(0, COLUMNS)
        below = z + (tl.cast(begin, tl.int64) - 1) * plane
        held = tl.load(below + (r[:, None] * width + i[None, :]), mask=(i < width)[None, :], other=0.0)
    for layer in tl.range(begin, end, num_stages=layers_at_once):
        at = hidden_at + (layer - 1) * hidden_pitch
        above = tl.cast(layer, tl.int64) * plane
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if ON_CHIP:
                u = layer_product_on_chip(
                    held, operands + at, width, True, ROWS, COLUMNS, PRECISION, ACCUMULATOR
                )  # fmt: skip
            else:
                u = layer_product(
                    z + (above - plane), r, width, operands + at, columns, width, width, width,
                    True, ROWS, COLUMNS, TERMS, PRECISION, ACCUMULATOR, STAGES,
                )  # fmt: skip
            if BIAS:
                u += tl.load(parameters + (at + bias_at) + columns, mask=columns < width, other=0.0)[None, :]
            value, slope = _activated(u, activation_numbers, layer, ACTIVATION, short)
            keep(
                z + above, s + above, m + tl.cast(layer, tl.int64) * mask_plane, value, slope, r, start,
                width, ACTIVATION, GRADIENT, ROWS, COLUMNS,
            )  # fmt: skip
            if ON_CHIP:
                held = value.to(held.dtype)
        if not ON_CHIP:
            tl.debug_barrier()

    if HEAD:
        y = tl.zeros((ROWS, 16), ACCUMULATOR)
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if not ON_CHIP:
                places = r[:, None] * width + columns[None, :]
                held = tl.load(z + (hidden - 1) * plane + places, mask=(columns < width)[None, :], other=0.0)
            y = times_exact(held, head_weight(head, columns, width, outputs).T, y, PRECISION, ACCUMULATOR)
        if BIAS:
            y += tl.load(head_bias + o, mask=o < outputs, other=0.0)[None, :]
        weighted = _errors(
            y, target, weight, numbers, rows, alive, outputs, weight_columns, totals, tiles, later, WEIGHTED, LOSS
        )  # fmt: skip
        if GRADIENT:
            if SCALED:
                weighted *= tl.load(scales + step * models + model)
            if BIAS:
                add_sums(sums + o, o < outputs, tl.sum(weighted, 0), later)
            here = head_errors + tile * ROWS * outputs
            places = r[:, None] * outputs + o[None, :]
            tl.store(here + places, weighted.to(head_errors.dtype.element_ty), mask=(o < outputs)[None, :])
    else:
        out = moments + ((model * norms + norm) * tiles + tile) * (2 * width)
        for start in tl.range(0, across, COLUMNS, num_stages=1):
            columns = start + tl.arange(0, COLUMNS)
            if not ON_CHIP:
                places = r[:, None] * width + columns[None, :]
                last = z + (tl.cast(end, tl.int64) - 1) * plane
                held = tl.load(last + places, mask=(columns < width)[None, :], other=0.0)
            _add_moments(held, alive, out, columns, width, ACCUMULATOR)
