"""Randomly pivoted block Cholesky: ``K ~ F F^T`` from a few columns of a positive semidefinite K, nothing n x n.

A pivot is drawn with probability proportional to the residual's diagonal (Chen, Epperly, Tropp and Webber, Comm. Pure
Appl. Math. 78(5), 2025; arXiv 2207.06503). Blocks draw from the exact distribution of one pivot after another, by
rejection (Epperly, Tropp and Webber, arXiv 2410.03969): candidates come from the diagonal as it stood before the block,
and each is kept with the share of it that the pivots kept before have left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import check_seed
from inrfast.linalg.operators import UNIT, SymmetricOperator, check_symmetric, shape_of
from inrfast.memory import LEAST_ROWS, cached_rows, chunks, empty
from inrfast.ops import gemm
from inrfast.threads import together

BLOCK = 256
"""Pivots a block: products with it run at full speed, and few are wasted when the factor turns out long enough."""

CANDIDATES = 3
"""Candidates drawn for every pivot of a block: a third is kept where the block halves the residual twice."""

SQUARES, SQUARES_OF_VECTORS = 4, 5
"""Matrices of the factor's rank in fp64 that live at once: the Gram matrix with what bounds its errors or gives its
eigenvalues, or also its eigenvectors."""

CANDIDATE_SQUARES = 9
"""Matrices of the candidates' number that choosing among them takes."""

POWER_STEPS = 12
"""Power iterations for the norm of a small matrix that is wanted to some ten percent."""


def candidate_bytes(block: int) -> int:
    """Return the bytes of scratch that choosing the pivots of a block takes."""
    return CANDIDATE_SQUARES * 8 * (CANDIDATES * block) ** 2


def most_pivots(budget: int, each: int, squares: int = SQUARES) -> int:
    """Return the largest rank whose factor, of ``each`` bytes a column, and squares fit: ``each r + 8 s r^2``."""
    if budget <= 0:
        return 0
    s = 8 * squares
    return int((math.sqrt(each * each + 4.0 * s * budget) - each) / (2 * s))


