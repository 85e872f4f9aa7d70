"""A factorisation of ``K - shift I`` as users have it: its inertia, how far it is off, solutions, log-determinant."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.errors import MemoryBudgetError, ResolutionError, check_block, check_choice, check_float, check_seed, warn
from inrfast.linalg.block_ldl import BlockLDL, block_ldl, bytes_needed
from inrfast.linalg.inertia import decide, residual_bound
from inrfast.linalg.norm_bounds import NormBound, norm_bound
from inrfast.linalg.operators import UNIT, ProductErrors, SymmetricOperator, product_errors
from inrfast.linalg.refinement import CYCLE, SCRATCH, refined
from inrfast.linalg.scales import powers, scaled_back
from inrfast.linalg.spectrum import CertifiedCount, kernel_error
from inrfast.linalg.stored_ldl import stored_bytes, stored_ldl
from inrfast.memory import chunks, format_bytes, over_budget, require
from inrfast.modes import methods_in_own_modes, own_modes

PRECISIONS = {"highest": torch.float64, "high": torch.float32}
"""The dtype of a factor's entries by precision."""

FAILURE = 1e-6
"""Probability, over random vectors, with which one of the statements on a factorisation may not hold."""

EVENTS = 5
"""Random events that one statement rests on at most; each has an even share of the probability."""

STEPS = 200
"""Largest number of products with K in a solution."""

LEAST_CYCLE = 4
"""Steps of GMRES between starts that must fit the budget."""

PROBES, PROBES_AT_ONCE = 64, 16
"""Random vectors for the trace of ``M^-1 (K - shift I - M)``, and how many are taken together."""

LOST = 1e-3
"""Relative change of a solution under the rounding of K's entries from which on a warning says so."""


