"""What the ways to count eigenvalues cost, in FLOP of fp32, by a model: a choice made by it is the same every time."""

from __future__ import annotations

from dataclasses import dataclass

CERTIFICATE = 8192
"""FLOP per entry of the lower half that a proof takes, of a factorisation, of a pivoted factor or of lambda_1: entries
in fp64 and some hundred products with vectors, which memory limits. At order 16,384 as much as the factorisation."""

DENSE = 15.0
"""Cost of LAPACK's eigenvalues, relative to the products of one factorisation: fp64, and half of it limited by
memory."""

DOUBLE = 2.0
"""Cost of a product in fp64, relative to fp32."""

SQUARES = 13.0
"""Cost of a factor's eigenvalues, relative to the cube of its rank."""

RESIDUAL_PRODUCTS = 20
"""Products with the operator that a bound of a factor's residual takes."""

SPENT = 0.1
"""No prediction is heard before the pivots have cost this share of the alternative: the decay shows only then, and
little is lost if they have to give way."""


def pivots_flops(order: int, rank: float) -> float:
    """Return the cost of a pivoted Cholesky factor and its eigenvalues: subtracting columns, and the Gram matrix."""
    return DOUBLE * 2 * order * rank**2 + SQUARES * rank**3


def more_pivots_flops(order: int, rank: float, more: float, entries: float) -> float:
    """Return the cost of so many more pivots, with columns of an operator all of whose entries cost ``entries``."""
    columns = DOUBLE * 2 * entries * more / max(order, 1)
    return pivots_flops(order, rank + more) - pivots_flops(order, rank) + columns


def residual_flops(order: int, rank: float, product: float) -> float:
    """Return the cost of a bound of a factor's residual, of an operator whose product with a vector costs this."""
    return RESIDUAL_PRODUCTS * DOUBLE * (product + 4.0 * order * rank)


def vectors_flops(order: int, rank: float, count: float) -> float:
    """Return the cost of so many eigenvectors from a factor, in fp32."""
    return 2.0 * order * rank * count


def projected_flops(order: int, count: float, product: float, single: bool) -> float:
    """Return the cost of a product between projections on the complement of so many vectors, ``single``: in fp32."""
    return (1.0 if single else DOUBLE) * (product + 8.0 * order * count)


def factorisation_flops(order: int, levels: int) -> float:
    """Return the cost of lambda_1 and of one certified factorisation a level."""
    return (levels * (order**3 + CERTIFICATE * order**2) + CERTIFICATE * order**2) / 3


def dense_flops(order: int) -> float:
    """Return the cost of all eigenvalues of a dense matrix."""
    return DENSE * order**3 / 3


@dataclass(frozen=True)
class Alternative:
    """What else would answer, and when pivots should give way to it.

    Attributes
    ----------
    order
        Of the operator.
    flops
        Cost of the alternative.
    name
        What it does, in words.
    whole
        Whether it computes all eigenvalues, so that nothing of the pivots is worth keeping.
    """

    order: int
    flops: float
    name: str
    whole: bool = False

    def verdict(self, rank: int, needed: float, most: int) -> str:
        """Return why pivots should give way, in words; empty if they should not.

        Parameters
        ----------
        rank
            Pivots so far.
        needed
            Pivots that seem to be needed.
        most
            Pivots that fit the budget.
        """
        spent = pivots_flops(self.order, rank)
        if spent < SPENT * self.flops:
            return ""
        needed = min(needed, self.order)
        wanted = f"after {rank:,} pivots some {needed:,.0f} seem to be needed"
        if needed > most:
            return f"{wanted}, and {most:,} fit the budget"
        if pivots_flops(self.order, needed) - spent > self.flops:
            return f"{wanted}, which costs more"
        return ""