class PivotedCholesky:
    """A growing factor F (n, rank) of a positive semidefinite operator, with its residual's diagonal.

    Parameters
    ----------
    operator
        Symmetric positive semidefinite, fp64.
    seed
        Of the draws; the same seed gives the same factor.
    dtype
        In which F is kept. fp32 takes half the memory, and leaves the residual an indefinite part of the size of
        its rounding, some 1e-7 of lambda_1; everything is computed in fp64, from the F that is kept.

    Attributes
    ----------
    pivots
        Rows (and columns) of the operator that the factor reproduces, in the order of its columns.
    residual
        Diagonal of ``K - F F^T``, of the rows held here, never negative; zero where it is rounding.
    gram
        ``F^T F`` (rank, rank): its eigenvalues are those of ``F F^T``.
    norm_estimate
        Estimate of the residual's spectral norm before the last block, from its entries at that block's candidates; no
        bound.

    Raises
    ------
    ValueError
        The operator is not symmetric, or not positive semidefinite (as far as the entries looked at show it).
    """

    def __init__(self, operator: SymmetricOperator, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.operator = operator
        self.dtype = dtype
        self.size = shape_of(operator)
        self.partition = operator.partition
        self.generator = torch.Generator().manual_seed(check_seed("seed", seed))
        self.diagonal = operator.diagonal()
        whole = self.partition.gather(self.diagonal)
        if not bool(torch.isfinite(whole).all()):
            raise ValueError("the operator's diagonal holds NaN or Inf")
        if bool((whole < 0).any()):
            raise ValueError(
                f"the operator is not positive semidefinite: diagonal entry {int(whole.argmin())} is "
                f"{float(whole.min()):.3e}"
            )
        self.operator_trace = float(whole.sum())
        self.residual = self.diagonal.clone()
        self.pivots = torch.empty(0, dtype=torch.int64)
        self.blocks: list[Tensor] = []
        self.norm_estimate = math.inf
        self._gram = self.diagonal.new_zeros(0, 0)

    @property
    def rank(self) -> int:
        """Number of columns of F."""
        return len(self.pivots)

    @property
    def gram(self) -> Tensor:
        """``F^T F``, (rank, rank)."""
        return self._gram

    @property
    def trace(self) -> float:
        """Trace of the residual ``K - F F^T``, a bound on its norm."""
        return float(self.partition.total(self.residual.sum()))

    def largest_estimate(self) -> float:
        """Return an estimate of lambda_1 from below: the Gram matrix's norm by a few power steps."""
        return _norm(self._gram)

    @property
    def exhausted(self) -> bool:
        """Whether nothing but rounding is left of the operator."""
        return self.trace == 0.0

    def grow(self, columns: int) -> int:
        """Append at most ``columns`` columns (0 only if :attr:`exhausted`); return how many."""
        if self.exhausted:
            return 0
        pivots, corner = self._draw(columns)
        new = self.operator.columns(pivots.to(self.residual.device))
        self.blocks.append(self._eliminate(new, pivots, corner))
        self.pivots = torch.cat([self.pivots, pivots])
        return len(pivots)

    # ---- pivots ------------------------------------------------------------------------------------------------

    def _draw(self, wanted: int) -> tuple[Tensor, Tensor]:
        """Return pivots in ascending order and the Cholesky factor of the residual's rows and columns there."""
        weights = self.partition.gather(self.residual).cpu()
        ends = weights.cumsum(0)
        total = float(ends[-1])
        while True:
            draws = total * torch.rand(CANDIDATES * wanted, generator=self.generator, dtype=torch.float64)
            candidates = torch.searchsorted(ends, draws, right=True).clamp_max(self.size - 1)
            lots = torch.rand(len(candidates), generator=self.generator, dtype=torch.float64)
            distinct, place = torch.unique(candidates, return_inverse=True)
            block = self._residual_block(distinct)
            counts = torch.bincount(place, minlength=len(distinct))
            counted = counts.to(weights.dtype) * total  # times a number, integers would take the default dtype
            self.norm_estimate = _sampled_norm(block, counted / (len(candidates) * weights[distinct]))
            kept = _accept(block.numpy(), place.numpy(), weights[distinct].numpy(), lots.numpy(), wanted)
            if kept:
                kept = sorted(kept)
                factor, failed = torch.linalg.cholesky_ex(block[kept][:, kept])
                if int(failed) == 0:
                    return distinct[kept], factor
                wanted = max(1, len(kept) // 2)  # rounding: a shorter block is better conditioned
            elif not bool((self.residual > 0).any()):
                raise AssertionError("candidates without weight")

    def _residual_block(self, index: Tensor) -> Tensor:
        """Return the rows and columns of ``index`` of the residual, on the CPU."""
        there = index.to(self.residual.device)
        block = self.operator.submatrix(there)
        diagonal = self.partition.pick(self.diagonal, there)
        check_symmetric(block, diagonal)
        for part in self.blocks:
            rows = self._rows(part, there)
            block -= rows @ rows.t()
        # Every process goes on from the same numbers, whatever its processor made of them.
        block = self.partition.agree((block + block.t()) / 2).cpu()
        shortfall = block.diagonal() - self.partition.pick(self.residual, there).cpu()
        if bool((shortfall.abs() > 1e-6 * diagonal.cpu()).any()):
            raise ValueError("the operator contradicts itself: columns() and submatrix() give different entries")
        return block

    # ---- elimination -------------------------------------------------------------------------------------------

    def _rows(self, block: Tensor, index: Tensor) -> Tensor:
        """Return rows of some columns of F in fp64, whoever holds them."""
        return self.partition.pick(block, index).to(torch.float64)

    def _eliminate(self, new: Tensor, pivots: Tensor, corner: Tensor) -> Tensor:
        """Turn columns of K into columns of F; update the residual's diagonal and the Gram matrix. One pass."""
        device = new.device
        kept = new if self.dtype == new.dtype else empty(new.shape, self.dtype, device)
        heads = [self._rows(part, pivots.to(device)).t() for part in self.blocks]
        upper = corner.t().to(device)
        before, count = self.rank, len(pivots)
        growth = math.sqrt(before + count)
        # F is lower triangular on its pivots, which :meth:`shortfall` rests on; what elimination leaves there is
        # rounding.
        known = torch.cat([self.pivots, pivots])
        exact = torch.cat([corner.new_zeros(before, count), corner])
        order = known.argsort()
        known, exact = known[order] - self.partition.start, exact[order].to(device)

        def job(rows: slice) -> Tensor:
            """Eliminate in some rows, and return their part of the new columns of the Gram matrix."""
            total = new.new_zeros(before + count, count)
            for part in self._tiles(rows):
                tile = new[part]
                for block, head in zip(self.blocks, heads, strict=True):
                    tile.addmm_(block[part].to(tile), head, alpha=-1)
                torch.linalg.solve_triangular(upper, tile, upper=True, left=False, out=tile)
                first, last = (int(torch.searchsorted(known, end)) for end in (part.start, part.stop))
                tile[(known[first:last] - part.start).to(device)] = exact[first:last]
                if kept is not new:
                    tile.copy_(kept[part].copy_(tile))
                start = 0
                for block in self.blocks:
                    stop = start + block.shape[1]
                    total[start:stop].addmm_(block[part].to(tile).t(), tile)
                    start = stop
                total[before:].addmm_(tile.t(), tile)
                self._subtract(part, tile.square().sum(1), growth)
            return total

        sums = together([partial(job, rows) for rows in self._shares()])
        here = pivots[(pivots >= self.partition.start) & (pivots < self.partition.stop)] - self.partition.start
        self.residual[here.to(device)] = 0
        self._append_gram(self.partition.total(torch.stack(sums).sum(0)))
        return kept

    def _subtract(self, part: slice, squares: Tensor, growth: float) -> None:
        """Take the new columns' squares off the residual's diagonal; what is left of rounding's size is nothing."""
        left = self.residual[part].sub_(squares)
        unit = 8 * (8 + growth) * UNIT + (4 * torch.finfo(self.dtype).eps if self.dtype != torch.float64 else 0)
        noise = unit * self.diagonal[part]
        uncertain = self.operator.matrix_error / self.operator_trace * self.diagonal[part]
        # In fp32 small pivots amplify the rounding of F without a bound; the certificate sees what it does.
        if self.dtype == torch.float64 and bool((left < -(1e6 * noise + 4 * uncertain)).any()):
            raise ValueError(
                "the operator is not positive semidefinite: eliminating columns left a negative diagonal entry "
                f"({float(left.min()):.3e})"
            )
        left.masked_fill_(left <= noise, 0)

    def _append_gram(self, columns: Tensor) -> None:
        before, count = self.rank, columns.shape[1]
        grown = columns.new_empty(before + count, before + count)
        grown[:before, :before] = self._gram
        grown[:, before:] = columns
        grown[before:, :before] = columns[:before].t()
        grown[before:, before:] = (columns[before:] + columns[before:].t()) / 2
        self._gram = grown

    def shortfall(self) -> float:
        """Return e for which ``K - F F^T >= -e``: the residual of an exact factor is positive semidefinite. fp64 only.

        F is lower triangular on the pivots I, ``F_I = L``, so it is the exact factor of a matrix K' that differs from K
        by the rounding E of its columns I: ``F L^T = K'[:, I]``. The Schur complement ``K' - F F^T`` is
        ``(1 - P)^T K' (1 - P)`` with the interpolation P from the pivots, ``W = L^-T F^T`` on the rows I; as K is
        positive semidefinite, it is at least ``-(1 + |W|)^2 |E|``. An entry of E takes c products and is off by
        ``4 sqrt(c) u sqrt(K_ii K_jj)``, single rounding errors taken as independent (Higham and Mary, SIAM J. Sci.
        Comput. 41(5), 2019); ``|W|^2`` is at most the Frobenius norm of ``L^-T (F^T F) L^-1``.
        """
        if self.rank == 0:
            return 0.0
        device = self._gram.device
        lower = torch.cat([self._rows(block, self.pivots.to(device)) for block in self.blocks], 1)
        half = torch.linalg.solve_triangular(lower, self._gram, upper=False, left=False)  # F^T F L^-1
        square = torch.linalg.solve_triangular(lower.t(), half, upper=True)
        del half
        interpolation = math.sqrt(float(torch.linalg.matrix_norm(square)))
        trace = self.operator_trace
        rounding = 2 * self.operator.matrix_error + 2 * 4 * math.sqrt(2 * self.rank + BLOCK) * UNIT * trace
        return ((1 + interpolation) ** 2 + 1) * rounding

    # ---- products ----------------------------------------------------------------------------------------------

    def transposed_product(self, V: Tensor) -> Tensor:
        """Return ``F^T V`` for V (n, k)."""
        if not self.blocks:
            return V.new_zeros(0, V.shape[1])

        def job(rows: slice) -> Tensor:
            """Return the sum over some rows."""
            sums = [V.new_zeros(block.shape[1], V.shape[1]) for block in self.blocks]
            for part in self._tiles(rows):
                for block, total in zip(self.blocks, sums, strict=True):
                    total.addmm_(block[part].to(V).t(), V[part])
            return torch.cat(sums)

        return self.partition.total(torch.stack(together([partial(job, rows) for rows in self._shares()])).sum(0))

    def product(self, C: Tensor) -> Tensor:
        """Return ``F C`` for C (rank, k)."""
        out = empty((len(self.diagonal), C.shape[1]), C.dtype, C.device).zero_()
        if not self.blocks:
            return out
        coefficients = C.split([block.shape[1] for block in self.blocks])

        def job(rows: slice) -> None:
            for part in self._tiles(rows):
                for block, own in zip(self.blocks, coefficients, strict=True):
                    out[part].addmm_(block[part].to(C), own)

        together([partial(job, rows) for rows in self._shares()])
        return out

    def _shares(self) -> list[slice]:
        """Return one range of rows a worker: the same rows to the same one, so that sums have one order."""
        n = len(self.diagonal)
        each = -(-n // gemm.threads(torch.float64, self.diagonal.device))
        return list(chunks(n, max(each, LEAST_ROWS)))

    def _tiles(self, rows: slice) -> Iterator[slice]:
        """Yield pieces of a range of rows of which a block of F stays in cache."""
        for part in chunks(rows.stop - rows.start, cached_rows(BLOCK, self.diagonal)):
            yield slice(rows.start + part.start, rows.start + part.stop)

    def apply_residual(self, V: Tensor) -> Tensor:
        """Return ``(K - F F^T) V`` for V (n, k)."""
        return self.operator @ V - self.product(self.transposed_product(V))


def _sampled_norm(block: Tensor, weights: Tensor) -> float:
    """Return the norm of a matrix from some of its rows and columns, each of which stands for ``weights`` of them.

    Too large on average where the matrix has more large eigenvalues than were drawn.
    """
    return _norm(block * torch.outer(weights.sqrt(), weights.sqrt()))


def _norm(matrix: Tensor) -> float:
    """Return the norm of a positive semidefinite matrix by power iteration, a little from below."""
    v = matrix.diagonal().clamp_min(0).sqrt()
    for _ in range(POWER_STEPS):
        v = matrix @ (v / torch.linalg.vector_norm(v))
    return float(torch.linalg.vector_norm(v))


def _accept(block: np.ndarray, place: np.ndarray, weights: np.ndarray, lots: np.ndarray, wanted: int) -> list[int]:
    """Return the rows of a residual block that are kept as pivots, at most ``wanted``, candidates in their order.

    A candidate at row ``p`` is kept if its lot is below ``r_p / weights_p``, with r the diagonal that the rows kept so
    far leave; a row drawn twice has nothing left the second time.
    """
    left = block.diagonal().copy()
    kept: list[int] = []
    factor = np.empty((len(block), min(wanted, len(block))))
    for p, lot in zip(place, lots, strict=True):
        share_left = left[p] / weights[p]
        if share_left <= 1e-8 or lot >= share_left:
            continue
        j = len(kept)
        column = (block[:, p] - factor[:, :j] @ factor[p, :j]) / math.sqrt(left[p])
        factor[:, j] = column
        left -= column * column
        left[p] = 0
        kept.append(int(p))
        if j + 1 == wanted:
            break
    return kept
