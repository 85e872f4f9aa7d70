"""Gram products of factors: tiles of ``K = sum_l (Z_l Z_l^T) * (S_l S_l^T)``, dense or reduced, never the Jacobian.

``factors`` are pairs ``(features, sensitivities)``, one per layer, as in :mod:`inrfast.ops.rows`; features carry their
column of ones where the layer has a bias. ``output`` is ``"trace"`` (sum over outputs), ``"full"`` (every pair of
outputs, output index fast) or an int (that output alone).

The Triton backend takes :class:`inrfast.ops.operands.Operands` in their place, and does the same by larger tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from inrfast import backends
from inrfast.kernels.formats import FORMATS, config_for
from inrfast.kernels.tiles import Config
from inrfast.ops import gram_native
from inrfast.ops.gemm import addmm_, mm
from inrfast.ops.gemm import threads as gemm_threads
from inrfast.ops.operands import Operands, Place, Plan
from inrfast.ops.sparse_rows import add_gram_, is_sparse
from inrfast.threads import share

Pair = tuple[Tensor | None, Tensor | None]
Output = str | int
Sides = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Slabs, narrow columns and scales of the rows, then of the columns."""

TILE = 512
"""Points a side of a tile: three tiles of fp32 (3 MiB) stay in the second-level caches of two cores; measured on a
2-core AVX-512 machine, 256 and 1024 are slower."""


TILE_GPU = 4096
"""The same on a GPU without the Triton backend, where a tile must fill the chip."""


def points(factors: Sequence[Pair]) -> int:
    """Return the number of points that the factors describe."""
    return next(len(f) for pair in factors for f in pair if f is not None)


def _flat(sensitivities: Tensor | None, output: Output) -> Tensor | None:
    """Return S as the matrix whose Gram product is the output factor: (n, M b), (n, b) or (n M, b)."""
    if sensitivities is None:
        return None
    if isinstance(output, int):
        return sensitivities[:, output]
    if output == "trace":
        return sensitivities.flatten(1)
    return sensitivities.reshape(-1, sensitivities.shape[-1])


class Side:
    """The factors of one side of a kernel as matrices, and their blocks of points, each cut once.

    A tile takes a dozen operations; cutting its blocks anew would take three times as many, each under Python's lock.
    Factors of another dtype are converted for each tile, in memory of the thread that multiplies them.
    """

    def __init__(
        self, factors: Sequence[Pair], output: Output, fold: int, transposed: bool, dtype: torch.dtype | None = None
    ) -> None:
        # A layer with one factor adds a plain product: it comes first and writes the tile, the others accumulate.
        ordered = sorted(factors, key=lambda pair: pair[0] is not None and pair[1] is not None)
        self.layers = [(features, _flat(sensitivities, output)) for features, sensitivities in ordered]
        self.fold, self.transposed, self.dtype = fold, transposed, dtype
        floating = {f.dtype for pair in self.layers for f in pair if f is not None and f.is_floating_point()}
        self.converts = dtype is not None and floating != {dtype}
        self._blocks: dict[tuple[int, int], list[Pair]] = {}

    def block(self, rows: slice, memory: dict[tuple[int, int], Tensor] | None = None) -> list[Pair]:
        """Return the matrices of some points, turned over on the side of the columns.

        Those that are converted last until the next call with this ``memory``, which holds no other side's.
        """
        folded = slice(rows.start * self.fold, rows.stop * self.fold)
        if self.converts:
            assert memory is not None
            found = []
            for number, (z, s) in enumerate(self.layers):
                z, s = (
                    self._converted(own, part, memory, (number, kind))
                    for kind, (own, part) in enumerate(((z, rows), (s, folded)))
                )
                found.append((z, s))
            return found
        key = (rows.start, rows.stop)
        if key not in self._blocks:
            self._blocks[key] = [(self._cut(z, rows), self._cut(s, folded)) for z, s in self.layers]
        return self._blocks[key]

    def _cut(self, factor: Tensor | None, rows: slice) -> Tensor | None:
        if factor is None:
            return None
        return factor[rows].t() if self.transposed else factor[rows]

    def _converted(
        self, factor: Tensor | None, rows: slice, memory: dict[tuple[int, int], Tensor], key: tuple[int, int]
    ) -> Tensor | None:
        if factor is None or factor.dtype == self.dtype or not factor.is_floating_point():
            return self._cut(factor, rows)
        part = factor[rows]
        if key not in memory or len(memory[key]) < len(part):
            memory[key] = part.new_empty(part.shape, dtype=self.dtype)
        into = memory[key][: len(part)].copy_(part)
        return into.t() if self.transposed else into


