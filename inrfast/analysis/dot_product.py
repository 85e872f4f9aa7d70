"""Theorem 3.3 of PEAK as code: the polynomial encoding behind which one dot-product kernel is nearly another one.

With ``h = K^-1 o K*`` and its power series ``h(c) = sum_k a_k c^k``, the encoding ``gamma(x) = (+)_k sqrt(a_k)
x^{(x)k}`` of unit vectors has ``gamma(x) . gamma(x') = h(x . x')``, so ``K(gamma(x) . gamma(x')) = K*(x . x')``. It
exists where all ``a_k >= 0``; the paper calls that clear, and it is the exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.analysis.infinite_width import InfiniteNTK
from inrfast.analysis.power_series import Series, increasing_from, inverse_on, power_series
from inrfast.encodings import Polynomial
from inrfast.errors import check_flag, check_float, check_int, check_takes, warn
from inrfast.modes import in_own_modes
from inrfast.records import Record

DotProduct = Callable[[Tensor], Tensor]

POINTS = 4001
"""Points of [-1, 1] where errors are measured, equally spaced in angle: dense at both ends, where kernels are steep."""

CHECKED = 201
"""Points of the linear program."""

NEAR = 1e-9
"""Relative difference up to which two kernels count as equal at c = 1."""

HIGHEST = 512
"""Highest degree: coefficients beyond it are not known to fp64's precision."""

LISTED = 32
"""Coefficients of h that are looked at for signs, however low the degree."""

HALVINGS = 11
"""Of the interval that the smallest error lies in: to 5e-4 of it."""

SLACK = 1e-7
"""Distance up to which the linear program takes a bound as kept, as its solver does."""


@dataclass(frozen=True, eq=False)
class DotProductEncoding(Record):
    """A polynomial encoding that turns a kernel K into K*, and how far it does.

    Attributes
    ----------
    coefficients
        The ``degree + 1`` numbers ``a_k >= 0`` of the encoding.
    degree
        Highest degree.
    error
        ``max_c |K(sum_k a_k c^k) - K*(c)|``, measured at 4,001 angles.
    tolerance, reached
        What was asked for, and whether ``error`` is below.
    squared_length
        ``|gamma(x)|^2 = sum_k a_k`` of unit vectors x. A network's kernel depends on lengths too, and is K of the inner
        product only where it is 1: where ``K*(1) = K(1)``.
    series
        Coefficients of h as they are, negative ones among them, up to the highest degree asked for, and to 32 at least;
        empty where h is not analytic inside the unit disc.
    series_error
        Their errors, estimated from two radii.
    negative
        Degrees whose coefficients of h are surely negative.
    refused
        The sum of their sizes: what no encoding can have.
    exact
        Whether h has no negative coefficient: then the encoding is the paper's, its last coefficient raised by the sum
        of those left out. If not, it has the non-negative coefficients with the smallest error at the highest degree,
        and ``error`` does not vanish with the degree.
    lipschitz
        ``C_K``, the largest slope of K in use; infinite for the tangent kernel of a ReLU network, whose slope at 1 is
        that of a square root.
    bound
        The theorem's bound on the error by the coefficients left out, with K's modulus of continuity in place of C_K;
        infinite where not ``exact``.
    paper_degree
        Degree by the paper's rule ``C_K sum_{k > N} a_k < tolerance``; None: none up to the highest.
    increasing_from
        K is increasing from here to 1, so has an inverse there.
    scale
        What K* was multiplied by.
    """

    coefficients: tuple[float, ...]
    degree: int
    error: float
    tolerance: float
    reached: bool
    squared_length: float
    series: tuple[float, ...]
    series_error: tuple[float, ...]
    negative: tuple[int, ...]
    refused: float
    exact: bool
    lipschitz: float
    bound: float
    paper_degree: int | None
    increasing_from: float
    scale: float

    @cached_property
    def encoding(self) -> Polynomial:
        """The encoding, for ``inr.INR(d, 1, encoding=...)`` on unit vectors."""
        return Polynomial(self.degree, list(self.coefficients))

    def inner_product(self, c: Tensor) -> Tensor:
        """Return ``gamma(x) . gamma(x')`` of unit vectors with ``x . x' = c``."""
        return evaluated(torch.tensor(self.coefficients, dtype=torch.float64), c)

    def __repr__(self) -> str:
        how = "exact series" if self.exact else f"{len(self.negative)} negative coefficients, sum {self.refused:.2g}"
        return f"DotProductEncoding(degree={self.degree}, error={self.error:.2g}, reached={self.reached}, {how})"


