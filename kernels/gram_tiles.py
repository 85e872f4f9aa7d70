"""One tile of a tangent kernel, in registers: ``K = sum_l (Z_l Z_l'^T + bias) * (S_l S_l'^T)``.

What every Gram kernel shares: the dense ones (:mod:`inrfast.kernels.gram`) and the sums and products over tiles
(:mod:`inrfast.kernels.gram_reductions`).

Operands are *slabs*: the columns of all factors, cut into pieces of 128 bytes, each piece stored for all points next
to each other. A tile's slab is then one contiguous block of memory of a few kilobytes, whatever the widths of the
layers: it needs one address, and the copy engine of a Hopper GPU moves it at once. ``inrfast.ops.operands`` makes the
layout and says what the tables hold.

Layers come in two kinds. In a *narrow* layer one factor has a few columns (coordinates, the outputs of the head): its
product is summed by fused multiply-adds, that of the other factor on the tensor cores. In a *wide* layer both products
run on the tensor cores. A tile keeps three accumulators in registers; no N x N intermediate is ever written.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.formats import FORMATS
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
def slab_product(
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
    """Add the product of one slab to ``total``; with two planes, the smallest products first."""
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
    """Add the products of slabs ``start`` to ``stop`` to ``total``; PROMOTED, each times ``factor``.

    Tensor cores truncate their fp32 sums: a chain of them loses a little at every step, always toward zero. PROMOTED, a
    chain is no longer than one slab's products and begins at zero; its result is added by fused multiply-adds, which
    round.
    """
    for t in tl.range(start, stop, num_stages=STAGES):
        if PROMOTED:
            found = slab_product(
                tl.zeros((BLOCK, BLOCK), total.dtype), rows, columns, first + t, low, i, j, rows_padded, columns_padded,
                BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
            total = tl.fma(found, factor, total)
        else:
            total = slab_product(
                total, rows, columns, first + t, low, i, j, rows_padded, columns_padded,
                BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
    return total


@triton.jit
def end_of(segments, place):
    """Return an entry of the table of segments, where the one after it begins: 0 for the places before the first.

    Read, not carried from layer to layer: Triton before 3.8 takes a number that a loop carries, and that only bounds a
    loop within it, for dead, and puts what it was at first in its place (its pull request 9036).
    """
    return tl.load(segments + place, mask=place >= 0, other=0)


@triton.jit
def kernel_tile(
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
    """Return one tile of one model's kernel, its first row and its first column; ``*_place`` point to its place."""
    i = tl.load(row_place) * BLOCK
    j = tl.load(column_place) * BLOCK
    first = model * (PLANES * slabs)
    offsets = tl.arange(0, BLOCK)
    narrow_rows += model.to(tl.int64) * narrow * rows_padded + i
    narrow_columns += model.to(tl.int64) * narrow * columns_padded + j

    total = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
    ones = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + one
    # A loop for each kind of layer: the accumulators of both together would not fit the registers.
    for layer in range(0, narrow_layers):
        slab = end_of(segments, 2 * layer - 2)
        stop = tl.load(segments + 2 * layer)
        right = _products(
            tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + tl.load(values + 2 * layer), ones,
            rows, columns, slab, stop, first, slabs, i, j, rows_padded, columns_padded,
            BLOCK, SLAB, PLANES, PRECISION, PROMOTED, STAGES, COPY_ENGINE,
        )  # fmt: skip
        column = end_of(segments, 2 * layer - 1)
        stop = tl.load(segments + 2 * layer + 1)
        weight = tl.load(values + 2 * layer + 1)
        for c in range(column, stop):
            x = tl.load(narrow_rows + tl.cast(c, tl.int64) * rows_padded + offsets) * weight
            y = tl.load(narrow_columns + tl.cast(c, tl.int64) * columns_padded + offsets)
            total = tl.fma(right * x[:, None], y[None, :].broadcast_to(BLOCK, BLOCK), total)
    for layer in range(narrow_layers, layers):
        # The slabs of a narrow layer end with its first factor, those of a wide one with its second.
        slab = end_of(segments, 2 * layer - tl.where(layer == narrow_layers, 2, 1))
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
        total = right if PROMOTED else tl.fma(left, right, total)

    # Read again: otherwise the addresses below would be computed above and kept in registers through the loops.
    i = tl.load(row_place, volatile=True) * BLOCK
    j = tl.load(column_place, volatile=True) * BLOCK
    r = tl.load(scale_rows + (model.to(tl.int64) * rows_padded + i) + offsets)
    c = tl.load(scale_columns + (model.to(tl.int64) * columns_padded + j) + offsets)
    return total * r[:, None] * c[None, :], i, j


@triton.jit
def store_tile(
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
    """Store a tile, with LOWER its part on or below the diagonal alone; TURNED, the transpose of the part below.

    It stores a few columns at a time: all addresses at once would not fit the registers, and transposing a whole tile
    would take shared memory that holds slabs in flight.
    """
    if COLUMNS > 32:
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        store_tile(out, i, j, left, n, m, stride, ROWS, COLUMNS // 2, LOWER, TURNED)
        store_tile(out, i, j + COLUMNS // 2, right, n, m, stride, ROWS, COLUMNS // 2, LOWER, TURNED)
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


def launch_arguments(
    name: str, config: Config, rows: Side, columns: Side, segments: Any, values: Any, narrow_layers: int
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return the arguments of all Gram kernels: pointers to both sides and the tables, sizes, compile-time choices."""
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
    """Return the number of rows, each one slab wide, from the first point on: over all models, planes and slabs."""
    models, planes, count, points, _ = slabs.shape
    return (models * planes * count - 1) * (slabs.stride(2) // slabs.stride(3)) + points


def _countable(slabs: Any) -> bool:
    """Return whether the rows' number fits the 32 bits of a descriptor."""
    return _rows_in_memory(slabs) < 2**31


def _descriptor(slabs: Any, block: int, slab: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(slabs, [_rows_in_memory(slabs), slab], [slab, 1], [block, slab])
