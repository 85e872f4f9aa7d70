"""Products with a tangent kernel through its factors: ``K V = J' (J^T V)``, fp64, all layers in a few launches.

The operands are those of :mod:`inrfast.kernels.gram_tiles` in fp64: slabs of 16 columns, and narrow columns. There
every layer is a pair of matrices, A and B, whose row-wise Khatri-Rao product is the layer's block of the Jacobian: of a
wide layer A are the features and B the sensitivities of all outputs side by side, of a narrow one A are its slabs and B
its narrow columns. A row of A ends with a number more, the layer's bias (1 or 0), which is not stored.

``J^T v`` is, for every layer, the matrix ``sum_n v_n B[n] [A[n], 1]^T``; ``J p`` is ``sum [A[n], bias] P^T B[n]``. Both
are products on the fp64 tensor cores. The vectors lie next to each other in the order of programs, so that factors come
from memory once for all of them, and from the second-level cache for the others. Sums are taken in a fixed order and
nothing is added atomically: the same call gives the same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from inrfast.kernels import tiles

SLAB = 16
"""Columns of a slab of fp64."""

NARROW_UNITS = 16
"""Narrow columns of a layer at most, as a tensor core takes them."""


@dataclass(frozen=True)
class Tile:
    """Tile of a product.

    Attributes
    ----------
    points
        Rows of the kernel: those of a tile, or those summed over at once.
    units, width
        Columns of B and of A; of ``J p`` all of A's are summed over, slab by slab.
    warps, stages
        Warps per program, and loads in flight.
    """

    points: int
    units: int
    width: int
    warps: int
    stages: int


SHARED = 50 * 1024
"""Bytes of shared memory that a program may take; every supported GPU has more."""

PROGRAMS = 512
"""Programs among which :func:`transposed_product` splits the rows: a few for each multiprocessor of a large GPU. Fixed,
so that the order of the sums does not depend on the GPU."""

LEAST_STEPS = 16
"""Blocks of rows that a program sums at least: partial sums of fewer would cost as much as the products."""


@triton.jit
def _slab_columns(first, stop, column, padded, SLAB: tl.constexpr):
    """Return where columns counted from slab ``first`` on lie, as offsets within a row's slabs, and whether they do."""
    slab = first + column // SLAB
    return slab * padded * SLAB + column % SLAB, slab < stop


