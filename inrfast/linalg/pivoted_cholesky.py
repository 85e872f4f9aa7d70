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

import torch
from torch import Tensor, nn

from inrfast.errors import check_seed
from inrfast.linalg.elimination import Elimination
from inrfast.linalg.lanczos import shared, spectral_bounds
from inrfast.linalg.operators import (
    SINGLE_UNIT,
    UNIT,
    SymmetricOperator,
    raise_symmetry_faults,
    shape_of,
    symmetry_faults,
)
from inrfast.linalg.partition import Whole
from inrfast.linalg.pivot_block import POWER_STEPS, PivotBlock, norm_bound, power
from inrfast.memory import LEAST_ROWS, cached_rows, chunks, empty
from inrfast.ops import gemm
from inrfast.ops.pivots import accept_pivots
from inrfast.threads import together

BLOCK = 256
"""Pivots per block: products with it run at full speed, and few are wasted when the factor turns out long enough."""

CANDIDATES = 3
"""Candidates drawn per pivot of a block: a third is kept where the block quarters the residual."""

SQUARES, SQUARES_OF_VECTORS = 4, 5
"""fp64 matrices of the factor's rank in memory at once: the Gram matrix and the scratch of its error bound or of its
eigenvalues; with eigenvectors one more."""

CANDIDATE_SQUARES = 9
"""Matrices of the candidates' number in memory while pivots are chosen among them."""

SINGLE_RANGE = (1e-20, 1e20)
"""Traces of operators whose factor fp32 holds with all digits."""

NORM_STEPS, UNLIKELY = 24, 1e-9
"""Lanczos steps for an upper bound of the norm of a small matrix, and the probability that one of them is none."""

PANEL = 8192
"""Rows of a block of columns that are there in fp64 at a time, on a CPU."""

GRAM_SHARE = 1000.0
"""Largest rounding of the Gram matrix with which it is computed in fp32, in units of what columns may be moved by: that
counts for the error of its own eigenvalues, and more for the shortfall."""

FOLLOWING_STEPS = 4
"""Power iterations that update the leading eigenvector of a matrix after it has grown."""


def candidate_bytes(block: int) -> int:
    """Return the bytes of scratch that choosing the pivots of a block takes."""
    return CANDIDATE_SQUARES * 8 * (CANDIDATES * block) ** 2


