r"""How many eigenvalues of a symmetric operator K exceed a level, proven from one factorisation near it.

``A = K - s I`` with a shift s, ``M = G D G^T`` what :func:`inrfast.linalg.block_ldl.block_ldl` made of it. Its numbers
are M's by definition, however they were rounded, and by Sylvester's law M has as many positive eigenvalues, ``p``, as
D has positive entries. The count above a level t is that of positive eigenvalues of ``A - (t - s) I``. With

- ``r >= |A - M|``, from products with K less products with M,
- ``d >= |t - s|`` for every level t of an interval ``[low, high]``,

all norms spectral, A at the level differs from M by at most ``r + d``.

**Theorem 1.** If ``(r + d) |M^-1| < 1``, every ``A - (t - s) I`` has the inertia of M: exactly p eigenvalues of K
exceed every level of the interval. (By Weyl's inequality no eigenvalue crosses zero on the way from M.)

**Theorem 2**, for eigenvalues within r of the level. Let U (n, j) have independent columns, N = M^-1, P the projector
onto the complement of U's span and C the restriction of N to it, ``Theta = U^T N U`` nonsingular, ``R = P N U``.

1. By the block inverse and Haynsworth's inertia additivity (Linear Algebra Appl. 1, 1968) the restriction of M to the
   complement has the inverse ``C - R Theta^-1 R^T``: its eigenvalues are at least
   ``e = 1 / (|C| + |R Theta^-1 R^T|)`` in size, and ``q = p - #{Theta > 0}`` of them are positive.
2. If ``r + d < e``, the restriction of ``A - (t - s) I`` to the complement has the same inertia, by theorem 1, and an
   inverse of norm at most ``1 / (e - r - d)``.
3. By Haynsworth again, K has q eigenvalues above t and as many more as the Schur complement ``T - Z^T (..)^-1 Z`` of
   that restriction has positive eigenvalues, ``T = U^T (K - t I) U``, ``Z = P K U``. So with m the middle of the
   interval, h its half width, ``T = U^T (K - m I) U`` and ``F = Z^T Z / (e - r - d)``::

       q + #{eig(T - F) > h} <= count <= q + #{eig(T + F) > -h}.

U spans M's eigenvectors nearest to zero (block Krylov on N). Then Z is about ``(A - M) U``, of size r, and a level is
decided up to some ``r^2 / e`` from an eigenvalue. Nothing of this depends on how good U is, but how much it proves.

**Probability.** Three norms are bounded from random blocks (:mod:`inrfast.linalg.norm_bounds`): r, ``|M^-1|`` and |C|,
the last one from a block drawn after U. Each may fail with ``failure / EVENTS``; a count tries fewer things than that.

Where M has an eigenvalue of the size of its rounding, as at a level that is an eigenvalue of K, nothing can be said of
its sign. Another M can: the smallest pivots of the last window, whose columns of G are orthonormal, are made a little
larger, and r grows by as much.

**Rounding.** u is the unit roundoff of fp64, ``v = 4 sqrt(n) u`` stands for sums of n products whose rounding errors
are independent (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), as elsewhere in this library.

- Products with K are those of a matrix within ``matrix_error`` of K, which counts once in r, T and Z, and their sums
  are off by ``v S`` for a unit vector, ``S >= |K|_F`` (the trace bounds it for ``J J^T``, a random block for others).
- Products with M are off by ``rho = M.rounding()``; solutions are those of a matrix within rho of M. Both enter the
  bounds of r, ``|M^-1|`` and |C| inside the power iteration, where they are magnified by some ``sqrt(n)``.
- With ``S_i`` the computed ``N U_i``: Theta is off by ``1.1 rho |S_i| |S_k| + v |S_k|``, where ``|M^-1| rho <= 0.1`` is
  demanded. Scaled by Theta's diagonal from both sides this has a norm x, demanded to be at most 1/2: the signs of
  Theta stand, and ``|R Theta^-1 R^T| <= sum_i |R_i|^2 / |theta_i| / (1 - x)``.
- ``R_i`` is off by ``(1.1 w + 3 v) |S_i| + |P N| rho |S_i|`` with ``0.01 >= w >= |U^T U - I|``, and
  ``|P N| <= |C| + |R|``.
- T and Z are off by ``eta = matrix_error + sqrt(j) (v S + 3 u (|m| + |K U|)) + (3 j v + 1.1 w) |K U - m U|``, with two
  percent for ``|U|``: F grows to ``(1.1 Z^T Z + 11 eta^2) / (e - r - d)``, h to ``h (1 + w) + eta`` and the rounding of
  eigenvalues of order j.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.linalg.block_ldl import BlockLDL
from inrfast.linalg.lanczos import FAILURE, KrylovBasis
from inrfast.linalg.norm_bounds import BLOCK, NormBound, norm_bound
from inrfast.linalg.operators import UNIT, ProductErrors, SymmetricOperator, noise, product_errors

EVENTS = 96
"""Shares of the probability: a count bounds one norm of K, and three to six norms for each of at most 14
factorisations."""


MOST, LOOK = 128, 2
"""Vectors of the Krylov basis at most, and its steps between two looks."""

GOOD = 1e-2
"""Relative residual of a pair of ``M^-1`` from which inverse iteration is sure to improve it."""

SURE = 0.1
"""Rounding of M, relative to its smallest eigenvalue, up to which signs of theta are sure."""

LIFTS = 256.0, 8192.0
"""Sizes of the smallest pivots, in units of M's rounding, that are tried where an eigenvalue of M is rounding."""