@methods_in_own_modes
class Factorization:
    """``M = G D G^T`` near ``K - shift I``, with D diagonal; made by ``K.factor(shift)``.

    M has exactly ``positive`` positive and ``negative`` negative eigenvalues (Sylvester's law of inertia). How far it
    is from ``K - shift I`` is measured when it is first asked for. A factorisation is a function, ``F(V) = M^-1 V``:
    where M is positive definite, a preconditioner for ``K.solve(y, ridge, preconditioner=F)``.

    It can be pickled if its kernel can and it is not in a file; the factor goes along, ``nbytes`` of it.

    Attributes
    ----------
    shift
        In the units of K.
    precision
        Of the factor's entries: ``"highest"`` fp64, ``"high"`` fp32.
    shape
        (n, n).
    device
        Where right-hand sides lie.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        ldl: BlockLDL,
        precision: str,
        budget: int,
        seed: int,
        progress: bool | None,
        stored: bool = False,
    ) -> None:
        self._operator, self._ldl, self._budget, self._seed, self._progress = operator, ldl, budget, seed, progress
        self._stored = stored
        self.shift, self.precision, self.shape, self.device = ldl.shift, precision, operator.shape, operator.device

    # ---- what was computed -------------------------------------------------------------------------------------

    @property
    def positive(self) -> int:
        """Number of positive eigenvalues of M, exact."""
        return self._ldl.positive

    @property
    def negative(self) -> int:
        """Number of negative eigenvalues of M, exact; if odd the determinant of M is negative."""
        return self._ldl.negative

    @property
    def nbytes(self) -> int:
        """Bytes of the factor."""
        return self._ldl.nbytes

    @property
    def whole(self) -> bool:
        """Whether all rows are in this process."""
        return self._operator.partition.whole

    # ---- how far it is off -------------------------------------------------------------------------------------

    @property
    def residual(self) -> float:
        """Bound on the spectral norm of ``K - shift I - M``, except with probability :attr:`failure`.

        K is the kernel of its fp64 factors in exact arithmetic: the rounding of the products that measured it is in
        the bound. Measured by some products with K at the first use.
        """
        return self._residual.upper

    @property
    def failure(self) -> float:
        """Probability, over random vectors, with which one of :attr:`residual`, ``count`` and ``logdet`` is wrong."""
        return FAILURE

    def count(self) -> CertifiedCount:
        """Return how many eigenvalues of K exceed the shift, as an interval that contains it.

        Proven from this factorisation alone (:mod:`inrfast.linalg.inertia`), of the exact network: the rounding of its
        factors moves the levels that are counted at.
        """
        operator, shift, n = self._operator, self.shift, self.shape[0]
        error, root = operator.jacobian_error, math.sqrt(max(shift, 0.0))
        low = high = shift
        if error > 0 and shift >= 0:  # J J^T of an exact J: the roots of its eigenvalues are within the error
            low, high = max(root - error, 0.0) ** 2, (root + error) ** 2 * (1 + 8 * UNIT)
        found = decide(operator, self._ldl, low, high, FAILURE, self._seed, self._errors)
        upper = n if error > root and shift >= 0 else found.upper
        return CertifiedCount(shift, shift, found.lower, upper, self.precision, found.residual, FAILURE)

    @cached_property
    def _errors(self) -> ProductErrors:
        """How far products with K are off."""
        with own_modes():
            return product_errors(self._operator, FAILURE / EVENTS, self._seed)

    @cached_property
    def _residual(self) -> NormBound:
        with own_modes():
            return residual_bound(self._operator, self._ldl, self._errors, FAILURE / EVENTS, self._seed_of(1))

    @cached_property
    def _least(self) -> float:
        """Lower bound on the size of M's eigenvalues, except with the probability of one event; 0: none is known."""
        operator, rounding = self._operator, self._ldl.rounding()
        with own_modes():
            inverse = norm_bound(
                self._ldl.inverse,
                operator.diagonal(),
                operator.partition,
                FAILURE / EVENTS,
                self._seed_of(2),
                lambda before, after: (0 * before, rounding * after),
                enough=lambda bound: bound.upper <= 2 * bound.lower,
            )
        return 1 / inverse.upper if inverse.upper > 0 else math.inf

    def _seed_of(self, event: int) -> int:
        return (self._seed + event * 2654435761) % 2**32

    def _product(self, V: Tensor) -> Tensor:
        """Return ``(K - shift I) V``."""
        return self._operator @ V - self.shift * V

    def rows_of_inverse(self, V: Tensor) -> Tensor:
        """Return this process's rows of ``M^-1 V`` for its rows of V (n, c), fp64, unchecked."""
        return self._ldl.inverse(V)

    # ---- what it is for ----------------------------------------------------------------------------------------

    def __call__(self, V: Tensor) -> Tensor:
        """Return ``M^-1 V`` for V (n,) or (n, c), in fp64."""
        partition = self._operator.partition
        block = check_block("V", V, self.shape[0], self.device).to(torch.float64)
        return partition.gather(self._ldl.inverse(partition.mine(block))).reshape(V.shape)

    def solve(self, b: Tensor, tol: float = 1e-6, progress: bool | None = None) -> Tensor:
        """Return x with ``(K - shift I) x = b`` in fp64.

        ``M^-1 b`` is refined with residuals from products with K itself, which is not the factored matrix: by iterative
        refinement and, where that stagnates, by GMRES (:mod:`inrfast.linalg.refinement`).

        Parameters
        ----------
        b
            Right-hand sides (n,) or (n, c), any floating dtype.
        tol
            Relative residual ``|b - (K - shift I) x| / |b|``, in fp64, that every column of the result has at most.
        progress
            Whether to show a bar; None: as given to ``factor``.

        Raises
        ------
        ResolutionError
            The residual stays above ``tol``: the shift is an eigenvalue to the accuracy of the factor.
        MemoryBudgetError
            The vectors of one right-hand side do not fit the budget beside the factor.
        RangeError
            The solution has numbers beyond fp64.
        ValueError, TypeError
            Bad arguments.

        Warns
        -----
        RuntimeWarning
            The residual is as small as wanted, and so near singular is ``K - shift I`` that the solution would be
            another one for entries of K rounded otherwise.
        """
        tol = check_float("tol", tol, minimum=0.0, exclusive=True)
        x, residuals = self.refined(b, tol, progress)
        worst = float(residuals.amax())
        if not worst <= tol:
            raise ResolutionError(
                f"the relative residual {worst:.1e} stays above tol={tol:g}: {self.told()}; take {self._better()}"
            )
        return x

    def refined(self, b: Tensor, tol: float, progress: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return what :meth:`solve` found, however good it is, and the relative residuals of its columns (c,)."""
        right = check_block("b", b, self.shape[0], self.device).to(torch.float64)
        partition = self._operator.partition
        factors = powers(right)
        own, cycle, columns = partition.mine(right / factors), *self._room(right)
        hidden = None if (shown := self._progress if progress is None else progress) is None else not shown
        found, residuals = torch.empty_like(own), []
        with tqdm(desc="refinement", disable=hidden, leave=False) as bar:
            for part in chunks(own.shape[1], columns):
                found[:, part], reached = refined(
                    self._product, own[:, part], self._ldl.inverse, tol, STEPS, bar, partition, cycle
                )
                residuals.append(reached)
        reached = torch.cat(residuals)
        if float(reached.amax()) <= tol:
            self._warn_of_rounding(partition.norm(found) / partition.norm(own))
        x = scaled_back(partition.gather(found), factors, "give a smaller b or another shift")
        return x.reshape(b.shape), reached

    def _room(self, right: Tensor) -> tuple[int, int]:
        """Return the steps of GMRES between starts, and the columns at a time, that the budget allows."""
        n, left = self.shape[0], self._budget - 3 * right.nbytes
        vectors = max(min(CYCLE, n), LEAST_CYCLE)
        while vectors > LEAST_CYCLE and 8 * n * (vectors + SCRATCH) > left:
            vectors //= 2
        one = 8 * n * (vectors + SCRATCH)
        held = 0 if self._stored else self.nbytes
        what = f"a solution of order {n}" if self._stored else f"a solution of order {n}, with its factor,"
        require(held + 3 * right.nbytes + one, held + self._budget, what, "raise memory_budget")
        return vectors, max(left // one, 1)

    def _warn_of_rounding(self, growth: Tensor) -> None:
        """Warn of solutions, so many times as large as the right-hand sides, that rounding of K would change."""
        operator = self._operator
        trace = float(operator.partition.total(operator.diagonal().abs().sum()))  # at least the norm of a kernel
        change = UNIT * trace * float(growth.nan_to_num(0.0).amax())
        if change > LOST:
            warn(
                f"{self._name} is nearly singular: rounding the entries of K to fp64 changes this solution by "
                f"{min(change, 1.0):.0e} of its size, though its residual is small"
            )

    def told(self) -> str:
        """Return how near to singular ``K - shift I`` may be, in words."""
        near = f"eigenvalues of at least {self._least:.1e} in size" if self._least > 0 else "eigenvalues near zero"
        return f"{self._name} is within {self.residual:.1e} of a factor with {near}"

    @property
    def _name(self) -> str:
        """What was factored, for messages."""
        return f"K + {-self.shift:g} I" if self.shift < 0 else f"K - {self.shift:g} I"

    def _better(self) -> str:
        """Return what to do about a shift that is too near to an eigenvalue."""
        other = "a larger noise" if self.shift < 0 else "another shift"
        return other if self.precision == "highest" else f'precision="highest" or {other}'

    # ---- log-determinant ---------------------------------------------------------------------------------------

    def logdet(self, tol: float = 1e-2) -> float:
        r"""Return ``log |det(K - shift I)|`` with an error of at most ``tol``, except with probability 1e-6.

        M has the determinant of D, up to the orthogonality of the bases, which is measured. With
        ``X = M^-1 (K - shift I - M)`` of spectral norm at most ``c = residual |M^-1| < 1`` the rest is
        ``log |det(I + X)|``, of size ``-n log(1 - c)`` at most. Where that is too much, ``tr X`` is estimated from
        random vectors and added: its error follows from ``|X|_F`` (Laurent and Massart, Annals of Statistics 28(5),
        2000, Lemma 1), what the trace leaves is at most ``(-log(1 - c) - c) / c^2 |X|_F^2`` (Weyl's inequality between
        eigenvalues and singular values), and ``|X|_F`` itself is bounded from the same kind of vectors.

        The sign of the determinant is ``(-1)^negative``; the bound proves that.

        Parameters
        ----------
        tol
            Accuracy, absolute, as one needs it of a log-likelihood.

        Raises
        ------
        ResolutionError
            The bound is larger, or nothing is known; the message says how large.

        Examples
        --------
        The log evidence of a Gaussian process whose covariance is the kernel with noise on the diagonal:

        >>> import math, torch, inrfast as inr
        >>> K, noise = inr.ntk(inr.INR(2, 1, width=16), inr.grid((8, 8))), 0.1
        >>> y = torch.linspace(-1, 1, 64, dtype=torch.float64)
        >>> F = K.factor(-noise)
        >>> evidence = -0.5 * y @ F.solve(y) - 0.5 * F.logdet() - 32 * math.log(2 * math.pi)
        >>> covariance = K.at_precision("highest").to_dense() + noise * torch.eye(64, dtype=torch.float64)
        >>> exact = torch.distributions.MultivariateNormal(torch.zeros(64, dtype=torch.float64), covariance).log_prob(y)
        >>> bool((evidence - exact).abs() < 1e-2)
        True
        """
        tol = check_float("tol", tol, minimum=0.0, exclusive=True)
        logs = self._ldl.pivots.abs().log()
        n, value = self.shape[0], float(logs.sum())
        own = self._defect + n * UNIT * float(logs.abs().sum())
        share = (self.residual + self._jacobian_part) / self._least if self._least > 0 else math.inf
        error = own - n * math.log1p(-share) if share < 1 else math.inf
        if error > tol and share < 1:
            trace, rest = self._trace_of_gap(share)
            if own + rest < error:
                value, error = value + trace, own + rest
        if not error <= tol:
            known = "nothing is known of its error" if math.isinf(error) else f"its error may be {error:.1e}"
            raise ResolutionError(
                f"log |det({self._name})| is about {value:.6g} and {known}, above tol={tol:g}: {self.told()}; "
                f"take {self._better()}, or a larger tol"
            )
        return value

    @cached_property
    def _defect(self) -> float:
        """Bound on ``|log |det M| - log |det D||``: a basis Q adds ``|log det Q^T Q| <= order |Q^T Q - I|``, about."""
        return sum(1.01 * len(step.basis) * step.defect for step in self._ldl.steps)

    @cached_property
    def _jacobian_part(self) -> float:
        """Bound on the distance of K from the kernel of the exact network."""
        return kernel_error(self._operator.jacobian_error, self._errors.norm)

    def _trace_of_gap(self, share: float) -> tuple[float, float]:
        """Return the estimated trace of ``X`` and a bound on ``|log |det(I + X)| - trace|``, for ``|X| <= share``."""
        partition = self._operator.partition
        errors, rounding = self._errors, self._ldl.rounding()
        own = errors.matrix + errors.sums + rounding + 4 * UNIT * (errors.norm + abs(self.shift))
        off = (own + self._jacobian_part) / self._least  # of X v, for a unit vector v
        if off >= 1:
            return 0.0, math.inf
        like, probability = self._operator.diagonal(), FAILURE / EVENTS
        found = mass = inner = mixed = 0.0
        for number in range(PROBES // PROBES_AT_ONCE):
            probes = partition.random(PROBES_AT_ONCE, self._seed_of(3 + number), like)
            image = self._ldl.inverse(self._product(probes) - self._ldl.product(probes))
            sizes, lengths = partition.norm(image), partition.norm(probes)
            found += float(partition.total((probes * image).sum(0)).sum())
            inner += float(sizes.square().sum())
            mass += float(lengths.square().sum())
            mixed += float((sizes * lengths).sum())
        more = off / (1 - off)  # of the inverse, relative
        frobenius = (math.sqrt(inner) * (1 + more) + off * math.sqrt(mass)) / math.sqrt(PROBES * _low(probability))
        x = math.log(2 / probability)
        sampling = 2 * frobenius * math.sqrt(x / PROBES) + 2 * share * x / PROBES
        rest = (-math.log1p(-share) - share) / share**2 if share > 1e-4 else 0.5 + share
        return found / PROBES, (off * mass + more * mixed) / PROBES + sampling + rest * frobenius**2

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._stored:
            raise TypeError(
                "cannot pickle a factorisation that is in a file or an array, nor copy it: call K.factor(shift, "
                "out=path) where it is needed, which reads the file"
            )
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        measured = "_residual" in vars(self)
        residual = f"{self.residual:.2e}" if measured else "not measured yet"
        return (
            f"{type(self).__name__}(shape={self.shape}, shift={self.shift:g}, precision={self.precision!r}, "
            f"positive={self.positive}, negative={self.negative}, residual={residual}, {format_bytes(self.nbytes)})"
        )


def factorize(
    operator: SymmetricOperator,
    shift: float,
    precision: str,
    budget: int,
    seed: int = 0,
    progress: bool | None = None,
    out: str | os.PathLike[str] | np.ndarray | None = None,
) -> Factorization:
    """Return a factorisation of ``K - shift I``, with arguments as in ``TangentKernel.factor``."""
    shift = check_float("shift", shift) + 0.0  # -0.0 is 0
    check_choice("precision", precision, PRECISIONS)
    seed = check_seed("seed", seed)
    dtype = PRECISIONS[precision]
    if out is None:
        with _file_told(operator, shift, dtype, budget):
            ldl = block_ldl(operator, shift, dtype, budget=budget, progress=progress)
        return Factorization(operator, ldl, precision, budget - ldl.nbytes, seed, progress)
    ldl = stored_ldl(operator, shift, dtype, out, budget=budget, progress=progress)
    return Factorization(operator, ldl, precision, budget, seed, progress, stored=True)


@contextmanager
def _file_told(operator: SymmetricOperator, shift: float, dtype: torch.dtype, budget: int) -> Iterator[None]:
    """Say in the error of a factor beyond the budget that a file can hold it, where that is so."""
    try:
        yield
    except MemoryBudgetError as error:
        if error.needed is None or operator.device.type != "cpu" or not operator.partition.whole:
            raise
        try:
            disk, memory = stored_bytes(operator, shift, dtype)
        except MemoryBudgetError:  # what tells the kernel from others does not fit either
            raise error from None
        sizes = f"{format_bytes(disk)} of a disk and {format_bytes(memory)} of memory"
        instead = f"{error.instead}; or K.factor({shift:g}, out=path) keeps it in a file, with {sizes}"
        raise over_budget(error.needed, budget, error.what, instead) from None


def bytes_of_factor(operator: SymmetricOperator, precision: str) -> int:
    """Return how many bytes :func:`factorize` needs, of all processes together."""
    processes = operator.partition.processes
    return bytes_needed(operator.shape[0], PRECISIONS[precision], operator.device, processes=processes)


def _low(probability: float) -> float:
    """Return z with ``P(sum_j |X w_j|^2 < z k |X|_F^2) <= probability`` for k Gaussian vectors and any X.

    By Chernoff, ``P <= (z exp(1 - z))^(k / 2)``: the moment generating function is largest for X of rank one.
    """
    wanted = math.log(probability) * 2 / PROBES
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle == 0 or math.log(middle) + 1 - middle < wanted else (low, middle)
    return low
