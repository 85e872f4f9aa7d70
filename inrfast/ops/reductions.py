"""What is asked of a kernel ``K = sum_l (Z_l Z_l^T) * (S_l S_l^T)`` without its entries: Frobenius norm and ``K V``.

Tiles are computed as :mod:`inrfast.ops.gram` does, and used up where they are: nothing N x N is stored. Factors go
through tiles in the caches of the CPU, operands through the kernels' registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast import backends
from inrfast.kernels.formats import product_width
from inrfast.memory import chunks
from inrfast.ops.batching import as_models
from inrfast.ops.gemm import addmm_
from inrfast.ops.gram import (
    Output,
    Pair,
    config_on,
    for_each_tile,
    gram_reference,
    kernel_sides,
    kernel_tables,
    operator_arguments,
    runs_kernels,
    tile_order,
    tile_places,
)
from inrfast.ops.operands import Operands

SIDE = 1 << 16
"""Rows a side of what one launch reduces: the places and sums of its tiles take a few megabytes."""

PROGRAMS = 512
"""Programs that a product is divided among, if its rows alone are fewer: a few for each multiprocessor of a large GPU.
Fixed, so that the order of the sums does not depend on the GPU."""


def squared_norm(
    rows: Sequence[Pair] | Operands,
    columns: Sequence[Pair] | Operands | None,
    output: Output,
    outputs: int,
    dtype: torch.dtype,
) -> float:
    """Return the sum of the squares of all entries, in fp64; ``columns=None`` is the symmetric kernel.

    Tiles are computed in ``dtype``, those of operands in their accumulator's. The same numbers give the same result to
    the last bit, however many threads compute it.
    """
    if isinstance(rows, Operands):
        assert columns is None or isinstance(columns, Operands)
        return _operands_squared_norm(rows, columns)
    assert not isinstance(columns, Operands)
    found: dict[tuple[int, int], float] = {}

    def square(i: slice, j: slice, tile: Tensor) -> None:
        part = float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2
        found[i.start, j.start] = 2 * part if columns is None and i != j else part

    for_each_tile(rows, columns, output, outputs, dtype, square, in_order=False)
    return sum(found[place] for place in sorted(found))


def _operands_squared_norm(rows: Operands, columns: Operands | None) -> float:
    total = 0.0
    for i in chunks(rows.rows, SIDE):
        above = rows.part(i.start, i.stop)
        for j in chunks(rows.rows if columns is None else columns.rows, SIDE):
            if columns is not None:
                total += float(gram_norm(above, columns.part(j.start, j.stop)))
            elif j.start == i.start:
                total += float(gram_norm(above))
            elif j.start > i.start:
                total += 2 * float(gram_norm(above, rows.part(j.start, j.stop)))
    return total


def add_product_(
    out: Tensor,
    rows: Sequence[Pair] | Operands,
    columns: Sequence[Pair] | Operands | None,
    V: Tensor,
    output: Output,
    outputs: int,
    transposed: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Add ``K V`` to ``out`` (rows, k), for V (columns, k) of the same dtype; ``columns=None`` is the symmetric kernel.

    ``transposed`` is ``(other, W)``: ``K^T W`` is added to ``other``, from the same tiles where they are of factors.
    """
    if isinstance(rows, Operands):
        assert columns is None or isinstance(columns, Operands)
        out += gram_product(rows, columns, V)
        if transposed is not None:
            assert columns is not None
            transposed[0].add_(gram_product(columns, rows, transposed[1]))
        return
    assert not isinstance(columns, Operands)
    back = (out, V) if columns is None else transposed

    def add(i: slice, j: slice, tile: Tensor) -> None:
        addmm_(out[i], tile, V[j])
        if back is not None and (columns is not None or i != j):
            addmm_(back[0][j], tile.t(), back[1][i])

    for_each_tile(rows, columns, output, outputs, out.dtype, add)


# ---- the Triton backend ------------------------------------------------------------------------------------------


def gram_norm(rows: Operands, columns: Operands | None = None) -> Tensor:
    """Return the squared Frobenius norm of each model's kernel, shape (models,), fp64; nothing N x N is stored.

    Entries are those of :func:`inrfast.ops.gram.gram`, of any size that they can hold: their squares neither overflow
    nor vanish. With an entry that is NaN or Inf the result is not finite either. The same operands give the same
    result to the last bit.

    Parameters
    ----------
    rows, columns
        Operands of the same layers; None: the symmetric kernel, every pair of rows computed once.

    Raises
    ------
    ValueError
        Operands of different layouts, models or devices.
    """
    other = rows if columns is None else columns
    sides, tables = operator_arguments(rows, other)
    return gram_norm_op(*sides, rows.rows, other.rows, *tables, columns is None, rows.plan.layout.format)


