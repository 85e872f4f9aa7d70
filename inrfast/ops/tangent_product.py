"""Products with a kernel through its operands: ``J^T V``, ``J P``, so ``K V``, and the diagonal; fp64, no tile of K.

The operands of fp64 hold two matrices A and B per layer, with one row per row of the kernel. Their row-wise Khatri-Rao
product is the layer's block of J (:mod:`inrfast.kernels.tangent_product`). Of all outputs together the sensitivities
stand side by side, so that one product serves ``"trace"`` as well.

``J^T v`` of a layer is the matrix ``B^T diag(v) [A, 1]``, stored as one vector: its rows without the last column, one
after the other, then the last column. A narrow layer has 16 rows, those that it has not zero.

Every result is a sum of products in fp64. With u the unit roundoff, n rows, and widths a and M b of the factors of L
layers, the error of ``K v`` is at most ``(n + a + M b + L + 2) u sum_j sqrt(K_ii K_jj) |v_j|`` (Higham, Accuracy and
Stability, section 3.1), whatever the order of the sums.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast import backends
from inrfast.kernels.formats import FORMATS
from inrfast.ops.batching import as_models
from inrfast.ops.gram import operator_arguments, runs_kernels
from inrfast.ops.operands import Layout, Operands

SLAB = FORMATS["fp64"].slab

NARROW_UNITS = 16
"""Rows that a narrow layer has in ``J^T v``, its narrow columns and zeros."""


class Block(NamedTuple):
    """Where a layer lies: slabs of A; slabs of B, or its narrow columns; and its place in ``J^T v``."""

    first: int
    stop: int
    start: int
    end: int
    place: int
    narrow: bool

    @property
    def width(self) -> int:
        """Columns of A."""
        return (self.stop - self.first) * SLAB

    @property
    def units(self) -> int:
        """Rows in ``J^T v``."""
        return NARROW_UNITS if self.narrow else (self.end - self.start) * SLAB

    @property
    def alone(self) -> int:
        """Place of the last column in ``J^T v``."""
        return self.place + self.units * self.width


def blocks_of(segments: Sequence[int], narrow_layers: int) -> tuple[list[Block], int]:
    """Return the layers of a table of segments (:class:`inrfast.ops.operands.Layout`), and the size of ``J^T v``."""
    found, slab, column, place = [], 0, 0, 0
    for layer in range(len(segments) // 2):
        stop, end = segments[2 * layer : 2 * layer + 2]
        narrow = layer < narrow_layers
        block = Block(slab, stop, column if narrow else stop, end, place, narrow)
        found.append(block)
        slab, column = (stop, end) if narrow else (end, column)
        place = block.alone + block.units
    return found, place


def transposed_product(operands: Operands, V: Tensor) -> Tensor:
    """Return ``J^T V``, (k, size), or (models, k, size) where the operands hold several models.

    Parameters
    ----------
    operands
        Of fp64.
    V
        (rows, k), or (models, rows, k), fp64, on the operands' device.

    Raises
    ------
    ValueError
        Operands of another format, or a V that does not fit.
    """
    (slabs, narrow), (segments, _, narrow_layers) = _arguments(operands)
    if V.ndim not in (2, 3) or V.shape[-2] != operands.rows or (V.ndim == 3 and len(V) != len(slabs)):
        raise ValueError(
            f"V must have shape ({operands.rows}, k) or (models, {operands.rows}, k), got {tuple(V.shape)}"
        )
    if V.dtype != torch.float64 or V.device != slabs.device:
        raise ValueError(f"V must be fp64 and on {slabs.device}, got {V.dtype} on {V.device}")
    result = transposed_product_op(slabs, narrow, V.expand(len(slabs), -1, -1), segments, narrow_layers)
    return result[0] if V.ndim == 2 and len(slabs) == 1 else result


def product(operands: Operands, parameters: Tensor) -> Tensor:
    """Return ``J P``, (rows, k), for P as :func:`transposed_product` gives it, of operands of the same layers.

    Where the operands hold several models P is (models, k, size), and the result (models, rows, k).
    """
    (slabs, narrow), (segments, values, narrow_layers) = _arguments(operands)
    _, size = blocks_of(segments, narrow_layers)
    if parameters.ndim not in (2, 3) or parameters.shape[-1] != size:
        raise ValueError(f"parameters must have shape (k, {size}), got {tuple(parameters.shape)}")
    if parameters.dtype != torch.float64 or parameters.device != slabs.device:
        raise ValueError(
            f"parameters must be fp64 and on {slabs.device}, got {parameters.dtype} on {parameters.device}"
        )
    given = parameters.expand(len(slabs), -1, -1)
    result = product_op(slabs, narrow, given, operands.rows, segments, values, narrow_layers)
    return result[0] if parameters.ndim == 2 and len(slabs) == 1 else result


def inner_products(layout: Layout, parameters: Tensor) -> Tensor:
    """Return ``(J^T V)^T J^T V`` (k, k), which is ``V^T K V``, from :func:`transposed_product` (k, size)."""
    biases = [place.narrow != "features" and layout.shapes[place.layer].bias for place in layout.places]
    values = tuple(
        value for bias, place in zip(biases, layout.places, strict=True) for value in (float(bias), place.weight)
    )
    weights = _weights(layout.segments, values, layout.narrow_layers, parameters.device)
    return (parameters * weights) @ parameters.t()


def bytes_of_column(layout: Layout) -> int:
    """Return the bytes of ``J^T v``."""
    return torch.float64.itemsize * blocks_of(layout.segments, layout.narrow_layers)[1]


def diagonal(operands: Operands) -> Tensor:
    """Return the kernel's diagonal, (rows,) fp64: ``(|A[n]|^2 + bias) |B[n]|^2`` summed over layers; one model."""
    (slabs, narrow), (segments, values, narrow_layers) = _arguments(operands)
    total: Tensor | None = None
    for layer, block in enumerate(blocks_of(segments, narrow_layers)[0]):
        bias, weight = values[2 * layer : 2 * layer + 2]
        squares = _squares(slabs[0, 0, block.first : block.stop], (0, 2)).add_(bias)
        b = narrow[0] if block.narrow else slabs[0, 0]
        others = _squares(b[block.start : block.end], (0,) if block.narrow else (0, 2))
        total = squares.mul_(others).mul_(weight) if total is None else total.addcmul_(squares, others, value=weight)
    assert total is not None
    return total[: operands.rows]


