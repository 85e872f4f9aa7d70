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

from inrfast.arrays import Array, as_tensor, like
from inrfast.errors import (
    MemoryBudgetError,
    ResolutionError,
    check_block,
    check_choice,
    check_flag,
    check_float,
    check_seed,
    warn,
)
from inrfast.linalg.block_ldl import BlockLDL, block_ldl, bytes_needed
from inrfast.linalg.certificates import CertifiedCount, kernel_error
from inrfast.linalg.inertia import decide, residual_bound
from inrfast.linalg.norm_bounds import NormBound, norm_bound
from inrfast.linalg.operators import UNIT, ProductErrors, SymmetricOperator, product_errors, shifted_name
from inrfast.linalg.refinement import CYCLE, SCRATCH, refined
from inrfast.linalg.scales import powers, scaled_back
from inrfast.linalg.stored_ldl import stored_bytes, stored_ldl
from inrfast.linalg.written import PRODUCTS, WrittenOperator, written, written_bytes
from inrfast.memory import chunks, format_bytes, over_budget, require
from inrfast.modes import methods_in_own_modes, own_modes
from inrfast.progress import progress_bar
from inrfast.records import plain

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

WRITTEN = 0.25
"""Share of the budget that the entries of K may take beside the factor."""

LOST = 1e-6
"""Relative change of a solution under the rounding of K's entries from which on, if it is above the tolerance as well,
a warning says so."""

LARGEST_SHIFT = 1e140
"""Squares of vectors that a larger one is multiplied with overflow."""


