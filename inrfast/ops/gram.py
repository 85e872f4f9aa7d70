"""Gram products of factors: tiles of ``K = sum_l (Z_l Z_l^T) * (S_l S_l^T)``, dense or reduced, never the Jacobian.

``factors`` are pairs ``(features, sensitivities)``, one a layer, as in :mod:`inrfast.ops.rows`; features carry their
column of ones where the layer has a bias. ``output`` is ``"trace"`` (sum over outputs), ``"full"`` (every pair of
outputs, output index fast) or an int (that output alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from inrfast.ops.gemm import addmm_, mm
from inrfast.ops.gemm import threads as gemm_threads
from inrfast.threads import share

Pair = tuple[Tensor | None, Tensor | None]
Output = str | int

TILE = 512
"""Points a side of a tile: three tiles of fp32 (3 MiB) stay in the second-level caches of two cores; measured on a
2-core AVX-512 machine, 256 and 1024 are slower."""


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


class _Side:
    """The factors of one side of a kernel as matrices, and their blocks of points, each cut once.

    A tile takes a dozen operations; cutting its blocks anew would take three times as many, each under Python's lock.
    """

    def __init__(self, factors: Sequence[Pair], output: Output, fold: int, transposed: bool) -> None:
        # A layer with one factor adds a plain product: it comes first and writes the tile, the others accumulate.
        ordered = sorted(factors, key=lambda pair: None not in pair)
        self.layers = [(features, _flat(sensitivities, output)) for features, sensitivities in ordered]
        self.fold, self.transposed = fold, transposed
        self._blocks: dict[tuple[int, int], list[Pair]] = {}

    def block(self, rows: slice) -> list[Pair]:
        """Return the matrices of some points, turned over on the side of the columns."""
        key = (rows.start, rows.stop)
        if key not in self._blocks:
            folded = slice(rows.start * self.fold, rows.stop * self.fold)
            self._blocks[key] = [(self._cut(z, rows), self._cut(s, folded)) for z, s in self.layers]
        return self._blocks[key]

    def _cut(self, factor: Tensor | None, rows: slice) -> Tensor | None:
        if factor is None:
            return None
        return factor[rows].t() if self.transposed else factor[rows]


class _Scratch:
    """Memory of a tile and of its two factors, allocated once: fresh pages would cost more than the products."""

    def __init__(self, points: int, fold: int, dtype: torch.dtype, device: torch.device) -> None:
        pairs = points * points
        sizes = (pairs * fold**2, pairs, pairs * fold**2)
        self.fold = fold
        self.memory = [torch.empty(size, dtype=dtype, device=device) for size in sizes]
        self._views: dict[tuple[int, int], tuple[Tensor, ...]] = {}

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


def _tile(rows: list[Pair], columns: list[Pair], output: Output, outputs: int, views: tuple[Tensor, ...]) -> Tensor:
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
    side = max(1, TILE // fold)
    n = points(rows)
    others = rows if columns is None else columns
    tiles = symmetric_tiles(n, side) if columns is None else rectangular_tiles(n, points(columns), side)
    device = next(f for pair in rows for f in pair if f is not None).device
    above, across = _Side(rows, output, fold, transposed=False), _Side(others, output, fold, transposed=True)

    def worker() -> Callable[[tuple[slice, slice]], None]:
        scratch = _Scratch(min(side, max(n, points(others))), fold, dtype, device)

        def compute(place: tuple[slice, slice]) -> None:
            i, j = place
            views = scratch.views(i.stop - i.start, j.stop - j.start)
            tile = _tile(above.block(i), across.block(j), output, outputs, views)
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
        left = 1.0 if z is None else _squared_norm(z).unsqueeze(1)
        total += left * (1.0 if s is None else _squared_norm(s))
    if output == "trace":
        return total.sum(1)
    return total[:, output] if isinstance(output, int) else total.flatten()


def _squared_norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64).square()