class Scratch:
    """Memory of a tile and of its two factors, allocated once: fresh pages would cost more than the products.

    Several that compute one after the other, each with a ``tile`` of its own, may share those of the factors.
    """

    def __init__(self, tile: Tensor, left: Tensor, right: Tensor, fold: int) -> None:
        self.fold, self.memory = fold, (tile, left, right)
        self._views: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    @classmethod
    def of(cls, points: int, fold: int, dtype: torch.dtype, device: torch.device) -> Scratch:
        """Return memory for tiles of so many points a side."""
        sizes = (points * fold) ** 2, points**2, (points * fold) ** 2
        tile, left, right = (torch.empty(size, dtype=dtype, device=device) for size in sizes)
        return cls(tile, left, right, fold)

    def views(self, n: int, m: int) -> tuple[Tensor, ...]:
        """Return ``tile``, ``left``, ``right`` for n x m points, and all three as (n, M, m, M) for broadcasting."""
        if (n, m) not in self._views:
            fold = self.fold
            tile, left, right = self.memory
            flat = (
                tile[: n * m * fold**2].view(n * fold, m * fold),
                left[: n * m].view(n, m),
                right[: n * m * fold**2].view(n * fold, m * fold),
            )
            shapes = [(n, fold, m, fold), (n, 1, m, 1), (n, fold, m, fold)] if fold > 1 else [t.shape for t in flat]
            self._views[n, m] = (*flat, *(t.view(shape) for t, shape in zip(flat, shapes, strict=True)))
        return self._views[n, m]


def compute_tile(
    rows: list[Pair], columns: list[Pair], output: Output, outputs: int, views: tuple[Tensor, ...]
) -> Tensor:
    """Return the kernel between two blocks of points in the memory of ``views``; ``columns`` are turned over.

    The result is (n, n') for ``"trace"`` and single outputs, (n M, n' M) for ``"full"``; cost
    ``2 n n' sum_l (a + M b)`` FLOP for the trace.
    """
    out, left, right, total, spread, pairs = views
    empty = True
    for (z, s), (z2, s2) in zip(rows, columns, strict=True):
        if z is None or z2 is None:
            assert s is not None and s2 is not None
            if empty:
                mm(s, s2, out)
            else:
                addmm_(out, s, s2)
        elif is_sparse(z):
            assert s is not None and s2 is not None
            add_gram_(out.zero_() if empty else out, (z, s), (z2.t(), s2.t()))
        elif s is None or s2 is None:
            mm(z, z2, left)
            _add_identity(out.zero_() if empty else out, left, output, outputs)
        else:
            mm(z, z2, left)
            mm(s, s2, right)
            if empty:
                torch.mul(spread, pairs, out=total)
            else:
                total.addcmul_(spread, pairs)
        empty = False
    return out


def _add_identity(out: Tensor, left: Tensor, output: Output, outputs: int) -> None:
    """Add a layer whose sensitivities are the identity: ``tr I = M``, one output 1, all pairs ``left (x) I``."""
    if output == "full":
        grid = out.view(left.shape[0], outputs, left.shape[1], outputs)
        grid.diagonal(dim1=1, dim2=3).add_(left.unsqueeze(-1))
    else:
        out.add_(left, alpha=outputs if output == "trace" else 1)


