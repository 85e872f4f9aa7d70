"""Block LDL^T of a shifted symmetric operator with delayed directions: its inertia, products and inverse.

Windows of rows are taken in order. The Schur complement of a window, with the directions that earlier windows passed
on, is diagonalised in fp64; directions with a large eigenvalue are eliminated, the others passed on to the next window
(delayed pivots, as in sparse indefinite solvers: Duff and Reid, ACM Trans. Math. Softw. 9(3), 1983). What was computed
is ``M = G D G^T`` with G nonsingular (products of orthogonal blocks and of unit lower triangular ones) and D diagonal.
So by Sylvester's law M has exactly as many positive eigenvalues as D has positive entries, whatever was rounded on the
way; how far M is from ``K - shift I`` is measured afterwards (:mod:`inrfast.linalg.inertia`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.linalg.lower_rows import LowerRows
from inrfast.linalg.operators import SymmetricOperator
from inrfast.linalg.partition import Whole, Window

WINDOW = 256
"""Rows per window."""

DELAY = 0.1
"""Directions whose eigenvalue is below this share of ``|shift|`` are passed on."""


@dataclass(frozen=True)
class Step:
    """One window's elimination.

    Attributes
    ----------
    window
        The operator's rows that enter.
    carried
        Directions m that earlier windows passed on, which come before the rows.
    start, kept
        The eliminated directions are numbers ``start`` to ``start + kept`` of all.
    basis
        Orthogonal (m + rows, m + rows), fp64: eliminated directions first.
    """

    window: Window
    carried: int
    start: int
    kept: int
    basis: Tensor


class BlockLDL:
    """``M = G D G^T`` near ``K - shift I``.

    Attributes
    ----------
    shift
        The shift.
    pivots
        The diagonal of D (n,), fp64.
    steps
        The eliminations in order.
    lower
        The rows of ``W = L D`` that are here: for each window of this process a block (rows, columns eliminated
        before), with room for more columns.
    nbytes
        Bytes of W, in all processes, and of bases and pivots in this one.
    """

    def __init__(
        self, shift: float, pivots: Tensor, steps: list[Step], lower: LowerRows, delayed: int, partition: Whole
    ) -> None:
        self.shift, self.pivots, self.steps, self.lower, self.delayed = shift, pivots, steps, lower, delayed
        self.size, self.partition = len(pivots), partition
        own = int(partition.sum(lower.nbytes, pivots.device))
        self.nbytes = own + pivots.nbytes + sum(step.basis.nbytes for step in steps)
        self._own = [step for step in steps if step.window.owner == partition.rank]

    @property
    def positive(self) -> int:
        """Number of positive eigenvalues of M, exact."""
        return int((self.pivots > 0).sum())

    @property
    def negative(self) -> int:
        """Number of negative eigenvalues of M, exact."""
        return int((self.pivots < 0).sum())

    def _rows(self, k: int) -> Tensor:
        """Return this process's window k of W, (rows, start), fp64."""
        return self.lower[k][:, : self._own[k].start].double()

    def rounding(self) -> float:
        """Return a bound on the error of a product with a unit vector, and on M's own in a solution's place."""
        sums = self.pivots.new_zeros(self.size)
        for k, step in enumerate(self._own):
            sums[: step.start] += self._rows(k).abs().sum(0)
        sums = self.partition.total(sums) / self.pivots.abs()
        largest = [float((self._rows(k).abs() @ sums[: step.start]).max()) for k, step in enumerate(self._own)]
        size = float(self.pivots.abs().max()) ** 0.5 + self.partition.largest(max(largest), sums.device) ** 0.5
        return 2 * 8 * self.size**0.5 * 2.0**-53 * size * size

    def product(self, V: Tensor) -> Tensor:
        """Return ``M V`` for V (n, k), fp64."""
        sums = V.new_zeros(self.size, V.shape[1])
        for k, step in enumerate(self._own):
            sums[: step.start] += self._rows(k).t() @ V[step.window.rows]
        inner = self.partition.total(sums) / self.pivots.unsqueeze(1)  # L^T V
        whole, carried = self.partition.gather(V), V[:0]
        for step in self.steps:
            turned = step.basis.t() @ torch.cat([carried, whole[step.window.index]])
            inner[step.start : step.start + step.kept] += turned[: step.kept]
            carried = turned[step.kept :]
        scaled, out, carried = inner * self.pivots.unsqueeze(1), torch.empty_like(V), V[:0]
        for step in reversed(self.steps):
            turned = step.basis @ torch.cat([scaled[step.start : step.start + step.kept], carried])
            carried = turned[: step.carried]
            if step.window.owner == self.partition.rank:
                out[step.window.rows] = turned[step.carried :]
        for k, step in enumerate(self._own):
            out[step.window.rows] += self._rows(k) @ inner[: step.start]
        return out

    def inverse(self, V: Tensor) -> Tensor:
        """Return ``M^-1 V`` for V (n, k), fp64."""
        scale, partition = self.pivots.unsqueeze(1), self.partition
        found, carried, place = V.new_empty(self.size, V.shape[1]), V[:0], 0  # G^-1 V
        for step in self.steps:
            rows = V.new_empty(len(step.window), V.shape[1])
            if step.window.owner == partition.rank:
                rows = V[step.window.rows] - self._rows(place) @ (found[: step.start] / scale[: step.start])
                place += 1
            rows = partition.from_owner(step.window.owner, rows)
            turned = step.basis.t() @ torch.cat([carried, rows])
            found[step.start : step.start + step.kept] = turned[: step.kept]
            carried = turned[step.kept :]
        found /= scale
        sums, out, carried = torch.zeros_like(found), torch.empty_like(V), V[:0]
        for step in reversed(self.steps):
            new = slice(step.start, step.start + step.kept)
            known = partition.total(sums[new]) / scale[new]
            turned = step.basis @ torch.cat([found[new] - known, carried])
            carried = turned[: step.carried]
            if step.window.owner == partition.rank:
                place -= 1
                out[step.window.rows] = turned[step.carried :]
                sums[: step.start] += self._rows(place).t() @ out[step.window.rows]
        return out


