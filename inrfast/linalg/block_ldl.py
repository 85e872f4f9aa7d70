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
from inrfast.memory import chunks

WINDOW = 256
"""Rows per window."""

DELAY = 0.1
"""Directions whose eigenvalue is below this share of ``|shift|`` are passed on."""


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
    """

    rows: slice
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
        Block k holds the rows of window k of ``W = L D`` (rows, columns eliminated before), with room for more columns.
    """

    def __init__(self, shift: float, pivots: Tensor, steps: list[Step], lower: LowerRows, delayed: int) -> None:
        self.shift, self.pivots, self.steps, self.lower, self.delayed = shift, pivots, steps, lower, delayed
        self.size = len(pivots)

    @property
    def positive(self) -> int:
        """Number of positive eigenvalues of M, exact."""
        return int((self.pivots > 0).sum())

    @property
    def negative(self) -> int:
        """Number of negative eigenvalues of M, exact."""
        return int((self.pivots < 0).sum())

    def rounding(self) -> float:
        """Return a bound on the error of a product with a unit vector, and on M's own in a solution's place."""
        ones = torch.ones(self.size, 1, dtype=torch.float64, device=self.pivots.device)
        sums = torch.zeros_like(ones)
        for k, step in enumerate(self.steps):
            sums[: step.start] += self._rows(k).abs().t() @ ones[step.rows]
        sums /= self.pivots.abs().unsqueeze(1)
        rows = [self._rows(k).abs() @ sums[: step.start] for k, step in enumerate(self.steps)]
        size = float(self.pivots.abs().max()) ** 0.5 + float(torch.cat(rows).max()) ** 0.5
        return 2 * 8 * self.size**0.5 * 2.0**-53 * size * size

    def _rows(self, k: int) -> Tensor:
        """Return the rows of window k of W, (rows, start), fp64."""
        return self.lower[k][:, : self.steps[k].start].double()

    @property
    def nbytes(self) -> int:
        """Bytes of the factor."""
        return self.lower.nbytes + self.pivots.nbytes + sum(step.basis.nbytes for step in self.steps)

    def rounding(self) -> float:
        """Return a bound on the error of a product with a unit vector: ``2 n u`` times the norm of ``|G||D||G^T|``."""
        V = self.pivots.new_ones(self.size, 1)
        sums, sizes = torch.zeros_like(V), self.pivots.abs().unsqueeze(1)
        for k, step in enumerate(self.steps):
            sums[: step.start] += self._rows(k).abs().t() @ V[step.rows]
        inner = sums / sizes
        carried = V[:0]
        for step in self.steps:
            turned = step.basis.abs().t() @ torch.cat([carried, V[step.rows]])
            inner[step.start : step.start + step.kept] += turned[: step.kept]
            carried = turned[step.kept :]
        scaled, out, carried = inner * sizes, torch.empty_like(V), V[:0]
        for k in reversed(range(len(self.steps))):
            step = self.steps[k]
            turned = step.basis.abs() @ torch.cat([scaled[step.start : step.start + step.kept], carried])
            carried = turned[: step.carried]
            out[step.rows] = turned[step.carried :] + self._rows(k).abs() @ inner[: step.start]
        return self.size * torch.finfo(torch.float64).eps * float(out.amax())

    def product(self, V: Tensor) -> Tensor:
        """Return ``M V`` for V (n, k), fp64."""
        sums = V.new_zeros(self.size, V.shape[1])
        for k, step in enumerate(self.steps):
            sums[: step.start] += self._rows(k).t() @ V[step.rows]
        inner = sums / self.pivots.unsqueeze(1)  # L^T V
        carried = V[:0]
        for step in self.steps:
            turned = step.basis.t() @ torch.cat([carried, V[step.rows]])
            inner[step.start : step.start + step.kept] += turned[: step.kept]
            carried = turned[step.kept :]
        scaled, out, carried = inner * self.pivots.unsqueeze(1), torch.empty_like(V), V[:0]
        for k in reversed(range(len(self.steps))):
            step = self.steps[k]
            turned = step.basis @ torch.cat([scaled[step.start : step.start + step.kept], carried])
            carried = turned[: step.carried]
            out[step.rows] = turned[step.carried :] + self._rows(k) @ inner[: step.start]
        return out

    def inverse(self, V: Tensor) -> Tensor:
        """Return ``M^-1 V`` for V (n, k), fp64."""
        scale = self.pivots.unsqueeze(1)
        found, carried = torch.empty_like(V), V[:0]  # G^-1 V
        for k, step in enumerate(self.steps):
            own = V[step.rows] - self._rows(k) @ (found[: step.start] / scale[: step.start])
            turned = step.basis.t() @ torch.cat([carried, own])
            found[step.start : step.start + step.kept] = turned[: step.kept]
            carried = turned[step.kept :]
        found /= scale
        sums, out, carried = torch.zeros_like(V), torch.empty_like(V), V[:0]
        for k in reversed(range(len(self.steps))):
            step = self.steps[k]
            new = slice(step.start, step.start + step.kept)
            turned = step.basis @ torch.cat([found[new] - sums[new] / scale[new], carried])
            carried = turned[: step.carried]
            out[step.rows] = turned[step.carried :]
            sums[: step.start] += self._rows(k).t() @ out[step.rows]
        return out


