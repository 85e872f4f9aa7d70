"""Stochastic Lanczos quadrature: how many eigenvalues exceed a level where they are too many to be computed.

A random vector v sees every eigenvalue with the weight of its component; Lanczos from v gives the Gauss quadrature of
that measure (Golub and Meurant, Matrices, Moments and Quadrature, 2010), and n times its share above a level is, in
the mean over v, the count (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38(4), 2017). A quadrature of m nodes
bounds the measure exactly: between two nodes the share lies between two partial sums of the weights (Chebyshev,
Markov, Stieltjes). At levels below about ``lambda_1 / m^2`` the nodes are few and the sums far apart; there the count
is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.errors import ResolutionError, check_float
from inrfast.linalg.lanczos import KrylovBasis
from inrfast.linalg.operators import SymmetricOperator, product_error
from inrfast.linalg.spectrum import RankInterval
from inrfast.progress import progress_bar

RESOLVED = 0.8
"""A level is resolved if the bracket of its count is at most this wide, relative to its middle: 40 % either way, of
which the three standard errors of two probes are 21 % at a count of 400."""

LEVELS = 44
"""Halvings of lambda_1 down to about 1e-13, the floor of fp64."""

DEVIATIONS = 3.0
"""Standard errors of the mean over random vectors that a count's error bar spans on either side."""


@dataclass(frozen=True)
class QuadratureCounts:
    """Gauss quadratures of the spectral measure of random vectors.

    Attributes
    ----------
    nodes, weights
        (probes, m) each: the nodes in descending order and their weights, which add up to 1 for every probe.
    size
        Order n of the operator.
    largest
        Largest node, lambda_1 from below.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    @property
    def largest(self) -> float:
        """The largest node: lambda_1, from below."""
        return float(self.nodes.amax())

    def bracket(self, level: float) -> tuple[float, float]:
        """Return the count above an absolute ``level`` between bounds that hold up to the choice of random vectors.

        The bounds of the quadrature (certain for each vector), averaged over vectors, and widened by
        :data:`DEVIATIONS` standard errors: the larger of the one between the vectors and the one of Gaussian vectors,
        ``sqrt(2 c / probes)`` at the count c.
        """
        above = self.nodes > level
        inside = self.weights.masked_fill(~above, 0).sum(1)
        # One node above the level may stand for mass below it, and one below for mass above.
        smallest_above = self.weights.gather(1, (above.sum(1, keepdim=True) - 1).clamp_min(0))[:, 0] * above.any(1)
        padded = torch.cat([self.weights, self.weights.new_zeros(len(self.weights), 1)], 1)
        largest_below = padded.gather(1, above.sum(1, keepdim=True))[:, 0]
        lower, upper = self.size * (inside - smallest_above), self.size * (inside + largest_below)
        probes = len(self.nodes)
        middle = float((lower + upper).mean()) / 2
        spread = float(((lower + upper) / 2).std()) / math.sqrt(probes) if probes > 1 else 0.0
        error = DEVIATIONS * max(spread, math.sqrt(2 * max(middle, 1.0) / probes))
        return max(0.0, float(lower.mean()) - error), min(float(self.size), float(upper.mean()) + error)

    def resolves(self, level: float) -> bool:
        """Return whether the count above ``level`` is known to a useful width."""
        lower, upper = self.bracket(level)
        return upper - lower <= RESOLVED * (upper + lower) / 2

    def smallest_rtol(self) -> float:
        """Return the smallest of the levels ``lambda_1 2^-j`` down to which all are resolved, as a relative tolerance.

        Levels of few eigenvalues, whose relative error is large for any number of probes, are passed over. Infinite
        where none is resolved.
        """
        found, misses = math.inf, 0
        for exponent in range(1, LEVELS):
            if self.resolves(self.largest * 2.0**-exponent):
                found, misses = 2.0**-exponent, 0
            elif math.isfinite(found):
                misses += 1
                if misses == 2:
                    break
        return found

    def resolution(self) -> str:
        """Return in words which levels are resolved."""
        smallest = self.smallest_rtol()
        return f"the smallest resolved is rtol={smallest:.1e}" if math.isfinite(smallest) else "no level is resolved"

    def count(self, rtol: float) -> RankInterval:
        """Return how many eigenvalues exceed ``rtol lambda_1``, with error bars for bounds.

        Raises
        ------
        ResolutionError
            The steps do not resolve this level; the message names the smallest that they do.
        """
        rtol = check_float("rtol", rtol, minimum=0.0, exclusive=True)
        level = rtol * self.largest
        if not self.resolves(level):
            lower, upper = self.bracket(level)
            raise ResolutionError(
                f"{self.nodes.shape[1]} Lanczos steps do not resolve rtol={rtol:g}: the count lies between {lower:.0f} "
                f"and {upper:.0f}; {self.resolution()}"
            )
        lower, upper = self.bracket(level)
        return RankInterval(math.floor(lower), math.ceil(upper), rtol)


PROBES, STEPS = 2, 48
"""Default number of random vectors, and of products."""

TEMPORARIES = 12
"""Vectors per probe in memory during a step, beside its Krylov basis: products, their remainders, and their QR."""


def quadrature_bytes(n: int, probes: int = PROBES, steps: int = STEPS) -> int:
    """Return the bytes that :func:`quadrature_counts` takes for an operator of order n."""
    return 8 * n * probes * (min(steps, n) + TEMPORARIES)


def quadrature_counts(
    operator: SymmetricOperator, probes: int = PROBES, steps: int = STEPS, seed: int = 0, progress: bool | None = None
) -> QuadratureCounts:
    """Return the quadratures of ``probes`` random vectors after ``steps`` Lanczos steps, fully reorthogonalised.

    The products take all vectors as one block; each has a Krylov space of its own. Without reorthogonalisation a
    converged eigenvalue comes back as spurious copies, and is counted with them.

    Parameters
    ----------
    operator
        Symmetric, fp64.
    probes, steps
        Random vectors and products; the levels reach down to about ``lambda_1 / steps^2``.
    seed
        Of the vectors.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.
    """
    n = operator.shape[0]
    steps = min(steps, n)
    partition, rounding = operator.partition, product_error(operator)
    starts = partition.random(probes, seed, operator.diagonal())
    spaces = [KrylovBasis(start.unsqueeze(1), steps, rounding, partition) for start in starts.unbind(1)]
    with progress_bar(total=steps, desc="quadrature", progress=progress, leave=False) as bar:
        for _ in range(steps):
            images = operator @ torch.cat([space.next for space in spaces], 1)
            for space, image in zip(spaces, images.split(1, 1), strict=True):
                space.step(image)
            bar.update()
    nodes, weights = [], []
    for space in spaces:
        values, vectors = torch.linalg.eigh(space.projection())
        nodes.append(values.flip(0))
        weights.append(vectors[0].square().flip(0))
    return QuadratureCounts(torch.stack(nodes), torch.stack(weights), n)
