"""How a number of eigenvalues was found, and how probable it is that its interval does not hold the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from inrfast.linalg.counted import FORMATS
from inrfast.linalg.lanczos import FAILURE
from inrfast.linalg.spectrum import Spectrum

CERTAIN = ("dense", "gram")
"""Methods whose errors hold without a probability."""


@dataclass(frozen=True)
class RankProof:
    """What stands behind an interval of a rank.

    Attributes
    ----------
    method
        ``"dense"``, ``"gram"``, ``"cholesky"``, ``"lanczos"``, ``"quadrature"``: eigenvalues that were listed, by this
        method. ``"inertia, fp32"``, ``"inertia, fp64"``: a factorisation of ``K - level I``.
    failure
        Probability, over the random starts, that the interval does not hold the truth; 0 for methods without any.
    """

    method: str
    failure: float

    def __str__(self) -> str:
        return self.method + (f", failure {self.failure:.1g}" if self.failure else "")


def proof(spectrum: Spectrum, threshold: float, rtol: float | None = None) -> RankProof:
    """Return what stands behind ``spectrum.count_above(threshold, rtol)``."""
    found = spectrum.count_above(threshold, rtol)
    listed = replace(spectrum, certified=()).count_above(threshold, rtol)
    listing = spectrum.method
    if listing == "inertia" and len(spectrum.eigenvalues) > 1:  # factorisations took over from pivots
        listing = "cholesky"
    own = RankProof(listing, 0.0 if listing in CERTAIN else FAILURE)
    below, above = found.lower > listed.lower, found.upper < listed.upper
    slack = 0.0 if rtol is None else spectrum.slack
    used = [
        count
        for count in spectrum.certified
        if (below and count.lower == found.lower and threshold * (1 + slack) <= count.high)
        or (above and count.upper == found.upper and count.low <= threshold * (1 - slack))
    ]
    if not used:
        return own
    # One certificate may prove both sides; a side that none proves rests on the eigenvalues listed.
    both = [count for count in used if (count.lower, count.upper) == (found.lower, found.upper)]
    used = both[:1] or used
    failure = sum(count.failure for count in used) + (0.0 if both or (below and above) else own.failure)
    precision = FORMATS[max((count.precision for count in used), key=len)]
    return RankProof(f"inertia, {precision}", min(failure, 1.0))
