"""Frobenius norm of a tangent kernel and its product with a matrix, tile by tile: the entries are never written.

A tile is computed as :mod:`inrfast.kernels.gram_tiles` says, and summed up by the program that computed it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.formats import product_precision
from inrfast.kernels.gram_tiles import Side, kernel_tile, launch_arguments
from inrfast.kernels.tiles import Config


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
    """Write the sum of squares of one tile and, SYMMETRIC, of its mirror image in one model's kernel.

    ``out``: (models, tiles), fp64; the rest as in ``gram_tile``. The squares are summed along rows in the
    accumulator's precision, in units in which they neither overflow nor vanish, then in fp64.
    """
    tile = tl.program_id(0).to(tl.int64)
    place = order + 2 * tile
    model = tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    total, i, j = kernel_tile(
        rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
        place, place + 1, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
        BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
    )  # fmt: skip
    total = tl.where((i + offsets < n)[:, None] & (j + offsets < m)[None, :], total, 0.0)
    if SYMMETRIC:
        if i == j:
            # Only the half that the dense kernel takes: both have the same entries, bit for bit.
            total = tl.where(offsets[:, None] >= offsets[None, :], total, 0.0)
    largest = tl.max(tl.max(tl.abs(total), 1), 0)
    # Powers of two round nothing; 0, Inf and NaN stay what they are.
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

    Sums are kept in memory: in registers they would have to live through the loops over the layers. A whole tile's
    numbers, split in halves, would not fit the registers either.
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
            # Another thread may load in the next round what this one has stored.
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
    BLOCK), V in transposed pieces, zero from its m-th row on; ``out``: (splits, models, row tiles, chunks,
    BLOCK, WIDTH), zeros at first; its rows beyond the last point become anything; the rest as in ``gram_tile``.

    A program walks over its tiles in order and adds to rows of its own, so that the result does not depend on the order
    in which programs run. The price: a symmetric kernel's tiles are computed twice.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    model = tl.program_id(2)
    tiles = tl.cdiv(m, BLOCK)
    for t in range(split * tiles // splits, (split + 1) * tiles // splits):
        total, i, j = kernel_tile(
            rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
            places + block, places + t, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
        )  # fmt: skip
        total = tl.where((j + tl.arange(0, BLOCK) < m)[None, :], total, 0.0)
        # Computed from the places read again: otherwise these addresses too would be kept through the loops.
        source = (model.to(tl.int64) * tiles + j // BLOCK) * chunks * (BLOCK * WIDTH)
        target = (split.to(tl.int64) * tl.num_programs(2) + model) * tl.num_programs(0) + i // BLOCK
        target = target * chunks * (BLOCK * WIDTH)
        _add_product(total, vectors + source, out + target, chunks, BLOCK, BLOCK, WIDTH, PRODUCT)


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
    pointers, sizes, constants = launch_arguments(name, config, rows, columns, segments, values, narrow_layers)
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
    pointers, sizes, constants = launch_arguments(name, config, rows, columns, segments, values, narrow_layers)
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
