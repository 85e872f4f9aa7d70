"""Counts above levels that a growing pivoted factor proves: from below by its Ritz values, from above by a complement.

``K = F F^T + R`` with ``R >= -e``, so that every eigenvalue of ``F F^T`` is at most one of K, and e. That bounds counts
from below. From above, the m leading eigenvectors of ``F F^T`` are projected out of K, and what is left is measured
(:mod:`inrfast.linalg.complement`). Weyl's inequality asks for a residual R far smaller than the level, this for one of
about half of it.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inrfast.linalg.certificates import CertifiedCount, kernel_error, level_span
from inrfast.linalg.complement import STEPS, Complement, NormBounds, in_single
from inrfast.linalg.costs import more_pivots_flops, projected_flops, residual_flops, vectors_flops
from inrfast.linalg.demands import Ranks
from inrfast.linalg.lanczos import FAILURE, least_square
from inrfast.linalg.operators import product_error
from inrfast.linalg.pivoted_cholesky import SQUARES, PivotedCholesky
from inrfast.linalg.spectrum import MARGIN
from inrfast.memory import trim

WIDEST = 0.0295
"""Width of an interval, relative to its lower end, that a proof aims at where the demand's is the usual one."""

LEAKED = 0.13
"""What a residual adds to the norm on the complement, beyond the next Ritz value, in units of the residual's norm: 0.03
to 0.2 in ReLU and sine networks."""

SHARPNESS = 0.28
"""How much the bound of a norm exceeds it after m products, relative to it, times ``(m / s)^2``, where a start has at
least the share ``4 exp(-2 s)`` of its square along an eigenvector: 0.25 to 0.31 for m from 16 to 40 in networks."""

EXPECTED = 0.1
"""Gap between norm and level with which proofs are made, relative to the level."""

ROOM = 0.02
"""Share of the level that is left for rounding."""

ROUNDED = 1e-5
"""Share of the residual's trace that its entries, set to zero where they are rounding, may have lost."""

REACHED = 0.4
"""The residual's norm, relative to the level, at which proofs succeed, about: of one half to a quarter in networks."""

STARTED = 1.2
"""Estimate of the residual's norm, relative to the level, above which eigenvalues are not looked at."""

AGAIN = 0.75
"""After a failure the residual's norm must fall to this share before the next proof is tried."""

ATTEMPTS = 4
"""Proofs of a level that fail before Weyl's inequality alone is waited for."""

TEMPLE_STEPS = 40
"""Power steps for the leading eigenvector: how far it is off counts squared."""

TRIMMED = 1 << 26
"""Bytes of eigenvectors before which what blocks of pivots have freed is given back to the system."""

ALLOWED = 2e-6
"""Rounding of the factor's columns to fp32, relative to the level: times some 1,000, what the residual may be below
zero (see :meth:`inrfast.linalg.pivoted_cholesky.PivotedCholesky.shortfall`), it is up to a hundredth of the level."""


