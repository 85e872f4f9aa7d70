"""Inner products of the layers' kernels ``K_l = (Z_l Z_l^T) * (S_l S_l^T)`` over pairs of different points.

Of a tile all layers' products are there at once, and their Gram matrix is one product of two thin matrices. Nothing
N x N is stored: a tile of every layer per thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inrfast.ops.gemm import mm
from inrfast.ops.gemm import threads as gemm_threads
from inrfast.ops.gram import (
    TILE,
    TILE_GPU,
    Output,
    Pair,
    Scratch,
    Side,
    compute_tile,
    points,
    rectangular_tiles,
    symmetric_tiles,
)
from inrfast.ops.sparse_rows import is_sparse
from inrfast.threads import share

TILE_BYTES, TILE_BYTES_GPU = 2**25, 2**30
"""Bytes that one thread's tiles of all layers may take: those of many layers are smaller."""

LEAST_TILE = 64

STRIPS = 8
"""Parts in which a tile is widened to fp64: they stay in the second-level cache."""


class LayerProducts(NamedTuple):
    """Sums over pairs of rows of the kernel at different points, fp64; with two sides over all pairs of them.

    Attributes
    ----------
    products
        ``sum K_k,ij K_l,ij`` of all layers, (L, L).
    features
        ``sum (z_i . z_j)^2 |s_i|^2 |s_j|^2`` of every layer (L,); NaN of one without two dense factors.
    sensitivities
        ``sum (s_i . s_j)^2 |z_i|^2 |z_j|^2``, the same.
    single
        ``sum (g_i . g_j)^2`` of every single factor (H,), over points.
    """

    products: Tensor
    features: Tensor
    sensitivities: Tensor
    single: Tensor

    def __add__(self, other: object) -> LayerProducts:
        """Return the sums over both sets of pairs."""
        assert isinstance(other, LayerProducts)
        return LayerProducts(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> LayerProducts:
        """Return all sums times a number."""
        return LayerProducts(*(factor * t for t in self))


def layer_products(
    rows: Sequence[Pair],
    columns: Sequence[Pair] | None,
    output: Output,
    outputs: int,
    dtype: torch.dtype,
    single: tuple[Sequence[Tensor], Sequence[Tensor] | None] = ((), None),
    advance: Callable[[int], None] | None = None,
) -> LayerProducts:
    """Return the inner products of the layers' kernels; ``columns=None`` is the symmetric kernel without its diagonal.

    Parameters
    ----------
    rows, columns
        The factors of both sides, one pair per layer, as in :mod:`inrfast.ops.gram`. Of the symmetric kernel, pairs of
        outputs at one point are left out too.
    output, outputs
        As in :mod:`inrfast.ops.gram`.
    dtype
        Of the tiles; products of entries and sums are in fp64.
    single
        Factors (n, D) and, of the columns, (n', D) of which sums of squared inner products are wanted too.
    advance
        Called with the number of pairs of points of every finished tile, by several threads at the same time.

    Notes
    -----
    Tiles and the order of their sums are the same however many threads compute them; what is left to differ is the
    rounding of the matrix library, which may depend on its threads and on where memory lies. Cost for the trace:
    ``2 n n' sum_l (a + M b)`` FLOP for the tiles and ``2 n n' L^2`` for their Gram matrices, half of it for a
    symmetric kernel. Memory: ``(L + 2)`` tiles per thread, at most 512 points a side and some 32 MiB, and a copy of
    both sides.
    """
    fold = outputs if output == "full" else 1
    count, device = len(rows), next(f for pair in rows for f in pair if f is not None).device
    n = points(rows)
    side = tile_side(count, fold, dtype, device)
    tiles = symmetric_tiles(n, side) if columns is None else rectangular_tiles(n, points(columns), side)
    above = _Half(rows, single[0], output, fold, transposed=False)
    if columns is None:
        across = _Half(rows, single[0], output, fold, transposed=True, like=above)
    else:
        across = _Half(columns, single[1] or (), output, fold, transposed=True)
    found: dict[tuple[int, int], LayerProducts] = {}

    def worker() -> Callable[[tuple[slice, slice]], None]:
        room = _Room(min(side, max(n, n if columns is None else points(columns))), fold, count, dtype, device)

        def compute(place: tuple[slice, slice]) -> None:
            i, j = place
            diagonal = columns is None and i == j
            sums = _tile_products(above, across, i, j, output, outputs, room, diagonal)
            found[i.start, j.start] = sums.times(2.0) if columns is None and not diagonal else sums
            if advance is not None:
                advance((i.stop - i.start) * (j.stop - j.start))

        return compute

    workers = 1 if n <= side and columns is None else gemm_threads(dtype, device)
    share(tiles, [worker() for _ in range(workers)])
    every = [found[place] for place in sorted(found)]
    return LayerProducts(*(torch.stack(parts).sum(0).cpu() for parts in zip(*every, strict=True)))


def tile_side(layers: int, fold: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the points a side of a tile: those of a kernel's tiles, or fewer where all layers' would be too large."""
    cpu = device.type == "cpu"
    held = math.isqrt((TILE_BYTES if cpu else TILE_BYTES_GPU) // (dtype.itemsize * (layers + 2)))
    return max(1, min(TILE if cpu else TILE_GPU, max(held, LEAST_TILE)) // fold)


class _Half:
    """One side: the factors of every layer with features of length 1, weights of their points, and single factors.

    With ``Z`` of length 1 and ``S`` times its former length their products are the same, that of ``Z`` is a cosine,
    and the squares of neither leave the range of fp32.
    """

    def __init__(
        self,
        factors: Sequence[Pair],
        single: Sequence[Tensor],
        output: Output,
        fold: int,
        transposed: bool,
        like: _Half | None = None,
    ) -> None:
        made = [_balanced(pair, output) for pair in factors] if like is None else like.made
        self.made: list[tuple[Pair, Tensor | None, float]] = made
        self.layers = [Side([pair], output, fold, transposed) for pair, _, _ in made]
        self.weights = [weights for _, weights, _ in made]
        self.scales = [scale for _, _, scale in made]
        self.single = single
        self.transposed = transposed

    def single_block(self, index: int, rows: slice) -> Tensor:
        """Return some rows of a single factor, turned over on the side of the columns."""
        block = self.single[index][rows]
        return block.t() if self.transposed else block


def _balanced(pair: Pair, output: Output) -> tuple[Pair, Tensor | None, float]:
    """Return a layer's factors, features of length 1; their weights ``|z|^2 |s|^2`` over the largest one; that one."""
    z, s = pair
    if z is None or s is None or is_sparse(z):
        return pair, None, 1.0
    length = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
    length = torch.where(length > 0, length, 1.0)
    of_outputs = s[:, output] if isinstance(output, int) else s.flatten(1)
    energy = (torch.linalg.vector_norm(of_outputs, dim=1, dtype=torch.float64) * length).square()
    largest = float(energy.amax()) or 1.0
    unit = (z / length.unsqueeze(1)).to(z.dtype), (s * length[:, None, None]).to(s.dtype)
    return unit, (energy / largest).to(z.dtype), largest


class _Room:
    """Memory of a thread: a tile of every layer, both factors of one, and a part of all tiles in fp64."""

    def __init__(self, side: int, fold: int, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tiles = torch.empty(layers, (side * fold) ** 2, dtype=dtype, device=device)
        left, right = self.tiles.new_empty(side**2), self.tiles.new_empty((side * fold) ** 2)
        self.scratch = [Scratch(tile, left, right, fold) for tile in self.tiles]
        strip = -(-self.tiles.shape[1] // STRIPS)
        self.wide = torch.empty(layers * strip, dtype=torch.float64, device=device)

    def gram(self, entries: int) -> Tensor:
        """Return the Gram matrix of all layers' tiles, of so many entries, in fp64."""
        layers = len(self.tiles)
        total = torch.zeros(layers, layers, dtype=torch.float64, device=self.tiles.device)
        strip = -(-entries // STRIPS)
        for start in range(0, entries, strip):
            part = self.tiles[:, start : min(start + strip, entries)]
            wide = self.wide[: part.numel()].view(part.shape)
            wide.copy_(part)
            total.addmm_(wide, wide.t())
        return total


def _tile_products(
    above: _Half,
    across: _Half,
    i: slice,
    j: slice,
    output: Output,
    outputs: int,
    room: _Room,
    diagonal: bool,
) -> LayerProducts:
    """Return the sums over one tile; of a diagonal one without pairs of a point with itself."""
    n, m = i.stop - i.start, j.stop - j.start
    features, sensitivities = [], []
    entries = 0
    for index, scratch in enumerate(room.scratch):
        views = scratch.views(n, m)
        tile = compute_tile(above.layers[index].block(i), across.layers[index].block(j), output, outputs, views)
        entries = tile.numel()
        if diagonal:
            _without_points_(tile, n)
        weights, other = above.weights[index], across.weights[index]
        if weights is None or other is None:
            features.append(tile.new_full((), math.nan, dtype=torch.float64))
            sensitivities.append(tile.new_full((), math.nan, dtype=torch.float64))
            continue
        left, right = views[1], views[2]
        if diagonal:
            _without_points_(left, n)
            _without_points_(right, n)
        scale = above.scales[index] * across.scales[index]
        features.append(scale * weights[i].double().dot(torch.mv(left.square_(), other[j]).double()))
        sensitivities.append(_sum_of_squares(right))
    single = []
    for index in range(len(above.single)):
        left = room.scratch[0].views(n, m)[1]
        mm(above.single_block(index, i), across.single_block(index, j), left)
        if diagonal:
            _without_points_(left, n)
        single.append(_sum_of_squares(left))
    empty = room.wide.new_zeros(0)
    return LayerProducts(
        room.gram(entries),
        torch.stack(features),
        torch.stack(sensitivities),
        torch.stack(single) if single else empty,
    )


def _sum_of_squares(tile: Tensor) -> Tensor:
    """Return the sum of squares: rows in the tile's dtype, their sum in fp64, a quarter of the time of all in fp64."""
    return torch.linalg.vector_norm(tile, dim=1).double().square().sum()


def _without_points_(tile: Tensor, n: int) -> None:
    """Set the entries between the outputs of one point to zero, in a tile between the same n points."""
    fold = len(tile) // n
    tile.view(n, fold, n, fold).diagonal(dim1=0, dim2=2).zero_()


def layer_products_reference(
    rows: Sequence[Pair],
    columns: Sequence[Pair] | None,
    output: Output,
    outputs: int,
    single: tuple[Sequence[Tensor], Sequence[Tensor] | None] = ((), None),
) -> LayerProducts:
    """Return what :func:`layer_products` computes, by dense matrices in fp64; sparse rows are not taken."""
    n = points(rows)
    fold = outputs if output == "full" else 1
    other = rows if columns is None else columns

    def flat(s: Tensor | None, count: int) -> Tensor:
        if s is None:
            s = torch.eye(outputs, dtype=torch.float64).expand(count, -1, -1)
        s = s.double()
        return s[:, output] if isinstance(output, int) else s.flatten(1) if output == "trace" else s.flatten(0, 1)

    def outside(matrix: Tensor, count: int) -> Tensor:
        kept = matrix.clone()
        if columns is None:
            _without_points_(kept, count)
        return kept

    kernels, features, sensitivities = [], [], []
    for (z, s), (z2, s2) in zip(rows, other, strict=True):
        m = points(other)
        left_factors = [torch.ones(k, 1).double() if t is None else t.double() for t, k in ((z, n), (z2, m))]
        lefts = [t.repeat_interleave(fold, 0) for t in left_factors]
        rights = [flat(t, k) for t, k in ((s, n), (s2, m))]
        left, right = (outside(a @ b.t(), n) for a, b in (lefts, rights))
        kernels.append((left * right).flatten())
        whole = z is not None and s is not None
        squares = [[t.square().sum(1) for t in both] for both in (lefts, rights)]
        features.append(squares[1][0] @ left.square() @ squares[1][1] if whole else torch.tensor(math.nan).double())
        sensitivities.append(squares[0][0] @ right.square() @ squares[0][1] if whole else features[-1])
    stacked = torch.stack(kernels)
    pairs = zip(single[0], single[0] if columns is None else (single[1] or ()), strict=True)
    sums = [outside(g.double() @ h.double().t(), n).square().sum() for g, h in pairs]
    empty = torch.zeros(0, dtype=torch.float64)
    return LayerProducts(
        stacked @ stacked.t(), torch.stack(features), torch.stack(sensitivities), torch.stack(sums) if sums else empty
    )