def most_pivots(budget: int, each: int, squares: int = SQUARES) -> int:
    """Return the largest rank whose factor, of ``each`` bytes per column, and squares fit: ``each r + 8 s r^2``."""
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
        its rounding, some 1e-7 of lambda_1; everything is computed in fp64, from the F that is kept. fp64 is taken
        where the operator's trace is outside :data:`SINGLE_RANGE`.

    Attributes
    ----------
    allowed
        Frobenius norm by which columns of F may miss those of the operator: as long as rounding to fp32 stays below it,
        blocks after the first are kept in fp32. 0, which may be changed between blocks: none are. Of a factor in fp64,
        on a CPU.
    pivots
        Rows (and columns) of the operator that the factor reproduces, in the order of its columns.
    residual
        Diagonal of ``K - F F^T``, of the rows held here, never negative; zero where it is rounding.
    trace
        Trace of the residual ``K - F F^T``, a bound on its norm.
    gram
        ``F^T F`` (rank, rank): its eigenvalues are those of ``F F^T``.
    coarse
        Number of the first block whose products with others are computed in fp32; None: in fp64, all of them.
    gram_error
        Bound on the Frobenius norm of what products in fp32 add to the rounding of ``gram``: with L rows at a time,
        partial sums have a square of at most L times that of their terms, and the rows of columns in fp32 that of the
        residual's diagonal before them.
    norm_estimate
        Estimate of the residual's spectral norm before the last block, from its entries at that block's candidates; no
        bound.
    largest_estimate
        Estimate of lambda_1 from below: the Gram matrix's norm by power steps, a few per block.

    Raises
    ------
    ValueError
        The operator is not symmetric, or not positive semidefinite (as far as the entries looked at show it).
    """

    def __init__(self, operator: SymmetricOperator, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.operator = operator
        self.size = shape_of(operator)
        self.partition = operator.partition
        self.generator = torch.Generator().manual_seed(check_seed("seed", seed))
        self.diagonal = operator.diagonal()
        whole = self.partition.gather(self.diagonal)
        finite, smallest, at, total = _read(torch.isfinite(whole).all(), whole.min(), whole.argmin(), whole.sum())
        if not finite:
            raise ValueError("the operator's diagonal holds NaN or Inf")
        if smallest < 0:
            raise ValueError(f"the operator is not positive semidefinite: diagonal entry {int(at)} is {smallest:.3e}")
        self.operator_trace = self.trace = total
        self.dtype = dtype if SINGLE_RANGE[0] <= total <= SINGLE_RANGE[1] else torch.float64
        self.residual = self.diagonal.clone()
        self.pivots = torch.empty(0, dtype=torch.int64, device=self.diagonal.device)
        self.blocks: list[Tensor] = []
        self.allowed = 0.0
        self.coarse: int | None = None
        self.gram_error = 0.0
        self._squared_rounding = 0.0  # of the columns, by what is kept in fp32
        self.norm_estimate = math.inf
        self.largest_estimate = 0.0
        self.gram = self.diagonal.new_zeros(0, 0)
        self._leading = self.diagonal.new_zeros(0)
        self._eigenvalues: Tensor | None = None
        self._shortfall: float | None = None
        self._norms = 0  # bounded for it so far
        self._on_cpu = self.diagonal.device.type == "cpu"

    @property
    def rank(self) -> int:
        """Number of columns of F."""
        return len(self.pivots)

    @property
    def _all_double(self) -> bool:
        return self.dtype == torch.float64 and self._squared_rounding == 0

    @property
    def exhausted(self) -> bool:
        """Whether nothing but rounding is left of the operator."""
        return self.trace == 0.0

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of ``F F^T`` that F has columns for, descending (rank,)."""
        if self._eigenvalues is None:
            self._eigenvalues = torch.linalg.eigvalsh(self.gram).flip(0)
        return self._eigenvalues

    def leading(self, steps: int) -> Tensor:
        """Return the leading eigenvector (rank,) of the Gram matrix, of norm 1, about: after so many power steps."""
        trace = self.gram.diagonal().sum().clamp_min(torch.finfo(self.gram.dtype).tiny)
        v = power(lambda v: self.gram.mv(v) / trace, self._leading, steps)[0]
        return v / torch.linalg.vector_norm(v)

    def grow(self, columns: int) -> int:
        """Append at most ``columns`` columns (0 only if :attr:`exhausted`); return how many.

        On a GPU no shape depends on how many candidates are kept, and what the host must know comes in one tensor at
        the end: it waits once, and a block's kernels follow each other meanwhile.
        """
        while not self.exhausted:
            drawn = self._draw(columns)
            if self._on_cpu:  # nothing waits there, and no more columns are computed than are kept
                drawn = drawn.cut(int(drawn.count))
            if len(drawn.pivots) == 0:
                self._judge(*_read(*drawn.faults))
            elif count := self._append(drawn):
                return count
        return 0

    def _append(self, drawn: PivotBlock) -> int:
        """Append the columns of a block's pivots to F; return how many."""
        if self._on_cpu and self._may_be_single(drawn):
            if self.coarse is None and self._new_gram_error() <= GRAM_SHARE * self.allowed:
                self.coarse, self.gram_error = len(self.blocks), self._new_gram_error()  # those of later ones are less
            drawn = drawn.rounded()
        kept, products, negative = (self._eliminate if self._on_cpu else self._eliminate_at_once)(drawn)
        gram = self._bordered(products)
        leading, largest = self._follow(gram)
        trace = self.partition.total(self.residual.sum())
        found = _read(drawn.count, drawn.norm(), largest, trace, *drawn.faults, negative)
        self.norm_estimate, self.largest_estimate, self.trace = found[1:4]
        self._judge(*found[4:])
        count, rank = int(found[0]), self.rank + int(found[0])
        if count:
            whole = count == len(drawn.pivots)
            self.blocks.append(kept if whole else kept[:, :count].contiguous())
            self.gram = gram if whole else gram[:rank, :rank].contiguous()
            self._eigenvalues = self._shortfall = None
            self._leading = leading[:rank]
            self.pivots = torch.cat([self.pivots, drawn.pivots[:count]])
        return count

    def _judge(self, mirrored: float, diagonal: float, different: float, negative: float = math.inf) -> None:
        """Raise a ValueError for what a block has shown to be wrong with the operator."""
        raise_symmetry_faults(bool(mirrored), bool(diagonal))
        if different:
            raise ValueError("the operator contradicts itself: columns() and submatrix() give different entries")
        if negative < math.inf:
            raise ValueError(
                "the operator is not positive semidefinite: eliminating columns left a negative diagonal entry "
                f"({negative:.3e})"
            )

    # ---- pivots ------------------------------------------------------------------------------------------------

    def _draw(self, wanted: int) -> PivotBlock:
        """Return the pivots of a block, and the Cholesky factor of the residual's rows and columns there."""
        weights = self.partition.gather(self.residual)
        ends = weights.cumsum(0)
        draws, lots = self._uniform(CANDIDATES * wanted)
        candidates = torch.searchsorted(ends, ends[-1] * draws, right=True).clamp_max(self.size - 1)
        # Every process goes on from the same numbers, whatever its processor made of them.
        candidates = self.partition.agree(candidates)
        block, faults = self._residual_block(candidates)
        own = weights[candidates]
        places, factor, count = accept_pivots(block, candidates, own, lots, wanted)
        return PivotBlock(candidates[places], factor, count, faults, block, ends[-1] / (len(candidates) * own))

    def _uniform(self, count: int) -> tuple[Tensor, Tensor]:
        """Return two rows of uniform numbers, the same on every device; a GPU gets them without being waited for."""
        pinned = self.diagonal.device.type == "cuda"
        numbers = torch.rand(2, count, generator=self.generator, dtype=torch.float64, pin_memory=pinned)
        draws, lots = numbers.to(self.diagonal.device, non_blocking=True)
        return draws, lots

    def _residual_block(self, candidates: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the rows and columns of candidates of the residual, and what is wrong with the operator's there.

        A candidate drawn twice has a row for every time. On a CPU it is computed once: on a GPU, how often a row was
        drawn would have to be waited for.
        """
        index, again = torch.unique(candidates, return_inverse=True) if self._on_cpu else (candidates, None)
        block = self.operator.submatrix(index)
        diagonal = self.partition.pick(self.diagonal, index)
        mirrored, other_diagonal = symmetry_faults(block, diagonal)
        for part in self.blocks:
            rows = self.rows(part, index)
            block.addmm_(rows, rows.t(), alpha=-1)
        block = self.partition.agree((block + block.t()) / 2)
        shortfall = block.diagonal() - self.partition.pick(self.residual, index)
        different = (shortfall.abs() > 1e-6 * diagonal).any()
        if again is not None:
            block = block[again].index_select(1, again)
        return block, (mirrored, other_diagonal, different)

    # ---- elimination -------------------------------------------------------------------------------------------

    def rows(self, block: Tensor, index: Tensor) -> Tensor:
        """Return rows of some columns of F in fp64, whoever holds them."""
        return self.partition.pick(block, index).to(torch.float64)

    def exact_rows(self, drawn: PivotBlock) -> tuple[Tensor, Tensor]:
        """Return all pivots, old and new, and the rows of the new columns of F there.

        F is lower triangular on its pivots, which :meth:`shortfall` rests on; what elimination leaves is rounding.
        """
        rows = torch.where(drawn.used.unsqueeze(1), drawn.factor, drawn.factor[:1])  # a row named again is the same
        return torch.cat([self.pivots, drawn.pivots]), torch.cat([rows.new_zeros(self.rank, rows.shape[1]), rows])

    def _eliminate(self, drawn: PivotBlock) -> tuple[Tensor, Tensor, Tensor]:
        """Return new columns of F, their columns of the Gram matrix, and the smallest diagonal entry of the residual
        that no rounding explains; the columns' squares are subtracted from that diagonal.

        Panels of K's columns become columns of F in one pass.
        """
        count, like = len(drawn.pivots), self.diagonal
        kept = empty((len(like), count), torch.float32 if drawn.single else self.dtype, like.device)
        work = Elimination(self, drawn, kept)
        panels = list(self._panels())
        own = [work.sums() for _ in self._shares(panels[0])]
        room = None if kept.dtype == torch.float64 else like.new_empty(panels[0].stop, count)
        for panel in panels:
            new = kept[panel] if room is None else room[: panel.stop - panel.start]
            self.operator.blocks_([(new, panel)], drawn.pivots, torch.float64)
            jobs = [partial(work.add, new, panel, rows) for rows in self._shares(panel)]
            together([partial(job, sums) for job, sums in zip(jobs, own, strict=False)])
        self._clear(drawn)
        if drawn.single:
            self._account(self.partition.total(torch.stack([sums.moved for sums in own]).sum(0)), work.unit, drawn)
        products = self.partition.total(torch.stack([sums.products for sums in own]).sum(0))
        return kept, products, torch.stack([sums.negative for sums in own]).min()

    def _account(self, moved: Tensor, unit: float, drawn: PivotBlock) -> None:
        """Account for the columns of a block that were moved by ``unit D`` in fp32, ``moved`` being ``D^T D`` in fp32.

        A sum over L rows there is off by ``u L`` of what its terms' sizes add up to.
        """
        lower = drawn.factor
        off = SINGLE_UNIT * cached_rows(BLOCK, self.diagonal) * float(moved.trace()) * norm_bound(lower) ** 2
        columns = unit * math.sqrt(norm_bound(lower @ moved @ lower.t()) + off)
        self._squared_rounding += (columns + drawn.moved) ** 2

    def _may_be_single(self, drawn: PivotBlock) -> bool:
        """Return whether a block's columns may be kept in fp32: what that does is about known beforehand."""
        if self.allowed <= 0 or self.rank == 0 or self.dtype != torch.float64 or len(drawn.pivots) == 0:
            return False
        if not SINGLE_RANGE[0] <= self.operator_trace <= SINGLE_RANGE[1]:
            return False
        if float(drawn.factor.diagonal().min()) < 1e-16 * math.sqrt(self.operator_trace):
            return False  # it would underflow, or nearly
        spread = 1 / math.sqrt(len(drawn.pivots)) + 1 / math.sqrt(self.size)  # of the norm, relative to Frobenius's
        norm = float(torch.linalg.matrix_norm(drawn.factor, 2))
        moved = SINGLE_UNIT * norm * min(spread, 1.0) * math.sqrt(self.trace)
        return self._squared_rounding + self._agreed(moved) ** 2 <= self.allowed**2

    def _agreed(self, number: float) -> float:
        """Return the first process's number: no two may decide by different last bits of a norm."""
        if self.partition.processes == 1:
            return number
        return float(self.partition.agree(self.diagonal.new_tensor(number)))

    def _new_gram_error(self) -> float:
        """Return what :attr:`gram_error` is if products in fp32 begin with the next block."""
        sizes = self.trace * float(self.partition.largest(self.residual.max()))
        return SINGLE_UNIT * cached_rows(BLOCK, self.diagonal) * math.sqrt(sizes)

    def _eliminate_at_once(self, drawn: PivotBlock) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same on a GPU, each step for many rows; columns after the last one kept count for nothing."""
        new = self.operator.columns(drawn.pivots)
        heads = [self.rows(part, drawn.pivots).t() for part in self.blocks]
        upper, before, count = drawn.factor.t(), self.rank, len(drawn.pivots)
        parts = list(self.tiles(slice(0, len(new))))
        for part in parts:
            tile = new[part]
            for block, head in zip(self.blocks, heads, strict=True):
                tile.addmm_(block[part].to(tile), head, alpha=-1)
            torch.linalg.solve_triangular(upper, tile, upper=True, left=False, out=tile)
        self.partition.place_(new, *self.exact_rows(drawn))
        kept = new.to(self.dtype)
        used = drawn.used.to(new.dtype)
        total, negative = new.new_zeros(before + count, count), new.new_full((), math.inf)
        for part in parts:
            tile = kept[part].to(new)
            self.add_products(total, part, tile)
            negative = torch.minimum(negative, self.subtract(part, tile.square() @ used, before + count))
        self._clear(drawn)
        total[before:] *= used.unsqueeze(1)
        return kept, self.partition.total(total * used), negative

    def add_products(self, total: Tensor, part: slice, tile: Tensor, single: Tensor | None = None) -> None:
        """Add the products of some rows of F, the new columns among them, with those of the new columns.

        Those of blocks in fp32, from number :attr:`coarse` on, with new columns in fp32, ``single``, are computed in
        fp32.
        """
        start = 0
        for number, block in enumerate(self.blocks):
            stop = start + block.shape[1]
            if single is not None and self.coarse is not None and number >= self.coarse and block.dtype == single.dtype:
                total[start:stop] += gemm.product(block[part].t(), single)
            else:
                gemm.addmm_(total[start:stop], block[part].to(tile).t(), tile)
            start = stop
        gemm.addmm_(total[start:], tile.t(), tile)

    def subtract(self, part: slice, squares: Tensor, rank: int, single: bool = False) -> Tensor:
        """Subtract the squares of the new columns from the residual's diagonal; entries of rounding's size become 0.

        Return the smallest entry that is too negative for a positive semidefinite operator; infinite if there is none.
        """
        before = self.residual[part].clone() if single else None
        left = self.residual[part].sub_(squares)
        growth = math.sqrt(rank)
        unit = 8 * (8 + growth) * UNIT + (4 * torch.finfo(self.dtype).eps if self.dtype != torch.float64 else 0)
        noise = unit * self.diagonal[part]
        if before is not None:
            noise += 8 * SINGLE_UNIT * before
        # In fp32 small pivots amplify the rounding of F without a bound; the certificate sees what it does.
        negative = left.new_full((), math.inf)
        if self._all_double and not single and len(left) > 0:
            uncertain = self.operator.matrix_error / self.operator_trace * self.diagonal[part]
            negative = torch.where(left < -(1e6 * noise + 4 * uncertain), left, math.inf).min()
        left.masked_fill_(left <= noise, 0)
        return negative

    def _clear(self, drawn: PivotBlock) -> None:
        """Set the residual to 0 at the new pivots, if there are any."""
        left = self.partition.pick(self.residual, drawn.pivots)
        self.partition.place_(self.residual, drawn.pivots, left * (drawn.count == 0))

    def _bordered(self, columns: Tensor) -> Tensor:
        """Return the Gram matrix of F with new columns, from the products of all columns with the new ones."""
        before, count = self.rank, columns.shape[1]
        grown = columns.new_empty(before + count, before + count)
        grown[:before, :before] = self.gram
        grown[:, before:] = columns
        grown[before:, :before] = columns[:before].t()
        grown[before:, before:] = (columns[before:] + columns[before:].t()) / 2
        return grown

    def _follow(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Return an approximate leading eigenvector of the grown Gram matrix, from the last one's, and its norm."""
        trace = gram.diagonal().sum().clamp_min(torch.finfo(gram.dtype).tiny)
        if self.rank == 0:
            start, steps = (gram.diagonal().clamp_min(0) / trace).sqrt(), POWER_STEPS
        else:
            start = nn.functional.pad(self._leading, (0, len(gram) - self.rank))
            start, steps = nn.functional.normalize(start, dim=0), FOLLOWING_STEPS
        leading, norm = power(lambda v: gram.mv(v) / trace, start, steps)
        size = torch.linalg.vector_norm(leading)
        return leading / torch.where(size > 0, size, 1), norm * trace

    @property
    def rounding(self) -> float:
        """Rounding of the Gram matrix, an inner product of length n an entry, and of its eigenvalues."""
        return (self.size + self.rank) * UNIT * self.operator_trace + self.gram_error

    def shortfall(self) -> float:
        """Return e for which ``K - F F^T >= -e``: the residual of an exact factor is positive semidefinite. fp64 only.

        F is lower triangular on the pivots I, ``F_I = L``, so it is the exact factor of a matrix K' that differs from K
        by the rounding E of its columns I: ``F L^T = K'[:, I]``. The Schur complement ``K' - F F^T`` is
        ``(1 - P)^T K' (1 - P)`` with the interpolation P from the pivots, ``W = L^-T F^T`` on the rows I; as K is
        positive semidefinite, it is at least ``-(1 + |W|)^2 |E|``. An entry of E takes c products and is off by
        ``4 sqrt(c) u sqrt(K_ii K_jj)``, single rounding errors taken as independent (Higham and Mary, SIAM J. Sci.
        Comput. 41(5), 2019); columns kept in fp32 are off by what was measured when they were rounded. ``|W|^2`` is the
        norm of ``L^-T (F^T F) L^-1``, beside what :attr:`gram_error` makes of it. On a CPU Lanczos from a random start
        bounds it, but for a probability of :data:`UNLIKELY`.
        """
        if self.rank == 0:
            return 0.0
        if self._shortfall is None:
            self._shortfall = self._new_shortfall()
        return self._shortfall

    def _new_shortfall(self) -> float:
        """Compute :meth:`shortfall`."""
        device = self.gram.device
        lower = torch.cat([self.rows(block, self.pivots.to(device)) for block in self.blocks], 1)
        identity = torch.eye(self.rank, dtype=lower.dtype, device=device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        del lower, identity

        squared = self._norm_between(inverse)
        if self.gram_error > 0:
            squared += self.gram_error * float(torch.linalg.matrix_norm(inverse)) ** 2
        interpolation = math.sqrt(squared)
        trace = self.operator_trace
        rounding = 2 * self.operator.matrix_error + 2 * 4 * math.sqrt(2 * self.rank + BLOCK) * UNIT * trace
        rounding += 2 * math.sqrt(self._squared_rounding)
        return self._agreed(((1 + interpolation) ** 2 + 1) * rounding)

    def _norm_between(self, inverse: Tensor) -> float:
        """Return a bound of the norm of ``inverse^T gram inverse``; for certain on a GPU, which is fast at products."""
        if not self._on_cpu:
            whole = inverse.t() @ (self.gram @ inverse)
            return math.sqrt(float(torch.linalg.matrix_norm(whole @ whole)))

        def product(v: Tensor) -> Tensor:
            return inverse.t() @ (self.gram @ (inverse @ v))

        like, partition = self.gram.diagonal(), Whole(self.rank)
        self._norms += 1
        failure = shared(UNLIKELY, self._norms)
        return spectral_bounds(product, like, NORM_STEPS, failure, self.rank, lowest=0.0, partition=partition).upper

    # ---- products ----------------------------------------------------------------------------------------------

    def transposed_product(self, V: Tensor) -> Tensor:
        """Return ``F^T V`` for V (n, k)."""
        if not self.blocks:
            return V.new_zeros(0, V.shape[1])

        def job(rows: slice) -> Tensor:
            """Return the sum over some rows."""
            sums = [V.new_zeros(block.shape[1], V.shape[1]) for block in self.blocks]
            for part in self.tiles(rows):
                for block, total in zip(self.blocks, sums, strict=True):
                    gemm.addmm_(total, block[part].to(V).t(), V[part])
            return torch.cat(sums)

        return self.partition.total(torch.stack(together([partial(job, rows) for rows in self._shares()])).sum(0))

    def product(self, C: Tensor, scale: float = 1.0) -> Tensor:
        """Return ``scale F C`` for C (rank, k) in its dtype; a scale other than 1 is applied to F as it is read."""
        out = empty((len(self.diagonal), C.shape[1]), C.dtype, C.device).zero_()
        if not self.blocks:
            return out
        coefficients = [own.contiguous() for own in C.split([block.shape[1] for block in self.blocks])]

        def job(rows: slice) -> None:
            for part in self.tiles(rows):
                for block, own in zip(self.blocks, coefficients, strict=True):
                    scaled = block[part] if scale == 1.0 else block[part] * scale
                    gemm.addmm_(out[part], scaled.to(C), own)

        together([partial(job, rows) for rows in self._shares()])
        return out

    def _panels(self) -> Iterator[slice]:
        """Yield the ranges of rows whose columns of K are there at a time; processes ask for all of them together."""
        n = len(self.diagonal)
        yield from chunks(n, max(n, 1) if self.partition.processes > 1 else self._panel)

    @property
    def _panel(self) -> int:
        return max(PANEL, LEAST_ROWS * gemm.threads(torch.float64, self.diagonal.device))

    def _shares(self, within: slice | None = None) -> list[slice]:
        """Return one range of rows a worker: the same rows to the same one, so that sums have one order."""
        rows = slice(0, len(self.diagonal)) if within is None else within
        each = -(-(rows.stop - rows.start) // gemm.threads(torch.float64, self.diagonal.device))
        parts = chunks(rows.stop - rows.start, max(each, LEAST_ROWS))
        return [slice(rows.start + part.start, rows.start + part.stop) for part in parts]

    def tiles(self, rows: slice) -> Iterator[slice]:
        """Yield pieces of a range of rows of which a block of F stays in cache."""
        for part in chunks(rows.stop - rows.start, cached_rows(BLOCK, self.diagonal)):
            yield slice(rows.start + part.start, rows.start + part.stop)

    def apply_residual(self, V: Tensor) -> Tensor:
        """Return ``(K - F F^T) V`` for V (n, k)."""
        return self.operator @ V - self.product(self.transposed_product(V))


def _read(*numbers: Tensor) -> list[float]:
    """Return 0-dimensional tensors of one device as numbers: a GPU is waited for once."""
    return torch.stack([number.to(torch.float64) for number in numbers]).tolist()