@dataclass
class RankProof:
    """Upper bounds of counts, proven one by one while a factor grows.

    Parameters
    ----------
    factor
        The factor, in fp64 but for the blocks that it keeps in fp32.
    demand
        The levels, and how narrow their intervals have to be.
    budget
        Bytes for the factor and for all that is beside it.
    seed
        Of the random starts.

    Attributes
    ----------
    upper
        Proven counts by level, in the demand's order; only their upper ends are proven for good.
    failed
        How often no proof succeeded, by level, and at which residual norm last.
    falls
        Factor by which the residual's norm falls with a block of pivots, about.
    """

    factor: PivotedCholesky
    demand: Ranks
    budget: int
    seed: int
    upper: dict[int, CertifiedCount] = field(default_factory=dict)
    failed: dict[int, tuple[int, float]] = field(default_factory=dict)
    falls: float = 1.0
    _temple: tuple[int, float, float, float] | None = None

    def spans(self, residual: float) -> list[tuple[float, float]]:
        """Return, for every level, the levels of the operator as computed between which the exact one's lies.

        ``residual`` is a bound on the norm of R, to which lambda_1 is known if no better.
        """
        largest, error = float(self.factor.eigenvalues()[0]), self.factor.operator.jacobian_error
        low, high = self.largest(residual)
        slack = (max(largest - low, high - largest) + kernel_error(error, high)) / largest
        relative = len(self.demand.rtols)  # the others are exact
        return [
            level_span(level, (2 * slack if number < relative else 0.0) + MARGIN, error)
            for number, level in enumerate(self.demand.absolute(largest))
        ]

    def largest(self, residual: float) -> tuple[float, float]:
        """Return an interval that holds lambda_1, from one product with the leading eigenvector q of ``F F^T``.

        With ``r = |K q - rho q|`` for its Rayleigh quotient rho, and no other eigenvalue above b < rho, lambda_1 is at
        most ``rho + r^2 / (rho - b)`` (Temple; Parlett, The Symmetric Eigenvalue Problem, section 10.5).
        """
        values = self.factor.eigenvalues()
        low, high = float(values[0]) - self.below(), float(values[0]) + residual
        rho, off, error = self._quotient()
        others, sure = (float(values[1]) if len(values) > 1 else 0.0) + residual, rho - error
        if others < sure:  # the quotient of this vector: another one's may be larger
            high = min(high, rho + error + off * off / (sure - others))
        return min(max(low, sure), high), high

    def _quotient(self) -> tuple[float, float, float]:
        """Return rho, r, and how much a product with a unit vector may be off, by one product."""
        factor = self.factor
        if self._temple is None or self._temple[0] != factor.rank:
            partition, operator = factor.partition, factor.operator
            q = factor.product(factor.leading(TEMPLE_STEPS).unsqueeze(1))
            q = q / partition.norm(q)
            image, error = operator @ q, product_error(operator, factor.operator_trace)
            rho = float(partition.total(q.t() @ image))
            self._temple = factor.rank, rho, float(partition.norm(image - rho * q)) + error, error
        return self._temple[1:]

    def counts(self, residual: float) -> list[CertifiedCount]:
        """Return what is proven, one count for every level that has an upper bound."""
        values, below = self.factor.eigenvalues(), self.below()
        found = []
        for number, (_, high) in enumerate(self.spans(residual)):
            if number in self.upper:
                proven = self.upper[number]
                lower = int((values - below > high).sum())
                found.append(replace(proven, high=high, lower=min(lower, proven.upper)))
        return found

    def below(self) -> float:
        """Return e for which ``K - F F^T >= -e`` and every computed eigenvalue is off by no more."""
        return self.factor.shortfall() + self.factor.rounding

    def pays(self, estimate: float, needed: float) -> bool:
        """Return whether a proof now costs less than the pivots that Weyl's inequality still seems to need."""
        factor, largest = self.factor, self.factor.largest_estimate
        if not estimate <= STARTED * self.demand.level(largest):
            return False
        needed = min(needed, factor.size)
        weyl = self._pivots_flops(needed - factor.rank) + residual_flops(factor.size, needed, self._product_flops())
        m = factor.rank / 2
        products = self._products(1 / (1 + EXPECTED), factor.trace / self.demand.level(largest))
        return vectors_flops(factor.size, factor.rank, m) + products * self._step_flops(m) < weyl

    def _product_flops(self) -> float:
        return float(getattr(self.factor.operator, "product_flops", 2.0 * self.factor.size**2))

    def _step_flops(self, m: float) -> float:
        return projected_flops(self.factor.size, m, self._product_flops(), self._single)

    def _pivots_flops(self, more: float) -> float:
        n, rank = self.factor.size, self.factor.rank
        entries = getattr(self.factor.operator, "entry_flops", 0.0)
        return more_pivots_flops(n, rank, more, entries)

    def tried(self, estimate: float, failure: float, residual: float | None = None) -> float | None:
        """Try to prove every level that is open; return the residual's bound where all of them are narrow now.

        Parameters
        ----------
        estimate
            Estimate of the residual's norm.
        failure
            Probability with which the proofs may fail.
        residual
            A bound of the residual's norm, where one is known: levels for which Weyl's inequality does are no work.
        """
        factor = self.factor
        if residual is None and not self._first_promising(estimate):
            return None
        self._quotient()  # in fp64, before there are the factors in fp32 instead
        with self._factors_in_single():
            known = factor.trace * (1 + ROUNDED) + factor.size * self.below() if residual is None else residual
            return known if self._all_tried(estimate, failure, known, residual is not None) else None

    def _all_tried(self, estimate: float, failure: float, known: float, last: bool) -> bool:
        """Try to prove every level that is open, until one fails where this is not the ``last`` time."""
        values, below, spans = self.factor.eigenvalues(), self.below(), self.spans(known)
        vectors: Tensor | None = None
        for number in sorted(range(len(spans)), key=lambda i: spans[i][1]):
            low, high = spans[number]
            lower = int((values - below > high).sum())
            if known <= low and self._narrow(lower, int((values + known > low).sum())):
                continue
            proven = self.upper.get(number)
            if proven is not None and proven.low <= low and self._narrow(lower, proven.upper):
                continue
            m = self._most(lower)
            if not self._promising(number, low, m, estimate, begun=True):
                if not last:
                    return False
                continue
            if vectors is None:
                vectors = self._vectors(m)
            count = min(m, vectors.shape[1])
            bounds, precision = self._norm(vectors[:, :count], low, known, failure / len(spans))
            if not bounds.upper <= low:  # NaN proves nothing
                self.failed[number] = (self.failed.get(number, (0, 0.0))[0] + 1, estimate)
                if not last:
                    return False
                continue
            self.upper[number] = CertifiedCount(low, high, 0, count, precision, bounds.upper, FAILURE)
        return True

    def _most(self, lower: int) -> int:
        """Return the upper end of the widest interval that is narrow enough."""
        usual = self.demand.width == Ranks(()).width
        return lower + int((WIDEST if usual else self.demand.width) * lower)

    def _narrow(self, lower: int, upper: int) -> bool:
        return upper <= self._most(lower)

    def _first_promising(self, estimate: float) -> bool:
        """Return whether the lowest level may be proven now, as far as eigenvalues alone tell."""
        values = self.factor.eigenvalues()
        levels = self.demand.absolute(float(values[0]))
        number = min(range(len(levels)), key=levels.__getitem__)
        return self._promising(number, levels[number], self._most(int((values > levels[number]).sum())), estimate)

    def _promising(self, number: int, low: float, m: int, estimate: float, begun: bool = False) -> bool:
        """Return whether a proof with m vectors may well succeed; before proofs are begun, also whether it costs less
        now than after another block of pivots."""
        times, before = self.failed.get(number, (0, math.inf))
        values, factor = self.factor.eigenvalues(), self.factor
        if times >= ATTEMPTS or estimate > AGAIN * before or not 0 < m < len(values) or not low > 0:
            return False
        if self._room(m) < 0:
            return False
        left = self._left(m, low)
        leaked = [LEAKED * norm for norm in (estimate, self.falls * estimate)]
        now, later = (self._products((float(values[m]) + more) / low, left) for more in leaked)
        block = factor.blocks[-1].shape[1]
        return now <= STEPS and (begun or (now - later) * self._step_flops(m) <= self._pivots_flops(block))

    def _room(self, m: int) -> int:
        """Return the bytes of the budget that a proof with m vectors leaves, the same in every process."""
        factor = self.factor
        rows, item = -(-factor.size // factor.partition.processes), 4 if factor.gram.device.type == "cpu" else 8
        held = sum(block.shape[1] * block.element_size() for block in factor.blocks)
        return self.budget - rows * (held + item * m + 8 * STEPS) - 8 * SQUARES * factor.rank**2

    def _products(self, norm: float, left: float) -> float:
        """Return how many products bound a norm by a level.

        Parameters
        ----------
        norm
            About the norm, relative to the level.
        left
            The trace of what it is the norm of, relative to the level.
        """
        gap = (1 - ROOM) / norm - 1 if norm > 0 else math.inf
        if gap <= 0:
            return math.inf
        share = 1 / self.factor.size  # of the start's square along an eigenvector
        if self._single:
            share = max(share, 1 / max(left, 1.0))
        return math.sqrt(SHARPNESS / gap) * math.log(2 / math.sqrt(least_square(FAILURE) * share))

    def _left(self, m: int, low: float) -> float:
        """Return about the trace of K beside m leading eigenvectors, relative to a level."""
        return (self.factor.trace + float(self.factor.eigenvalues()[m:].sum())) / low

    @property
    def _single(self) -> bool:
        """Whether there are products in fp32."""
        return getattr(self.factor.operator, "single", None) is not None

    def _factors_in_single(self) -> AbstractContextManager[None]:
        """Return a context in which products in fp32 are fast, if there will be any."""
        factor, largest = self.factor, float(self.factor.eigenvalues()[0])
        single = in_single(factor.operator, factor.rank, largest + factor.trace, self.demand.level(largest))
        return nullcontext() if single is None else single.held(max(self._room(factor.rank), 0))

    def _vectors(self, m: int) -> Tensor:
        """Return the m leading eigenvectors of ``F F^T`` (n, m), as far as fp32 has them; fp64 on a GPU."""
        on_cpu = self.factor.gram.device.type == "cpu"
        if on_cpu and 4 * m * len(self.factor.diagonal) >= TRIMMED:
            trim()
        scale = 2.0 ** round(math.log2(self.factor.operator_trace) / 2) if on_cpu else 1.0  # neither leaves fp32
        return self.factor.product(self._coefficients(m, scale, torch.float32 if on_cpu else torch.float64), 1 / scale)

    def _coefficients(self, m: int, scale: float, dtype: torch.dtype) -> Tensor:
        """Return C (rank, m) such that the columns of ``F C / scale`` are the m leading eigenvectors of ``F F^T``."""
        values, vectors = torch.linalg.eigh(self.factor.gram)
        return (vectors[:, -m:] * (scale / values[-m:].sqrt())).flip(1).to(dtype)

    def _norm(self, U: Tensor, low: float, residual: float, failure: float) -> tuple[NormBounds, str]:
        """Return bounds of the operator's norm beside the columns of U, and the precision of its products."""
        self.seed += 1
        largest, left = float(self.factor.eigenvalues()[0]) + residual, self._left(U.shape[1], low)
        complement = Complement(self.factor.operator, U, largest, low)

        def enough(bounds: NormBounds) -> bool:
            if bounds.upper <= low:
                return True
            return self._products(bounds.inner / low, left) > STEPS

        bounds = complement.norm(failure, self.seed, enough)
        return bounds, "highest" if complement.single is None else "high"
