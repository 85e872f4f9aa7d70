"""Proven counts of eigenvalues above levels: which factorisations are made, in which precision, and at which shifts.

What one of them proves is decided in :mod:`inrfast.linalg.inertia`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from inrfast.errors import MemoryBudgetError, RangeError, ResolutionError
from inrfast.linalg.block_ldl import block_ldl, bytes_needed
from inrfast.linalg.certificates import CertifiedCount
from inrfast.linalg.inertia import EVENTS, MOST, Complement, Decision, between, decide
from inrfast.linalg.lanczos import FAILURE
from inrfast.linalg.operators import UNIT, ProductErrors, SymmetricOperator, product_errors
from inrfast.progress import Bar, progress_bar

VECTORS = 7
"""Blocks of so many vectors in memory at once, with their products and remainders."""

WHOLE = 64
"""Order up to which U is the whole space, and nothing is factored."""

SMALL = 2048
"""Order from which fp32 saves time."""

HOPE = 3e-6
"""Smallest level, relative to lambda_1, at which fp32 is tried: its residual is 4e-8 to 1e-5 lambda_1."""

SINGLE = (1e-30, 1e37)
"""Smallest level and largest norm at which fp32 is tried: what is between has all its digits there."""

FAR = 0.05
"""Distance of a shift aside, relative to the level: farther away there is another eigenvalue."""

SIDES = 3
"""Factorisations on either side of a level at most, each farther away."""

ZERO = 1e-9
"""Distance from a level near zero, relative to ``|K|``, within which shifts on either side still say something of it;
not for kernels at levels below the residual, where nothing is worth telling from zero."""

WIDE = 0.5
"""Relative width of an interval of levels from which its ends are counted apart."""


def certified_counts(
    operator: SymmetricOperator,
    levels: Sequence[tuple[float, float]],
    budget: int,
    precision: str | None = None,
    seed: int = 0,
    failure: float = FAILURE,
    progress: bool | None = None,
) -> list[CertifiedCount]:
    """Return proven numbers of eigenvalues above levels, one for every interval of levels.

    Levels are taken from the highest on. In this order, until a count is one number: a factorisation in the middle of
    the interval, in fp32 and then in fp64; one a little aside where an eigenvalue of M is next to zero; one on either
    side, which leaves the eigenvalues in between open: a cluster at the level. Where fp64 left a level open that is
    smaller than its residual, nothing is factored for lower ones: they have what higher levels prove.

    Parameters
    ----------
    operator
        K, any symmetric operator. Counts are those of its own factors in exact arithmetic: its ``matrix_error`` is in
        them, its ``jacobian_error`` is not.
    levels
        Intervals (low, high) of absolute levels: a count holds for all of them.
    budget
        Bytes for the factor.
    precision
        Of the factor: ``"high"`` (fp32), ``"highest"`` (fp64), or None: fp32 where that may do, fp64 where it does not;
        on a GPU fp64 where it fits.
    seed
        Of the random blocks.
    failure
        Probability that one of the intervals is wrong.
    progress
        Whether to show bars; None: on a terminal and in a notebook.

    Raises
    ------
    MemoryBudgetError
        The factor does not fit the budget.
    RangeError
        The operator's norm is outside :data:`inrfast.linalg.operators.RANGE`.
    ResolutionError
        Two factorisations contradict each other: the operator's products are not those of its entries.
    """
    if len(levels) == 0:
        return []
    each = failure / len(levels)
    n, device = operator.shape[0], operator.device
    double = bytes_needed(n, torch.float64, device, processes=operator.partition.processes) + vector_bytes(n)
    # Tensor cores multiply in fp64 as fast as a GPU does in fp32, which only saves memory there.
    least = max(HOPE * _rayleigh(operator), SINGLE[0]) if device.type == "cpu" or double > budget else math.inf
    found: dict[int, CertifiedCount] = {}
    hidden, residual = -1.0, math.inf  # levels up to hidden are smaller than this residual in fp64
    with progress_bar(total=len(levels), desc="counts", progress=progress, leave=False) as bar:
        counting = _Counting(operator, product_errors(operator, each / EVENTS, seed), budget, each, seed, progress, bar)
        for number in sorted(range(len(levels)), key=lambda i: -sum(levels[i])):
            low, high = levels[number]
            both, size = n >= SMALL and low > least and counting.errors.norm <= SINGLE[1], max(abs(low), abs(high))
            names = ("high", "highest") if precision is None and both else (precision or "highest",)
            if size <= hidden:
                found[number] = CertifiedCount(low, high, 0, n, "highest", residual, each)
            else:
                found[number] = counting.count(low, high, names)
            bar.update()
            count, residual = found[number], found[number].residual
            if len(names) == 2 and count.precision == "highest":
                least = math.inf  # fp32 was too coarse already
            if count.lower < count.upper and count.precision == "highest" and size <= residual < math.inf:
                hidden = max(hidden, size)
    return [_monotone(found[number], found.values()) for number in range(len(levels))]


def _monotone(count: CertifiedCount, others: Collection[CertifiedCount]) -> CertifiedCount:
    """Return a count narrowed by others: above a higher level there are no more eigenvalues, above a lower no fewer."""
    more = max((other for other in others if other.high >= count.high), key=lambda other: other.lower)
    fewer = min((other for other in others if other.low <= count.low), key=lambda other: other.upper)
    if more.lower > fewer.upper:
        raise ResolutionError(
            f"two counts contradict each other: at least {more.lower} eigenvalues above {more.high:.6e}, at most "
            f"{fewer.upper} above {fewer.low:.6e}; the operator's products and entries may differ"
        )
    used = {count.low: count.failure}
    used |= {more.low: more.failure} if more.lower > count.lower else {}
    used |= {fewer.low: fewer.failure} if fewer.upper < count.upper else {}
    return replace(
        count, lower=max(count.lower, more.lower), upper=min(count.upper, fewer.upper), failure=sum(used.values())
    )


def vector_bytes(order: int) -> int:
    """Return the bytes of the vectors beside a factor: the Krylov basis, and what theorem 2 makes of it."""
    return 8 * order * min(order, VECTORS * MOST)


DTYPES = {"high": torch.float32, "highest": torch.float64}


def _rayleigh(operator: SymmetricOperator) -> float:
    """Return an estimate of lambda_1 from below, of one product: what the diagonal's root has for a Rayleigh quotient.

    It only says whether fp32 is tried.
    """
    partition, start = operator.partition, operator.diagonal().abs().sqrt().unsqueeze(1)
    length = float(partition.norm(start))
    return float(partition.total((start * (operator @ start)).sum())) / length / length if length > 0 else 0.0


@dataclass
class _Counting:
    """What all levels share; ``seed`` moves on with every factorisation."""

    operator: SymmetricOperator
    errors: ProductErrors
    budget: int
    failure: float
    seed: int
    progress: bool | None
    bar: Bar

    def count(self, low: float, high: float, names: Sequence[str]) -> CertifiedCount:
        """Return the number of eigenvalues above the levels of an interval."""
        n, norm = self.operator.shape[0], self.errors.norm
        if low > norm or high < -norm:
            number = 0 if low > norm else n
            return CertifiedCount(low, high, number, number, names[-1], 0.0, self.failure)
        if n <= WHOLE:
            unit = torch.eye(n, dtype=torch.float64, device=self.operator.device)
            whole = Complement(self.operator.partition.mine(unit), math.inf, 0, 0.0)
            lower, upper = between(self.operator, whole, self.errors, low, high, 0.0)
            return CertifiedCount(low, high, lower, upper, "highest", 0.0, self.failure)
        best = CertifiedCount(low, high, 0, n, names[-1], math.inf, self.failure)
        middle, done = (low + high) / 2, names[0]
        if high - low <= WIDE * max(abs(low), abs(high)):
            for name in names:
                try:
                    best = self._near(best, middle, name)
                except (MemoryBudgetError, RangeError) as error:
                    if name == names[-1 if isinstance(error, RangeError) else 0]:
                        raise
                    continue  # fp32 did not reach so far, or what it proved stands
                done = name
                if best.lower == best.upper:
                    return best
        try:
            return self._aside(best, done)
        except RangeError:
            if done == names[-1]:
                raise
            return self._aside(best, names[-1])

    def _near(self, best: CertifiedCount, shift: float, name: str) -> CertifiedCount:
        """Return a count narrowed by factorisations at a shift, and aside of it where that may prove more."""
        aside = 0.0
        for sign in (1, -1, 1):
            decision = self._decide(best.low, best.high, shift + sign * aside, name)
            best = _met(best, decision, name)
            aside = max(decision.aside, 4 * aside)
            if best.lower == best.upper or decision.aside == 0 or aside > FAR * abs(shift):
                break
        return best

    def _aside(self, best: CertifiedCount, name: str) -> CertifiedCount:
        """Return a count narrowed by factorisations on either side of its levels."""
        size = max(abs(best.low), abs(best.high))
        if self.operator.jacobian_error == 0 or best.low <= 0 <= best.high:
            size = max(size, ZERO * self.errors.norm)
        if size <= best.residual < math.inf:
            return best  # a shift so far away would say nothing of these levels
        start = max(8 * best.residual if best.residual < size else 0.0, 1e3 * UNIT * self.errors.norm, 1e-12 * size)
        ends = {}
        for level, sign in ((best.high, 1), (best.low, -1)):
            if sign < 0 and level <= 0 and self.operator.jacobian_error > 0:
                continue  # of J J^T no eigenvalue is below
            step = start
            for _ in range(SIDES):
                there = level + sign * step
                ends[sign] = self._decide(there, there, there, name)
                residual = ends[sign].residual
                if ends[sign].exact or step > size:
                    break
                step = max(32 * step, 8 * residual if residual < size else 0.0)
        lower, upper = ends[1].lower, ends[-1].upper if -1 in ends else best.upper
        residual = max(end.residual for end in ends.values())
        return _met(best, Decision(lower, upper, residual, "two shifts", self.failure), name)

    def _decide(self, low: float, high: float, shift: float, name: str) -> Decision:
        """Return what a new factorisation proves."""
        room = self.budget - vector_bytes(self.operator.shape[0])
        self.bar.set_postfix_str("factoring")
        factor = block_ldl(self.operator, shift, DTYPES[name], budget=room, progress=self.progress)
        self.seed += 8
        self.bar.set_postfix_str("bounding what the factor misses")
        return decide(self.operator, factor, low, high, self.failure, self.seed, self.errors)


def _met(best: CertifiedCount, decision: Decision, name: str) -> CertifiedCount:
    """Return what a count and a decision about the same levels prove together."""
    lower, upper = max(best.lower, decision.lower), min(best.upper, decision.upper)
    if lower > upper:
        raise ResolutionError(
            f"two factorisations contradict each other: [{best.lower}, {best.upper}] and [{decision.lower}, "
            f"{decision.upper}] eigenvalues above {best.high:.6e}; the operator's products and entries may differ"
        )
    return replace(best, lower=lower, upper=upper, precision=name, residual=decision.residual)