CLEAR = 32.0
"""Eigenvalues of M below so many times the distance to K at a level are looked for."""


@dataclass(frozen=True)
class Decision:
    """What a factorisation proves of a level.

    Attributes
    ----------
    lower, upper
        For every level of the interval the number of eigenvalues above it lies between these.
    residual
        Bound on ``|K - shift I - M|``; infinite if none was found.
    route
        What proved it: ``"theorem 1"``, ``"theorem 2"``, or why nothing did.
    failure
        Probability, over random blocks, that the interval or the residual is wrong.
    aside
        How far from this shift another one may prove more; 0 where that would not help.
    """

    lower: int
    upper: int
    residual: float
    route: str
    failure: float
    aside: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the count is known."""
        return self.lower == self.upper


def residual_bound(
    operator: SymmetricOperator, factor: BlockLDL, errors: ProductErrors, failure: float, seed: int, sharp: float = 0.0
) -> NormBound:
    """Return bounds of ``|K - shift I - M|`` for an exact K, matrix-free.

    Parameters
    ----------
    operator, factor
        K and M.
    errors
        Of products with K.
    failure, seed
        Of the random block.
    sharp
        A bound that is good enough: the power iteration stops there.
    """
    shift = factor.shift

    def difference(V: Tensor) -> Tensor:
        return operator @ V - shift * V - factor.product(V)

    own = errors.sums + factor.rounding() + 4 * UNIT * (errors.norm + abs(shift))
    found = norm_bound(
        difference,
        operator.diagonal(),
        operator.partition,
        failure,
        seed,
        own,
        most=4,
        enough=lambda b: b.upper <= max(sharp, 1.5 * b.lower),
    )
    return NormBound(max(found.lower - errors.matrix, 0.0), found.upper + errors.matrix, failure, found.products)


def decide(
    operator: SymmetricOperator,
    factor: BlockLDL,
    low: float,
    high: float,
    failure: float = FAILURE,
    seed: int = 0,
    errors: ProductErrors | None = None,
) -> Decision:
    """Return what a factorisation of ``K - shift I`` proves of the levels ``[low, high]``, by theorem 1 or 2.

    Parameters
    ----------
    operator
        K, any symmetric operator; of ``jacobian_error`` nothing is used: the count is that of the operator's own
        factors in exact arithmetic.
    factor
        M, of a shift in the interval or near it. Any numbers: what they are worth shows in the residual.
    low, high
        Levels.
    failure
        Probability that may be wrong, over random blocks.
    seed
        Of the random blocks.
    errors
        Of products with K, where they are known.
    """
    n, each = factor.size, failure / EVENTS
    errors = product_errors(operator, each, seed) if errors is None else errors
    rounding, pivots = factor.rounding(), factor.pivots
    if not (math.isfinite(rounding) and bool((torch.isfinite(pivots) & (pivots != 0)).all())):
        aside = 1e-6 * abs(factor.shift) + 1e3 * UNIT * errors.norm
        return Decision(0, n, math.inf, "the factor is singular or not finite", failure, aside)
    r = residual_bound(operator, factor, errors, each, seed + 1, 1e-3 * abs(factor.shift))
    reach = max(abs(high - factor.shift), abs(low - factor.shift)) * (1 + 4 * UNIT)
    off = (r.upper + reach) * (1 + 16 * UNIT)
    if not math.isfinite(off):
        return Decision(0, n, math.inf, "the residual is not finite", failure)
    inverse = _inverse_bound(factor, operator, off, each, seed + 2)
    for number, lift in enumerate(LIFTS):
        if inverse.upper * off < 1 or inverse.upper * rounding <= SURE:
            break
        # An eigenvalue of M is rounding. It stems from the last window's pivots: a matrix beside M has none.
        least = lift * rounding
        factor, off = factor.away_from_zero(least), off + 1.01 * least
        rounding = factor.rounding()
        inverse = _inverse_bound(factor, operator, off, each, seed + 5 + number)
    if inverse.upper * off < 1:
        return Decision(factor.positive, factor.positive, r.upper, "theorem 1", failure)
    if not inverse.upper * rounding <= SURE:
        return Decision(0, n, r.upper, "an eigenvalue of the factor is rounding", failure, LIFTS[0] * rounding)
    lower, upper = 0, n
    for U in near_zero(factor, operator, off, seed + 3):
        split = complement(factor, operator, U, off, each, seed + 4)
        found = (0, n) if split is None else between(operator, split, errors, low, high, off)
        lower, upper = max(lower, found[0]), min(upper, found[1])
        if lower >= upper:
            break
    if lower > upper:
        return Decision(0, n, r.upper, "contradiction", failure)
    return Decision(lower, upper, r.upper, "theorem 2" if (lower, upper) != (0, n) else "undecided", failure)


def _inverse_bound(factor: BlockLDL, operator: SymmetricOperator, off: float, failure: float, seed: int) -> NormBound:
    """Return bounds of ``|M^-1|``, as good as it takes to decide what to do for a distance ``off``."""
    rounding = factor.rounding()
    return norm_bound(
        factor.inverse,
        operator.diagonal(),
        operator.partition,
        failure,
        seed,
        lambda before, after: (0 * before, rounding * after),
        enough=lambda b: b.upper * off < 1 or (b.lower * off > 1 and b.upper * rounding <= SURE),
    )


def near_zero(factor: BlockLDL, operator: SymmetricOperator, off: float, seed: int) -> Iterator[Tensor]:
    """Yield orthonormal blocks (n, j) near M's eigenvectors of smallest ``|mu|``: a few of them, then more.

    By block Krylov on ``M^-1`` until all pairs of ``|mu|`` below :data:`CLEAR` times ``off`` are good, then two inverse
    iterations. Nothing at all where products are not finite.
    """
    partition, like, n = operator.partition, operator.diagonal(), factor.size
    width = min(BLOCK, n)
    basis = KrylovBasis(partition.random(width, seed, like), min(n, MOST), math.inf, partition)
    while True:
        for _ in range(LOOK):
            if not basis.full:
                basis.step(factor.inverse(basis.next))
        values, coefficients, residuals = basis.ritz()
        values, residuals = partition.agree(values).cpu(), partition.agree(residuals).cpu()
        if not bool(torch.isfinite(values).all()):
            return
        good = residuals <= GOOD * values.abs()
        needed = values.abs() * (CLEAR * off) > 1
        if basis.full or not bool((needed & ~good).any()):
            break
    order = values.abs().argsort(descending=True)
    order = order[good[order]]
    least = max(int((needed & good).sum()), min(width, len(order)))
    vectors = basis.vectors[:, : basis.size]
    for count in sorted({least, len(order)}):
        if count == 0:
            continue
        U = partition.orthonormal(vectors @ partition.agree(coefficients)[:, order[:count].to(like.device)])
        for _ in range(2):
            U = partition.orthonormal(factor.inverse(U))
        yield U


@dataclass(frozen=True)
class Complement:
    """M on the complement of the span of U, by step 1 of theorem 2.

    Attributes
    ----------
    U
        Independent columns (n, j), orthonormal up to :attr:`skew`.
    least
        e, a lower bound of the size of every eigenvalue there.
    positive
        q, how many of them are positive.
    skew
        w, a bound on ``|U^T U - I|``.
    """

    U: Tensor
    least: float
    positive: int
    skew: float


def complement(
    factor: BlockLDL, operator: SymmetricOperator, U: Tensor, off: float, failure: float, seed: int
) -> Complement | None:
    """Return M on the complement of the span of a block, or None where rounding hides it."""
    partition, rounding, (n, j) = operator.partition, factor.rounding(), (factor.size, U.shape[1])
    sums = noise(n)

    def gram(left: Tensor, right: Tensor) -> Tensor:
        return partition.agree(partition.total(left.t() @ right))

    def project(V: Tensor) -> Tensor:
        return V - U @ partition.total(U.t() @ V)

    S = factor.inverse(U)
    theta = gram(U, S)
    if not bool(torch.isfinite(theta).all()):
        return None
    turn = partition.agree(torch.linalg.eigh((theta + theta.t()) / 2)[1])
    U, S = U @ turn, S @ turn
    theta = gram(U, S)
    rest = S - U @ theta
    values, lengths = theta.diagonal().cpu(), partition.norm(S).cpu()
    skew = float((gram(U, U) - torch.eye(j, dtype=U.dtype, device=U.device)).norm()) + (j + 3) * sums
    # Theta, scaled by its diagonal from both sides
    scale = values.abs().rsqrt()
    weighted = float((lengths * scale).square().sum())
    off_diagonal = (theta - theta.diagonal().diag()).cpu() * torch.outer(scale, scale)
    x = float(off_diagonal.norm()) + 1.1 * rounding * weighted + sums * float(scale.norm()) * math.sqrt(weighted)
    length = float(lengths.norm())
    if not (x <= 0.5 and rounding * length <= 0.25 and skew <= 0.01):
        return None
    # |P N U| <= known + share |C|
    flaw = 1.1 * skew + 3 * sums
    sizes = partition.norm(rest).cpu()
    known, share = 2 * (float(sizes.norm()) + flaw * length), 2 * rounding * length
    images = torch.zeros(BLOCK, dtype=torch.float64)

    def restricted(V: Tensor) -> Tensor:
        image = factor.inverse(project(V))
        images.copy_(partition.norm(image))
        return project(image)

    def errors(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        own = rounding * images + flaw * before
        return known * own + flaw * images, (1 + share) * own

    if j < n:
        inner = norm_bound(
            restricted,
            operator.diagonal(),
            partition,
            failure,
            seed,
            errors,
            most=4,
            enough=lambda b: b.upper * off * CLEAR < 1 or b.upper < 1.3 * b.lower,
        ).upper
    else:
        inner = 0.0
    both = known + share * inner
    scaled = float((sizes * scale).norm()) + (flaw + (inner + both) * rounding) * math.sqrt(weighted)
    size = inner + scaled * scaled / (1 - x)
    positive = factor.positive - int((values > 0).sum())
    if not (0 <= positive <= n - j and size < math.inf):
        return None
    return Complement(U, 1 / size if size > 0 else math.inf, positive, skew)


def between(
    operator: SymmetricOperator, split: Complement, errors: ProductErrors, low: float, high: float, off: float
) -> tuple[int, int]:
    """Return bounds of the number of eigenvalues above the levels ``[low, high]``, by steps 2 and 3 of theorem 2."""
    partition, U, n = operator.partition, split.U, operator.shape[0]
    gap, j = split.least * (1 - 16 * UNIT) - off, U.shape[1]
    if not gap > 0:
        return 0, n
    middle = (low + high) / 2
    half = max(high - middle, middle - low) * (1 + 4 * UNIT)
    images = operator @ U
    moved = images - middle * U
    T = partition.agree(partition.total(U.t() @ moved))
    Z = moved - U @ T
    T = ((T + T.t()) / 2).cpu()
    size = float(partition.norm(moved).norm())
    eta = errors.matrix + math.sqrt(j) * (errors.sums + 3 * UNIT * (abs(middle) + float(partition.norm(images).max())))
    eta += (math.sqrt(j) * noise(n) * (2 + math.sqrt(j)) + 1.1 * split.skew) * size
    eta *= 1.02  # for |U|
    F = partition.agree(partition.total(Z.t() @ Z)).cpu() * (1.1 / gap)
    F += torch.eye(j, dtype=F.dtype) * (11 * eta * eta / gap)
    if not (bool(torch.isfinite(T).all()) and bool(torch.isfinite(F).all())):
        return 0, n
    half = (
        half * (1 + split.skew) + eta + 16 * j * UNIT * float(T.norm()) + (16 * j * UNIT + noise(n)) * float(F.norm())
    )
    if not math.isfinite(half):
        return 0, n
    counts = (torch.linalg.eigvalsh(T - F) > half).sum(), (torch.linalg.eigvalsh(T + F) > -half).sum()
    least, most = partition.agree(torch.stack(counts).to(U.device)).tolist()
    return split.positive + least, split.positive + most