def block_ldl(
    operator: SymmetricOperator, shift: float, dtype: torch.dtype, delay: float | None = None, window: int | None = None
) -> BlockLDL:
    """Factor ``K - shift I``, its entries rounded to ``dtype``.

    Parameters
    ----------
    operator
        K, symmetric; each pair of rows is asked for once, through ``blocks_``.
    shift
        Any number.
    dtype
        Of the factor: fp32 or fp64.
    delay
        Directions with a smaller eigenvalue are passed on; None: :data:`DELAY` of ``|shift|``.
    window
        Rows per window; None: :data:`WINDOW`.
    """
    n, device, partition = operator.shape[0], operator.device, operator.partition
    windows, before = partition.windows(WINDOW if window is None else window), 0
    own, shapes = [], []
    for each in windows:
        if each.owner == partition.rank:
            own.append(each)
            shapes.append((len(each), before))
        before += len(each)
    lower = LowerRows(shapes, dtype, device)
    pivots = torch.ones(n, dtype=torch.float64, device=device)
    delay = DELAY * abs(shift) if delay is None else delay
    steps: list[Step] = []
    first = 0  # of this process's windows still to come
    height = partition.stop - partition.start
    passed = torch.empty(height, 0, dtype=dtype, device=device)  # columns that were passed on, for rows still to come
    values = pivots[:0]  # and their diagonal entries
    start = delayed = 0
    for number, each in enumerate(windows):
        mine, last = each.owner == partition.rank, number + 1 == len(windows)
        index = torch.arange(each.index.start, each.index.stop, device=device)
        top = own[first].rows.start if first < len(own) else height
        panel = torch.empty(height - top, len(each), dtype=dtype, device=device)
        operator.blocks_([(panel, slice(top, height))], index, dtype)
        if mine:
            panel[: len(each)].diagonal().sub_(shift)
        rows = lower[first][:, :start] if mine else panel.new_empty(len(each), start)
        scaled = (partition.from_owner(each.owner, rows).double() / pivots[:start]).to(dtype)
        for j in range(first, len(own)):
            here = slice(own[j].rows.start - top, own[j].rows.stop - top)
            panel[here].addmm_(lower[j][:, :start], scaled.t(), alpha=-1)
        whole = torch.cat([passed, panel], 1)
        carried, count = len(values), len(values) + len(each)
        corner = torch.diag(torch.cat([values, values.new_zeros(len(each))]))
        if mine:
            corner[carried:, :carried] = whole[: len(each), :carried]
            corner[:carried, carried:] = whole[: len(each), :carried].t()
            corner[carried:, carried:] = (panel[: len(each)] + panel[: len(each)].t()).double() / 2
            found, basis = torch.linalg.eigh(corner)
        else:
            found, basis = corner.new_empty(count), corner
        found, basis = partition.from_owner(each.owner, torch.cat([found.unsqueeze(0), basis])).split([1, count])
        found = found[0]
        keep = found.abs() >= delay
        if last:
            keep[:] = True
        elif int(keep.sum()) < count // 2:
            keep = found.abs() >= found.abs().median()
        order = torch.cat([keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]])
        found, basis, kept = found[order], basis[:, order], int(keep.sum())
        done = len(each) if mine else 0
        first += mine
        turned = whole[done:] @ basis.to(dtype)
        for j in range(first, len(own)):
            there = slice(own[j].rows.start - top - done, own[j].rows.stop - top - done)
            lower[j][:, start : start + kept] = turned[there, :kept]
        passed, values = turned[:, kept:].clone(), found[kept:]
        pivots[start : start + kept] = found[:kept]
        steps.append(Step(each, carried, start, kept, basis))
        start, delayed = start + kept, delayed + count - kept
    return BlockLDL(shift, pivots, steps, lower, delayed, partition)
