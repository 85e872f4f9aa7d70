"""Block Lanczos with full reorthogonalisation: certified bounds of a spectrum, and the largest eigenpairs.

The method is Rayleigh and Ritz's on a block Krylov space: the projected matrix is computed whole, from the products
that the orthogonalisation takes anyway. So it stays right where a recurrence would break down: on rank-deficient
operators, in clusters, after restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import ResolutionError
from inrfast.linalg.operators import (
    ASYMMETRY,
    NEGLIGIBLE,
    UNIT,
    SymmetricOperator,
    check_semidefinite,
    check_symmetric,
    product_error,
)
from inrfast.linalg.partition import Whole
from inrfast.linalg.spectrum import Spectrum, dense_spectrum
from inrfast.memory import require
from inrfast.progress import progress_bar

Product = Callable[[Tensor], Tensor]

FAILURE = 1e-6
"""Probability that a certificate does not hold, over its random starts."""

STEPS = 48
"""Largest number of steps of a certificate: its bound is then 6 % above the norm at order 65,536."""

BLOCK = 8
"""Vectors per block of the eigenpair iteration: one product takes them all, and finds multiplicities up to this."""

EXTRA = 8
"""Smallest number of eigenpairs computed beyond those asked for: the last ones converge slowest."""

WHOLE = 7
"""Matrices of the operator's order in memory while it is written out, made symmetric and diagonalised."""

TEMPORARIES = 6
"""Blocks in memory during a step, beside the basis: the product, its remainder, and their QR."""

RESTARTS = 100
"""Largest number of restarts of the eigenpair iteration."""


