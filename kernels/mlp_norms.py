"""Batch norms of the training step: statistics from tiles, norms folded into the layers above, and their gradients.

A norm behind the activation of layer l maps features z to ``y = s z + t``, with ``s = scale / sqrt(var + eps)`` and
``t = shift - s mean``. No pass over the points writes y: the layer above takes ``W' = W diag(s)`` and ``b' = b + W t``.
From its errors E and n points, the product ``G = E^T Z`` and the sums ``g = sum_n E`` follow

    dW = G diag(s) + g t^T,    dshift_j = sum_i W_ij g_i,    dscale_j = (sum_i W_ij G_ij - mean_j dshift_j) r_j,
    dZ = E W' - c - d Z,       d = s r dscale / n,           c = s dshift / n - d mean,

with ``r = 1 / sqrt(var + eps)``: both sums over the points that batch norm's backward pass needs come from the product
that the gradient of the weight needs anyway. (Batch norm and its gradient: Ioffe and Szegedy, ICML 2015.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first(size, most):
    """Return where a program's columns or rows begin; that it is below ``most`` bounds offsets of 32 bits."""
    return tl.minimum(tl.program_id(0) * size, most)


@triton.jit
def _merged(moments, columns, n, tiles, width: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr):
    """Return mean and biased variance of some columns, from the sums and squared deviations of tiles of ROWS points."""
    present = columns < width
    total = tl.zeros(columns.shape, tl.float64)
    for begin in range(0, tiles, TILES):
        tile = begin + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & present[None, :]
        places = tile.to(tl.int64)[:, None] * (2 * width) + columns[None, :]
        total += tl.sum(tl.load(moments + places, mask=inside, other=0.0).to(tl.float64), 0)
    mean = total / n
    squares = tl.zeros(columns.shape, tl.float64)
    for begin in range(0, tiles, TILES):
        tile = begin + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & present[None, :]
        places = tile.to(tl.int64)[:, None] * (2 * width) + columns[None, :]
        count = tl.minimum(tl.maximum(n - tile * ROWS, 1), ROWS).to(tl.float64)[:, None]
        away = tl.load(moments + places, mask=inside, other=0.0).to(tl.float64) / count - mean[None, :]
        within = tl.load(moments + places + width, mask=inside, other=0.0).to(tl.float64)
        squares += tl.sum(tl.where(inside, within + count * away * away, 0.0), 0)
    return mean, squares / n


