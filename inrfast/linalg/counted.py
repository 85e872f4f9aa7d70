"""Spectra whose counts at some levels are certified by factorisations of ``K - level I``, whatever the rank.

The level of a relative tolerance is an interval, as lambda_1 is known in one; and of an operator ``J J^T`` whose J is
off by an error, the level of the exact one is an interval as well (:meth:`inrfast.linalg.spectrum.Spectrum.bounds`).
The factorisation proves the count of every level in it (:mod:`inrfast.linalg.inertia`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.linalg.block_ldl import bytes_needed
from inrfast.linalg.certificates import CertifiedCount, level_span
from inrfast.linalg.counting import DTYPES, HOPE, SMALL, certified_counts, vector_bytes
from inrfast.linalg.demands import Ranks
from inrfast.linalg.lanczos import FAILURE
from inrfast.linalg.largest_eigenvalue import largest_eigenvalue
from inrfast.linalg.operators import UNIT, SymmetricOperator, shape_of
from inrfast.linalg.spectrum import MARGIN, MOST_TOLD, RankInterval, Spectrum
from inrfast.linalg.written import written
from inrfast.memory import over_budget, require

TOLERATED = 1.5
"""Share of the demanded width up to which an interval passes: rounding is added to one that just met the demand."""


def counts_bytes(operator: SymmetricOperator, rtol: float = 1.0) -> int:
    """Return the bytes that a certified count takes at least, in all processes, with a factor in fp32 where it may do.

    It does not at a level below :data:`inrfast.linalg.counting.HOPE` of lambda_1, nor is it tried for a small order.
    """
    n = operator.shape[0]
    dtype = DTYPES["high" if n >= SMALL and rtol >= HOPE else "highest"]
    return bytes_needed(n, dtype, operator.device, processes=operator.partition.processes) + vector_bytes(n)


def counted_spectrum(
    operator: SymmetricOperator,
    demand: Ranks,
    rank_bound: int,
    budget: int,
    seed: int = 0,
    progress: bool | None = None,
) -> Spectrum:
    """Return a spectrum of which lambda_1 is listed, and the counts that ``demand`` asks for are certified.

    Parameters
    ----------
    operator
        Symmetric positive semidefinite, fp64.
    demand
        The levels.
    rank_bound
        A bound on the operator's rank.
    budget
        Bytes for the factorisation.
    seed
        Of the random starts.
    progress
        Whether to show bars; None: on a terminal and in a notebook.

    Raises
    ------
    MemoryBudgetError
        The factorisation exceeds the budget, even in fp32 where that may do.
    RangeError
        The operator's norm is outside :data:`inrfast.linalg.operators.RANGE`.
    ResolutionError
        The errors of the operator are not finite.
    ValueError
        The operator's products are not those of a symmetric one, or its diagonal not that of a positive semidefinite
        one. Symmetry is checked in products with a Krylov basis and in the blocks on the diagonal alone.
    """
    n = shape_of(operator)
    if not _bounded(operator):
        raise ResolutionError(
            f"no count is certain: the errors of the operator are not bounded (matrix_error {operator.matrix_error}, "
            f"jacobian_error {operator.jacobian_error})"
        )
    require(counts_bytes(operator, min(demand.rtols, default=1.0)), budget, _what(n), INSTEAD)
    rtol = min(demand.rtols, default=UNIT)
    diagonal = operator.partition.gather(operator.diagonal())
    check_diagonal(diagonal)
    trace = float(diagonal.sum())
    if trace == 0:
        return Spectrum(diagonal[:1].clone(), None, 0.0, 0.0, n, 0.0, rank_bound, rtol, "inertia", beyond=0.0)
    operator, budget = written(operator, budget, counts_bytes(operator, 0.0))
    low, high = largest_eigenvalue(operator, budget, seed, FAILURE / 2, progress)
    values = torch.tensor([low], dtype=torch.float64, device=operator.device)
    found = Spectrum(
        values, None, 0.0, high - low, n, trace, rank_bound, rtol, "inertia", beyond=high, largest=(low, high)
    )
    return with_counts(found, operator, demand, budget, seed, progress)


def with_counts(
    found: Spectrum, operator: SymmetricOperator, demand: Ranks, budget: int, seed: int, progress: bool | None
) -> Spectrum:
    """Return a spectrum, of the operator as computed, with certified counts at the levels of ``demand``.

    Its lambda_1 is bounded closer where that is not done yet. No factorisation is for levels above lambda_1, nor for
    those that the error of the Jacobian does not let one tell from zero.
    """
    if not _bounded(operator):
        return found
    operator, budget = written(operator, budget, counts_bytes(operator, 0.0))
    low, high = found.largest or largest_eigenvalue(operator, budget, seed, FAILURE / 2, progress)
    found = replace(found, largest=(low, high))
    if float(found.eigenvalues[0]) < low:
        found = replace(found, eigenvalues=torch.cat([found.eigenvalues.new_tensor([low]), found.eigenvalues[1:]]))
    error = operator.jacobian_error
    slack = 2 * found.with_jacobian_error(error).slack + MARGIN  # for levels that stand for multiples of lambda_1
    levels = sorted(set(demand.absolute(float(found.eigenvalues[0]))), reverse=True)
    spans = [level_span(level, slack, error) for level in levels]
    asked = [span for span in spans if 0 < span[0] <= high]
    if not asked:
        return replace(found, method="inertia")
    try:
        counts = certified_counts(operator, asked, budget, seed=seed, failure=FAILURE / 2, progress=progress)
    except MemoryBudgetError as error:  # of a level so low that it takes fp64
        if error.needed is None:
            raise
        needed = counts_bytes(operator, 0.0)
        raise over_budget(needed, budget, f"{_what(operator.shape[0])} in fp64", INSTEAD) from None
    counts = [replace(count, failure=count.failure + FAILURE / 2) for count in counts]
    return replace(found, certified=(*found.certified, *counts), method="inertia")


INSTEAD = "raise memory_budget, take fewer points, or use method='cholesky' or 'quadrature'"
"""What to do where a factor does not fit."""


def _bounded(operator: SymmetricOperator) -> bool:
    return math.isfinite(operator.matrix_error) and math.isfinite(operator.jacobian_error)


def _what(order: int) -> str:
    return f"a certified count of order {order}"


def unresolved(found: Spectrum, jacobian_error: float, demand: Ranks) -> Ranks:
    """Return the levels of ``demand`` whose counts a spectrum, of the operator as computed, leaves too wide."""
    exact = found.with_jacobian_error(jacobian_error)
    largest = float(exact.eigenvalues[0])
    rtols = tuple(rtol for rtol in demand.rtols if _wide(exact.count_above(rtol * largest, rtol), demand))
    return replace(demand, rtols=rtols, levels=tuple(t for t in demand.levels if _wide(exact.count_above(t), demand)))


def _wide(count: RankInterval, demand: Ranks) -> bool:
    return count.upper - count.lower > TOLERATED * demand.width * count.lower


def left_open(exact: Spectrum, demand: Ranks) -> str:
    """Return in words which levels of ``demand`` factorisations left open, and why; empty where they left none."""
    largest = float(exact.eigenvalues[0])
    asked: list[tuple[float, float | None, str]] = [(t * largest, t, f"rtol={t:g}") for t in demand.rtols]
    asked += [(level, None, f"level {level:g}") for level in demand.levels]
    reasons: dict[str, list[str]] = {}
    for level, rtol, name in sorted(asked, key=lambda entry: -entry[0]):
        count = exact.count_above(level, rtol)
        near = [own for own in exact.certified if level / 2 <= (own.low + own.high) / 2 <= 2 * level]
        if count.lower < count.upper and (near or _wide(count, demand)):
            reasons.setdefault(_reason(exact, level, near), []).append(f"{name} (in {count})")
    told = []
    for reason, names in reasons.items():
        more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
        told.append(f"not one number is the count at {', '.join(names[:MOST_TOLD])}{more}: {reason}")
    return "; ".join(told)


def _reason(exact: Spectrum, level: float, near: Sequence[CertifiedCount]) -> str:
    """Return why the count at a level is open, of which these were counted near it."""
    moved = exact.jacobian_error**2
    if level <= 4 * moved:
        return (
            f"rounding of the network's own factors moves eigenvalues of this size, up to {moved:.1e} from 0; take a "
            "higher level"
        )
    closest = min(near, key=lambda count: count.residual, default=None)
    if closest is not None and closest.residual < level:
        return "more eigenvalues lie at the level than can be told apart there"
    if closest is None or math.isinf(closest.residual):
        return "no factor was close enough to K - level I; take another level, or method='dense' where it fits"
    return (
        f"the factors in {FORMATS[closest.precision]} miss {closest.residual:.1e} of K - level I, more than the level; "
        "take a higher level, or method='dense' where it fits"
    )


FORMATS = {"high": "fp32", "highest": "fp64"}
"""Of factors, by their precision."""


def check_diagonal(diagonal: torch.Tensor) -> None:
    """Raise a ValueError if a diagonal is not finite, or not that of a positive semidefinite operator."""
    smallest = float(diagonal.min())
    if not bool(torch.isfinite(diagonal).all()):
        raise ValueError("the operator's diagonal holds NaN or Inf")
    if smallest < 0:
        raise ValueError(
            f"the operator is not positive semidefinite: diagonal entry {int(diagonal.argmin())} is {smallest:.3e}"
        )
