"""Tiles of a tangent kernel, one program per tile: ``K = sum_l (Z_l Z_l'^T + bias) * (S_l S_l'^T)``.

Operands are *slabs*: the columns of all factors, cut into pieces of 128 bytes, each piece stored for all points next
to each other. A tile's slab is then one contiguous block of memory, a few kilobytes, whatever the widths of the layers
are: it needs one address, and it is what the copy engine of a Hopper GPU moves at once. The layout is made by
``inrfast.ops.operands``, which also says what the tables hold.

Layers come in two kinds. In a *narrow* layer one factor has a few columns (coordinates, the outputs of the head); its
product is summed by fused multiply-adds, the other factor is multiplied on the tensor cores. In a *wide* layer both
are. A tile keeps three accumulators in registers, and nothing N x N but the result is ever written.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.formats import FORMATS, product_precision
from inrfast.kernels.tiles import Config

Side = tuple[Any, Any, Any]
"""One side of a kernel: slabs, narrow columns and scales."""


@triton.jit
def _slab(operand, slab, point, padded, BLOCK: tl.constexpr, SLAB: tl.constexpr, COPY_ENGINE: tl.constexpr):
    """Load one slab of BLOCK points: contiguous memory."""
    if COPY_ENGINE:
        return operand.load([slab * padded + point, 0])
    else:
        start = (tl.cast(slab, tl.int64) * padded + point) * SLAB
        places = tl.arange(0, BLOCK)[:, None] * SLAB + tl.arange(0, SLAB)[None, :]
        return tl.load(operand + start + places)


@triton.jit
def _product(
    total,
    rows,
    columns,
    slab,
    low,
    i,
    j,
    rows_padded,
    columns_padded,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
):
    """Add the product of one slab to ``total``; of two planes, the smallest products first."""
    a = _slab(rows, slab, i, rows_padded, BLOCK, SLAB, COPY_ENGINE)
    b = _slab(columns, slab, j, columns_padded, BLOCK, SLAB, COPY_ENGINE)
    if PLANES == 2:
        a_low = _slab(rows, slab + low, i, rows_padded, BLOCK, SLAB, COPY_ENGINE)
        b_low = _slab(columns, slab + low, j, columns_padded, BLOCK, SLAB, COPY_ENGINE)
        total = tl.dot(a_low, b.T, total, input_precision=PRECISION, out_dtype=total.dtype)
        total = tl.dot(a, b_low.T, total, input_precision=PRECISION, out_dtype=total.dtype)
    return tl.dot(a, b.T, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def _products(
    total,
    factor,
    rows,
    columns,
    start,
    stop,
    first,
    low,
    i,
    j,
    rows_padded,
    columns_padded,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
):
    """Add the products of slabs ``start`` to ``stop`` to ``total``; promoted, each times ``factor``.

    Tensor cores cut off what does not fit their fp32 sums: a chain of them loses a little at every step, always toward
    zero. Promoted, a chain is no longer than one slab's products and begins at zero; what it gives is added by fused
    multiply-adds, which round.
    """
    for t in tl.range(start, stop, num_stages=STAGES):
        if PROMOTED:
            found = _product(
                tl.zeros((BLOCK, BLOCK), total.dtype), rows, columns, first + t, low, i, j, rows_padded, columns_padded,
                BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
            total = tl.fma(found, factor, total)
        else:
            total = _product(
                total, rows, columns, first + t, low, i, j, rows_padded, columns_padded,
                BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
    return total


@triton.jit
def _store(
    out,
    i,
    j,
    tile,
    n,
    m,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOWER: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Store a tile, only what is on or below the diagonal if LOWER; or, TURNED, the mirror image of what is below.

    A few columns at a time: all addresses at once would not fit the registers, and a whole tile turned over would take
    shared memory that holds slabs on their way.
    """
    if COLUMNS > 32:
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        _store(out, i, j, left, n, m, stride, ROWS, COLUMNS // 2, LOWER, TURNED)
        _store(out, i, j + COLUMNS // 2, right, n, m, stride, ROWS, COLUMNS // 2, LOWER, TURNED)
    else:
        r = tl.arange(0, ROWS)
        c = tl.arange(0, COLUMNS)
        if TURNED:
            inside = (j + c < m)[:, None] & (i + r < n)[None, :] & ((j + c)[:, None] < (i + r)[None, :])
            tl.store(
                out + (tl.cast(j, tl.int64) * stride + i) + (c[:, None] * stride + r[None, :]), tile.T, mask=inside
            )
        else:
            inside = (i + r < n)[:, None] & (j + c < m)[None, :]
            if LOWER:
                inside &= (i + r)[:, None] >= (j + c)[None, :]
            places = r[:, None] * stride + c[None, :]
            tl.store(out + (tl.cast(i, tl.int64) * stride + j) + places, tile, mask=inside)


@triton.jit
def _tile(
    rows,
    columns,
    narrow_rows,
    narrow_columns,
    scale_rows,
    scale_columns,
    segments,
    values,
    row_place,
    column_place,
    model,
    rows_padded,
    columns_padded,
    slabs,
    narrow,
    narrow_layers,
    layers,
    one,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
):
    """Return one tile of one model's kernel and its first row and column; the pointers ``*_place`` hold its place."""
    i = tl.load(row_place) * BLOCK
    j = tl.load(column_place) * BLOCK
    first = model * (PLANES * slabs)
    offsets = tl.arange(0, BLOCK)
    narrow_rows += model.to(tl.int64) * narrow * rows_padded + i
    narrow_columns += model.to(tl.int64) * narrow * columns_padded + j

    total = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
    ones = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + one
    slab = 0
    column = 0
    # A loop for each kind of layer: the accumulators of both together would not fit the registers.
    for layer in range(0, narrow_layers):
        stop = tl.load(segments + 2 * layer)
        right = _products(
            tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + tl.load(values + 2 * layer), ones,
            rows, columns, slab, stop, first, slabs, i, j, rows_padded, columns_padded,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, STAGES, COPY_ENGINE,
        )  # fmt: skip
        slab = stop
        stop = tl.load(segments + 2 * layer + 1)
        weight = tl.load(values + 2 * layer + 1)
        for c in range(column, stop):
            x = tl.load(narrow_rows + tl.cast(c, tl.int64) * rows_padded + offsets) * weight
            y = tl.load(narrow_columns + tl.cast(c, tl.int64) * columns_padded + offsets)
            total = tl.fma(right * x[:, None], y[None, :].broadcast_to(BLOCK, BLOCK), total)
        column = stop
    for layer in range(narrow_layers, layers):
        stop = tl.load(segments + 2 * layer)
        left = _products(
            tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + tl.load(values + 2 * layer), ones,
            rows, columns, slab, stop, first, slabs, i, j, rows_padded, columns_padded,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, STAGES, COPY_ENGINE,
        )  # fmt: skip
        slab = stop
        stop = tl.load(segments + 2 * layer + 1)
        right = _products(
            total if PROMOTED else tl.zeros((BLOCK, BLOCK), ACCUMULATOR), left,
            rows, columns, slab, stop, first, slabs, i, j, rows_padded, columns_padded,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, STAGES, COPY_ENGINE,
        )  # fmt: skip
        slab = stop
        total = right if PROMOTED else tl.fma(left, right, total)

    # Read again, or the addresses below would be computed up there and kept in registers through the loops.
    i = tl.load(row_place, volatile=True) * BLOCK
    j = tl.load(column_place, volatile=True) * BLOCK
    r = tl.load(scale_rows + (model.to(tl.int64) * rows_padded + i) + offsets)
    c = tl.load(scale_columns + (model.to(tl.int64) * columns_padded + j) + offsets)
    return total * r[:, None] * c[None, :], i, j


@triton.jit(do_not_specialize=["slabs", "narrow", "narrow_layers", "layers"])
def gram_tile(
    rows,
    columns,
    narrow_rows,
    narrow_columns,
    scale_rows,
    scale_columns,
    segments,
    values,
    order,
    out,
    n,
    m,
    rows_padded,
    columns_padded,
    slabs,
    narrow,
    narrow_layers,
    layers,
    one,
    stride,
    model_stride,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Compute one tile of one model's kernel, and its mirror image.

    ``rows``, ``columns``: slabs (models, PLANES, slabs, points, SLAB), as pointers or descriptors of all points of all
    slabs; ``narrow_*``: (models, narrow, points); ``scale_*``: (models, points), powers of two that undo the slabs'
    scales; ``segments`` (layers, 2): where a layer's two factors end, in slabs, or in narrow columns for the second
    factor of a narrow layer; ``values`` (layers, 2): the bias in units of the scaled product, and a narrow layer's
    weight; ``one``: 1, which the compiler must not know, or it would make one chain of a promoted sum again. ``order``
    (tiles, 2): places of the tiles; ``out``: rows of ``stride`` elements, models ``model_stride`` apart.
    """
    place = order + 2 * tl.program_id(0).to(tl.int64)
    model = tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    total, i, j = _tile(
        rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
        place, place + 1, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
        BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
    )  # fmt: skip
    out += model.to(tl.int64) * model_stride
    if SYMMETRIC:
        if i == j:
            # Two halves may differ by the order of their products: the lower one counts.
            total = tl.where(offsets[:, None] >= offsets[None, :], total, total.T)
    _store(out, i, j, total, n, m, stride, BLOCK, BLOCK, False, False)
    if SYMMETRIC:
        if i != j:
            _store(out, j, i, total.T, m, n, stride, BLOCK, BLOCK, False, False)


@triton.jit(do_not_specialize=["slabs", "narrow", "narrow_layers", "layers", "tiles", "models"])
def gram_stream(
    rows,
    columns,
    narrow_rows,
    narrow_columns,
    scale_rows,
    scale_columns,
    segments,
    values,
    order,
    out,
    n,
    m,
    rows_padded,
    columns_padded,
    slabs,
    narrow,
    narrow_layers,
    layers,
    one,
    stride,
    model_stride,
    tiles,
    models,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Compute what :func:`gram_tile` does by a few programs, each of which walks over tiles of all models.

    One loop over the slabs of all its tiles: slabs of the next factor and of the next tile are on their way while the
    last are multiplied. Arguments as there; ``tiles`` and ``models`` count what the grid does not.
    """
    offsets = tl.arange(0, BLOCK)
    programs = tl.num_programs(0)
    first_stop = tl.load(segments)
    first_bias = tl.load(values)
    index = tl.program_id(0) - programs
    mine = (tiles * models - tl.program_id(0) + programs - 1) // programs
    slab = slabs - 1
    i = 0
    j = 0
    model = 0
    layer = 0
    second = 0
    stop = first_stop
    column = 0
    # The products that are being summed, promoted ones beside ``left``; the first factor of a wide layer.
    chain = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + first_bias
    left = chain
    total = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
    ones = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + one
    for _ in tl.range(0, mine * slabs, num_stages=STAGES):
        slab = tl.where(slab == slabs - 1, 0, slab + 1)
        if slab == 0:
            index += programs
            model = index // tiles
            place = order + 2 * tl.cast(index % tiles, tl.int64)
            i = tl.load(place) * BLOCK
            j = tl.load(place + 1) * BLOCK
        if PROMOTED:
            found = _product(
                tl.zeros((BLOCK, BLOCK), ACCUMULATOR), rows, columns, model * (PLANES * slabs) + slab, slabs, i, j,
                rows_padded, columns_padded, BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
            # The pipeliner must see a use of a chain of products before the branches.
            found *= one
            if second == 1:
                total = tl.fma(found, left, total)
            else:
                left = tl.fma(found, ones, left)
        else:
            chain = _product(
                chain, rows, columns, model * (PLANES * slabs) + slab, slabs, i, j, rows_padded, columns_padded,
                BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
        if slab + 1 == stop:
            if layer >= narrow_layers and second == 0:
                second = 1
                stop = tl.load(segments + 2 * layer + 1)
                if not PROMOTED:
                    left = chain
                    chain = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
            else:
                if second == 1:
                    if not PROMOTED:
                        total = tl.fma(left, chain, total)
                else:
                    last = tl.load(segments + 2 * layer + 1)
                    weight = tl.load(values + 2 * layer + 1)
                    x_place = narrow_rows + tl.cast(model, tl.int64) * narrow * rows_padded + i
                    y_place = narrow_columns + tl.cast(model, tl.int64) * narrow * columns_padded + j
                    for c in range(column, last):
                        x = tl.load(x_place + tl.cast(c, tl.int64) * rows_padded + offsets) * weight
                        y = tl.load(y_place + tl.cast(c, tl.int64) * columns_padded + offsets)
                        factor = left if PROMOTED else chain
                        total = tl.fma(factor * x[:, None], y[None, :].broadcast_to(BLOCK, BLOCK), total)
                    column = last
                second = 0
                layer += 1
                if layer == layers:
                    r = tl.load(scale_rows + (tl.cast(model, tl.int64) * rows_padded + i) + offsets)
                    c = tl.load(scale_columns + (tl.cast(model, tl.int64) * columns_padded + j) + offsets)
                    total = total * r[:, None] * c[None, :]
                    target = out + tl.cast(model, tl.int64) * model_stride
                    _store(target, i, j, total, n, m, stride, BLOCK, BLOCK, SYMMETRIC, False)
                    if SYMMETRIC:
                        _store(target, i, j, total, n, m, stride, BLOCK, BLOCK, SYMMETRIC, True)
                    total = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
                    layer = 0
                    column = 0
                stop = tl.load(segments + 2 * layer)
                bias = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + tl.load(values + 2 * layer)
                if PROMOTED:
                    left = bias
                else:
                    chain = bias


@triton.jit(do_not_specialize=["slabs", "narrow", "narrow_layers", "layers", "tiles"])
def gram_norm(
    rows,
    columns,
    narrow_rows,
    narrow_columns,
    scale_rows,
    scale_columns,
    segments,
    values,
    order,
    out,
    n,
    m,
    rows_padded,
    columns_padded,
    slabs,
    narrow,
    narrow_layers,
    layers,
    one,
    tiles,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Write the sum of squares of what one tile, with its mirror image, adds to one model's kernel.

    ``out``: (models, tiles), fp64; the rest as in :func:`gram_tile`. The squares are summed along rows in the
    accumulator's precision, in units in which they neither overflow nor vanish, then in fp64.
    """
    tile = tl.program_id(0).to(tl.int64)
    place = order + 2 * tile
    model = tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    total, i, j = _tile(
        rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
        place, place + 1, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
        BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
    )  # fmt: skip
    total = tl.where((i + offsets < n)[:, None] & (j + offsets < m)[None, :], total, 0.0)
    if SYMMETRIC:
        if i == j:
            # Only the half that the dense kernel takes, so that both agree to the last bit of every entry.
            total = tl.where(offsets[:, None] >= offsets[None, :], total, 0.0)
    largest = tl.max(tl.max(tl.abs(total), 1), 0)
    # Powers of two, so that nothing is rounded; of 0, Inf and NaN no multiple is a plausible number.
    unit = tl.where(largest > 2.0**57, 2.0**-70, tl.where(largest < 2.0**-38, 2.0**96, 1.0)).to(ACCUMULATOR)
    squares = total * unit
    squares = squares * squares
    if SYMMETRIC:
        if i == j:
            squares = tl.where(offsets[:, None] == offsets[None, :], 0.5 * squares, squares)
        squares = 2.0 * squares
    found = tl.sum(tl.sum(squares, 1).to(tl.float64), 0)
    back = 1.0 / unit.to(tl.float64)
    tl.store(out + (model.to(tl.int64) * tiles + tile), found * back * back)


@triton.jit
def _add_product(
    tile, vectors, out, chunks, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    """Add the product of some columns of a tile with their rows of V to a block of ``K V``, WIDTH columns at a time.

    They are added in memory: sums in registers would have to live through the loops over the layers. Nor would the
    split numbers of a whole tile fit the registers.
    """
    if COLUMNS > 32:
        left, right = tl.split(tl.permute(tl.reshape(tile, (BLOCK, 2, COLUMNS // 2)), (0, 2, 1)))
        _add_product(left, vectors, out, chunks, BLOCK, COLUMNS // 2, WIDTH, PRECISION)
        _add_product(right, vectors + COLUMNS // 2, out, chunks, BLOCK, COLUMNS // 2, WIDTH, PRECISION)
    else:
        places = tl.arange(0, BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        turned = tl.arange(0, WIDTH)[:, None] * BLOCK + tl.arange(0, COLUMNS)[None, :]
        for c in range(0, chunks):
            start = tl.cast(c, tl.int64) * (BLOCK * WIDTH)
            v = tl.load(vectors + start + turned)
            total = tl.load(out + start + places)
            total = tl.dot(tile, v.T, total, input_precision=PRECISION, out_dtype=total.dtype)
            tl.store(out + start + places, total)
            # What one thread has stored another may load in the next round.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["slabs", "narrow", "narrow_layers", "layers", "splits", "chunks"])
def gram_product(
    rows,
    columns,
    narrow_rows,
    narrow_columns,
    scale_rows,
    scale_columns,
    segments,
    values,
    places,
    vectors,
    out,
    m,
    rows_padded,
    columns_padded,
    slabs,
    narrow,
    narrow_layers,
    layers,
    one,
    splits,
    chunks,
    BLOCK: tl.constexpr,
    SLAB: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    STAGES: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
    WIDTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Add the products of a range of column tiles with their rows of V to one block of rows of ``K V``.

    ``places``: 0, 1, 2, ..., as many as there are tiles per side; ``vectors``: (models, column tiles, chunks, WIDTH,
    BLOCK), V in pieces that are turned over, zero from its m-th row on; ``out``: (splits, models, row tiles, chunks,
    BLOCK, WIDTH), zeros at first, whatever rows beyond the last point become; the rest as in :func:`gram_tile`.

    A program walks over its tiles in order and adds to rows that are its own, so that the result does not depend on
    which program runs when. The price: a symmetric kernel's tiles are computed twice.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    model = tl.program_id(2)
    tiles = tl.cdiv(m, BLOCK)
    for t in range(split * tiles // splits, (split + 1) * tiles // splits):
        total, i, j = _tile(
            rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
            places + block, places + t, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
        )  # fmt: skip
        total = tl.where((j + tl.arange(0, BLOCK) < m)[None, :], total, 0.0)
        # From the places read again, or these addresses too would be kept through the loops.
        source = (model.to(tl.int64) * tiles + j // BLOCK) * chunks * (BLOCK * WIDTH)
        target = (split.to(tl.int64) * tl.num_programs(2) + model) * tl.num_programs(0) + i // BLOCK
        target = target * chunks * (BLOCK * WIDTH)
        _add_product(total, vectors + source, out + target, chunks, BLOCK, BLOCK, WIDTH, PRODUCT)


def launch(
    name: str,
    config: Config,
    rows: Side,
    columns: Side,
    out: Any,
    order: Any,
    segments: Any,
    values: Any,
    narrow_layers: int,
    symmetric: bool,
    multiprocessors: int = 2,
) -> None:
    """Compute every tile of ``order`` of every model, by :func:`gram_tile` or :func:`gram_stream`.

    ``rows`` and ``columns`` are slabs (models, planes, slabs, points, columns of a slab), narrow columns (models,
    columns, points) and scales (models, points); points may be a part of those in memory, from a multiple of 16 on.
    A stream is right for every ``out``, but made for those of which all numbers are multiples of 16: see ``tiles``.
    ``out`` is (models, n, m), its last stride 1; the name is that of the operands' format; ``multiprocessors`` those of
    the GPU.
    """
    models, n, m = out.shape
    if len(order) == 0 or models == 0:
        return
    pointers, sizes, constants = _arguments(name, config, rows, columns, segments, values, narrow_layers)
    arguments = [*pointers, order, out, n, m, *sizes, out.stride(1), out.stride(0)]
    constants["SYMMETRIC"] = symmetric
    if config.design == "tile":
        gram_tile[(len(order), models)](*arguments, **constants)
        return
    resident = max(1, multiprocessors * 8 // config.warps)
    gram_stream[(min(resident, len(order) * models),)](*arguments, len(order), models, **constants)


def launch_norm(
    name: str,
    config: Config,
    rows: Side,
    columns: Side,
    out: Any,
    order: Any,
    segments: Any,
    values: Any,
    narrow_layers: int,
    n: int,
    m: int,
    symmetric: bool,
) -> None:
    """Run :func:`gram_norm` on every tile of ``order`` and every model; ``out`` is (models, tiles), contiguous fp64."""
    if out.numel() == 0:
        return
    pointers, sizes, constants = _arguments(name, config, rows, columns, segments, values, narrow_layers)
    gram_norm[(len(order), len(out))](*pointers, order, out, n, m, *sizes, len(order), SYMMETRIC=symmetric, **constants)


def launch_product(
    name: str,
    config: Config,
    rows: Side,
    columns: Side,
    vectors: Any,
    out: Any,
    places: Any,
    segments: Any,
    values: Any,
    narrow_layers: int,
    m: int,
) -> None:
    """Run :func:`gram_product` on every block of rows, split and model; ``vectors`` and ``out`` are contiguous."""
    splits, models, blocks, chunks, _, width = out.shape
    if out.numel() == 0 or m == 0:
        return
    pointers, sizes, constants = _arguments(name, config, rows, columns, segments, values, narrow_layers)
    gram_product[(blocks, splits, models)](
        *pointers,
        places,
        vectors,
        out,
        m,
        *sizes,
        splits,
        chunks,
        WIDTH=width,
        PRODUCT=product_precision(name),
        **constants,
    )


def _arguments(
    name: str, config: Config, rows: Side, columns: Side, segments: Any, values: Any, narrow_layers: int
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return what all kernels take: pointers to both sides and the tables, sizes, and compile-time choices."""
    layout = FORMATS[name]
    left, right = rows[0], columns[0]
    padded = [t.stride(2) // layout.slab for t in (left, right)]
    copy_engine = config.copy_engine and all(_countable(t) for t in (left, right))
    if copy_engine:
        left, right = (_descriptor(t, config.block, layout.slab) for t in (left, right))
    pointers = [left, right, rows[1], columns[1], rows[2], columns[2], segments, values]
    sizes = [*padded, rows[0].shape[2], rows[1].shape[1], narrow_layers, len(segments), 1.0]
    constants = {
        "BLOCK": config.block,
        "SLAB": layout.slab,
        "PLANES": layout.planes,
        "PRECISION": layout.precision,
        "PROMOTED": layout.promoted,
        "ACCUMULATOR": tl.float64 if layout.accumulator == "fp64" else tl.float32,
        "STAGES": config.stages,
        "COPY_ENGINE": copy_engine,
        "num_warps": config.warps,
        "num_stages": config.stages,
        "enable_fp_fusion": True,
    }
    return pointers, sizes, constants


def _rows_in_memory(slabs: Any) -> int:
    """Return the rows of all slabs, models and planes from the first point on, each of the slab's columns."""
    models, planes, count, points, _ = slabs.shape
    return (models * planes * count - 1) * (slabs.stride(2) // slabs.stride(3)) + points


def _countable(slabs: Any) -> bool:
    """Return whether a descriptor can count the rows: in 32 bits."""
    return _rows_in_memory(slabs) < 2**31


def _descriptor(slabs: Any, block: int, slab: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(slabs, [_rows_in_memory(slabs), slab], [slab, 1], [block, slab])