def symmetric_tiles(n: int, tile: int = TILE) -> Iterator[tuple[slice, slice]]:
    """Yield tiles (rows, columns), rows not below columns, that cover the upper triangle of an n x n matrix.

    Diagonal tiles are halved: their lower half is wasted work, a quarter of it is saved so.
    """
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        middle = min(start + (tile + 1) // 2, stop)
        yield slice(start, middle), slice(start, middle)
        if middle < stop:
            yield slice(start, middle), slice(middle, stop)
            yield slice(middle, stop), slice(middle, stop)
        for other in range(stop, n, tile):
            yield slice(start, stop), slice(other, min(other + tile, n))


def rectangular_tiles(n: int, m: int, tile: int = TILE) -> Iterator[tuple[slice, slice]]:
    """Yield tiles (rows, columns) that cover an n x m matrix."""
    for start in range(0, n, tile):
        for other in range(0, m, tile):
            yield slice(start, min(start + tile, n)), slice(other, min(other + tile, m))


def _symmetrise_(tile: Tensor) -> Tensor:
    """Mirror the upper triangle, so that the result is symmetric to the last bit."""
    return tile.triu_().add_(tile.triu(1).t())


def fill_(
    out: Tensor,
    rows: Sequence[Pair] | Operands,
    columns: Sequence[Pair] | Operands | None,
    output: Output,
    outputs: int,
) -> Tensor:
    """Write the kernel into ``out`` (any strides); ``columns=None`` is the symmetric kernel, every pair computed once.

    Returns ``out``, symmetric to the last bit where ``columns`` is None.
    """
    if isinstance(rows, Operands):
        assert columns is None or isinstance(columns, Operands)
        return gram(rows, columns, out=out)
    assert not isinstance(columns, Operands)
    if gram_native.reason_against(rows, columns, output, outputs, out) is None:
        return gram_native.fill_(out, rows, columns, output, outputs)

    def write(i: slice, j: slice, tile: Tensor) -> None:
        out[i, j] = tile
        if columns is None and i != j:
            out[j, i] = tile.t()

    for_each_tile(rows, columns, output, outputs, out.dtype, write, in_order=False)
    return out


def for_each_tile(
    rows: Sequence[Pair],
    columns: Sequence[Pair] | None,
    output: Output,
    outputs: int,
    dtype: torch.dtype,
    visit: Callable[[slice, slice, Tensor], None],
    in_order: bool = True,
) -> None:
    """Call ``visit(rows, columns, tile)`` on every tile; ``columns=None`` is the symmetric kernel, upper tiles only.

    Slices count rows of the kernel (points times M for ``"full"``); the tile is scratch, valid during the call. Unless
    ``in_order``, threads share the tiles and call ``visit`` at the same time.
    """
    fold = outputs if output == "full" else 1
    device = next(f for pair in rows for f in pair if f is not None).device
    side = max(1, (TILE if device.type == "cpu" else TILE_GPU) // fold)
    n = points(rows)
    others = rows if columns is None else columns
    tiles = symmetric_tiles(n, side) if columns is None else rectangular_tiles(n, points(columns), side)
    above, across = (
        Side(factors, output, fold, transposed, dtype) for factors, transposed in ((rows, False), (others, True))
    )

    def worker() -> Callable[[tuple[slice, slice]], None]:
        scratch = Scratch.of(min(side, max(n, points(others))), fold, dtype, device)
        memory: tuple[dict[tuple[int, int], Tensor], ...] = ({}, {})

        def compute(place: tuple[slice, slice]) -> None:
            i, j = place
            views = scratch.views(i.stop - i.start, j.stop - j.start)
            tile = compute_tile(above.block(i, memory[0]), across.block(j, memory[1]), output, outputs, views)
            if columns is None and i == j:
                _symmetrise_(tile)
            visit(slice(i.start * fold, i.stop * fold), slice(j.start * fold, j.stop * fold), tile)

        return compute

    threads = 1 if in_order or n <= side else gemm_threads(dtype, device)
    share(tiles, [worker() for _ in range(threads)])


def gram_diagonal(factors: Sequence[Pair], output: Output, outputs: int) -> Tensor:
    """Return the kernel's diagonal in fp64: ``|Z[n]|^2 |S[n, m]|^2`` summed over layers (and outputs for the trace)."""
    n = points(factors)
    reference = next(f for pair in factors for f in pair if f is not None)
    total = torch.zeros(n, outputs, dtype=torch.float64, device=reference.device)
    for z, s in factors:
        left = 1.0 if z is None or is_sparse(z) else _squared_norm(z).unsqueeze(1)
        total += left * (1.0 if s is None else _squared_norm(s))
    if output == "trace":
        return total.sum(1)
    return total[:, output] if isinstance(output, int) else total.flatten()


def _squared_norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64).square()


# ---- the Triton backend ------------------------------------------------------------------------------------------


def gram(rows: Operands, columns: Operands | None = None, out: Tensor | None = None) -> Tensor:
    """Return the kernel between two operands of one layout, (n, m), or (models, n, m) where they hold several models.

    Parameters
    ----------
    rows, columns
        Operands of the same layers; None: the symmetric kernel, every pair of rows computed once.
    out
        Where to write: a tensor of that shape, fp32 or fp64, any strides; None allocates one in the accumulator's
        dtype. Where neither rows nor columns lie next to each other it is copied once.

    Raises
    ------
    ValueError
        Operands of different layouts, models or devices, or an ``out`` that does not fit.
    """
    other = rows if columns is None else columns
    sides, tables = operator_arguments(rows, other)
    models, n, m = len(rows.slabs), rows.rows, other.rows
    symmetric, format = columns is None, rows.plan.layout.format
    if out is None:
        out = rows.scale.new_empty((n, m) if models == 1 else (models, n, m))
    target = out.unsqueeze(0) if out.ndim == 2 else out
    if target.shape != (models, n, m) or target.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"out must be fp32 or fp64 of shape {(models, n, m)}, got {out.dtype} {tuple(out.shape)}")
    if out.device != rows.slabs.device:
        raise ValueError(f"out is on {out.device}, the operands are on {rows.slabs.device}")
    if target.stride(2) != 1 and target.stride(1) == 1:  # turned over: the kernel between the sides exchanged
        sides, target = (*sides[3:], *sides[:3]), target.mT
    dense = target if target.stride(2) == 1 else torch.empty_like(target, memory_format=torch.contiguous_format)
    gram_(*sides, dense, *tables, symmetric, format)
    if dense is not target:
        target.copy_(dense)
    return out