def _squares(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(t, dim=dims).square_()


def _arguments(operands: Operands) -> tuple[tuple[Tensor, Tensor], tuple[list[int], list[float], int]]:
    if operands.plan.layout.format != "fp64":
        raise ValueError(f"operands must be of the format 'fp64', got {operands.plan.layout.format!r}")
    (slabs, narrow, *_), tables = operator_arguments(operands, operands)
    return (slabs, narrow), tables


# ---- the operators -----------------------------------------------------------------------------------------------


@torch.library.custom_op("inrfast::tangent_transposed_product", mutates_args=())
def transposed_product_op(
    slabs: Tensor, narrow: Tensor, vectors: Tensor, segments: Sequence[int], narrow_layers: int
) -> Tensor:
    """Return ``J^T V`` (models, k, size) for ``vectors`` V (models, n, k); operands and tables as those of ``gram``.

    On a GPU the Triton kernel; on a CPU the reference, or the kernel where Triton interprets.
    """
    if not runs_kernels(slabs.device):
        return transposed_product_reference(slabs, narrow, vectors, segments, narrow_layers)
    from inrfast.kernels import tangent_product as kernel  # imports triton

    _, size = blocks_of(segments, narrow_layers)
    tile = kernel.transposed_tile(
        max((b.units for b in blocks_of(segments, narrow_layers)[0] if not b.narrow), default=0)
    )
    tables = [
        _tiles(tuple(segments), narrow_layers, few, chosen.units, chosen.width, slabs.device)
        for few, chosen in ((False, tile), (True, kernel.tile_of("transposed_product_narrow")))
    ]
    with backends.launching_on(slabs.device):
        partial = kernel.launch_transposed_product(*_packed(slabs, narrow), vectors, size, tile, *tables)
    return partial[0] if len(partial) == 1 else partial.sum(0)


@transposed_product_op.register_fake
def _(slabs, narrow, vectors, segments, narrow_layers):  # type: ignore[no-untyped-def]
    return vectors.new_empty(len(vectors), vectors.shape[2], blocks_of(segments, narrow_layers)[1])


@transposed_product_op.register_vmap
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    """Take the batch as more models."""
    result = transposed_product_op(*as_models(info.batch_size, in_dims[:3], arguments[:3]), *arguments[3:])
    return result.unflatten(0, (info.batch_size, -1)), 0


@torch.library.custom_op("inrfast::tangent_product", mutates_args=())
def product_op(
    slabs: Tensor,
    narrow: Tensor,
    parameters: Tensor,
    rows: int,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
) -> Tensor:
    """Return ``J P`` (models, rows, k) for ``parameters`` P (models, k, size); the rest as there, and the values."""
    if not runs_kernels(slabs.device):
        return product_reference(slabs, narrow, parameters, segments, values, narrow_layers)[:, :rows].contiguous()
    from inrfast.kernels import tangent_product as kernel  # imports triton

    out = slabs.new_empty(len(slabs), rows, parameters.shape[1])
    tables = _layers(tuple(segments), tuple(values), narrow_layers, slabs.device)
    with backends.launching_on(slabs.device):
        kernel.launch_product(out, *_packed(slabs, narrow), parameters.contiguous(), *tables, narrow_layers)
    return out


@product_op.register_fake
def _(slabs, narrow, parameters, rows, *rest):  # type: ignore[no-untyped-def]
    return parameters.new_empty(len(parameters), rows, parameters.shape[1])


@product_op.register_vmap
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    """Take the batch as more models."""
    result = product_op(*as_models(info.batch_size, in_dims[:3], arguments[:3]), *arguments[3:])
    return result.unflatten(0, (info.batch_size, -1)), 0


def transposed_product_reference(
    slabs: Tensor, narrow: Tensor, vectors: Tensor, segments: Sequence[int], narrow_layers: int
) -> Tensor:
    """Return what the kernel computes, in plain torch."""
    n, parts = vectors.shape[1], []
    for block in blocks_of(segments, narrow_layers)[0]:
        a, b = (factor[:, :n] for factor in _matrices(slabs, narrow, block))
        weighted = [b * v.unsqueeze(2) for v in vectors.unbind(2)]
        parts.append(
            torch.stack([torch.cat([(w.mT @ a).flatten(1), w.sum(1)], 1) for w in weighted], 1)
            if weighted
            else a.new_empty(len(a), 0, block.units * (block.width + 1))
        )
    return torch.cat(parts, 2)


def product_reference(
    slabs: Tensor,
    narrow: Tensor,
    parameters: Tensor,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
) -> Tensor:
    """Return what the kernel computes, in plain torch, of all rows that the operands hold."""
    models, k, _ = parameters.shape
    out = slabs.new_zeros(models, slabs.shape[3], k)
    for layer, block in enumerate(blocks_of(segments, narrow_layers)[0]):
        bias, weight = values[2 * layer : 2 * layer + 2]
        a, b = _matrices(slabs, narrow, block)
        p = parameters[..., block.place : block.alone].view(models, k, block.units, block.width)
        alone = parameters[..., block.alone : block.alone + block.units] * bias
        for column in range(k):
            mixed = a @ p[:, column].mT + alone[:, column].unsqueeze(1)
            out[..., column] += weight * (mixed * b).sum(2)
    return out


def _matrices(slabs: Tensor, narrow: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Return A (models, padded, width) and B (models, padded, units) of a layer."""

    def columns(start: int, stop: int) -> Tensor:
        return slabs[:, 0, start:stop].transpose(1, 2).flatten(2)

    if not block.narrow:
        return columns(block.first, block.stop), columns(block.start, block.end)
    few = narrow[:, block.start : block.end].mT
    return columns(block.first, block.stop), F.pad(few, (0, NARROW_UNITS - few.shape[2]))


def _packed(slabs: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the operands as the kernels read them: contiguous, or some rows or layers of what is; else copied."""
    padded = slabs.stride(2) // SLAB
    expected = (
        (slabs, (slabs.shape[2] * padded * SLAB, 0, padded * SLAB, SLAB, 1)),
        (narrow, (narrow.shape[1] * padded, padded, 1)),
    )
    if all(
        size <= 1 or stride == wanted
        for t, strides in expected
        for size, stride, wanted in zip(t.shape, t.stride(), strides, strict=True)
    ):
        return slabs, narrow
    return slabs.contiguous(), narrow.contiguous()


# ---- tables, made once for a layout ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _tiles(
    segments: tuple[int, ...], narrow_layers: int, narrow: bool, units: int, width: int, device: torch.device
) -> Tensor:
    """Return the tiles (tiles, 7) of the wide or of the narrow layers, as the kernel's table says; int64."""
    found = []
    for block in blocks_of(segments, narrow_layers)[0]:
        if block.narrow != narrow:
            continue
        for top in range(0, block.units, units):
            for left in range(0, block.width, width):
                found += [block.first + left // SLAB, block.stop, block.start + top // SLAB, block.end]
                found += [block.place + top * block.width + left, block.width, block.alone + top if left == 0 else -1]
    return torch.tensor(found, dtype=torch.int64).view(-1, 7).to(device)


@functools.lru_cache(maxsize=64)
def _layers(
    segments: tuple[int, ...], values: tuple[float, ...], narrow_layers: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the layers (layers, 5), int64, and their biases and weights (layers, 2), as the kernel's tables say."""
    rows = [block[:5] for block in blocks_of(segments, narrow_layers)[0]]
    return (
        torch.tensor(rows, dtype=torch.int64).to(device),
        torch.tensor(values, dtype=torch.float64).view(-1, 2).to(device),
    )


@functools.lru_cache(maxsize=64)
def _weights(segments: tuple[int, ...], values: tuple[float, ...], narrow_layers: int, device: torch.device) -> Tensor:
    """Return what every number of ``J^T v`` counts in an inner product, (size,)."""
    blocks, size = blocks_of(segments, narrow_layers)
    found = torch.empty(size, dtype=torch.float64)
    for layer, block in enumerate(blocks):
        bias, weight = values[2 * layer : 2 * layer + 2]
        found[block.place : block.alone] = weight
        found[block.alone : block.alone + block.units] = weight * bias
    return found.to(device)
