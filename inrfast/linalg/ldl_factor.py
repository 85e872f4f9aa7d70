"""What a block LDL^T has made of ``K - shift I``: a matrix M with its inertia, its products and its inverse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inrfast.linalg.lower_products import add_transposed_, sharing, terms, times
from inrfast.linalg.lower_rows import LowerRows
from inrfast.linalg.operators import UNIT
from inrfast.linalg.partition import Whole


@dataclass(frozen=True)
class Step:
    """One window's elimination.

    Attributes
    ----------
    rows
        The operator's rows that enter.
    carried
        Directions m that earlier windows passed on, which come before the rows.
    start, kept
        The eliminated directions are numbers ``start`` to ``start + kept`` of all.
    basis
        Orthogonal (m + rows, m + rows), fp64: eliminated directions first.
    defect
        Bound on ``|basis^T basis - I|_2``.
    through
        Bound on the norm of the block of the basis from the carried directions to those passed on.
    owner
        Number of the process that holds the rows.
    """

    rows: slice
    carried: int
    start: int
    kept: int
    basis: Tensor
    defect: float
    through: float
    owner: int = 0


class BlockLDL:
    """``M = G D G^T`` near ``K - shift I``.

    Attributes
    ----------
    shift
        The shift.
    pivots
        The diagonal of D (n,), fp64; no entry is zero.
    steps
        The eliminations in order.
    lower
        Blocks of this process's rows of ``W = L D``: those of a window have as many columns as directions were
        eliminated before, then zeros.
    delayed
        How often a direction was passed on.
    nbytes
        Bytes of W, in all processes, and of bases and pivots, in every one.
    """

    def __init__(
        self, shift: float, pivots: Tensor, steps: list[Step], lower: LowerRows, partition: Whole | None = None
    ) -> None:
        self.shift, self.pivots, self.steps, self.lower = shift, pivots, steps, lower
        self.size, self.dtype = len(pivots), lower.dtype
        self.partition = Whole(self.size) if partition is None else partition
        self.delayed = sum(step.carried for step in steps)
        own = int(self.partition.sum(lower.nbytes, pivots.device))
        self.nbytes = own + pivots.nbytes + sum(step.basis.nbytes for step in steps)

    @cached_property
    def positive(self) -> int:
        """Number of positive eigenvalues of M, exact."""
        return int((self.pivots > 0).sum())

    @property
    def negative(self) -> int:
        """Number of negative eigenvalues of M, exact."""
        return self.size - self.positive

    def away_from_zero(self, least: float) -> BlockLDL:
        """Return a factor within ``1.01 least`` of M whose pivots of the last window are at least ``least`` in size.

        The columns of G there are orthonormal, up to the bases' defects: no row of W is below them. The signs stay.
        """
        pivots, last = self.pivots.clone(), slice(self.steps[-1].start, self.size)
        sizes = pivots[last].abs().clamp_min(least)
        pivots[last] = torch.where(pivots[last] < 0, -sizes, sizes)
        return BlockLDL(self.shift, pivots, self.steps, self.lower, self.partition)

    # ---- products ----------------------------------------------------------------------------------------------

    def product(self, V: Tensor) -> Tensor:
        """Return these rows of ``M V`` for these rows of V (n, k), fp64."""
        partition, vectors = self.partition, V.t().contiguous()
        whole = vectors if partition.whole else partition.gather(V).t().contiguous()
        with sharing(V.device) as threads:
            scaled = self._transposed(vectors, threads) + self._from_rows(whole) * self.pivots  # D G^T V
            out = self._to_rows(scaled)[:, partition.start : partition.stop]
            inner = scaled / self.pivots
            for rows, matrix in self._strips():
                out[:, rows] += times(matrix, inner[:, : matrix.shape[1]], threads=threads)
        return out.t().contiguous()

    def inverse(self, V: Tensor) -> Tensor:
        """Return these rows of ``M^-1 V`` for these rows of V (n, k), fp64.

        The rows of a block of W are multiplied at once by all directions eliminated before its first window.
        """
        with sharing(V.device) as threads:
            return self._inverse(V.t().contiguous(), threads).t().contiguous()

    def _inverse(self, vectors: Tensor, threads: int) -> Tensor:
        """Return the same for vectors (k, n)."""
        groups = {step.rows.start: group for group in self._groups() for step in group[0]}
        found = self._forward(vectors, groups, threads)
        sums, out, carried = torch.zeros_like(found), torch.empty_like(vectors), vectors[:, :0]
        for step in reversed(self.steps):
            new = slice(step.start, step.start + step.kept)
            mine = found[:, new] - self.partition.total(sums[:, new]) / self.pivots[new]
            turned = torch.cat([mine, carried], 1) @ step.basis.t()
            carried, entering = turned[:, : step.carried], turned[:, step.carried :]
            if step.owner != self.partition.rank:
                continue
            steps, rows, before = groups[step.rows.start]
            out[:, self._here(step)] = entering
            between = slice(before.shape[1], step.start)
            add_transposed_(sums[:, between], self._strip(step)[:, between], entering)
            if step is steps[0]:
                add_transposed_(sums[:, : before.shape[1]], before, out[:, rows], threads=threads)
        return out

    def _forward(self, vectors: Tensor, groups: dict[int, tuple[list[Step], slice, Tensor]], threads: int) -> Tensor:
        """Return ``D^-1 G^-1`` times vectors (k, n), from the blocks of W by the first rows of their windows."""
        found = vectors.new_empty(len(vectors), self.size)
        carried = own = vectors[:, :0]
        for step in self.steps:
            mine = vectors.new_empty(len(vectors), step.rows.stop - step.rows.start)
            if step.owner == self.partition.rank:
                steps, rows, before = groups[step.rows.start]
                if step is steps[0]:
                    own = vectors[:, rows] - times(before, found[:, : before.shape[1]], threads=threads)
                here, between = self._here(step), slice(before.shape[1], step.start)
                mine = own[:, here.start - rows.start : here.stop - rows.start]
                mine = mine - times(self._strip(step)[:, between], found[:, between])
            mine = self.partition.from_owner(step.owner, mine)
            turned = torch.cat([carried, mine], 1) @ step.basis
            new = slice(step.start, step.start + step.kept)
            found[:, new] = turned[:, : step.kept] / self.pivots[new]
            carried = turned[:, step.kept :]
        return found

    def rounding(self) -> float:
        """Return a bound on the 2-norm of the error of :meth:`product` on a unit vector, and on a change of M (not
        symmetric, another one for every vector) for which :meth:`inverse` is exact.

        With ``w^2 >= | |W| |D|^-1 |W|^T |_2`` (the largest row sum), ``q^2 = max |D|`` and hence
        ``|G |D|^(1/2)|_2 <= q + w``, the sums over W add ``gamma w (q + w)`` on either side of D, the products with
        the bases ``e q (q + w)``, other operations a few units of ``(q + w)^2``; gamma is ``4 sqrt(s) u`` for sums of s
        additions, whose rounding errors are taken as independent (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019).
        A product with an orthogonal basis of order m is a sum whose partial sums are no longer than the vector: it adds
        ``gamma_m`` and the basis's defect. How directions that were passed on gather the errors of several bases is
        bounded by the norms of the blocks between them (block Gershgorin).
        """
        return self._rounding

    @cached_property
    def _rounding(self) -> float:
        ones = self.pivots.new_ones(1, self.partition.stop - self.partition.start)
        largest = self.pivots.new_zeros(())
        with sharing(ones.device) as threads:
            sums = self._transposed(ones, threads, absolute=True) / self.pivots.abs()
            for _, matrix in self._strips():
                found = times(matrix, sums[:, : matrix.shape[1]], absolute=True, threads=threads)
                largest = torch.maximum(largest, found.max())
        largest = self.partition.largest(largest.clamp_min(0))
        below, top = torch.stack([largest, self.pivots.abs().max()]).sqrt().tolist()
        gamma = _gamma(terms(self.size, self.lower.device) + len(self.steps) + 4)
        turning = max(_gamma(len(s.basis)) * (1 + s.defect) + s.defect for s in self.steps)
        turning *= _gathered(self.steps)
        whole = top + below
        # 1.01: second-order terms, and the rounding of this bound itself.
        bound = 2.02 * whole * (gamma * below + turning * top + 4 * UNIT * whole)
        return bound if math.isfinite(bound) else math.inf

    def _transposed(self, vectors: Tensor, threads: int, absolute: bool = False) -> Tensor:
        """Return ``W^T`` times vectors, of which the rows here are given (k, n)."""
        sums = vectors.new_zeros(len(vectors), self.size)
        for rows, matrix in self._strips():
            add_transposed_(sums[:, : matrix.shape[1]], matrix, vectors[:, rows], absolute, threads)
        return self.partition.total(sums)

    def _from_rows(self, vectors: Tensor) -> Tensor:
        """Return ``O^T`` times vectors (k, n)."""
        out, carried = torch.empty_like(vectors), vectors[:, :0]
        for step in self.steps:
            turned = torch.cat([carried, vectors[:, step.rows]], 1) @ step.basis
            out[:, step.start : step.start + step.kept] = turned[:, : step.kept]
            carried = turned[:, step.kept :]
        return out

    def _to_rows(self, vectors: Tensor) -> Tensor:
        """Return ``O`` times vectors (k, n)."""
        out, carried = torch.empty_like(vectors), vectors[:, :0]
        for step in reversed(self.steps):
            new = vectors[:, step.start : step.start + step.kept]
            turned = torch.cat([new, carried], 1) @ step.basis.t()
            carried, out[:, step.rows] = turned[:, : step.carried], turned[:, step.carried :]
        return out

    def _here(self, step: Step) -> slice:
        """Return the rows of a window of this process, counted over those here."""
        return slice(step.rows.start - self.partition.start, step.rows.stop - self.partition.start)

    def _strip(self, step: Step) -> Tensor:
        """Return the rows of a window of W (rows, start)."""
        _, view = next(views_of(self.lower, self._here(step)))
        return view[:, : step.start]

    def _groups(self) -> Iterator[tuple[list[Step], slice, Tensor]]:
        """Yield for every block the windows, the rows here, and their W up to where the first window starts."""
        steps = [step for step in self.steps if step.owner == self.partition.rank]
        index = first = 0
        for block in self.lower.blocks:
            group, rows = [], slice(first, first + len(block))
            while index < len(steps) and self._here(steps[index]).start < rows.stop:
                group.append(steps[index])
                index += 1
            yield group, rows, block[:, : group[0].start]
            first = rows.stop

    def _strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of the rows here and their part of W; the rows of their first windows end in zeros."""
        for (steps, rows, _), block in zip(self._groups(), self.lower.blocks, strict=True):
            yield rows, block[:, : steps[-1].start]


