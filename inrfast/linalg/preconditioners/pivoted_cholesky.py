"""The inverse of ``F F^T + shift I``, F from randomly pivoted Cholesky: few steps wherever K is nearly of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inrfast.linalg.pivoted_cholesky import (
    BLOCK,
    SQUARES_OF_VECTORS,
    PivotedCholesky,
    candidate_bytes,
    most_pivots,
)
from inrfast.linalg.preconditioners import PRECONDITIONERS, Apply, System
from inrfast.memory import require
from inrfast.progress import progress_bar

PIVOTS = 16 * BLOCK
"""Largest number of columns of F."""

LEAST_BLOCK = 16
"""Smallest number of columns per block."""

CONDITION = 10.0
"""Stop adding columns once the norm of ``K - F F^T`` is at most this many times the ridge: about 25 steps remain."""


def pivoted_cholesky(system: System) -> Apply:
    """Return P from as many columns as the ridge asks for and the budget allows.

    Raises
    ------
    MemoryBudgetError
        The budget is too small for a block of columns.
    """
    operator, budget = system.operator, system.budget
    n = operator.shape[0]
    block = min(BLOCK, n)
    while block > LEAST_BLOCK and max(2 * block * 8 * n, candidate_bytes(block)) > budget // 4:
        block //= 2
    scratch = system.reserved + 2 * block * 8 * n + candidate_bytes(block)
    least = scratch + block * 8 * n + 8 * SQUARES_OF_VECTORS * block**2
    require(least, budget, f"a preconditioner of order {n}", "raise memory_budget")
    most = min(n, PIVOTS, most_pivots(budget - scratch, 8 * n, SQUARES_OF_VECTORS))
    most = int(min(most, max(math.sqrt(system.flops / (2 * n)), LEAST_BLOCK)))  # 2 n k^2 FLOP for k columns
    factor = PivotedCholesky(operator, system.seed)
    with progress_bar(total=most, desc="preconditioner", progress=system.progress, leave=False) as bar:
        while not factor.exhausted and factor.rank < most and not factor.norm_estimate <= CONDITION * system.ridge:
            bar.update(factor.grow(min(block, most - factor.rank)))
    # Without a ridge the shift is what the factor leaves: below it the preconditioner knows nothing.
    left = min(factor.norm_estimate, factor.trace)
    floor = torch.finfo(torch.float64).eps * factor.operator_trace
    return inverse(factor, max(system.ridge, left, floor))


def inverse(factor: PivotedCholesky, shift: float) -> Apply:
    """Return ``V -> (F F^T + shift I)^-1 V``, by Woodbury's identity.

    For Nystroem factors Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44(2), 2023.
    """
    values, vectors = torch.linalg.eigh(factor.gram)
    weights = 1 / (values.clamp_min(0) + shift)

    def apply(V: Tensor) -> Tensor:
        inner = vectors @ (weights.unsqueeze(1) * (vectors.t() @ factor.transposed_product(V)))
        return (V - factor.product(inner)) / shift

    return apply


PRECONDITIONERS.add("pivoted_cholesky", pivoted_cholesky)