@in_own_modes
def dot_product_encoding(
    kernel: InfiniteNTK | DotProduct,
    target: InfiniteNTK | DotProduct,
    tolerance: float = 1e-2,
    max_degree: int = 64,
    normalize: bool = False,
) -> DotProductEncoding:
    """Return the polynomial encoding behind which ``kernel`` is ``target`` to ``tolerance`` (PEAK, Theorem 3.3).

    Parameters
    ----------
    kernel, target
        Functions of the cosine c of unit vectors: from a tensor in fp64 or complex fp64 to one of its shape, real for
        real c and analytic inside the unit disc, as every positive semidefinite dot-product kernel is. Or kernels of
        :func:`inrfast.infinite_ntk`.
    tolerance
        Largest ``|K(gamma . gamma') - K*|`` wanted, in the kernels' units.
    max_degree
        Highest degree, at most 512. The encoding has ``(degree + d)! / (degree! d!)`` columns.
    normalize
        Whether K* is multiplied by ``K(1) / K*(1)`` first, which changes no regression (Remark 3.2) and makes
        ``|gamma(x)| = 1``.

    Returns
    -------
    DotProductEncoding
        Coefficients, measured error, bound, and the coefficients of h as they are.

    Raises
    ------
    ValueError, TypeError
        Functions that give other shapes, NaN or complex numbers on the real axis; a target with values that K does not
        take where it is increasing (``B*`` is no part of ``B``).

    Warns
    -----
    RuntimeWarning
        The tolerance is not reached, as h has negative coefficients, is not analytic inside the disc, or needs a higher
        degree; ``|gamma(x)|`` is not 1.

    Notes
    -----
    Three steps of the theorem do not hold as printed.

    It takes h for a dot-product kernel. But h is K's inverse of one, and the inverse of a series with positive
    coefficients has negative ones. ``a_k >= 0`` says exactly that K* is K of a positive semidefinite kernel, a small
    part of all kernels: if K has infinitely many terms, no polynomial K* is in it. The set of such h is closed, so
    where h is not in it there is a positive smallest error, whatever the degree.

    It takes K for Lipschitz. The tangent kernel of a ReLU network is not: ``K(1) - K(c) ~ sqrt(1 - c)``. Then
    ``h'(1) = K*'(1) / K'(1) = 0`` for every K* with a finite slope at 1, while ``a_k >= 0`` has ``h'(1) = sum k a_k >
    0``: behind no encoding is a ReLU network's tangent kernel a smooth one. Nor is that kernel a bijection without
    biases: it falls before it rises from c = -1 on.

    It takes K of an inner product. A network's kernel takes vectors, and is a function of their inner product on the
    unit sphere alone. A truncated series is shorter than 1. So the coefficients left out are added to the last one,
    which keeps the length and makes the error vanish at c = 1; they are then at most twice as far off elsewhere.

    Examples
    --------
    >>> import torch, inrfast as inr
    >>> K = inr.infinite_ntk(2)
    >>> found = inr.dot_product_encoding(K, lambda c: K.of_cosine(c * (1 + c) / 2), 1e-6)
    >>> found.degree, found.exact, [round(a, 6) for a in found.coefficients[1:]]
    (2, True, [0.5, 0.5])
    """
    tolerance = check_float("tolerance", tolerance, minimum=0.0, exclusive=True)
    max_degree = check_int("max_degree", max_degree, minimum=1)
    if max_degree > HIGHEST:
        raise ValueError(f"max_degree must be at most {HIGHEST}, got {max_degree}")
    K, given = function("kernel", kernel), function("target", target)
    c = torch.cos(torch.linspace(math.pi, 0, POINTS, dtype=torch.float64)).clamp(-1, 1)
    top, wanted = sampled("kernel", K, c), sampled("target", given, c)
    scale = 1.0
    if check_flag("normalize", normalize):
        if not float(wanted[-1]) > 0 or not float(top[-1]) > 0:
            raise ValueError(
                f"normalize needs kernels that are positive at 1, got {float(top[-1])}, {float(wanted[-1])}"
            )
        scale = float(top[-1] / wanted[-1])
    start = increasing_from(K, c, top)
    Kstar: DotProduct = lambda z: scale * given(z)  # noqa: E731
    h = inverse_on(K, scale * wanted, start)
    series = power_series(K, Kstar, float(h[POINTS // 2]), max(max_degree, LISTED), c, h)
    return found_of(Problem(K, scale * wanted, c, h, start, tolerance, max_degree, scale), series)


@dataclass(frozen=True, eq=False)
class Problem:
    """The kernel, the target and h at points of [-1, 1]."""

    kernel: DotProduct
    wanted: Tensor
    c: Tensor
    h: Tensor
    start: float
    tolerance: float
    max_degree: int
    scale: float

    def error(self, coefficients: Tensor) -> float:
        """Return the largest error of the encoding with these coefficients."""
        inner = evaluated(coefficients, self.c).clamp(-1, 1)
        return float((self.kernel(inner) - self.wanted).abs().amax())

    @cached_property
    def lipschitz(self) -> float:
        """The largest slope of K between ``start`` and 1; infinite if it grows without end towards 1."""
        ends = torch.tensor([1.0, 1 - 1e-12, 1 - 1e-6], dtype=torch.float64)
        top, near, far = (float(value) for value in self.kernel(ends))
        if (top - near) / 1e-12 > 30 * max((top - far) / 1e-6, 1e-300) and top - near > 1e-13 * abs(top):
            return math.inf
        used = self.c[self.c >= self.start]
        return float((self.kernel(used).diff() / used.diff()).abs().amax())

    def modulus(self, distance: float) -> float:
        """Return the largest change of K over so long a piece between ``start`` and 1."""
        used = torch.cat([self.c[self.c >= self.start], torch.tensor([1 - distance, 1.0], dtype=torch.float64)])
        used = used.clamp(self.start, 1)
        return float((self.kernel((used + distance).clamp(max=1)) - self.kernel(used)).abs().amax())


def found_of(problem: Problem, series: Series) -> DotProductEncoding:
    """Return the encoding by the series of h if it has no negative coefficient, else the nearest one."""
    exact = series.analytic and not series.negative
    if exact:
        coefficients, bound, paper_degree = by_series(problem, series.coefficients)
    else:
        coefficients, bound, paper_degree = nearest(problem), math.inf, None
    error = problem.error(coefficients)
    reached, length = error < problem.tolerance, float(coefficients.sum())
    told(problem, series, exact, error, length)
    return DotProductEncoding(
        tuple(coefficients.tolist()),
        len(coefficients) - 1,
        error,
        problem.tolerance,
        reached,
        length,
        tuple(series.coefficients.tolist()),
        tuple(series.errors.tolist()),
        series.negative,
        series.refused,
        exact,
        problem.lipschitz,
        bound,
        paper_degree,
        problem.start,
        problem.scale,
    )


def told(problem: Problem, series: Series, exact: bool, error: float, length: float) -> None:
    """Warn of what an encoding cannot do."""
    if not exact and not error < problem.tolerance:
        why = (
            f"negative coefficients (first at degree {series.negative[0]}, sum {series.refused:.2g})"
            if series.analytic
            else "a singularity inside the unit disc"
        )
        warn(
            f"h = K^-1 o K* has {why}, so it is no kernel and no encoding gives it; the nearest one is off by "
            f"{error:.2g}"
        )
    elif not error < problem.tolerance:
        warn(f"the error is {error:.2g} at degree {problem.max_degree}; raise max_degree or tolerance")
    if abs(length - 1) > NEAR:
        warn(
            f"the encoding has the squared length {length:.6g}, not 1, as K*(1) is not K(1): a network's kernel behind "
            "it is not K of the inner product; normalize=True scales K*"
        )


def by_series(problem: Problem, series: Tensor) -> tuple[Tensor, float, int | None]:
    """Return the first coefficients that reach the tolerance, their bound, and the degree by the paper's rule."""
    series, whole = series[: problem.max_degree + 1].clamp_min(0), float(problem.h[-1])
    tails = (whole - series.cumsum(0)).clamp_min(0)
    paper = (problem.lipschitz * tails < problem.tolerance).nonzero()
    degree = problem.max_degree
    for n in range(problem.max_degree + 1):
        if problem.error(completed(series, n, whole)) < problem.tolerance:
            degree = n
            break
    found = completed(series, degree, whole)
    while len(found) > 1 and float(found[-1]) == 0:
        found = found[:-1]
    bound = problem.modulus(min(2 * float(tails[degree]), 2.0))
    return found, bound, int(paper[0]) if len(paper) else None


def completed(series: Tensor, degree: int, whole: float) -> Tensor:
    """Return the coefficients up to a degree, the last one raised so that their sum is ``whole``."""
    found = series[: degree + 1].clone()
    found[-1] = max(whole - float(found[:-1].sum()), 0.0)
    return found


def nearest(problem: Problem) -> Tensor:
    """Return the non-negative coefficients of sum ``h(1)`` with the smallest error up to the highest degree.

    As K increases, the error is at most t where ``K^-1(K* - t) <= sum_k a_k c^k <= K^-1(K* + t)``: linear in the
    coefficients. So the smallest t, at points of [-1, 1], is found by halving an interval, with a linear program each.
    """
    pick = torch.linspace(0, len(problem.c) - 1, CHECKED, dtype=torch.float64).round().long()
    c, wanted, whole = problem.c[pick], problem.wanted[pick], float(problem.h[-1])
    ends = problem.kernel(torch.tensor([problem.start, 1.0], dtype=torch.float64))
    low, high = 0.0, float(ends[1] - ends[0])
    best = torch.tensor([whole], dtype=torch.float64)
    for _ in range(HALVINGS):
        t = (low + high) / 2
        both = torch.stack([wanted - t, wanted + t]).clamp(*ends.tolist())
        lower, upper = inverse_on(problem.kernel, both, problem.start).numpy()
        found = program(c.numpy(), lower, upper, whole, problem.max_degree)
        if found is None:
            low = t
        else:
            best, high = found, t
    return best


def program(c: np.ndarray, lower: np.ndarray, upper: np.ndarray, whole: float, degree: int) -> Tensor | None:
    """Return non-negative coefficients of a sum whose polynomial lies between bounds at points c; None: there are none.

    The distance by which the bounds are missed is made smallest.
    """
    from scipy.optimize import linprog  # slow to import

    powers, ones = c[:, None] ** np.arange(degree + 1), np.ones((len(c), 1))
    rows = np.concatenate([np.concatenate([powers, -ones], 1), np.concatenate([-powers, -ones], 1)])
    costs, sums = np.zeros(degree + 2), np.ones((1, degree + 2))
    costs[-1], sums[0, -1] = 1.0, 0.0
    found = linprog(costs, rows, np.concatenate([upper, -lower]), sums, [max(whole, 0.0)], method="highs")
    if found.x is None or found.x[-1] > SLACK:
        return None
    coefficients = np.maximum(found.x[:-1], 0.0)
    used = np.flatnonzero(coefficients > 0)
    return torch.from_numpy(coefficients[: used[-1] + 1] if len(used) else coefficients[:1]).clone()


def evaluated(coefficients: Tensor, c: Tensor) -> Tensor:
    """Return ``sum_k a_k c^k`` by Horner's rule."""
    found = torch.zeros_like(c)
    for a in coefficients.flip(0):
        found = found * c + a
    return found


def function(name: str, given: Any) -> DotProduct:
    """Return a kernel as a function of c."""
    if isinstance(given, InfiniteNTK):
        return given.of_cosine
    if not callable(given):
        raise TypeError(
            f"{name} must be a function of c or a kernel of inrfast.infinite_ntk, got {type(given).__name__}"
        )
    check_takes(name, given, ("c",))
    return lambda c: torch.as_tensor(given(c))


def sampled(name: str, kernel: DotProduct, c: Tensor) -> Tensor:
    """Return a kernel's values on the real axis, checked."""
    values = kernel(c)
    if tuple(values.shape) != tuple(c.shape):
        raise ValueError(f"{name} must give one number per c, got shape {tuple(values.shape)} for {tuple(c.shape)}")
    if values.is_complex() or not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be real and finite on [-1, 1]")
    return values.detach().to(torch.float64)
