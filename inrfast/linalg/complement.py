"""How many eigenvalues exceed a level, from above: the norm of an operator on the complement of a few vectors.

By Courant and Fischer's theorem at most m eigenvalues of K exceed t if ``x^T K x <= t |x|^2`` for every x orthogonal to
some m vectors, the columns of U. With ``P = I - U U^T`` such an x has ``P x = x``, so that ``|P K P| <= t`` is enough.
This asks nothing of U: columns that are neither orthonormal nor exact eigenvectors only make the norm larger. Lanczos
from a random start bounds it (:func:`inrfast.linalg.lanczos.christoffel_bound`).

Where ``K = J J^T``, the projections take away what is large before anything cancels, and products in fp32 suffice. Let
``a = |P K P|``, so that ``|J^T P x|``, ``|P J y| <= sqrt(a)`` for unit vectors x and y. An error e of ``J^T P x``
reaches the result as ``P J e``, one of ``J y`` as it is, and of a length ``|y| <= sqrt(a)``; the projections are off by
p, times ``|J| sqrt(a)`` both before and after. With ``s = e + p |J|`` a product is off by ``2 s sqrt(a)`` to first
order, and a bound b on the norm of what was multiplied gives ``sqrt(a) <= s + sqrt(s^2 + b)``: relative to the level
about ``2 s / sqrt(t)``, which is ``c u sqrt(trace K / t)``.

Rounding errors are taken as independent of each other and of the start, of mean zero. What m steps compute is then
Lanczos on an operator that differs by D, and of D only ``x^T D x`` counts, with the leading eigenvector x: a sum of
independent terms weighted by the components of x along the basis, whose squares add up to 1 at most. It is of the size
of one product's error, not of their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inrfast.linalg.lanczos import KrylovBasis, christoffel_bound, least_square, least_weight
from inrfast.linalg.operators import INDEPENDENT, SINGLE_UNIT, UNIT, SymmetricOperator, product_error
from inrfast.linalg.partition import Whole
from inrfast.memory import LEAST_ROWS, chunks
from inrfast.ops import gemm
from inrfast.threads import together

STEPS = 64
"""Largest number of products of an attempt."""

BATCH = 2
"""Products between two bounds."""

SUMMED = 128
"""Rows over which a projection adds up in fp32."""

AT_ONCE = 16 * SUMMED
"""Rows per step of a projection."""

COARSE = 0.04
"""Largest error of a product in fp32, relative to the level, with which it is worth while: in fp64 one takes twice as
long."""


def halves_error(unit: float, count: int, root: float, product: float = 0.0) -> float:
    """Return s, the error of a half of a product between projections on the complement of so many vectors.

    Both in ``U^T v``, added up over :data:`SUMMED` rows at a time, and in ``U c`` the partial sums of all entries
    together are no longer than v or c, as U is about orthonormal. So m independent errors add up to ``u sqrt(m)``; L
    rows that are alike round alike, by ``u L / 4`` of their sum. ``unit`` is u, ``root`` a bound on |J|, ``product``
    the error of the operator's own half.
    """
    return product + root * INDEPENDENT * unit * (SUMMED / 4 + math.sqrt(count) + 4)


def in_single(operator: SymmetricOperator, count: int, largest: float, level: float) -> Any | None:
    """Return an operator's products in fp32, where they tell norms beside so many vectors from a level; else None.

    ``largest`` is an upper bound of the operator's norm.
    """
    single = getattr(operator, "single", None)
    if single is None:
        return None
    error = halves_error(SINGLE_UNIT, count, math.sqrt(largest), single.noise)
    return single if 2 * error <= COARSE * math.sqrt(level) else None


@dataclass(frozen=True)
class NormBounds:
    """Bounds of ``|P K P|``.

    Attributes
    ----------
    upper
        Not exceeded, except with the probability asked for.
    inner
        Reached for certain, up to rounding.
    steps
        Products taken.
    """

    upper: float
    inner: float
    steps: int


class Complement:
    """An operator K between two projections ``I - U U^T``.

    Parameters
    ----------
    operator
        K, symmetric positive semidefinite, fp64.
    U
        Columns (n, m) of the rows here, of about unit norm, about orthogonal; fp32 or fp64. Projections are computed in
        fp32 if products are.
    largest
        An upper bound of the largest eigenvalue of K.
    level
        The level that is of interest: products are in fp32 where this resolves it.
    """

    def __init__(self, operator: SymmetricOperator, U: Tensor, largest: float, level: float) -> None:
        self.operator, self.U = operator, U
        self.partition: Whole = operator.partition
        self.root, m = math.sqrt(largest), U.shape[1]
        self.single = in_single(operator, m, largest, level)
        if self.single is not None:
            self.noise, self.error = halves_error(SINGLE_UNIT, m, self.root, self.single.noise), 0.0
        else:
            self.noise, self.error = halves_error(UNIT, m, self.root), product_error(operator)
        self.dtype = torch.float64 if self.single is None else torch.float32

    def project(self, v: Tensor) -> Tensor:
        """Return ``v - U (U^T v)`` in fp64 for v (n, 1)."""
        U, given = self.U, v.to(self.dtype)
        if U.device.type != "cpu":
            wide = U.to(self.dtype)
            return v - (wide @ self.partition.total(wide.t() @ given)).double()
        out = torch.empty_like(v)
        each = max(-(-len(v) // gemm.threads(self.dtype, U.device)), LEAST_ROWS)
        shares = list(chunks(len(v), -(-each // AT_ONCE) * AT_ONCE))

        def gather(share: slice) -> Tensor:
            total = v.new_zeros(U.shape[1])
            for rows in _within(share):
                total += _transposed(U[rows].to(self.dtype), given[rows])
            return total

        sums = self.partition.total(torch.stack(together([partial(gather, share) for share in shares])).sum(0))
        inner = sums.to(self.dtype).unsqueeze(1)

        def spread(share: slice) -> None:
            for rows in _within(share):
                torch.sub(v[rows], U[rows].to(self.dtype) @ inner, out=out[rows])

        together([partial(spread, share) for share in shares])
        return out

    def product(self, v: Tensor) -> Tensor:
        """Return ``P K P v`` for v (n, 1)."""
        projected = self.project(v)
        return self.project(self.operator @ projected if self.single is None else self.single @ projected)

    def norm(self, failure: float, seed: int, enough: Callable[[NormBounds], bool], steps: int = STEPS) -> NormBounds:
        """Return bounds of ``|P K P|``, of as many steps as it takes for ``enough``.

        ``failure`` is the probability, over the start that ``seed`` draws, that the upper bound does not hold.
        """
        n, tolerated = self.partition.size, 2 * self.noise * self.root + self.error
        start, weight, proportional = self._start(failure, seed)
        basis = KrylovBasis(start, min(steps, n), tolerated, self.partition)
        while True:
            for _ in range(BATCH):
                if not basis.full:
                    basis.step(self.product(basis.next))
            projection, diagonal, below = basis.tridiagonal()
            ritz = float(torch.linalg.eigvalsh(projection)[-1])
            upper = christoffel_bound(diagonal, below, weight, proportional) + self.error
            upper = (self.noise + math.sqrt(self.noise**2 + max(upper, 0.0))) ** 2
            inner = max(ritz - self.error, 0.0)
            inner = max(math.sqrt(self.noise**2 + inner) - self.noise, 0.0) ** 2
            bounds = NormBounds(upper, inner, basis.steps)
            if basis.full or enough(bounds):
                return bounds

    def _start(self, failure: float, seed: int) -> tuple[Tensor, float, bool]:
        """Return a random start, which share of its square lies along an eigenvector at least, and per unit of what.

        ``P J g``, where there is J, has along an eigenvector of ``P K P`` a component that is normal, with its
        eigenvalue for the variance: the share is in proportion to it, and far more than 1 / n where few are large.
        """
        if self.single is not None:
            start = self.project(self.single.random(seed))
            square = float(self.partition.norm(start)) ** 2
            if square > 0:
                return start, least_square(failure) / square, True
        like = self.U.new_zeros(len(self.U), dtype=torch.float64)
        return self.partition.random(1, seed, like), least_weight(self.partition.size, failure), False


def _within(share: slice) -> list[slice]:
    parts = chunks(share.stop - share.start, AT_ONCE)
    return [slice(share.start + part.start, share.start + part.stop) for part in parts]


def _transposed(U: Tensor, v: Tensor) -> Tensor:
    """Return ``U^T v`` (m,) in fp64 for v (n, 1): :data:`SUMMED` rows at a time are added up in the dtype given."""
    whole = len(v) // SUMMED
    end = whole * SUMMED
    found = (U[end:].t() @ v[end:]).squeeze(1).double()
    if whole > 0:
        parts = torch.bmm(v[:end].view(whole, 1, SUMMED), U[:end].view(whole, SUMMED, U.shape[1]))
        found += parts.sum((0, 1), dtype=torch.float64)
    return found
