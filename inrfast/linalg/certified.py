"""The spectrum of a large positive semidefinite operator with a certificate: eigenvalues, and how wrong they can be.

``K = F F^T + R`` with F from pivoted Cholesky. By Weyl's inequality the eigenvalues of K are those of ``F F^T``, each
moved by a number from the spectrum's range of R, and Lanczos from a random start bounds that range
(:mod:`inrfast.linalg.lanczos` says with what probability). F itself may hold any rounding errors: R is what is
left of K, in products of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.linalg.costs import Alternative
from inrfast.linalg.lanczos import FAILURE, STEPS, SpectralBounds, spectral_bounds
from inrfast.linalg.operators import UNIT, SymmetricOperator, check_semidefinite, product_error
from inrfast.linalg.pivoted_cholesky import (
    BLOCK,
    SQUARES,
    SQUARES_OF_VECTORS,
    PivotedCholesky,
    candidate_bytes,
    most_pivots,
)
from inrfast.linalg.spectrum import Spectrum
from inrfast.memory import MOST_ROWS, chunks, require

WIDTH = 0.028
"""Stop once a rank's interval is at most this wide, relative to the rank: 3 % with rounding added."""

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

LEAST_BLOCK = 16
"""Smallest number of pivots per block: fewer are not worth a pass over the grid."""


@dataclass(frozen=True)
class Ranks:
    """The number of eigenvalues above some levels.

    Attributes
    ----------
    rtols
        Levels relative to lambda_1.
    levels
        Absolute levels, beside those.
    width
        Largest width of a rank's interval, relative to its lower end.
    """

    rtols: tuple[float, ...]
    levels: tuple[float, ...] = ()
    width: float = WIDTH

    def absolute(self, largest: float) -> tuple[float, ...]:
        """Return all levels as absolute ones, lambda_1 being ``largest``."""
        return (*(rtol * largest for rtol in self.rtols), *self.levels)

    def level(self, largest: float) -> float:
        """Return the lowest of the levels."""
        return min(self.absolute(largest))

    def near(self, largest: float, power: float) -> float:
        """Return an estimate, made without eigenvalues, of the residual norm that suffices, at most level / 4.

        Eigenvalues fall as ``i^-p``, with p about half of ``power``, the exponent with which the residual norm before a
        block falls with the pivots after it (0: unknown). Lowering the level by a fraction ``1 - (1 + width)^-p`` then
        raises the count by the fraction ``width``.
        """
        share = 1 - (1 + self.width) ** (-power / 2) if power > 0 else 1.0
        return min(share, 1 / 4) * self.level(largest)

    def hope(self, largest: float) -> float:
        """Return the residual norm that is needed if the eigenvalues are evenly spread around the level."""
        return self.width * self.level(largest)

    def met(self, values: Tensor, error: float) -> bool:
        """Return whether every interval is narrow enough."""
        for level in self.absolute(float(values[0])):
            if error >= level:
                return False
            lower, upper = (int((values > bound).sum()) for bound in (level, level - error))
            if upper - lower > self.width * lower:
                return False
        return True

    def allowed_error(self, values: Tensor) -> float:
        """Return the largest error for which :meth:`met` holds, up to a factor of 0.8."""
        largest = float(values[0])
        error = self.level(largest)
        while error > UNIT * largest:
            error *= 0.8
            if self.met(values, error):
                return error
        return 0.0


@dataclass(frozen=True)
class Pairs:
    """The largest eigenpairs, with residuals of at most ``accuracy lambda_1``.

    Attributes
    ----------
    count
        How many.
    accuracy
        Error relative to lambda_1.
    """

    count: int
    accuracy: float

    def near(self, largest: float, power: float) -> float:
        """Return the residual norm below which a bound is worth computing: the accuracy itself."""
        return self.hope(largest)

    def hope(self, largest: float) -> float:
        """Return the error."""
        return self.accuracy * largest

    def met(self, values: Tensor, error: float) -> bool:
        """Return whether there are enough eigenvalues, with a small enough error."""
        return len(values) >= self.count and error <= self.hope(float(values[0]))

    def allowed_error(self, values: Tensor) -> float:
        """Return the error."""
        return self.hope(float(values[0]))


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
        Whether to show a bar; None: on a terminal only.
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
    with tqdm(total=most, desc="pivots", disable=None if progress is None else not progress, leave=False) as bar:
        values, bounds, verdict = _grow(factor, demand, block, most, seed, bar, alternative)
    check_semidefinite(bounds.inner_lower, -bounds.lower)
    # Rounding of the Gram matrix, an inner product of length n an entry, and of its eigenvalues.
    rounding = (n + factor.rank) * UNIT * trace
    lower, upper = max(-bounds.lower, 0.0) + rounding, max(bounds.upper, 0.0) + rounding  # in this order NaN stays
    spectrum = Spectrum(values, None, lower, upper, n, trace, rank_bound, rtol, "cholesky", beyond=upper, note=verdict)
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