def block_ldl(
    operator: SymmetricOperator, shift: float, dtype: torch.dtype, delay: float | None = None, window: int = WINDOW
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
        Rows per window.
    """
    n, device = operator.shape[0], operator.device
    windows = list(chunks(n, window))
    lower = LowerRows([(rows.stop - rows.start, rows.start) for rows in windows], dtype, device)
    pivots = torch.ones(n, dtype=torch.float64, device=device)
    delay = DELAY * abs(shift) if delay is None else delay
    steps: list[Step] = []
    passed = torch.empty(n, 0, dtype=dtype, device=device)  # columns that were passed on, for all rows still to come
    values = pivots[:0]  # and their diagonal entries
    start = delayed = 0
    for k, rows in enumerate(windows):
        index = torch.arange(rows.start, rows.stop, device=device)
        scaled = (lower[k][:, :start].double() / pivots[:start]).to(dtype)
        panel = torch.empty(n - rows.start, len(index), dtype=dtype, device=device)
        operator.blocks_([(panel, slice(rows.start, n))], index, dtype)
        panel[: len(index)].diagonal().sub_(shift)
        for j in range(k, len(windows)):
            here = slice(windows[j].start - rows.start, windows[j].stop - rows.start)
            panel[here].addmm_(lower[j][:, :start], scaled.t(), alpha=-1)
        whole = torch.cat([passed, panel], 1)
        carried, count = len(values), len(values) + len(index)
        corner = torch.diag(torch.cat([values, values.new_zeros(len(index))]))
        corner[carried:, :carried] = whole[: len(index), :carried]
        corner[:carried, carried:] = whole[: len(index), :carried].t()
        corner[carried:, carried:] = (panel[: len(index)] + panel[: len(index)].t()).double() / 2
        found, basis = torch.linalg.eigh(corner)
        keep = found.abs() >= delay
        if rows.stop == n:
            keep[:] = True
        elif int(keep.sum()) < count // 2:
            keep = found.abs() >= found.abs().median()
        order = torch.cat([keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]])
        found, basis, kept = found[order], basis[:, order], int(keep.sum())
        turned = whole[len(index) :] @ basis.to(dtype)
        for j in range(k + 1, len(windows)):
            there = slice(windows[j].start - rows.stop, windows[j].stop - rows.stop)
            lower[j][:, start : start + kept] = turned[there, :kept]
        passed, values = turned[:, kept:].clone(), found[kept:]
        pivots[start : start + kept] = found[:kept]
        steps.append(Step(rows, carried, start, kept, basis))
        start, delayed = start + kept, delayed + count - kept
    return BlockLDL(shift, pivots, steps, lower, delayed)
