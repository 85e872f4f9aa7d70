"""The dense tangent kernel: one program per tile, or a few programs that stream through all tiles.

Both compute a tile as :mod:`inrfast.kernels.gram_tiles` says, and give the same bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.gram_tiles import Side, end_of, kernel_tile, launch_arguments, slab_product, store_tile
from inrfast.kernels.tiles import Config


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
    weight; ``one``: 1 at run time; if the compiler knew it, it would merge promoted sums into one chain again.
    ``order`` (tiles, 2): places of the tiles; ``out``: rows of ``stride`` elements, models ``model_stride`` apart.
    """
    place = order + 2 * tl.program_id(0).to(tl.int64)
    model = tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    total, i, j = kernel_tile(
        rows, columns, narrow_rows, narrow_columns, scale_rows, scale_columns, segments, values,
        place, place + 1, model, rows_padded, columns_padded, slabs, narrow, narrow_layers, layers, one,
        BLOCK, SLAB, PLANES, PRECISION, PROMOTED, ACCUMULATOR, STAGES, COPY_ENGINE,
    )  # fmt: skip
    out += model.to(tl.int64) * model_stride
    if SYMMETRIC:
        if i == j:
            # The two halves may differ by the order of their products: the lower one is taken.
            total = tl.where(offsets[:, None] >= offsets[None, :], total, total.T)
    store_tile(out, i, j, total, n, m, stride, BLOCK, BLOCK, False, False)
    if SYMMETRIC:
        if i != j:
            store_tile(out, j, i, total.T, m, n, stride, BLOCK, BLOCK, False, False)


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
    """Compute the tiles of :func:`gram_tile` by a few programs, each of which walks over tiles of all models.

    A program is one loop over the slabs of all its tiles: slabs of the next factor and of the next tile are loaded
    while the last are multiplied. Arguments as there; ``tiles``, ``models``: how many, which the grid no longer says.
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
    # ``chain``: the products being summed (unused if PROMOTED); ``left``: the first factor of a layer.
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
            found = slab_product(
                tl.zeros((BLOCK, BLOCK), ACCUMULATOR), rows, columns, model * (PLANES * slabs) + slab, slabs, i, j,
                rows_padded, columns_padded, BLOCK, SLAB, PLANES, PRECISION, COPY_ENGINE,
            )  # fmt: skip
            # Triton's pipeliner needs a use of the products before the branches.
            found *= one
            if second == 1:
                total = tl.fma(found, left, total)
            else:
                left = tl.fma(found, ones, left)
        else:
            chain = slab_product(
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
                    for c in range(end_of(segments, 2 * layer - 1), last):
                        x = tl.load(x_place + tl.cast(c, tl.int64) * rows_padded + offsets) * weight
                        y = tl.load(y_place + tl.cast(c, tl.int64) * columns_padded + offsets)
                        factor = left if PROMOTED else chain
                        total = tl.fma(factor * x[:, None], y[None, :].broadcast_to(BLOCK, BLOCK), total)
                second = 0
                layer += 1
                if layer == layers:
                    r = tl.load(scale_rows + (tl.cast(model, tl.int64) * rows_padded + i) + offsets)
                    c = tl.load(scale_columns + (tl.cast(model, tl.int64) * columns_padded + j) + offsets)
                    total = total * r[:, None] * c[None, :]
                    target = out + tl.cast(model, tl.int64) * model_stride
                    store_tile(target, i, j, total, n, m, stride, BLOCK, BLOCK, SYMMETRIC, False)
                    if SYMMETRIC:
                        store_tile(target, i, j, total, n, m, stride, BLOCK, BLOCK, SYMMETRIC, True)
                    total = tl.zeros((BLOCK, BLOCK), ACCUMULATOR)
                    layer = 0
                stop = tl.load(segments + 2 * layer)
                bias = tl.zeros((BLOCK, BLOCK), ACCUMULATOR) + tl.load(values + 2 * layer)
                if PROMOTED:
                    left = bias
                else:
                    chain = bias


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
    A stream is right for every ``out``, but meant for sizes, strides and addresses that are multiples of 16: see
    ``inrfast.kernels.tiles``.
    ``out`` is (models, n, m), its last stride 1; ``name`` is the operands' format; ``multiprocessors``: their
    number on the GPU.
    """
    models, n, m = out.shape
    if len(order) == 0 or models == 0:
        return
    pointers, sizes, constants = launch_arguments(name, config, rows, columns, segments, values, narrow_layers)
    arguments = [*pointers, order, out, n, m, *sizes, out.stride(1), out.stride(0)]
    constants["SYMMETRIC"] = symmetric
    if config.design == "tile":
        gram_tile[(len(order), models)](*arguments, **constants)
        return
    resident = max(1, multiprocessors * 8 // config.warps)
    gram_stream[(min(resident, len(order) * models),)](*arguments, len(order), models, **constants)