def _grow(
    factor: PivotedCholesky,
    demand: Ranks | Pairs,
    block: int,
    most: int,
    seed: int,
    bar: tqdm,
    alternative: Alternative | None,
) -> tuple[Tensor, SpectralBounds, str]:
    """Grow the factor until its eigenvalues answer the demand; return them and the bounds of the residual.

    And the reason why it gave way to an alternative; empty if it did not.
    """
    history: list[tuple[int, float]] = []
    attempts, trust, allowed = 0, TRUST, math.inf
    early = EARLY if factor.diagonal.device.type == "cpu" else TIGHT
    while True:
        bar.update(factor.grow(min(block, most - factor.rank)))
        history.append((factor.rank, factor.norm_estimate))
        estimate, largest = trust * factor.norm_estimate, factor.largest_estimate
        last = factor.exhausted or factor.rank >= most or _hopeless(history, demand.hope(largest), most)
        verdict = ""
        if alternative is not None and not last:
            wanted = min(demand.near(largest, _power(history)), allowed)
            verdict = alternative.verdict(factor.rank, _needed(history, wanted / trust), most)
            last = verdict != ""
        few = isinstance(demand, Pairs) and factor.rank < demand.count
        near = early * demand.near(largest, _power(history)) if math.isinf(allowed) else TIGHT * allowed
        if not last and (few or estimate > near):
            continue
        if not last and math.isinf(allowed):  # it hardly changes from here on, and eigenvalues take time
            pairs = isinstance(demand, Pairs)
            allowed = demand.hope(largest) if pairs else demand.allowed_error(factor.eigenvalues().cpu())
            if estimate > TIGHT * allowed:
                continue
        if verdict and alternative is not None and alternative.whole:  # the residual's trace is a bound for nothing
            return (
                factor.eigenvalues(),
                SpectralBounds(-factor.shortfall(), factor.trace, 0.0, factor.trace, 0.0, 0),
                verdict,
            )
        attempts += 1
        bar.set_postfix_str("bounding the rest")
        bounds = _bounds(factor, attempts, seed, _stop(allowed, last))
        bar.set_postfix_str("")
        if last or bounds.upper <= allowed:
            values = factor.eigenvalues().cpu()
            if last or demand.met(values, bounds.upper):
                return factor.eigenvalues(), bounds, verdict
            allowed = demand.allowed_error(values)
        trust = max(bounds.inner_upper / factor.norm_estimate, trust / 2)


def _power(history: list[tuple[int, float]]) -> float:
    """Return p where the residual norm fell as ``rank^-p`` over the last half of the pivots; 0 if it did not fall."""
    rank, norm = history[-1]
    half, before = next(entry for entry in history if entry[0] >= rank // 2)
    return math.log(before / norm) / math.log(rank / half) if half < rank and 0 < norm < before else 0.0


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


def _hopeless(history: list[tuple[int, float]], wanted: float, most: int) -> bool:
    """Return whether the residual norm, at its recent rate, reaches ``wanted`` only with far more pivots than fit."""
    rank, norm = history[-1]
    if rank < PATIENCE or norm <= wanted:
        return False
    return _power(history) * math.log(HOPE * most / rank) < math.log(norm / wanted)


def _stop(allowed: float, last: bool) -> Callable[[SpectralBounds], bool]:
    """Return the test that stops Lanczos: the bound is tight enough, or the norm so large that it takes pivots."""

    def enough(bounds: SpectralBounds) -> bool:
        if bounds.upper <= allowed and math.isfinite(allowed):
            return True
        return bounds.upper <= SLACK * bounds.inner_upper if last else bounds.inner_upper > TIGHT * allowed

    return enough


def _bounds(
    factor: PivotedCholesky, attempt: int, seed: int, enough: Callable[[SpectralBounds], bool]
) -> SpectralBounds:
    """Bound the residual's spectrum; the attempts' probabilities of failure add up to :data:`FAILURE`."""
    n = factor.size
    rounding = (n + factor.rank) * UNIT * factor.operator_trace
    return spectral_bounds(
        factor.apply_residual,
        factor.diagonal,
        STEPS,
        FAILURE * 6 / (math.pi * attempt) ** 2,
        seed + attempt,
        product_error(factor.operator, factor.operator_trace) + rounding,
        enough,
        lowest=-factor.shortfall() if factor.dtype == torch.float64 else None,
        partition=factor.partition,
    )


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