def _gamma(additions: int) -> float:
    """Return the relative error of a sum of products after so many additions with independent rounding errors."""
    return 4 * math.sqrt(additions) * UNIT


def _gathered(steps: list[Step]) -> float:
    """Return how much larger than at one basis the errors at all of them may be together.

    That is the largest row sum of ``|T_j^T T_k|`` for the isometries ``T_k`` that take an error at step k to where it
    ends: 0 where nothing is passed on from one to the other, else at most the product of ``through`` between them.
    """
    linked = [float(step.carried > 0) for step in steps]
    before, behind = [0.0], [0.0]
    for k in range(1, len(steps)):
        before.append(linked[k] * (1 + steps[k - 1].through * before[-1]))
    for k in reversed(range(len(steps) - 1)):
        behind.append(linked[k + 1] * (1 + steps[k + 1].through * behind[-1]))
    return max(1 + b + a for b, a in zip(before, reversed(behind), strict=True))


def views_of(lower: LowerRows, rows: slice) -> Iterator[tuple[slice, Tensor]]:
    """Yield the parts of some rows that lie in one block of W each, and their view (part, columns).

    All blocks but the last have the same number of rows.
    """
    height = len(lower[0])
    for block in range(rows.start // height, -(-rows.stop // height)):
        part = slice(max(rows.start, block * height), min(rows.stop, (block + 1) * height))
        if part.start < part.stop:
            yield part, lower[block][part.start - block * height : part.stop - block * height]
