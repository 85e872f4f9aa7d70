"""Eigenvalues of a positive semidefinite operator, by the method that suits its order, the budget and the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from inrfast.errors import NotAvailableError, ResolutionError, check_choice, check_float, check_int, check_seed
from inrfast.linalg.certified import Pairs, Ranks, certified_spectrum
from inrfast.linalg.lanczos import FAILURE, largest_eigenpairs, relative_gap
from inrfast.linalg.operators import SymmetricOperator, product_error
from inrfast.linalg.quadrature import quadrature_bytes, quadrature_counts
from inrfast.linalg.spectrum import Spectrum, dense_spectrum
from inrfast.memory import format_bytes, require

METHODS = ("auto", "dense", "cholesky", "lanczos", "quadrature")

SMALL = 4096
"""Order up to which ``"auto"`` computes all eigenvalues: some ten seconds on two cores."""

DENSE_LIMIT = 16384
"""Largest order for which a dense eigenproblem or factorisation is started (about a minute on two cores)."""

MATRICES, MATRICES_OF_VECTORS = 3, 5
"""Matrices of the operator's order in memory during LAPACK's eigenvalue computation: the operator, a copy and one
temporary; with eigenvectors also a work space of two."""

PAIRS = 128
"""Number of eigenpairs that Lanczos computes where ``k`` is None."""

LEAST_RTOL = 1e-13
"""Smallest tolerance that is accepted: below it rounding of an fp64 kernel is larger."""


class DenseableOperator(SymmetricOperator, Protocol):
    """A symmetric operator that can be written down."""

    def to_dense(self) -> Any:
        """Return the matrix (n, n), an fp64 tensor of its own."""


def spectrum(
    operator: DenseableOperator,
    rtol: float,
    k: int | None,
    method: str,
    eigenvectors: bool,
    rank_bound: int,
    budget: int,
    seed: int,
    progress: bool | None,
    levels: Sequence[float] = (),
) -> Spectrum:
    """Return the spectrum of ``operator``, with arguments as in ``TangentKernel.spectrum``."""
    n = operator.shape[0]
    rtol = check_float("rtol", rtol, minimum=0.0, exclusive=True)
    if rtol >= 1:
        raise ValueError(f"rtol must be below 1 (it is relative to the largest eigenvalue), got {rtol:g}")
    if rtol < LEAST_RTOL:
        raise ResolutionError(f"rtol must be at least {LEAST_RTOL:g}, about the floor of fp64, got {rtol:g}")
    check_seed("seed", seed)
    for level in levels:
        check_float("levels", level, minimum=0.0, exclusive=True)
    if k is not None and check_int("k", k, minimum=1) > n:
        raise ValueError(f"k must be at most the order {n}, got {k}")
    check_choice("method", method, METHODS)
    note = ""
    if method == "auto":
        method, note = _choose(n, budget, eigenvectors)
    if method == "dense":
        if n > DENSE_LIMIT:
            raise NotAvailableError(
                f"a dense spectrum of order {n} exceeds the dense limit {DENSE_LIMIT}; use method='cholesky'"
            )
        needed = _dense_bytes(n, eigenvectors)
        require(needed, budget, "a dense spectrum", "use method='cholesky', fewer points, or raise memory_budget")
        found = dense_spectrum(operator.to_dense(), operator.matrix_error, rtol, rank_bound, k, eigenvectors)
    elif method == "cholesky":
        demand = Pairs(k, rtol) if k else Ranks((), tuple(levels)) if levels else Ranks((rtol,))
        found = certified_spectrum(operator, demand, rank_bound, budget, seed, eigenvectors, progress)
    elif method == "lanczos":
        found = largest_eigenpairs(operator, k or min(n, PAIRS), rank_bound, rtol, budget, seed, eigenvectors, progress)
    else:
        require(quadrature_bytes(n), budget, f"a quadrature of order {n}", "take fewer points or raise memory_budget")
        found = _by_quadrature(operator, rank_bound, rtol, seed, progress)
    found = found.with_jacobian_error(operator.jacobian_error)
    if note and method == "cholesky" and k is None and found.floor > rtol:
        note += f"; its {len(found.eigenvalues)} pivots resolve {found.floor:.1e} of lambda_1, "
        held = 0 if found.eigenvectors is None else found.eigenvectors.nbytes
        if quadrature_bytes(n) + held <= budget:
            counts = quadrature_counts(operator, seed=seed, progress=progress)
            found = replace(found, counts=counts)
            note += f"a stochastic quadrature estimates counts: {counts.resolution()}"
        else:
            note += f"and a quadrature for estimates would take {format_bytes(quadrature_bytes(n))} of the budget"
    return replace(found, note=note)


def _dense_bytes(n: int, eigenvectors: bool) -> int:
    return (MATRICES_OF_VECTORS if eigenvectors else MATRICES) * 8 * n * n


def _choose(n: int, budget: int, eigenvectors: bool) -> tuple[str, str]:
    """Return a method and the reason for it."""
    if n <= SMALL and _dense_bytes(n, eigenvectors) <= budget:
        return "dense", f"order {n} is at most {SMALL}: LAPACK computes every eigenvalue"
    return (
        "cholesky",
        f"order {n} is above {SMALL} or beyond the budget as a matrix: pivoted Cholesky with a certificate",
    )


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
