"""The spectrum of a large positive semidefinite operator with a certificate: eigenvalues, and how wrong they can be.

``K = F F^T + R`` with F from pivoted Cholesky. By Weyl's inequality the eigenvalues of K are those of ``F F^T``, each
moved by a number from the spectrum's range of R, and Lanczos from a random start bounds that range
(:mod:`inrfast.linalg.lanczos` says with what probability). F itself may hold any rounding errors: R is what is
left of K, in products of its own. Counts have a proof that is content with fewer columns
(:mod:`inrfast.linalg.rank_proof`); it is tried first where it costs less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from inrfast.linalg.certificates import CertifiedCount
from inrfast.linalg.costs import Alternative
from inrfast.linalg.demands import Pairs, Ranks
from inrfast.linalg.lanczos import FAILURE, STEPS, SpectralBounds, shared, spectral_bounds
from inrfast.linalg.operators import UNIT, SymmetricOperator, check_semidefinite, product_error
from inrfast.linalg.pivoted_cholesky import (
    BLOCK,
    SQUARES,
    SQUARES_OF_VECTORS,
    UNLIKELY,
    PivotedCholesky,
    candidate_bytes,
    most_pivots,
)
from inrfast.linalg.rank_proof import ALLOWED, REACHED, RankProof
from inrfast.linalg.spectrum import Spectrum
from inrfast.memory import MOST_ROWS, chunks, require
from inrfast.progress import Bar, progress_bar

PATIENCE = 8 * BLOCK
"""Number of pivots before which the computation is never given up."""

HOPE = 2.0
"""Give up once the pivots that seem to be needed exceed this many times those that fit."""

TIGHT = 0.8
"""Continue Lanczos while the residual norm is below 0.8 of the allowed error. Its bound exceeds the norm by a factor
that falls with the steps (1.5 after 16, 1.25 after 21); a step costs a tenth of a block of pivots."""

EARLY = 1.25
"""On a CPU, compute the factor's eigenvalues once the residual norm is below this many times the estimated allowed
error: if they ask for more pivots, less than a block was lost. On a GPU they cost as much as ten blocks, so it is
TIGHT there."""

SLACK = 1.25
"""Accept a bound within this factor of the norm where no more pivots can be had."""

TRUST = 0.4
"""Initial ratio of the true residual norm to its estimate, which is one block old and too high; the first attempt of a
few Lanczos steps corrects it."""

SINGLE = 1e-6
"""Smallest relative accuracy for which the factor is kept in fp32: its rounding is a tenth of that."""

DISTINCT = 1e-8
"""Smallest eigenvalue, relative to lambda_1, for which the factor's eigenvectors are orthogonal to 1e-12."""

BLOCKS = 16
"""Blocks at least that all pivots come in, where something else may take over."""

SHOWN = 4
"""Blocks after the first that show at what rate the residual falls; estimates from fewer were off by tens."""

LEAST_FALL = 0.3
"""Smallest factor by which the residual norm is expected to fall with a block."""

LEAST_BLOCK = 16
"""Smallest number of pivots per block: fewer are not worth a pass over the grid."""