def operator_arguments(rows: Operands, columns: Operands) -> tuple[Sides, tuple[list[int], list[float], int]]:
    """Return both sides' tensors and the tables, as the operators take them.

    Raises
    ------
    ValueError
        Operands of different layouts, models or devices.
    """
    if rows.plan != columns.plan or len(rows.slabs) != len(columns.slabs) or rows.slabs.device != columns.slabs.device:
        raise ValueError(
            f"rows and columns must be operands of one plan, number of models and device, got {rows.plan}, "
            f"{len(rows.slabs)}, {rows.slabs.device} and {columns.plan}, {len(columns.slabs)}, {columns.slabs.device}"
        )
    layout = rows.plan.layout
    values = [value for place in layout.places for value in (_bias(rows.plan, place), place.weight)]
    sides = (rows.slabs, rows.narrow, rows.scale, columns.slabs, columns.narrow, columns.scale)
    return sides, (list(layout.segments), values, layout.narrow_layers)


def _bias(plan: Plan, place: Place) -> float:
    """Return the bias of a layer's wide features in units of their scaled product; narrow ones hold it as a column."""
    if place.narrow == "features" or not plan.layout.shapes[place.layer].bias:
        return 0.0
    return 4.0 ** plan.exponents[place.layer]


@torch.library.custom_op("inrfast::gram_", mutates_args=("out",))
def gram_(
    row_slabs: Tensor,
    row_narrow: Tensor,
    row_scale: Tensor,
    column_slabs: Tensor,
    column_narrow: Tensor,
    column_scale: Tensor,
    out: Tensor,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
    symmetric: bool,
    format: str,
) -> None:
    """Write kernels into ``out`` (models, n, m), its last stride 1; tables as in :mod:`inrfast.kernels.gram`.

    On a GPU the Triton kernel; on a CPU the reference, or the kernel where Triton interprets.
    """
    sides = (row_slabs, row_narrow, row_scale, column_slabs, column_narrow, column_scale)
    _write(sides, out, segments, values, narrow_layers, symmetric, format)


def _write(
    sides: Sides,
    out: Tensor,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
    symmetric: bool,
    format: str,
) -> None:
    """Do what :func:`gram_` says. On a GPU a second call is one launch: its tables are there already."""
    if not runs_kernels(out.device):
        result = gram_reference(*sides, segments, values, narrow_layers)
        out.copy_(result[:, : out.shape[1], : out.shape[2]])
        return
    from inrfast.kernels import gram as kernel  # imports triton

    config = config_on(format, out.device, aligned=_is_aligned(out))
    order = tile_order(out.shape[1], out.shape[2], config.block, symmetric, out.device)
    tables = kernel_tables(segments, values, format, out.device)
    on_gpu = out.device.type == "cuda"
    programs = torch.cuda.get_device_properties(out.device).multi_processor_count if on_gpu else 2
    with backends.launching_on(out.device):
        kernel.launch(format, config, *kernel_sides(*sides), out, order, *tables, narrow_layers, symmetric, programs)


def runs_kernels(device: torch.device) -> bool:
    """Return whether operands on this device are multiplied by the kernels, or by their reference in plain torch."""
    return backends.reason_against_triton(device) is None