def gram_product(rows: Operands, columns: Operands | None, V: Tensor) -> Tensor:
    """Return ``K V`` in the accumulator's dtype: (n, k), or (models, n, k) where the operands hold several models.

    Tiles are multiplied with V in the registers that they are computed in, in IEEE fp64, or as three TF32 products,
    which keep what fp32 holds. The sums have a fixed order. A symmetric kernel costs as much as any other.

    Parameters
    ----------
    rows, columns
        Operands of the same layers; None: the same on both sides.
    V
        (m, k), or (models, m, k), any floating dtype, on the operands' device; it is rounded to the accumulator's
        dtype.

    Raises
    ------
    ValueError
        Operands of different layouts, models or devices, or a V that does not fit.
    """
    other = rows if columns is None else columns
    sides, tables = operator_arguments(rows, other)
    models = len(rows.slabs)
    if V.ndim not in (2, 3) or V.shape[-2] != other.rows or (V.ndim == 3 and len(V) != models):
        raise ValueError(f"V must have shape ({other.rows}, k) or ({models}, {other.rows}, k), got {tuple(V.shape)}")
    if V.device != rows.slabs.device or not V.is_floating_point():
        raise ValueError(f"V must be floating and on {rows.slabs.device}, got {V.dtype} on {V.device}")
    vectors = V.to(rows.scale.dtype).expand(models, -1, -1)
    result = gram_product_op(*sides, vectors, rows.rows, *tables, rows.plan.layout.format)
    return result[0] if V.ndim == 2 and models == 1 else result


@torch.library.custom_op("inrfast::gram_norm", mutates_args=())
def gram_norm_op(
    row_slabs: Tensor,
    row_narrow: Tensor,
    row_scale: Tensor,
    column_slabs: Tensor,
    column_narrow: Tensor,
    column_scale: Tensor,
    n: int,
    m: int,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
    symmetric: bool,
    format: str,
) -> Tensor:
    """Return the sums of squares (models,) of kernels (models, n, m), fp64; arguments as of ``inrfast::gram_``."""
    sides = (row_slabs, row_narrow, row_scale, column_slabs, column_narrow, column_scale)
    device = row_slabs.device
    if not runs_kernels(device):
        return gram_reference(*sides, segments, values, narrow_layers)[:, :n, :m].square().sum((1, 2))
    from inrfast.kernels import gram_reductions as kernel  # imports triton

    config = config_on(format, device)
    order = tile_order(n, m, config.block, symmetric, device)
    sums = torch.empty(len(row_slabs), len(order), dtype=torch.float64, device=device)
    tables = kernel_tables(segments, values, format, device)
    with backends.launching_on(device):
        kernel.launch_norm(format, config, *kernel_sides(*sides), sums, order, *tables, narrow_layers, n, m, symmetric)
    return sums.sum(1)


@gram_norm_op.register_fake
def _(row_slabs, *rest):  # type: ignore[no-untyped-def]
    return row_slabs.new_empty(len(row_slabs), dtype=torch.float64)


@gram_norm_op.register_vmap
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    """Take the batch as more models."""
    result = gram_norm_op(*as_models(info.batch_size, in_dims[:6], arguments[:6]), *arguments[6:])
    return result.unflatten(0, (info.batch_size, -1)), 0


@torch.library.custom_op("inrfast::gram_product", mutates_args=())
def gram_product_op(
    row_slabs: Tensor,
    row_narrow: Tensor,
    row_scale: Tensor,
    column_slabs: Tensor,
    column_narrow: Tensor,
    column_scale: Tensor,
    vectors: Tensor,
    n: int,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
    format: str,
) -> Tensor:
    """Return ``K V`` (models, n, k) for ``vectors`` V (models, m, k), both in the accumulator's dtype; the rest as
    :func:`inrfast.ops.gram.gram_` has it."""
    sides = (row_slabs, row_narrow, row_scale, column_slabs, column_narrow, column_scale)
    device = row_slabs.device
    models, m, k = vectors.shape
    if not runs_kernels(device):
        reference = gram_reference(*sides, segments, values, narrow_layers)[:, :n, :m]
        return (reference @ vectors.to(torch.float64)).to(vectors.dtype)
    from inrfast.kernels import gram_reductions as kernel  # imports triton

    config = config_on(format, device, product=True)
    width = product_width(config)
    blocks, tiles, pieces = (-(-size // side) for size, side in ((n, config.block), (m, config.block), (k, width)))
    missing = (0, pieces * width - k, 0, tiles * config.block - m)
    padded = F.pad(vectors, missing) if any(missing) else vectors
    turned = padded.view(models, tiles, config.block, pieces, width).permute(0, 1, 3, 4, 2).contiguous()
    splits = max(1, min(tiles, PROGRAMS // max(blocks, 1)))
    sums = vectors.new_zeros(splits, models, blocks, pieces, config.block, width)
    places = tile_places(max(blocks, tiles), device)
    tables = kernel_tables(segments, values, format, device)
    with backends.launching_on(device):
        kernel.launch_product(format, config, *kernel_sides(*sides), turned, sums, places, *tables, narrow_layers, m)
    total = sums[0] if splits == 1 else sums.sum(0)
    return total.transpose(2, 3).reshape(models, blocks * config.block, pieces * width)[:, :n, :k].contiguous()


@gram_product_op.register_fake
def _(row_slabs, row_narrow, row_scale, column_slabs, column_narrow, column_scale, vectors, n, *rest):  # type: ignore[no-untyped-def]
    return vectors.new_empty(len(vectors), n, vectors.shape[2])


@gram_product_op.register_vmap
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    """Take the batch as more models."""
    result = gram_product_op(*as_models(info.batch_size, in_dims[:7], arguments[:7]), *arguments[7:])
    return result.unflatten(0, (info.batch_size, -1)), 0
