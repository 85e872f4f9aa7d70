"""The inverse of a factor of ``K + ridge I`` in fp32: few steps at any rank, for the price of a factorisation."""

from __future__ import annotations

import torch

from inrfast.errors import ResolutionError
from inrfast.linalg.factorization import factorize
from inrfast.linalg.preconditioners import PRECONDITIONERS, Apply, System, require_iteration

RAISE = 16.0
"""Factor by which the shift grows until what was factored is positive definite."""


def factorization(system: System) -> Apply:
    """Return ``V -> M^-1 V`` for M near ``K + ridge I``, or a larger shift where rounding makes that indefinite.

    Raises
    ------
    MemoryBudgetError
        The factor does not fit the budget beside the iteration.
    """
    require_iteration(system)
    operator = system.operator
    trace = float(operator.partition.total(operator.diagonal().sum()))
    least = torch.finfo(torch.float32).eps * trace
    shift = system.ridge or least
    while shift <= max(trace, system.ridge):
        budget = system.budget - system.reserved
        factor = factorize(operator, -shift, "high", budget, system.seed, system.progress, products=0)
        if factor.negative == 0:
            return factor.rows_of_inverse
        del factor
        shift = max(RAISE * shift, least)
    raise ResolutionError("no factor in fp32 is positive definite; take another preconditioner")


PRECONDITIONERS.add("factorization", factorization)