@methods_in_own_modes
class Factorization:
    """``M = G D G^T`` near ``K - shift I``, with D diagonal; made by ``K.factor(shift)``.

    M has exactly ``positive`` positive and ``negative`` negative eigenvalues (Sylvester's law of inertia). How far it
    is from ``K - shift I`` is measured when it is first asked for. A factorisation is a function, ``F(V) = M^-1 V``:
    where M is positive definite, a preconditioner for ``K.solve(y, ridge, preconditioner=F)``.

    It can be pickled if its kernel can and it is not in a file; ``nbytes`` go along.

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
        """Bytes of the factor, and of the entries of K where they are kept beside it."""
        return self._ldl.nbytes + self._kept

    @property
    def _kept(self) -> int:
        """Bytes of the entries of K."""
        return self._operator.nbytes if isinstance(self._operator, WrittenOperator) else 0

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

    def to_dict(self) -> dict[str, Any]:
        """Return what is known of it as plain values, for JSON, without the factor itself."""
        names = ("shift", "precision", "positive", "negative", "residual", "failure", "nbytes")
        return {"order": self.shape[0], **{name: plain(getattr(self, name)) for name in names}}

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
        return 1 / inverse.upper if inverse.upper > 0 else 0.0

    def _seed_of(self, event: int) -> int:
        return (self._seed + event * 2654435761) % 2**32

    def _product(self, V: Tensor) -> Tensor:
        """Return ``(K - shift I) V``."""
        return self._operator @ V - self.shift * V

    def rows_of_inverse(self, V: Tensor) -> Tensor:
        """Return this process's rows of ``M^-1 V`` for its rows of V (n, c), fp64, unchecked."""
        return self._ldl.inverse(V)

    # ---- what it is for ----------------------------------------------------------------------------------------

    def __call__(self, V: Array) -> Array:
        """Return ``M^-1 V`` for V (n,) or (n, c), in fp64; a RangeError where numbers would be beyond fp64.

        Of a NumPy array it is one as well.
        """
        partition = self._operator.partition
        given = as_tensor("V", V, self.device)
        block = check_block("V", given, self.shape[0], self.device).to(torch.float64)
        factors = powers(block)
        found = partition.gather(self._ldl.inverse(partition.mine(block / factors)))
        return like(V, scaled_back(found, factors, "give a smaller V or another shift").reshape(given.shape))

    def solve(self, b: Array, tol: float = 1e-6, progress: bool | None = None) -> Array:
        """Return x with ``(K - shift I) x = b`` in fp64.

        ``M^-1 b`` is refined with residuals from products with K itself, which is not the factored matrix: by iterative
        refinement and, where that stagnates, by GMRES (:mod:`inrfast.linalg.refinement`).

        Parameters
        ----------
        b
            Right-hand sides (n,) or (n, c), any floating dtype. Of a NumPy array the solution is one as well.
        tol
            Relative residual ``|b - (K - shift I) x| / |b|``, as fp64 computes it, that every column of the result has
            at most. Half of it is aimed at.
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
            The residual is as small as wanted, and so near singular is ``K - shift I`` that rounding of K's entries
            changes the solution by more than ``tol`` and 1e-6.
        """
        tol = check_float("tol", tol, minimum=0.0, exclusive=True)
        given = as_tensor("b", b, self.device)
        x, residuals = self.refined(given, tol, progress)
        worst = float(residuals.amax())
        if not worst <= tol:
            right = given.detach().to(torch.float64).reshape(len(given), -1)
            factors = powers(right)
            floor = self._change(x.reshape(right.shape) / factors, right / factors)
            resolved = f", and rounding in fp64 alone may leave {floor:.0e}: take a larger tol or "
            told = resolved if tol < floor else f": {self.told()}; take "
            raise ResolutionError(f"the relative residual {worst:.1e} stays above tol={tol:g}{told}{self._better()}")
        return like(b, x)

    def refined(self, b: Tensor, tol: float, progress: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return what :meth:`solve` found, however good it is, and the relative residuals of its columns (c,)."""
        progress = self._progress if progress is None else check_flag("progress", progress)
        right = check_block("b", b, self.shape[0], self.device).to(torch.float64)
        partition = self._operator.partition
        factors = powers(right)
        own, cycle, columns = partition.mine(right / factors), *self._room(right)
        found, residuals = torch.empty_like(own), []
        with progress_bar(desc="refinement", progress=progress, leave=False) as bar:
            for part in chunks(own.shape[1], columns):
                found[:, part], reached = refined(
                    self._product, own[:, part], self._ldl.inverse, tol / 2, STEPS, bar, partition, cycle
                )
                residuals.append(reached)
        reached = torch.cat(residuals)
        if float(reached.amax()) <= tol:
            self._warn_of_rounding(found, own, tol)
        x = scaled_back(partition.gather(found), factors, "give a smaller b or another shift")
        return x.reshape(b.shape), reached

    def _room(self, right: Tensor) -> tuple[int, int]:
        """Return the steps of GMRES between starts, and the columns at a time, that the budget allows."""
        n, left = self.shape[0], self._budget - self._kept - 3 * right.nbytes
        if isinstance(self._operator, WrittenOperator) and left < 8 * n * (LEAST_CYCLE + SCRATCH):
            self._operator, left = self._operator.operator, left + self._kept  # products are slower without
        vectors = max(min(CYCLE, n), LEAST_CYCLE)
        while vectors > LEAST_CYCLE and 8 * n * (vectors + SCRATCH) > left:
            vectors //= 2
        one = 8 * n * (vectors + SCRATCH)
        held = 0 if self._stored else self.nbytes
        what = f"a solution of order {n}" if self._stored else f"a solution of order {n}, with its factor,"
        require(held + 3 * right.nbytes + one, held + self._budget, what, "raise memory_budget")
        return vectors, max(left // one, 1)

    def _change(self, x: Tensor, right: Tensor) -> float:
        """Return by how much rounding of K's entries may change solutions (rows here), relative to the largest one.

        It is also what rounding may leave of the residuals, relative to the right-hand sides.
        """
        operator, partition = self._operator, self._operator.partition
        trace = float(partition.total(operator.diagonal().abs().sum()))  # at least the norm of a kernel
        growth = partition.norm(x) / partition.norm(right)
        return UNIT * (trace + abs(self.shift)) * float(growth.nan_to_num(0.0).amax())

    def _warn_of_rounding(self, x: Tensor, right: Tensor, tol: float) -> None:
        """Warn of solutions that rounding of K would change."""
        change = self._change(x, right)
        if change > max(tol, LOST):
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
        return shifted_name(self.shift)

    def _better(self) -> str:
        """Return what to do about a shift that is too near to an eigenvalue."""
        other = "a larger noise" if self.shift < 0 else "another shift"
        return other if self.precision == "highest" else f'precision="highest" or {other}'

    # ---- log-determinant ---------------------------------------------------------------------------------------

    def logdet(self, tol: float = 1e-2) -> float:
        r"""Return ``log |det(K - shift I)|`` with an error of at most ``tol``, except with probability 1e-6.

        K is that of the exact network. M has the determinant of D, up to the orthogonality of the bases, which is
        measured. With ``X = M^-1 (K - shift I - M)`` of spectral norm at most ``c = residual |M^-1| < 1`` the rest is
        ``log |det(I + X)|``, of size ``-n log(1 - c)`` at most. Where that is too much, ``tr X`` is estimated from
        random vectors and added: its error follows from ``|X|_F`` (Laurent and Massart, Annals of Statistics 28(5),
        2000, Lemma 1), what the trace leaves is at most ``(-log(1 - c) - c) / c^2 |X|_F^2`` (Weyl's inequality between
        eigenvalues and singular values), and ``|X|_F`` itself is bounded from the same kind of vectors. Products that
        are off by e, each of length one, change the estimate for a vector w by at most ``e |w| |M^-1 w|``.

        The factors of the network, ``K = J J^T``, are rounded as well: singular values s of J move by ``|dJ|`` at most,
        and ``log(s^2 + noise)`` by ``|dJ| / sqrt(noise)``, as ``2 s / (s^2 + noise) <= 1 / sqrt(noise)``. With a shift
        above zero their error counts in c.

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
        inside = self._jacobian_part
        if self.shift < 0:
            own, inside = own + n * self._operator.jacobian_error / math.sqrt(-self.shift), 0.0
        share = (self.residual + inside) / self._least if self._least > 0 else math.inf
        error = own - n * math.log1p(-share) if share < 1 else math.inf
        if error > tol and share < 1:
            trace, rest = self._trace_of_gap(share, inside)
            if own + rest < error:
                value, error = value + trace, own + rest
        if not error <= tol:
            known, instead = "nothing is known of its error", ""
            if math.isfinite(error):
                known, instead = f"its error may be {error:.1e}", f", or tol={float(f'{1.05 * error:.1e}'):g}"
            raise ResolutionError(
                f"log |det({self._name})| is about {value:.6g} and {known}, above tol={tol:g}: {self.told()}; "
                f"take {self._better()}{instead}"
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

    def _trace_of_gap(self, share: float, inside: float) -> tuple[float, float]:
        """Return the estimated trace of ``X`` and a bound on ``|log |det(I + X)| - trace|``, for ``|X| <= share``.

        ``inside`` is the distance of the exact K from the kernel, where it counts in X.
        """
        partition = self._operator.partition
        errors, rounding = self._errors, self._ldl.rounding()
        own = errors.matrix + errors.sums + rounding + 4 * UNIT * (errors.norm + abs(self.shift)) + inside
        off, turned = own / self._least, rounding / self._least  # of X v and of an inverse, for a unit vector v
        if off >= 1:
            return 0.0, math.inf
        like, probability = self._operator.diagonal(), FAILURE / EVENTS
        found = mass = inner = mixed = around = 0.0
        for number in range(PROBES // PROBES_AT_ONCE):
            probes = partition.random(PROBES_AT_ONCE, self._seed_of(3 + number), like)
            image = self._ldl.inverse(self._product(probes) - self._ldl.product(probes))
            sizes, lengths = partition.norm(image), partition.norm(probes)
            found += float(partition.total((probes * image).sum(0)).sum())
            inner += float(sizes.square().sum())
            mass += float(lengths.square().sum())
            mixed += float((sizes * lengths).sum())
            around += float((partition.norm(self._ldl.inverse(probes)) * lengths).sum())
        frobenius = (math.sqrt(inner) * (1 + turned) + off * math.sqrt(mass)) / math.sqrt(PROBES * _low(probability))
        x = math.log(2 / probability)
        sampling = 2 * frobenius * math.sqrt(x / PROBES) + 2 * share * x / PROBES
        rest = (-math.log1p(-share) - share) / share**2 if share > 1e-4 else 0.5 + share
        estimate = own * min((1 + turned) * around, mass / self._least) + turned * mixed
        return found / PROBES, estimate / PROBES + sampling + rest * frobenius**2

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
    products: float = PRODUCTS,
) -> Factorization:
    """Return a factorisation of ``K - shift I``, with arguments as in ``TangentKernel.factor``.

    ``products`` with one vector are expected of it: K's entries are kept where that is cheaper.
    """
    shift = check_float("shift", shift) + 0.0  # -0.0 is 0
    if abs(shift) > LARGEST_SHIFT:
        raise ValueError(f"shift must be at most {LARGEST_SHIFT:g} in size, got {shift:g}")
    check_choice("precision", precision, PRECISIONS)
    seed = check_seed("seed", seed)
    dtype = PRECISIONS[precision]
    if out is None:
        left = budget
        if written_bytes(operator.shape[0], operator.device) <= WRITTEN * budget:
            rest = bytes_of_factor(operator, precision)
            operator, left = written(operator, budget, rest, products, dtype == torch.float64, progress)
        with _file_told(operator, shift, dtype, budget):
            ldl = block_ldl(operator, shift, dtype, budget=left, progress=progress)
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
        if memory <= budget:
            sizes = f"{format_bytes(disk)} of a disk and {format_bytes(memory)} of memory"
            instead = f"{error.instead}; or K.factor({shift:g}, out=path) keeps it in a file, with {sizes}"
        else:
            instead = f"{error.instead}; with out=path, in a file ({format_bytes(memory)} of memory), it does not fit"
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
