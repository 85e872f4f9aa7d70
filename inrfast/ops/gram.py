"""Gram products of factors: tiles of ``K = sum_l (Z_l Z_l^T) * (S_l S_l^T)``, dense or reduced, never the Jacobian.

``factors`` are pairs ``(features, sensitivities)``, one a layer, as in :mod:`inrfast.ops.rows`; features carry their
column of ones where the layer has a bias. ``output`` is ``"trace"`` (sum over outputs), ``"full"`` (every pair of
outputs, output index fast) or an int (that output alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


def slice_points(factors: Sequence[Pair], rows: slice | Tensor) -> list[Pair]:
    """Return the factors of some of the points."""
    return [tuple(None if f is None else f[rows] for f in pair) for pair in factors]  # type: ignore[misc]


def _flat(sensitivities: Tensor | None, output: Output) -> Tensor | None:
    """Return S as the matrix whose Gram product is the output factor: (n, M b), (n, b) or (n M, b)."""
    if sensitivities is None:
        return None
    if isinstance(output, int):
        return sensitivities[:, output]
    if output == "trace":
        return sensitivities.flatten(1)
    return sensitivities.reshape(-1, sensitivities.shape[-1])


@dataclass(frozen=True)
class Scratch:
    """Memory of a tile and of its two factors, allocated once: fresh pages would cost more than the products."""

    tile: Tensor
    left: Tensor
    right: Tensor

    @staticmethod
    def allocate(points: int, fold: int, dtype: torch.dtype, device: torch.device) -> Scratch:
        """Return room for tiles of up to ``points`` x ``points`` points with ``fold`` rows each."""
        pairs = points * points
        sizes = (pairs * fold**2, pairs, pairs * fold**2)
        return Scratch(*(torch.empty(size, dtype=dtype, device=device) for size in sizes))


def gram_tile(
    rows: Sequence[Pair], columns: Sequence[Pair], output: Output, outputs: int, scratch: Scratch | None = None
) -> Tensor:
    """Return the kernel between two sets of points, in the memory of ``scratch``.

    The result is (n, n') for ``"trace"`` and single outputs, (n M, n' M) for ``"full"``; cost
    ``2 n n' sum_l (a + M b)`` FLOP for the trace.
    """
    fold = outputs if output == "full" else 1
    n, m = points(rows), points(columns)
    if scratch is None:
        reference = next(f for pair in rows for f in pair if f is not None)
        scratch = Scratch.allocate(max(n, m), fold, reference.dtype, reference.device)
    out = scratch.tile[: n * m * fold**2].view(n * fold, m * fold)
    left = scratch.left[: n * m].view(n, m)
    right = scratch.right[: n * m * fold**2].view(n * fold, m * fold)
    empty = True
    # A layer with one factor adds a plain product: it comes first and writes the tile, the others accumulate.
    order = sorted(range(len(rows)), key=lambda k: None not in rows[k])
    for k in order:
        (z, s), (z2, s2) = rows[k], columns[k]
        s, s2 = _flat(s, output), _flat(s2, output)
        if z is None or z2 is None:
            assert s is not None and s2 is not None
            if empty:
                mm(s, s2.t(), out)
            else:
                addmm_(out, s, s2.t())
        elif s is None or s2 is None:
            mm(z, z2.t(), left)
            _add_identity(out.zero_() if empty else out, left, output, outputs)
        else:
            mm(z, z2.t(), left)
            mm(s, s2.t(), right)
            pairs, total = right.view(n, fold, m, fold), out.view(n, fold, m, fold)
            if empty:
                torch.mul(left.view(n, 1, m, 1), pairs, out=total)
            else:
                total.addcmul_(left.view(n, 1, m, 1), pairs)
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

    def worker() -> Callable[[tuple[slice, slice]], None]:
        scratch = Scratch.allocate(min(side, max(n, points(others))), fold, dtype, device)

        def compute(place: tuple[slice, slice]) -> None:
            i, j = place
            tile = gram_tile(slice_points(rows, i), slice_points(others, j), output, outputs, scratch)
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