@triton.jit(do_not_specialize=["n", "norm", "track"])
def mlp_norm_maps(
    parameters,
    moments,
    maps,
    means,
    variances,
    counts,
    n,
    tiles,
    norm,
    norms,
    track,
    scale,
    shift,
    parameter_model,
    width: tl.constexpr,
    RUNNING: tl.constexpr,
    EPSILON: tl.constexpr,
    MOMENTUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write what a norm does to its features: ``maps`` (models, norms, 4, width), s, t, mean and r.

    ``moments`` (models, norms, tiles, 2, width) are sums and squared deviations of each tile's points. ``means``,
    ``variances`` (models, width) are the running statistics: with RUNNING those that count, else they move by MOMENTUM
    (or, where it is 0, by one over ``counts`` (models)) where ``track`` is not 0. ``scale`` and ``shift`` are places in
    ``parameters`` (models, Q).
    """
    model = tl.program_id(1).to(tl.int64)
    columns = _first(COLUMNS, width) + tl.arange(0, COLUMNS)
    present = columns < width
    parameters += model * parameter_model
    at = model * width + columns
    if RUNNING:
        mean = tl.load(means + at, mask=present, other=0.0).to(tl.float64)
        variance = tl.load(variances + at, mask=present, other=1.0).to(tl.float64)
    else:
        moments += (model * norms + norm) * tiles * (2 * width)
        mean, variance = _merged(moments, columns, n, tiles, width, ROWS, TILES)
        if track != 0:
            if MOMENTUM == 0:
                share = 1.0 / tl.load(counts + model).to(tl.float64)
            else:
                share = tl.full((), MOMENTUM, tl.float64)
            before = tl.load(means + at, mask=present, other=0.0).to(tl.float64)
            tl.store(means + at, before + share * (mean - before), mask=present)
            before = tl.load(variances + at, mask=present, other=0.0).to(tl.float64)
            unbiased = variance * n / (n - 1)
            tl.store(variances + at, before + share * (unbiased - before), mask=present)
    inverse = 1.0 / tl.sqrt(variance + tl.full((), EPSILON, tl.float64))
    scale_at, shift_at = tl.cast(scale, tl.int64) + columns, tl.cast(shift, tl.int64) + columns
    factor = tl.load(parameters + scale_at, mask=present, other=0.0).to(tl.float64) * inverse
    offset = tl.load(parameters + shift_at, mask=present, other=0.0).to(tl.float64) - factor * mean
    out = maps + (model * norms + norm) * (4 * width) + columns
    tl.store(out, factor, mask=present)
    tl.store(out + width, offset, mask=present)
    tl.store(out + 2 * width, mean, mask=present)
    tl.store(out + 3 * width, inverse, mask=present)


@triton.jit(do_not_specialize=["norm"])
def mlp_norm_fold(
    parameters,
    folded,
    operands,
    maps,
    norm,
    norms,
    weight,
    bias,
    rows,
    parameter_model,
    width: tl.constexpr,
    COPY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ``W diag(s)`` and ``b + W t`` of the layer above a norm, (rows, width) and (rows), into ``folded``.

    ``weight`` and ``bias`` are their places. COPY: the weights into ``operands`` too, in another dtype.
    """
    model = tl.program_id(1).to(tl.int64)
    parameters += model * parameter_model
    folded += model * parameter_model
    operands += model * parameter_model
    maps += (model * norms + norm) * (4 * width)
    i = _first(ROWS, rows) + tl.arange(0, ROWS)
    there, bias_at = i < rows, tl.cast(bias, tl.int64) + i
    total = tl.load(parameters + bias_at, mask=there, other=0.0).to(tl.float64)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        present = columns < width
        inside = there[:, None] & present[None, :]
        places = tl.cast(weight, tl.int64) + (i[:, None] * width + columns[None, :])
        factor = tl.load(maps + columns, mask=present, other=0.0)
        offset = tl.load(maps + width + columns, mask=present, other=0.0).to(tl.float64)
        own = tl.load(parameters + places, mask=inside, other=0.0)
        total += tl.sum(own.to(tl.float64) * offset[None, :], 1)
        scaled = own * factor[None, :]
        tl.store(folded + places, scaled, mask=inside)
        if COPY:
            tl.store(operands + places, scaled.to(operands.dtype.element_ty), mask=inside)
    tl.store(folded + bias_at, total, mask=there)


@triton.jit
def _summed(first, places, inside, pitch, parts, PARTS: tl.constexpr):
    """Return the sums, in fp64, of what ``parts`` hold at some places, ``pitch`` apart from one part to the next."""
    total = tl.zeros(places.shape, tl.float64)
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        at = first + part.to(tl.int64)[:, None] * pitch + places[None, :]
        total += tl.sum(tl.load(at, mask=(part < parts)[:, None] & inside[None, :], other=0.0).to(tl.float64), 0)
    return total


@triton.jit(do_not_specialize=["n", "norm", "parts", "bias_parts"])
def mlp_norm_backward(
    parameters,
    partials,
    maps,
    corrections,
    n,
    norm,
    norms,
    weight,
    rows,
    source,
    part_pitch,
    parts,
    bias_source,
    bias_pitch,
    bias_parts,
    slopes,
    parameter_model,
    partial_model,
    width: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Make of the partial products G of the layer above a norm its gradient, in place, and those of the norm.

    ``partials`` (models, partial_model) hold G (rows, width) in ``parts`` from ``source`` on and g (rows) in
    ``bias_parts`` from ``bias_source`` on; the first part becomes the gradient, the others 0. From ``slopes`` on, those
    of scale and shift are written (2, width), and ``corrections`` (models, norms, 2, width) are c and d.
    """
    model = tl.program_id(1).to(tl.int64)
    parameters += model * parameter_model + weight
    partials += model * partial_model
    products_at, sums_at = partials + tl.cast(source, tl.int64), partials + tl.cast(bias_source, tl.int64)
    maps += (model * norms + norm) * (4 * width)
    columns = _first(COLUMNS, width) + tl.arange(0, COLUMNS)
    slopes_at = partials + tl.cast(slopes, tl.int64) + columns
    present = columns < width
    factor = tl.load(maps + columns, mask=present, other=0.0).to(tl.float64)
    offset = tl.load(maps + width + columns, mask=present, other=0.0).to(tl.float64)
    shift_slope = tl.zeros((COLUMNS,), tl.float64)
    products = tl.zeros((COLUMNS,), tl.float64)
    one = tl.arange(0, ROWS * COLUMNS)
    column = _first(COLUMNS, width) + one % COLUMNS
    for start in range(0, rows, ROWS):
        i = start + tl.arange(0, ROWS)
        there = i < rows
        total = _summed(sums_at, i, there, bias_pitch, bias_parts, PARTS)
        row = start + one // COLUMNS
        inside = (row < rows) & (column < width)
        places = row * width + column
        product = tl.reshape(_summed(products_at, places, inside, part_pitch, parts, PARTS), (ROWS, COLUMNS))
        own = tl.load(
            parameters + (i[:, None] * width + columns[None, :]), mask=there[:, None] & present[None, :], other=0.0
        ).to(tl.float64)
        shift_slope += tl.sum(own * total[:, None], 0)
        products += tl.sum(own * product, 0)
        gradient = tl.reshape(product * factor[None, :] + total[:, None] * offset[None, :], (ROWS * COLUMNS,))
        for begin in range(0, parts, PARTS):
            part = begin + tl.arange(0, PARTS)
            tl.store(
                products_at + part.to(tl.int64)[:, None] * part_pitch + places[None, :],
                tl.where((part == 0)[:, None], gradient[None, :], 0.0),
                mask=(part < parts)[:, None] & inside[None, :],
            )
    mean = tl.load(maps + 2 * width + columns, mask=present, other=0.0).to(tl.float64)
    inverse = tl.load(maps + 3 * width + columns, mask=present, other=0.0).to(tl.float64)
    scale_slope = inverse * (products - mean * shift_slope)
    tl.store(slopes_at, scale_slope, mask=present)
    tl.store(slopes_at + width, shift_slope, mask=present)
    d = factor * inverse * scale_slope / n
    out = corrections + (model * norms + norm) * (2 * width) + columns
    tl.store(out, factor * shift_slope / n - d * mean, mask=present)
    tl.store(out + width, d, mask=present)