class KrylovBasis:
    """An orthonormal basis (n, size) that grows by blocks, and the operator's projection onto it.

    Parameters
    ----------
    start
        First block (n, p), of full rank.
    most
        Largest number of vectors; the block that comes next is not among them.
    error
        Bound on the error of a product with a unit vector.
    partition
        Which rows of the vectors are held here; None: all.

    Attributes
    ----------
    next
        The block (n, p) that comes next: :meth:`step` takes its product with the operator.
    """

    def __init__(self, start: Tensor, most: int, error: float, partition: Whole | None = None) -> None:
        self.width = start.shape[1]
        self.error = error
        self.partition = Whole(len(start)) if partition is None else partition
        self.vectors = start.new_empty(min(most, self.partition.size), len(start)).t()  # each vector in one piece
        self.size = 0
        self.steps = 0
        self._projection = start.new_zeros(self.vectors.shape[1], self.vectors.shape[1])
        self.next = self.partition.orthonormal(start)
        self._below = start.new_zeros(self.width, self.vectors.shape[1])

    @property
    def full(self) -> bool:
        """Whether another block would exceed the allocated vectors or the space itself."""
        return self.size + self.width > self.vectors.shape[1]

    def step(self, image: Tensor) -> None:
        """Append :attr:`next`, whose product with the operator is ``image``, and find the next block; no GPU is read.

        Orthogonalising twice leaves only rounding. Twice more after normalising mends blocks of deficient rank, whose
        missing directions Householder's QR fills with some others.
        """
        old, new = self.size, self.size + self.width
        self.vectors[:, old:new] = self.next
        self._projection[old:new, :old] = self._below[:, :old]
        basis, total = self.vectors[:, :new], self.partition.total
        coefficients = total(basis.t() @ image)
        before = self.partition.largest(image.abs().amax())
        image = torch.addmm(image, basis, coefficients, alpha=-1)
        correction = total(basis.t() @ image)
        image.addmm_(basis, correction, alpha=-1)
        torch.add(coefficients, correction, out=self._projection[:new, old:new])
        self.next = self.partition.orthonormal(self._or_random(image, before))
        for _ in range(2):
            rest = torch.addmm(self.next, basis, total(basis.t() @ self.next), alpha=-1)
            self.next = self.partition.orthonormal(rest)
        self._below[:, :old] = 0
        self._below[:, old:new] = total(self.next.t() @ image)
        self.size, self.steps = new, self.steps + 1

    def _or_random(self, image: Tensor, before: Tensor) -> Tensor:
        """Return a single remainder that is more than rounding, else a random vector: the space goes on from there.

        A unit vector in its place might lie in the basis. Householder's QR of several columns takes care of itself, and
        a GPU is not waited for.
        """
        if self.width > 1 or image.device.type != "cpu":
            return image
        if bool(self.partition.largest(image.abs().amax()) > self.partition.size * UNIT * before):
            return image
        return self.partition.random(1, -1 - self.steps, image)  # far from the seeds of starts

    def projection(self) -> Tensor:
        """Return ``V^T K V`` (size, size) of the basis V, symmetric, on the CPU: all that is read from a GPU.

        Both triangles come from products of their own, so that they tell whether the operator is symmetric.

        Raises
        ------
        ValueError
            It is not.
        """
        return self._symmetric(self._projection[: self.size, : self.size].cpu())

    def _symmetric(self, found: Tensor) -> Tensor:
        """Return a projection, read from a GPU, made symmetric."""
        gap, largest = float((found - found.t()).abs().amax()), float(found.abs().amax())
        if not gap <= ASYMMETRY * largest + 2 * self.error:
            raise ValueError(f"the operator is not symmetric: x^T (K y) and y^T (K x) differ by {gap:.1e}")
        return (found + found.t()) / 2

    def tridiagonal(self) -> tuple[Tensor, list[float], list[float]]:
        """Return the projection of a basis of width 1, its diagonal, and what is below it, the remainder's norm last.

        What else the projection holds is rounding of the products. A GPU is read once.
        """
        last = self._below[:, : self.size]
        whole = torch.cat([self._projection[: self.size, : self.size], last]).cpu()
        found = self._symmetric(whole[:-1])
        return found, found.diagonal().tolist(), [*found.diagonal(-1).abs().tolist(), abs(float(whole[-1, -1]))]

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Ritz values, descending, their coefficients (size, size), and the norms of ``K y - t y``."""
        values, vectors = torch.linalg.eigh(self.projection().to(self.vectors.device))
        values, vectors = values.flip(0), vectors.flip(1)
        return values, vectors, torch.linalg.vector_norm(self._below[:, : self.size] @ vectors, dim=0)

    def restart(self, coefficients: Tensor) -> None:
        """Replace the basis by ``basis @ coefficients`` (size, kept), orthonormal columns; the next block stays.

        Thick restart (Wu and Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000).
        """
        kept = coefficients.shape[1]
        self.vectors[:, :kept] = self.vectors[:, : self.size] @ coefficients
        found = self.projection().to(coefficients.device)
        projection, below = coefficients.t() @ found @ coefficients, self._below[:, : self.size]
        self._below[:, :kept] = below @ coefficients
        self._projection.zero_()
        self._projection[:kept, :kept] = projection
        self.size = kept


@dataclass(frozen=True)
class SpectralBounds:
    """An interval that holds a whole spectrum, except with a stated probability.

    Attributes
    ----------
    lower, upper
        The bounds.
    inner_lower, inner_upper
        Smallest and largest Ritz value: the spectrum reaches at least from one to the other, with certainty.
    failure
        Probability, over the random start, that a bound does not hold.
    steps
        Products taken.
    """

    lower: float
    upper: float
    inner_lower: float
    inner_upper: float
    failure: float
    steps: int


def relative_gap(size: int, steps: int, failure: float) -> float:
    """Return the e for which ``lambda_1 - ritz_1 <= e (lambda_1 - lambda_n)``, except with probability ``failure``.

    After m Lanczos steps from a start v uniform on the sphere; by symmetry it holds at the lower end as well.

    Take ``lambda_n = 0`` and ``lambda_1 = 1``, and a polynomial p of degree m - 1. Where ``ritz_1 < 1 - e``, the
    Rayleigh quotient of p(K) v is below ``1 - e``, so ``v_1^2 p(1)^2 e < sum_j v_j^2 p(x_j)^2 (1 - e - x_j)`` over the
    eigenvalues ``x_j < 1 - e``. With ``p(x) = T(y) / y``, ``y = sqrt((1 - e - x) / (1 - e))``, T the Chebyshev
    polynomial of degree 2 m - 1, the right side is at most ``(1 - e)(1 - v_1^2)``, and the left is
    ``v_1^2 (1 - e) sinh^2 s`` with ``s = (2 m - 1) atanh sqrt(e)``. Hence ``|v_1| < 1 / cosh s``, which has probability
    at most ``sqrt(2 n / pi) / cosh s``. For small e this is the bound of Kuczynski and Wozniakowski (SIAM J. Matrix
    Anal. Appl. 13(4), 1992, Theorem 4.2).
    """
    if steps >= size:
        return 0.0
    s = math.acosh(max(1.0, math.sqrt(2 * size / math.pi) / failure))
    return math.tanh(s / (2 * steps - 1)) ** 2


def shared(failure: float, number: int) -> float:
    """Return the probability of failure of one of any number of attempts, from 1 on: they add up to ``failure``."""
    return failure * 6 / (math.pi * number) ** 2


def least_square(failure: float) -> float:
    """Return q: the square of a normal number is less than q with probability at most ``failure``, as its density is at
    most ``1 / sqrt(2 pi)``."""
    return failure * failure * math.pi / 2


def least_weight(size: int, failure: float) -> float:
    """Return w: a vector uniform on the sphere of ``size`` dimensions has less than w of its square along a given
    direction with probability at most ``failure``, as the density of a coordinate is at most ``sqrt(n / (2 pi))``."""
    return least_square(failure) / size


def christoffel_bound(
    diagonal: Sequence[float], below: Sequence[float], weight: float, proportional: bool = False
) -> float:
    """Return a bound on the largest eigenvalue of an operator from m Lanczos steps, not below the largest Ritz value.

    Where the square of the start's component along its eigenvector is at least ``weight``, or ``weight`` times the
    eigenvalue: that is ``proportional``, and 0 is returned where no eigenvalue is above it. The orthonormal polynomials
    of the start's spectral measure follow from the tridiagonal matrix, ``b_k p_k = (x - a_k) p_(k-1) - b_(k-1)
    p_(k-2)``, and a measure has at most ``1 / sum_(k <= m) p_k(x)^2``, Christoffel's function, at any point x (Szego,
    Orthogonal Polynomials, section 3.4). So x is no eigenvalue of such a weight where this is less. Unlike
    :func:`relative_gap` it uses the Ritz values found, and is as good where the worst spectrum is met.

    Parameters
    ----------
    diagonal, below
        The tridiagonal matrix, m numbers each: the last of ``below`` is the norm of the remainder.
    weight, proportional
        See above.
    """
    m, width = len(diagonal), max(*map(abs, diagonal), *below)
    if not all(map(math.isfinite, (*diagonal, *below))) or width == 0:
        return 0.0 if width == 0 else math.inf
    diagonal, below = [a / width for a in diagonal], [b / width for b in below]
    matrix = np.diag(diagonal) + np.diag(below[: m - 1], -1) + np.diag(below[: m - 1], 1)
    largest = float(np.linalg.eigvalsh(matrix)[-1])

    def excluded(x: float) -> bool:
        least = weight * x * width if proportional else weight
        before, now, total = 0.0, 1.0, 1.0
        for k in range(m):
            if total * least >= 1 or below[k] <= 0:
                return True
            before, now = now, ((x - diagonal[k]) * now - (below[k - 1] * before if k else 0.0)) / below[k]
            total += now * now
        return total * least >= 1

    if proportional:
        largest = max(largest, 0.0)
    low, high = largest, largest + 1e-12
    while not excluded(high):
        low, high = high, largest + 2 * (high - largest)
        if high > 1e200:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if excluded(middle) else (middle, high)
    return high * width


def spectral_bounds(
    product: Product,
    like: Tensor,
    steps: int,
    failure: float,
    seed: int,
    error: float = 0.0,
    enough: Callable[[SpectralBounds], bool] | None = None,
    lowest: float | None = None,
    partition: Whole | None = None,
    batch: int = 4,
) -> SpectralBounds:
    """Return bounds of the spectrum of a symmetric operator by Lanczos from a random start.

    Parameters
    ----------
    product
        Applies the operator to (n, 1).
    like
        A vector (n,) of the operator's dtype and device.
    steps
        Products at most.
    failure
        Probability with which the bounds may fail, over the start that ``seed`` draws. The event that spoils them
        (a start almost orthogonal to an extreme eigenvector) is the same for any number of steps, so stopping when
        it suits costs nothing.
    error
        Bound on the error of a product with a unit vector; widens the bounds.
    enough
        Asked every ``batch`` steps whether to stop.
    lowest
        A lower bound of the spectrum that is known beforehand: the upper one is tighter then.
    partition
        Which rows of the vectors are held here; None: all.
    """
    partition = Whole(len(like)) if partition is None else partition
    n = partition.size
    basis = KrylovBasis(partition.random(1, seed, like), min(steps, n), error, partition)
    while True:
        for _ in range(batch):
            if not basis.full:
                basis.step(product(basis.next))
        projection, diagonal, below = basis.tridiagonal()
        values = torch.linalg.eigvalsh(projection)  # a problem too small for a GPU
        low, high = float(values[0]), float(values[-1])
        if lowest is None:
            e = relative_gap(n, basis.steps, failure / 2)
            # Each end is only as good as the width, which both bound.
            beyond = e * (high - low) / (1 - 2 * e) + error if e < 0.5 else math.inf
            lower, upper = low - beyond, high + beyond
            weight = least_weight(n, failure / 2)
            lower = max(lower, -christoffel_bound([-a for a in diagonal], below, weight) - error)
        else:
            e = relative_gap(n, basis.steps, failure)
            lower = lowest
            upper = (high + error - e * lowest) / (1 - e) if e < 1 else math.inf
            weight = least_weight(n, failure)
        upper = min(upper, christoffel_bound(diagonal, below, weight) + error)
        bounds = SpectralBounds(lower, upper, low + error, high - error, failure, basis.steps)
        if basis.full or (enough is not None and enough(bounds)):
            return bounds


def largest_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    rank_bound: int,
    rtol: float,
    budget: int,
    seed: int = 0,
    eigenvectors: bool = False,
    progress: bool | None = None,
) -> Spectrum:
    """Return the k largest eigenvalues of a positive semidefinite operator, with their error, and their eigenvectors.

    Block Lanczos with thick restarts, until the residuals of k pairs and of some more are below ``rtol lambda_1``. A
    second run on the operator without these pairs, from another start, certifies that none was missed.

    Parameters
    ----------
    operator
        Symmetric positive semidefinite, fp64.
    k
        Number of eigenvalues.
    rank_bound, rtol
        As in :class:`Spectrum`; ``rtol`` is also the accuracy.
    budget
        Bytes for the basis; more of them save products.
    seed
        Of the starts.
    eigenvectors
        Whether to return them; they are computed anyway.
    progress
        Whether to show a bar of converged pairs; None: on a terminal and in a notebook.

    Raises
    ------
    MemoryBudgetError
        The budget is too small for a basis.
    ResolutionError
        No convergence after :data:`RESTARTS` restarts.
    ValueError
        The operator is not symmetric, or not positive semidefinite.
    """
    n = operator.shape[0]
    wanted = min(n, k + max(EXTRA, k // 4))
    width = min(BLOCK, n)
    rounding = product_error(operator)
    least = min(n, wanted + 4 * width)
    # The basis itself, and the part of it that a restart makes anew; at the end the pairs with a basis for their bound.
    beside = TEMPORARIES * width
    needed = 8 * n * max(2 * least + beside, wanted + STEPS + TEMPORARIES + 2)
    require(needed, budget, f"a Krylov basis of {least} vectors of order {n}", "raise memory_budget")
    room = min(n, 3 * wanted + 4 * width, (budget // (8 * n) - beside) // 2)
    if room > n - width:  # the block after the last one would find no direction left
        require(WHOLE * 8 * n * n, budget, f"the whole matrix of order {n}", "raise memory_budget")
        return _whole_space(operator, k, rank_bound, rtol, eigenvectors)
    partition, diagonal = operator.partition, operator.diagonal()
    start = partition.random(width, seed, diagonal)
    basis = KrylovBasis(start, room - room % width, rounding, partition)
    with progress_bar(total=wanted, desc="eigenpairs", progress=progress, leave=False) as bar:
        for _ in range(RESTARTS):
            while not basis.full:
                basis.step(operator @ basis.next)
            values, coefficients, residuals = basis.ritz()
            tolerance = max(rtol * float(values[0]), rounding)
            good = (residuals[:wanted] <= tolerance).cpu()
            converged = wanted if bool(good.all()) else int(good.to(torch.uint8).argmin())
            bar.update(converged - bar.n)
            if converged == wanted:
                break
            keep = wanted + (basis.size - wanted) // 2
            basis.restart(coefficients[:, : keep - keep % width])
        else:
            raise ResolutionError(
                f"{converged} of {wanted} eigenpairs converged to rtol={rtol:g} in {RESTARTS} restarts of a basis of "
                f"{room} vectors; raise rtol or memory_budget, or ask for fewer"
            )
    values, vectors = values[:wanted], basis.vectors[:, : basis.size] @ coefficients[:, :wanted]
    error = float(torch.linalg.vector_norm(residuals[:wanted])) + rounding
    del basis  # before the one for the bound is allocated

    def deflated(v: Tensor) -> Tensor:
        return operator @ v - vectors @ (values.unsqueeze(1) * partition.total(vectors.t() @ v))

    left = spectral_bounds(deflated, diagonal, STEPS, FAILURE, seed + 1, rounding, partition=partition)
    check_semidefinite(min(left.inner_lower, float(values[-1])), error + NEGLIGIBLE * float(values[0]))
    rest = max(left.upper, 0.0)  # in this order NaN stays
    k = min(k, wanted)
    upper = error + max(rest - float(values[k - 1]), 0.0)
    lower = rounding + n * UNIT * float(values[0])
    beyond = max(rest, float(values[k]) if k < wanted else 0.0) + error
    return Spectrum(
        values[:k],
        vectors[:, :k] if eigenvectors else None,
        lower,
        upper + lower,
        n,
        float(partition.total(diagonal.sum())),
        rank_bound,
        rtol,
        "lanczos",
        beyond=beyond,
    )


def _whole_space(operator: SymmetricOperator, k: int, rank_bound: int, rtol: float, eigenvectors: bool) -> Spectrum:
    """Return the k largest eigenvalues of the dense matrix, where the basis would span the whole space."""
    n = operator.shape[0]
    partition = operator.partition
    matrix = operator @ partition.mine(torch.eye(n, dtype=torch.float64, device=operator.device))
    matrix = partition.gather(matrix)
    check_symmetric(matrix, partition.gather(operator.diagonal()))
    matrix = (matrix + matrix.t()) / 2
    found = dense_spectrum(matrix, operator.matrix_error, rtol, rank_bound, eigenvectors=eigenvectors)
    check_semidefinite(float(found.eigenvalues[-1]), found.lower_error + NEGLIGIBLE * float(found.eigenvalues[0]))
    found = found.truncated(k)
    if found.eigenvectors is not None:
        found = replace(found, eigenvectors=partition.mine(found.eigenvectors))
    return replace(found, method="lanczos")
