"""Proven numbers of eigenvalues above levels, and what an error of the Jacobian leaves of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inrfast.records import Record


@dataclass(frozen=True)
class CertifiedCount(Record):
    """A proven number of eigenvalues above a level.

    By a factorisation (:mod:`inrfast.linalg.inertia`), or by the norm of what is left beside leading eigenvectors
    (:mod:`inrfast.linalg.rank_proof`).

    Eigenvalues above a higher level are no more, above a lower one no less: so for every level up to :attr:`high` there
    are at least :attr:`lower`, for every level from :attr:`low` on at most :attr:`upper`.

    Attributes
    ----------
    low, high
        Absolute levels: the number above every level between the two lies in ``[lower, upper]``. Where an error of the
        Jacobian left nothing between them, ``low > high``.
    lower, upper
        The bounds.
    precision
        Of the factorisation, or of the products, that proved them: ``"high"`` (fp32) or ``"highest"`` (fp64).
    residual
        Bound on the spectral norm of what the factorisation misses of ``K - shift I``; or of what is left of K beside
        the eigenvectors, every eigenvalue but the :attr:`upper` largest being at most this.
    failure
        Probability, over random starts, that the certificate does not hold.
    """

    low: float
    high: float
    lower: int
    upper: int
    precision: str
    residual: float
    failure: float

    def covers(self, low: float, high: float) -> bool:
        """Return whether every level of an interval is certified."""
        return self.low <= low and high <= self.high

    def with_jacobian_error(self, error: float) -> CertifiedCount:
        """Return the same for the ``J J^T`` of an exact J, where it is of one that is off by ``error``."""
        if error == 0:
            return self
        least, most = math.sqrt(max(self.low, 0.0)) + error, math.sqrt(max(self.high, 0.0)) - error
        return replace(self, low=least * least, high=most * most if most >= 0 else -math.inf)


def level_span(level: float, slack: float, jacobian_error: float) -> tuple[float, float]:
    """Return the levels, of the operator as computed, between which a level of the exact one lies.

    ``slack`` is how far the level itself may be off, relative to it. What is proven between the two holds, by
    :meth:`CertifiedCount.with_jacobian_error`, for all the level may be.
    """
    low, high = (math.sqrt(level * max(1 + sign * slack, 0.0)) for sign in (-1, 1))
    return max(low - jacobian_error, 0.0) ** 2, (high + jacobian_error) ** 2


def kernel_error(jacobian_error: float, largest: float) -> float:
    """Return a bound on ``|(J + dJ)(J + dJ)^T - J J^T|`` for ``|dJ| <= jacobian_error``, ``|J J^T| <= largest``.

    All norms are spectral.
    """
    if jacobian_error == 0:  # times infinity it is nothing as well
        return 0.0
    return jacobian_error * (2 * math.sqrt(max(largest, 0.0)) + jacobian_error)
