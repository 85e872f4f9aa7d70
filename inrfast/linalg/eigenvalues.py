"""Eigenvalues of a positive semidefinite operator, by the method that suits its order, the budget and the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import (
    MemoryBudgetError,
    NotAvailableError,
    ResolutionError,
    check_choice,
    check_float,
    check_int,
    check_seed,
)
from inrfast.linalg.certified import certified_spectrum
from inrfast.linalg.costs import Alternative, dense_flops, factorisation_flops
from inrfast.linalg.counted import counted_spectrum, counts_bytes, left_open, unresolved, with_counts
from inrfast.linalg.demands import Pairs, Ranks
from inrfast.linalg.lanczos import FAILURE, largest_eigenpairs, relative_gap
from inrfast.linalg.operators import RANGE, DenseOperator, SymmetricOperator, product_error
from inrfast.linalg.quadrature import quadrature_bytes, quadrature_counts
from inrfast.linalg.spectrum import LEAST_RTOL, Spectrum, dense_spectrum
from inrfast.memory import format_bytes, require

METHODS = ("auto", "dense", "cholesky", "lanczos", "quadrature", "inertia")

SMALL = 4096
"""Order up to which ``"auto"`` computes all eigenvalues: some ten seconds on two cores."""

DENSE_LIMIT = 16384
"""Largest order for which a dense eigenproblem or factorisation is started (about a minute on two cores)."""

MATRICES, MATRICES_OF_VECTORS = 3, 5
"""Matrices of the operator's order in memory during LAPACK's eigenvalue computation: the operator, a copy and one
temporary; with eigenvectors also a work space of two."""

PAIRS = 128
"""Number of eigenpairs that Lanczos computes where ``k`` is None."""


class DenseableOperator(SymmetricOperator, Protocol):
    """A symmetric operator that can be written down."""

    def to_dense(self) -> Any:
        """Return the matrix (n, n), an fp64 tensor of its own."""


def spectrum(
    operator: DenseableOperator,
    rtol: float | Sequence[float],
    k: int | None,
    method: str,
    eigenvectors: bool,
    rank_bound: int,
    budget: int,
    seed: int,
    progress: bool | None,
    levels: Sequence[float] = (),
    values: bool = True,
) -> Spectrum:
    """Return the spectrum of ``operator``, with arguments as in ``TangentKernel.spectrum``.

    ``values`` tells whether the eigenvalues' own errors matter, or the counts alone.
    """
    n = operator.shape[0]
    rtols, levels = check_rtols("rtol", rtol), check_levels("levels", levels)
    check_seed("seed", seed)
    if k is not None and check_int("k", k, minimum=1) > n:
        raise ValueError(f"k must be at most the order {n}, got {k}")
    check_choice("method", method, METHODS)
    if method == "inertia" and (k is not None or eigenvectors):
        given = f"k must be None, got {k}" if k is not None else "eigenvectors must be False, got True"
        raise ValueError(
            f"{given}: method='inertia' counts eigenvalues and lists none but the largest; use 'cholesky' or 'lanczos'"
        )
    demand = Ranks((), levels, values=values) if levels else Ranks(rtols, values=values)
    note = ""
    if method == "auto":
        method, note = _choose(n, budget, eigenvectors)
    if note and method == "cholesky" and k is None and not eigenvectors:
        return _counted_at_any_rank(operator, demand, min(rtols), rank_bound, budget, seed, progress, note)
    if method == "dense":
        if n > DENSE_LIMIT:
            raise NotAvailableError(
                f"a dense spectrum of order {n} exceeds the dense limit {DENSE_LIMIT}; use method='cholesky' or "
                "'inertia'"
            )
        needed = _dense_bytes(n, eigenvectors)
        require(needed, budget, "a dense spectrum", "use method='cholesky', fewer points, or raise memory_budget")
        found = dense_spectrum(operator.to_dense(), operator.matrix_error, min(rtols), rank_bound, k, eigenvectors)
    elif method == "cholesky":
        wanted = Pairs(k, min(rtols)) if k else demand
        found = certified_spectrum(operator, wanted, rank_bound, budget, seed, eigenvectors, progress)
    elif method == "lanczos":
        k = k or min(n, PAIRS)
        found = largest_eigenpairs(operator, k, rank_bound, min(rtols), budget, seed, eigenvectors, progress)
    elif method == "inertia":
        found = counted_spectrum(operator, demand, rank_bound, budget, seed, progress)
    else:
        require(quadrature_bytes(n), budget, f"a quadrature of order {n}", "take fewer points or raise memory_budget")
        found = _by_quadrature(operator, rank_bound, min(rtols), seed, progress)
    found = found.with_jacobian_error(operator.jacobian_error)
    if method == "inertia":
        note = left_open(found, demand)
    if note and method == "cholesky" and k is None and found.floor > min(rtols):
        return _estimated(operator, found, note, budget, seed, progress)
    return replace(found, note=note)


def counts(
    operator: DenseableOperator,
    rtol: float | Sequence[float],
    rank_bound: int,
    budget: int,
    seed: int = 0,
    progress: bool | None = False,
    levels: Sequence[float] = (),
) -> Spectrum:
    """Return a spectrum for counts alone, as :func:`spectrum` does where ``method="auto"``.

    Of a dense matrix above order :data:`SMALL`, whose entries cost nothing, no pivots are taken: rounding may have left
    it slightly indefinite.
    """
    method = "auto"
    if isinstance(operator, DenseOperator) and operator.shape[0] > SMALL:
        demand = Ranks((), check_levels("levels", levels)) if levels else Ranks(check_rtols("rtol", rtol))
        way = _alternative(operator, demand, budget)
        method = "dense" if way is not None and way.whole else "inertia"
    return spectrum(operator, rtol, None, method, False, rank_bound, budget, seed, progress, levels, values=False)


def check_rtols(argument: str, given: Any) -> tuple[float, ...]:
    """Return one relative tolerance or several as a tuple: numbers below 1 that fp64 resolves."""
    rtols = check_levels(argument, given)
    if not rtols:
        raise ValueError(f"{argument} must hold at least one tolerance, got none")
    for rtol in rtols:
        if rtol >= 1:
            raise ValueError(f"{argument} must be below 1 (it is relative to the largest eigenvalue), got {rtol:g}")
        if rtol < LEAST_RTOL:
            raise ResolutionError(f"{argument} must be at least {LEAST_RTOL:g}, about the floor of fp64, got {rtol:g}")
    return rtols


def check_levels(argument: str, given: Any) -> tuple[float, ...]:
    """Return one positive number or a sequence of them as a tuple."""
    if isinstance(given, (np.ndarray, Tensor)):
        if given.ndim > 1:
            raise TypeError(f"{argument} must be a number or a sequence of them, got shape {tuple(given.shape)}")
        given = given.tolist()
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    if not (several or isinstance(given, (str, bytes)) or hasattr(given, "__float__")):
        raise TypeError(f"{argument} must be a number or a sequence of them, got {type(given).__name__}")
    return tuple(check_float(argument, level, minimum=0.0, exclusive=True) for level in (given if several else [given]))


def _dense_bytes(n: int, eigenvectors: bool) -> int:
    return (MATRICES_OF_VECTORS if eigenvectors else MATRICES) * 8 * n * n


def _choose(n: int, budget: int, eigenvectors: bool) -> tuple[str, str]:
    """Return a method and the reason for it."""
    needed = _dense_bytes(n, eigenvectors)
    if n > SMALL:
        reason = f"order {n} is above {SMALL}"
    elif needed > budget:
        reason = (
            f"all eigenvalues of order {n} take {format_bytes(needed)}, beyond the budget of {format_bytes(budget)}"
        )
    else:
        return "dense", f"order {n} is at most {SMALL}: LAPACK computes every eigenvalue"
    return "cholesky", f"{reason}: pivoted Cholesky with a certificate"


def _counted_at_any_rank(
    operator: DenseableOperator,
    demand: Ranks,
    rtol: float,
    rank_bound: int,
    budget: int,
    seed: int,
    progress: bool | None,
    note: str,
) -> Spectrum:
    """Return a spectrum by pivots, or where they do not answer, or only at a higher cost, by what does."""
    found, alternative = _by_pivots(operator, demand, rank_bound, budget, seed, progress)
    error = operator.jacobian_error
    verdict, exact = found.note, found.with_jacobian_error(error)
    left = unresolved(found, error, demand)
    if left.absolute(1.0) and alternative is not None:
        alternative = _alternative(operator, left, budget)
        assert alternative is not None
        told = f"{note}; {verdict or _resolved(exact)}: {alternative.name}"
        if alternative.whole:
            found = dense_spectrum(operator.to_dense(), operator.matrix_error, rtol, rank_bound)
            return replace(found.with_jacobian_error(error), note=told)
        try:
            found = with_counts(found, operator, left, budget, seed, progress)
        except MemoryBudgetError as refused:  # in fp64, which a low level takes
            return _estimated(operator, exact, note, budget, seed, progress, refused.needed)
        exact = found.with_jacobian_error(error)
        still = left_open(exact, demand)
        return replace(exact, note=f"{told}; {still}" if still else told)
    if left.absolute(1.0) or not _answers(exact, demand):
        return _estimated(operator, exact, note, budget, seed, progress, _proof_bytes(operator, demand))
    return replace(exact, note=f"{note}; {_upper_ends(exact)}")


def _by_pivots(
    operator: DenseableOperator, demand: Ranks, rank_bound: int, budget: int, seed: int, progress: bool | None
) -> tuple[Spectrum, Alternative | None]:
    """Return what pivots show until they answer or give way to an alternative, and that.

    Where the counts alone matter, pivots of a kernel whose factors were rounded to fp32 will do; what that moves
    eigenvalues by is in the spectrum's ``jacobian_error``.
    """
    offered = None if demand.values else getattr(operator, "rounded", None)
    rounded = None if offered is None else offered(demand.level, budget)
    used, room, moved = (operator, budget, 0.0) if rounded is None else (rounded, rounded.budget, rounded.moved)
    alternative = _alternative(used, demand, budget)
    found = certified_spectrum(used, demand, rank_bound, room, seed, False, progress, alternative)
    return found.with_jacobian_error(moved), alternative


def _answers(exact: Spectrum, demand: Ranks) -> bool:
    """Return whether a spectrum gives the rank at every tolerance of ``demand``."""
    try:
        for rtol in demand.rtols:
            exact.rank(rtol)
    except ResolutionError:
        return False
    return True


def _upper_ends(found: Spectrum) -> str:
    """Return in words what bounds counts from above."""
    if found.certified:
        return "upper ends of counts by the norm of K beside its leading eigenvectors"
    return "upper ends of counts by the norm of the residual (Weyl)"


def _resolved(found: Spectrum) -> str:
    return f"its {len(found.eigenvalues)} pivots resolve {found.floor:.1e} of lambda_1"


PROVEN = "a factorisation of K - level I certifies the count"
"""What takes over from pivots, in words."""


def _alternative(operator: SymmetricOperator, demand: Ranks, budget: int) -> Alternative | None:
    """Return the cheapest way beside pivots that fits the budget, and the range of fp64."""
    n = operator.shape[0]
    fitting = []
    trace = float(operator.partition.total(operator.diagonal().abs().sum()))
    if _proof_bytes(operator, demand) <= budget and RANGE[0] <= trace <= RANGE[1]:
        levels = len(demand.absolute(1.0))
        told = f"factorisations of K - level I certify {levels} counts" if levels > 1 else PROVEN
        fitting.append(Alternative(n, factorisation_flops(n, levels), told))
    if n <= DENSE_LIMIT and _dense_bytes(n, False) <= budget:
        fitting.append(Alternative(n, dense_flops(n), "LAPACK computes every eigenvalue", whole=True))
    return min(fitting, key=lambda way: way.flops, default=None)


def _proof_bytes(operator: SymmetricOperator, demand: Ranks) -> int:
    """Return the bytes with which factorisations prove counts."""
    return counts_bytes(operator, min(demand.rtols, default=1.0))


def _estimated(
    operator: SymmetricOperator,
    found: Spectrum,
    note: str,
    budget: int,
    seed: int,
    progress: bool | None,
    proof: int | None = None,
) -> Spectrum:
    """Return a spectrum whose pivots do not resolve what was asked, with estimates beside it if they fit.

    ``proof`` is the budget with which factorisations would prove counts.
    """
    n = operator.shape[0]
    note += f"; {_resolved(found)}, "
    held = 0 if found.eigenvectors is None else found.eigenvectors.nbytes
    if quadrature_bytes(n) + held <= budget:
        counts = quadrature_counts(operator, seed=seed, progress=progress)
        found = replace(found, counts=counts)
        note += f"a stochastic quadrature estimates counts: {counts.resolution()}"
    else:
        note += f"and a quadrature for estimates would take {format_bytes(quadrature_bytes(n))} of the budget"
    if proof is not None:
        note += f"; factorisations of K - level I would prove them with {format_bytes(proof)} beside the operator's own"
    return replace(found, note=note)


def _by_quadrature(
    operator: SymmetricOperator, rank_bound: int, rtol: float, seed: int, progress: bool | None
) -> Spectrum:
    """Return a spectrum of which lambda_1 alone is certified; counts come from the quadrature."""
    n = operator.shape[0]
    counts = quadrature_counts(operator, seed=seed, progress=progress)
    largest = torch.tensor([counts.largest], dtype=torch.float64, device=operator.device)
    gap = relative_gap(n, counts.nodes.shape[1], FAILURE)
    rounding = product_error(operator)
    upper = counts.largest * gap / (1 - gap) + rounding
    trace = float(operator.partition.total(operator.diagonal().sum()))
    return Spectrum(largest, None, rounding, upper, n, trace, rank_bound, rtol, "quadrature", counts=counts)