def certified_spectrum(
    operator: SymmetricOperator,
    demand: Ranks | Pairs,
    rank_bound: int,
    budget: int,
    seed: int = 0,
    eigenvectors: bool = False,
    progress: bool | None = None,
    alternative: Alternative | None = None,
) -> Spectrum:
    """Return the eigenvalues of an operator's pivoted Cholesky factor as the operator's own, with their error.

    Stops when ``demand`` is met, when the factor has the size that ``budget`` allows or is clearly going to need more,
    or when only rounding is left of the operator.

    Parameters
    ----------
    operator
        Symmetric positive semidefinite, fp64.
    demand
        The ranks to be known, and how well; or the number of eigenpairs, and then only those are returned.
    rank_bound
        A bound on the operator's rank.
    budget
        Bytes for the factor and its scratch.
    seed
        Of the pivots and of the Lanczos starts.
    eigenvectors
        Whether to return them as well, of those eigenvalues that are larger than their error (of pairs: than
        :data:`DISTINCT` of the largest). The residuals ``|K q - theta q|`` are at most the larger of the errors.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.
    alternative
        What may take over the counting. Where the pivots give way to it, what they have shown is returned, and the
        result's ``note`` says why.

    Raises
    ------
    MemoryBudgetError
        The budget is too small for a block of columns.
    ValueError
        The operator is not symmetric, or not positive semidefinite.
    """
    n = operator.shape[0]
    if isinstance(demand, Pairs):
        k, rtol, dtype = demand.count, demand.accuracy, torch.float32 if demand.accuracy >= SINGLE else torch.float64
    else:
        k, rtol, dtype = None, min(demand.rtols, default=UNIT), torch.float64
    factor = PivotedCholesky(operator, seed, dtype)
    trace = factor.operator_trace
    if trace == 0:
        zeros = factor.diagonal.new_zeros(1)
        unit = (
            operator.partition.mine(torch.eye(n, 1, dtype=zeros.dtype, device=zeros.device)) if eigenvectors else None
        )
        return Spectrum(zeros, unit, 0.0, 0.0, n, 0.0, rank_bound, rtol, "cholesky", beyond=0.0)
    block, most = _room(n, budget, factor.dtype.itemsize, eigenvectors, k)
    if alternative is not None:  # what it costs less than shows after a few blocks
        block = min(block, max(n // BLOCKS, LEAST_BLOCK))
    with progress_bar(total=most, desc="pivots", progress=progress, leave=False) as bar:
        proof = RankProof(factor, demand, budget, seed) if isinstance(demand, Ranks) and not eigenvectors else None
        found = _Growth(factor, demand, block, most, seed, bar, alternative, proof).run()
    values, bounds = factor.eigenvalues(), found.bounds
    check_semidefinite(bounds.inner_lower, -bounds.lower)
    lower, upper = (max(error, 0.0) + factor.rounding for error in (-bounds.lower, bounds.upper))  # so that NaN stays
    norms = [count.residual for count in found.counts]
    spectrum = Spectrum(
        values,
        None,
        lower,
        upper,
        n,
        trace,
        rank_bound,
        rtol,
        "cholesky",
        beyond=min([upper, *norms]),
        note=found.verdict,
        certified=tuple(sorted(found.counts, key=lambda count: -count.low)),
        largest=found.largest,
    )
    if eigenvectors:
        # Of smaller values the error says nothing; where pairs are asked for, they are left out for rounding alone.
        known = max(lower, upper) if k is None else min(max(lower, upper), DISTINCT * float(values[0]))
        count = max(1, int((values > known).sum()))
        spectrum = spectrum.truncated(min(count, k or count), _eigenvectors(factor, min(count, k or count)))
    return spectrum if k is None else spectrum.truncated(k)


def _room(n: int, budget: int, item: int, eigenvectors: bool, k: int | None) -> tuple[int, int]:
    """Return the pivots per block and the largest number in all, with ``item`` bytes per entry of F.

    Beside F there is room for its Gram matrix and matrices of that size; for columns of the operator, a copy of them
    and the scratch of choosing them, later for the Krylov basis and its scratch, at the end for eigenvectors.
    """
    each, vector, squares = n * item, 8 * n, SQUARES
    vectors = 0
    if eigenvectors:
        squares = SQUARES_OF_VECTORS
        if k is None:
            each += vector
        else:
            vectors = min(n, k or n)
    block = min(BLOCK, n)
    while block > LEAST_BLOCK and max(2 * block * vector, candidate_bytes(block)) > budget // 4:
        block //= 2
    columns = 2 * block * vector + candidate_bytes(block)
    scratch = max(columns, (min(n, STEPS) + 10) * vector, vectors * vector)
    require(
        scratch + block * each + 8 * squares * block**2,
        budget,
        f"a block of {block} columns of order {n}, with what it takes to bound the rest,",
        "raise memory_budget or take fewer points",
    )
    return block, min(n, most_pivots(budget - scratch, each, squares))


@dataclass(frozen=True)
class _Found:
    """What a factor has shown in the end.

    Attributes
    ----------
    bounds
        Of the residual's spectrum.
    verdict
        The reason why pivots gave way to an alternative; empty if they did not.
    counts
        Proven counts beside those that follow from the bounds.
    largest
        An interval that holds lambda_1, where a narrower one is known.
    """

    bounds: SpectralBounds
    verdict: str = ""
    counts: tuple[CertifiedCount, ...] = ()
    largest: tuple[float, float] | None = None


@dataclass
class _Growth:
    """A factor that grows until its eigenvalues answer the demand."""

    factor: PivotedCholesky
    demand: Ranks | Pairs
    block: int
    most: int
    seed: int
    bar: Bar
    alternative: Alternative | None
    proof: RankProof | None
    history: list[tuple[int, float]] = field(default_factory=list)
    attempts: int = 0
    trust: float = TRUST
    allowed: float = math.inf

    def run(self) -> _Found:
        """Grow the factor, and return what it shows in the end."""
        factor, demand = self.factor, self.demand
        early = EARLY if factor.diagonal.device.type == "cpu" else TIGHT
        while True:
            self._step()
            estimate, largest = self.trust * factor.norm_estimate, factor.largest_estimate
            last = factor.exhausted or factor.rank >= self.most or self._hopeless(largest)
            verdict = "" if last else self._verdict(largest)
            last = last or verdict != ""
            if not last and (found := self._proven(estimate)) is not None:
                return found
            few = isinstance(demand, Pairs) and factor.rank < demand.count
            near = early * demand.near(largest, _power(self.history))
            if not last and (few or estimate > (near if math.isinf(self.allowed) else TIGHT * self.allowed)):
                continue
            if not last and math.isinf(self.allowed):  # it hardly changes from here on, and eigenvalues take time
                pairs = isinstance(demand, Pairs)
                self.allowed = demand.hope(largest) if pairs else demand.allowed_error(factor.eigenvalues().cpu())
                if estimate > TIGHT * self.allowed:
                    continue
            if verdict and self.alternative is not None and self.alternative.whole:  # a bound for nothing
                bounds = SpectralBounds(-factor.shortfall(), factor.trace, 0.0, factor.trace, 0.0, 0)
                return _Found(bounds, verdict)
            bounds = self._bounds(_stop(self.allowed, last))
            if last or bounds.upper <= self.allowed:
                values = factor.eigenvalues().cpu()
                if last or demand.met(values, bounds.upper):
                    return self._finished(bounds, verdict, estimate)
                self.allowed = demand.allowed_error(values)
            self.trust = max(bounds.inner_upper / factor.norm_estimate, self.trust / 2)

    def _step(self) -> None:
        """Append a block of columns."""
        factor = self.factor
        if self.proof is not None and factor.rank > 0:
            factor.allowed = ALLOWED * self.proof.demand.level(factor.largest_estimate)
        self.bar.update(factor.grow(min(self.block, self.most - factor.rank)))
        self.history.append((factor.rank, factor.norm_estimate))

    def _wanted(self, largest: float, norm: float) -> float:
        """Return the residual norm that suffices: ``norm``, or what a proof takes where there may be one."""
        if self.proof is None or _on_gpu(self.factor):
            return norm
        return max(norm, REACHED * self.proof.demand.level(largest))

    def _hopeless(self, largest: float) -> bool:
        """Return whether the residual norm, at its recent rate, gets small only with far more pivots than fit."""
        (rank, norm), wanted = self.history[-1], self._wanted(largest, self.demand.hope(largest))
        if rank < PATIENCE or norm <= wanted:
            return False
        return _power(self.history) * math.log(HOPE * self.most / rank) < math.log(norm / wanted)

    def _verdict(self, largest: float) -> str:
        """Return why pivots give way to the alternative; empty if they do not."""
        if self.alternative is None:
            return ""
        wanted = self._wanted(largest, min(self.demand.near(largest, _power(self.history)), self.allowed))
        return self.alternative.verdict(self.factor.rank, _needed(self.history, wanted / self.trust), self.most)

    def _proven(self, estimate: float) -> _Found | None:
        """Return what complements prove, if they answer the demand, and are tried before Weyl's inequality would."""
        proof, factor = self.proof, self.factor
        if proof is None or _on_gpu(factor):
            return None
        near = self.demand.near(factor.largest_estimate, _power(self.history))
        proof.falls = _falls(self.history)
        estimate *= proof.falls  # it is one block old
        if not proof.pays(estimate, _needed(self.history, near / self.trust)):
            return None
        self.bar.set_postfix_str("bounding the rest")
        residual = proof.tried(estimate, self._share())
        self.bar.set_postfix_str("")
        if residual is None:
            return None
        if proof.demand.values:
            bounds = self._bounds(_stop(math.inf, True))
        else:
            bounds = SpectralBounds(-factor.shortfall(), residual, 0.0, residual, FAILURE, 0)
        return self._with_counts(proof, bounds, "")

    def _finished(self, bounds: SpectralBounds, verdict: str, estimate: float) -> _Found:
        """Return what is known where no more pivots come; where they ran out, complements may prove more."""
        proof = self.proof
        if proof is None:
            return _Found(bounds, verdict)
        known = max(bounds.upper, 0.0) + self.factor.rounding
        if not verdict and not proof.demand.met(self.factor.eigenvalues().cpu(), bounds.upper):
            proof.tried(min(estimate, bounds.inner_upper), self._share(), known)
        return self._with_counts(proof, bounds, verdict) if proof.upper else _Found(bounds, verdict)

    def _with_counts(self, proof: RankProof, bounds: SpectralBounds, verdict: str) -> _Found:
        """Return what is found with proven counts."""
        known = max(bounds.upper, 0.0) + self.factor.rounding
        return _Found(bounds, verdict, tuple(proof.counts(known)), proof.largest(known))

    def _share(self) -> float:
        """Return the probability of failure of the next attempt: with the factor's own, all add up to FAILURE."""
        self.attempts += 1
        return shared(FAILURE - UNLIKELY, self.attempts)

    def _bounds(self, enough: Callable[[SpectralBounds], bool]) -> SpectralBounds:
        """Bound the residual's spectrum."""
        factor, failure = self.factor, self._share()
        self.bar.set_postfix_str("bounding the rest")
        rounding = (factor.size + factor.rank) * UNIT * factor.operator_trace
        bounds = spectral_bounds(
            factor.apply_residual,
            factor.diagonal,
            STEPS,
            failure,
            self.seed + self.attempts,
            product_error(factor.operator, factor.operator_trace) + rounding,
            enough,
            lowest=-factor.shortfall() if factor.dtype == torch.float64 else None,
            partition=factor.partition,
        )
        self.bar.set_postfix_str("")
        return bounds


def _on_gpu(factor: PivotedCholesky) -> bool:
    """Return whether a factor lies on a GPU: there eigenvalues cost as much as ten blocks of pivots."""
    return factor.diagonal.device.type != "cpu"


def _power(history: list[tuple[int, float]]) -> float:
    """Return p where the residual norm fell as ``rank^-p`` over the last half of the pivots; 0 if it did not fall."""
    rank, norm = history[-1]
    half, before = next(entry for entry in history if entry[0] >= rank // 2)
    return math.log(before / norm) / math.log(rank / half) if half < rank and 0 < norm < before else 0.0


def _falls(history: list[tuple[int, float]]) -> float:
    """Return the factor by which the residual norm falls with a block: as it did with the last but one."""
    norms = [norm for _, norm in history[-2:]]
    return min(max(norms[1] / norms[0], LEAST_FALL), 1.0) if len(norms) == 2 and 0 < norms[0] < math.inf else 1.0


def _needed(history: list[tuple[int, float]], wanted: float) -> float:
    """Return how many pivots the residual norm, at its recent rate, takes to reach ``wanted``.

    A norm is the one before its block: after the pivots of the blocks before. No more than there are where few blocks
    do not show a rate yet.
    """
    known = [(rank, norm) for (rank, _), (_, norm) in pairwise(history)]
    if len(known) < SHOWN or known[-1][1] <= wanted:
        return history[-1][0]
    (rank, norm), power = known[-1], _power(known)
    return rank * math.exp(min(math.log(norm / wanted) / power, 700.0)) if power > 0 and wanted > 0 else math.inf


def _stop(allowed: float, last: bool) -> Callable[[SpectralBounds], bool]:
    """Return the test that stops Lanczos: the bound is tight enough, or the norm so large that it takes pivots."""

    def enough(bounds: SpectralBounds) -> bool:
        if bounds.upper <= allowed and math.isfinite(allowed):
            return True
        return bounds.upper <= SLACK * bounds.inner_upper if last else bounds.inner_upper > TIGHT * allowed

    return enough


def _eigenvectors(factor: PivotedCholesky, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors of ``F F^T``, orthonormal: ``F u / sqrt(theta)``.

    For a small theta rounding makes them orthogonal to ``u theta_1 / theta`` only; a step of Newton and Schulz towards
    the nearest orthonormal matrix squares what is missing.
    """
    values, vectors = torch.linalg.eigh(factor.gram)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    found = factor.product(vectors / values.sqrt())
    overlap = factor.partition.total(found.t() @ found)
    step = 1.5 * torch.eye(count, dtype=overlap.dtype, device=overlap.device) - 0.5 * overlap
    for rows in chunks(len(found), MOST_ROWS):  # in place: a second copy might not fit
        found[rows] = found[rows] @ step
    return found