def kernel_sides(*sides: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return the two sides of :func:`operator_arguments` as the kernels read them."""
    return _packed(*sides[:3]), _packed(*sides[3:])


def kernel_tables(
    segments: Sequence[int], values: Sequence[float], format: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the tables as the kernels read them, (layers, 2) each, copied to the device once."""
    return _kernel_tables(tuple(segments), tuple(values), FORMATS[format].accumulator, device)


@functools.lru_cache(maxsize=64)
def _kernel_tables(
    segments: tuple[int, ...], values: tuple[float, ...], accumulator: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if accumulator == "fp64" else torch.float32
    return (
        torch.tensor(segments, dtype=torch.int32, device=device).view(-1, 2),
        torch.tensor(values, dtype=wide, device=device).view(-1, 2),
    )


@functools.lru_cache(maxsize=8)
def tile_places(tiles: int, device: torch.device) -> Tensor:
    """Return 0, 1, 2, ... as the kernels read a tile's place, int32."""
    return torch.arange(tiles, dtype=torch.int32, device=device)


def _packed(slabs: Tensor, narrow: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one side as the kernel reads it: contiguous, or some points of what is; copied where it is neither."""
    _, planes, count, _, width = slabs.shape
    padded = slabs.stride(2) // width
    expected = (
        (slabs, (planes * count * padded * width, count * padded * width, padded * width, width, 1)),
        (narrow, (narrow.shape[1] * padded, padded, 1)),
        (scale, (padded, 1)),
    )
    if all(
        size == 1 or stride == wanted
        for t, strides in expected
        for size, stride, wanted in zip(t.shape, t.stride(), strides, strict=True)
    ):
        return slabs, narrow, scale
    return slabs.contiguous(), narrow.contiguous(), scale.contiguous()


def gram_reference(
    row_slabs: Tensor,
    row_narrow: Tensor,
    row_scale: Tensor,
    column_slabs: Tensor,
    column_narrow: Tensor,
    column_scale: Tensor,
    segments: Sequence[int],
    values: Sequence[float],
    narrow_layers: int,
) -> Tensor:
    """Return what the kernel computes, in fp64, from the numbers that its operands hold: (models, padded, padded)."""

    def product(start: int, stop: int) -> Tensor:
        left, right = (
            t.to(torch.float64).sum(1)[:, start:stop].transpose(1, 2).flatten(2) for t in (row_slabs, column_slabs)
        )
        return left @ right.mT

    total = torch.zeros((), dtype=torch.float64, device=row_slabs.device)
    slab = column = 0
    for layer in range(len(segments) // 2):
        first, second = segments[2 * layer : 2 * layer + 2]
        bias, weight = values[2 * layer : 2 * layer + 2]
        left = product(slab, first) + bias
        if layer < narrow_layers:
            x, y = (t.to(torch.float64)[:, column:second] for t in (row_narrow, column_narrow))
            total = total + weight * (x.mT @ y) * left
            slab, column = first, second
        else:
            total = total + left * product(first, second)
            slab = second
    return total * row_scale.to(torch.float64).unsqueeze(2) * column_scale.to(torch.float64).unsqueeze(1)


GROUP = 16
"""Tiles a side of a group whose operands stay in the second-level cache."""

LEAST_ORDER = 1024
"""Fewest rows of tiles in an order that is kept on the device for blocks of few columns."""


def tile_order(n: int, m: int, block: int, symmetric: bool, device: torch.device) -> Tensor:
    """Return the places (tiles, 2) of the tiles, int32: in groups of 16 x 16, so that a group's operands stay in the
    second-level cache; of a symmetric kernel those on and below the diagonal.

    They are made on the host and kept on the device. Blocks one group wide and of any height share one order: a
    factorisation asks for one of another height at every step, and must not wait for a copy there.
    """
    rows, columns = -(-n // block), -(-m // block)
    if symmetric or columns > GROUP:
        return _tile_order(rows, columns, symmetric, device)
    longest = max(LEAST_ORDER, 1 << max(rows - 1, 0).bit_length())
    return _tile_order(longest, columns, False, device)[: rows * columns]  # one group wide: row after row


@functools.lru_cache(maxsize=8)
def _tile_order(rows: int, columns: int, symmetric: bool, device: torch.device) -> Tensor:
    """Return the places of so many rows and columns of tiles."""
    i, j = (torch.arange(count, dtype=torch.int32) for count in (rows, columns))
    first, second = (t.flatten() for t in torch.meshgrid(i, j, indexing="ij"))
    if symmetric:
        kept = first >= second
        first, second = first[kept], second[kept]
    groups = (first // GROUP).to(torch.int64) * (columns // GROUP + 1) + second // GROUP
    order = torch.sort(groups, stable=True).indices
    return torch.stack([first[order], second[order]], 1).contiguous().to(device)


def config_on(format: str, device: torch.device, product: bool = False, aligned: bool = False) -> Config:
    """Return the tiles of the kernels on this device, those of the product with V, or those of aligned results."""
    if device.type != "cuda":
        return config_for(format, (8, 0), 0, product, aligned)  # interpreted
    _, capability, shared = backends.gpu(device)
    return config_for(format, capability, shared, product, aligned)


def _is_aligned(out: Tensor) -> bool:
    """Return whether Triton takes all that describes a result (models, n, m) for multiples of 16."""
    return all(number % 16 == 0 for number in (*out.shape[1:], *out.stride()[:2], out.data_ptr()))