@triton.jit(
    do_not_specialize=[
        "n", "slab_count", "narrow_count", "models", "steps", "vector_model", "vector_row", "vector_column",
    ]
)  # fmt: skip
def transposed_product(
    partial,
    slabs,
    narrow,
    vectors,
    table,
    n,
    padded,
    slab_count,
    narrow_count,
    models,
    steps,
    size,
    vector_model,
    vector_row,
    vector_column,
    NARROW: tl.constexpr,
    SLAB: tl.constexpr,
    POINTS: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write one tile of ``sum_n v_n B[n] [A[n], 1]^T`` over a range of rows, ``steps`` blocks of POINTS.

    ``partial`` (splits, models, k, size); ``slabs`` (models, slabs, padded, SLAB); ``narrow`` (models, columns,
    padded); ``vectors`` (models, n, k) by their strides. A row of ``table`` is a tile: its first slab of A and where
    the layer's end, its first slab or narrow column of B and their end, its place in a vector's result, the columns of
    a row there, and the place of the sums of B alone (-1: another tile's).
    """
    entry = table + 7 * tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64) // models
    model = tl.program_id(2).to(tl.int64) % models
    rows = padded.to(tl.int64)
    left = tl.arange(0, WIDTH)
    unit = tl.arange(0, UNITS)
    columns, known = _slab_columns(tl.load(entry), tl.load(entry + 1), left, rows, SLAB)
    slabs += model * slab_count * rows * SLAB
    narrow += model * narrow_count * rows
    vectors += model * vector_model + k * vector_column
    start = tl.load(entry + 2)
    stop = tl.load(entry + 3)
    if NARROW:
        units = (start + unit) * rows
        alive = start + unit < stop
    else:
        units, alive = _slab_columns(start, stop, unit, rows, SLAB)

    total = tl.zeros((UNITS, WIDTH), tl.float64)
    alone = tl.zeros((POINTS, UNITS), tl.float64)
    first = split * steps
    for step in tl.range(0, tl.minimum(steps, tl.cdiv(n, POINTS) - first), num_stages=STAGES):
        point = (first + step) * POINTS + tl.arange(0, POINTS)
        v = tl.load(vectors + point * vector_row, mask=point < n, other=0.0)
        a = tl.load(slabs + (point * SLAB)[:, None] + columns[None, :], mask=known[None, :], other=0.0)
        if NARROW:
            b = tl.load(narrow + point[:, None] + units[None, :], mask=alive[None, :], other=0.0)
        else:
            b = tl.load(slabs + (point * SLAB)[:, None] + units[None, :], mask=alive[None, :], other=0.0)
        b = b * v[:, None]
        total = tl.dot(b.T, a, total, input_precision="ieee", out_dtype=tl.float64)
        alone += b

    own = partial + ((split * models + model) * tl.num_programs(1) + k) * size
    places = tl.load(entry + 4) + unit * tl.load(entry + 5)
    # Columns of B that a narrow layer has not are written as zeros.
    written = unit < UNITS if NARROW else alive
    tl.store(own + places[:, None] + left[None, :], total, mask=written[:, None] & known[None, :])
    place = tl.load(entry + 6)
    tl.store(own + place + unit, tl.sum(alone, 0), mask=written & (unit < tl.where(place >= 0, UNITS, 0)))


@triton.jit
def _weighted_sums(tile, places, first, stop, rows, POINTS: tl.constexpr, COLUMNS: tl.constexpr, SLAB: tl.constexpr):
    """Return the sums over columns of a tile times those of the slabs from column ``first`` on (pointers to slab 0), a
    slab at a time: all addresses at once would not fit the registers."""
    if COLUMNS > SLAB:
        one, two = tl.split(tl.permute(tl.reshape(tile, (POINTS, 2, COLUMNS // 2)), (0, 2, 1)))
        sums = _weighted_sums(one, places, first, stop, rows, POINTS, COLUMNS // 2, SLAB)
        return sums + _weighted_sums(two, places, first + COLUMNS // 2, stop, rows, POINTS, COLUMNS // 2, SLAB)
    else:
        there = first + tl.arange(0, SLAB) < stop
        b = tl.load(places + first * rows, mask=there[None, :], other=0.0)
        return tl.sum(tile * b, 1)


@triton.jit(do_not_specialize=["n", "slab_count", "narrow_count", "vectors", "narrow_layers", "layers"])
def product(
    out,
    slabs,
    narrow,
    parameters,
    table,
    values,
    n,
    padded,
    slab_count,
    narrow_count,
    vectors,
    size,
    narrow_layers,
    layers,
    SLAB: tl.constexpr,
    NARROW_UNITS: tl.constexpr,
    POINTS: tl.constexpr,
    UNITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write ``sum [A[n], bias] P^T B[n]`` over all layers for some rows of one vector: ``out`` (models, n, k).

    ``parameters`` (models, k, size) as :func:`transposed_product` writes them; a row of ``table`` is a layer: slabs of
    A from and to, slabs or narrow columns of B from and to, its place in ``parameters``; ``values`` (layers, 2): the
    bias, and a weight. The rest as there.
    """
    k = (tl.program_id(0) % vectors).to(tl.int64)
    block = (tl.program_id(0) // vectors).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    rows = padded.to(tl.int64)
    slabs += model * slab_count * rows * SLAB
    narrow += model * narrow_count * rows
    parameters += (model * vectors + k) * size
    point = block * POINTS + tl.arange(0, POINTS)
    column = tl.arange(0, SLAB)
    places = slabs + ((point * SLAB)[:, None] + column[None, :])
    few = tl.arange(0, NARROW_UNITS)
    unit = tl.arange(0, UNITS)

    found = tl.zeros((POINTS,), tl.float64)
    for layer in range(0, narrow_layers):
        entry = table + 5 * layer
        first = tl.load(entry)
        width = (tl.load(entry + 1) - first) * SLAB
        start = tl.load(entry + 2)
        alive = start + few < tl.load(entry + 3)
        own = parameters + tl.multiple_of(tl.load(entry + 4), 16)
        alone = tl.load(own + NARROW_UNITS * width + few) * tl.load(values + 2 * layer)
        total = tl.zeros((POINTS, NARROW_UNITS), tl.float64) + alone[None, :]
        for t in tl.range(0, width, SLAB, num_stages=STAGES):
            a = tl.load(places + (first * SLAB + t) * rows)
            p = tl.load(own + t + (few * width)[:, None] + column[None, :])
            total = tl.dot(a, p.T, total, input_precision="ieee", out_dtype=tl.float64)
        b = tl.load(narrow + point[:, None] + ((start + few) * rows)[None, :], mask=alive[None, :], other=0.0)
        found += tl.sum(total * b, 1) * tl.load(values + 2 * layer + 1)
    for layer in range(narrow_layers, layers):
        entry = table + 5 * layer
        first = tl.load(entry)
        width = (tl.load(entry + 1) - first) * SLAB
        start = tl.load(entry + 2) * SLAB
        stop = tl.load(entry + 3) * SLAB
        own = parameters + tl.multiple_of(tl.load(entry + 4), 16)
        bias = tl.load(values + 2 * layer)
        weight = tl.load(values + 2 * layer + 1)
        for top in range(start, stop, UNITS):
            u = top - start + unit
            alive = top + unit < stop
            alone = tl.load(own + (stop - start) * width + u, mask=alive, other=0.0) * bias
            total = tl.zeros((POINTS, UNITS), tl.float64) + alone[None, :]
            for t in tl.range(0, width, SLAB, num_stages=STAGES):
                a = tl.load(places + (first * SLAB + t) * rows)
                p = tl.load(own + t + (u * width)[:, None] + column[None, :], mask=alive[:, None], other=0.0)
                total = tl.dot(a, p.T, total, input_precision="ieee", out_dtype=tl.float64)
            found += _weighted_sums(total, places, top, stop, rows, POINTS, UNITS, SLAB) * weight
    tl.store(out + (model * n + point) * vectors + k, found, mask=point < n)


def transposed_tile(units: int) -> Tile:
    """Return the tile of wide layers of which the widest has so many columns of B."""
    small = tile_of("transposed_product")
    return small if units <= small.units else tile_of("transposed_product_wide")


def tile_of(kernel: str) -> Tile:
    """Return the tile of a kernel."""
    return _as_tile(tiles.TANGENTS[kernel, "fp64", "any"])


@functools.cache
def _as_tile(row: tiles.ProductRow) -> Tile:
    points, units, width, warps, stages, _, _ = row
    return Tile(points, units, width, warps, stages)


def launch_transposed_product(
    slabs: Any, narrow: Any, vectors: Any, size: int, tile: Tile, wide_tiles: Any, narrow_tiles: Any
) -> Any:
    """Run :func:`transposed_product` on the tiles of both kinds of layers and return its partial sums; ``tile`` is that
    of the wide ones.

    ``slabs`` (models, 1, slabs, padded, SLAB) and ``narrow`` (models, columns, padded): the slabs and columns of all
    models and planes follow each other in memory; ``vectors`` (models, n, k) of any strides.
    """
    models, n, k = vectors.shape
    most = max(len(wide_tiles), len(narrow_tiles)) * k * models
    splits, steps = splits_for(n, most)
    partial = slabs.new_empty(splits, models, k, size)
    narrow_tile = tile_of("transposed_product_narrow")
    for table, chosen, few in ((wide_tiles, tile, False), (narrow_tiles, narrow_tile, True)):
        if len(table) > 0 and partial.numel() > 0:
            transposed_product[(len(table), k, splits * models)](
                partial,
                slabs,
                narrow,
                vectors,
                table,
                n,
                slabs.stride(2) // SLAB,
                slabs.shape[2],
                narrow.shape[1],
                models,
                steps,
                size,
                *vectors.stride(),
                **transposed_constants(chosen, few),
                num_warps=chosen.warps,
                num_stages=chosen.stages,
            )
    return partial


def launch_product(
    out: Any, slabs: Any, narrow: Any, parameters: Any, layers: Any, values: Any, narrow_layers: int
) -> None:
    """Run :func:`product`: ``out`` (models, n, k) and ``parameters`` (models, k, size) contiguous."""
    models, n, k = out.shape
    if out.numel() == 0:
        return
    tile = tile_of("product")
    product[(triton.cdiv(n, tile.points) * k, models)](
        out,
        slabs,
        narrow,
        parameters,
        layers,
        values,
        n,
        slabs.stride(2) // SLAB,
        slabs.shape[2],
        narrow.shape[1],
        k,
        parameters.shape[2],
        narrow_layers,
        len(layers),
        **product_constants(tile),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def splits_for(n: int, programs: int) -> tuple[int, int]:
    """Return in how many ranges n rows are split beside so many programs, and the blocks of rows of each."""
    blocks = triton.cdiv(n, tile_of("transposed_product_narrow").points)  # those of every tile
    steps = max(LEAST_STEPS, triton.cdiv(blocks * max(programs, 1), PROGRAMS))
    return max(1, triton.cdiv(blocks, steps)), steps


def transposed_constants(tile: Tile, few: bool) -> dict[str, Any]:
    """Return the compile-time choices of :func:`transposed_product`."""
    return {
        "NARROW": few,
        "SLAB": SLAB,
        "POINTS": tile.points,
        "UNITS": tile.units,
        "WIDTH": tile.width,
        "STAGES": tile.stages,
    }


def product_constants(tile: Tile) -> dict[str, Any]:
    """Return the compile-time choices of :func:`product`."""
    return {
        "SLAB": SLAB,
        "NARROW_UNITS": NARROW_UNITS,
        "POINTS": tile.points,
        "UNITS": tile.units,
        "STAGES": tile.stages,
    }
