"""What every tangent kernel offers, whoever computes its rows: entries, products, norms, spectrum, systems."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from torch import Tensor

from inrfast.arrays import Array, as_numpy, as_tensor, like
from inrfast.errors import Hinting, check_block, check_flag, check_float, check_index
from inrfast.layers import Layer
from inrfast.linalg import eigenvalues, systems
from inrfast.linalg.certificates import kernel_error
from inrfast.linalg.factorization import Factorization, factorize
from inrfast.linalg.partition import Whole
from inrfast.linalg.spectrum import Spectrum
from inrfast.memory import empty
from inrfast.modes import methods_in_own_modes
from inrfast.records import brief, in_a_line
from inrfast.tangent import products
from inrfast.tangent.cost import Cost, cost_of
from inrfast.tangent.kernel_operator import KernelOperator
from inrfast.tangent.scipy_operator import as_scipy
from inrfast.tangent.sides import Sides
from inrfast.tangent.store import RANGE, check_range, surely_held
from inrfast.tangent.target import as_target

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@methods_in_own_modes
class TangentKernel(Hinting):
    """A neural tangent kernel ``K = sum_l (Z_l Z_l'^T + 1) * (S_l S_l'^T)`` between two sets of points, lazy.

    Nothing is computed before something is asked for, and never the Jacobian. :class:`inrfast.tangent.local.NTK` is one
    in this process, :class:`inrfast.tangent.sharded.ShardedNTK` one whose rows several processes share: then every
    process must call the same methods with the same arguments, and all get the same results.

    Attributes
    ----------
    shape
        (N, N'), or (N M, N' M) for ``output="full"`` with the output index fast.
    dtype
        fp64 for ``precision="highest"``, else fp32: the dtype of every result.
    device
        Of the results: this process's.
    output
        ``"trace"``, ``"full"`` or the number of one output.
    coords
        The points (N, d) of the rows.
    partition
        Which rows of the kernel this process computes.
    left, right
        The Jacobians of rows and columns in this process; one object where both are the same points.
    """

    def __init__(self, sides: Sides, coords: Tensor, partition: Whole) -> None:
        self.sides, self.coords, self.partition = sides, coords, partition
        self.left, self.right = sides.left, sides.right
        self.output = sides.output
        self.capture = sides.left.capture
        self.memory_budget = sides.memory_budget
        self.dtype, self.device = sides.dtype, sides.device
        self.shape = (partition.size, sides.width)

    # ---- structure ---------------------------------------------------------------------------------------------

    @property
    def layers(self) -> Mapping[str, Self]:
        """Per-layer kernels by qualified module name; they add up to this one."""
        raise NotImplementedError

    def at_precision(self, precision: str) -> Self:
        """Return the same kernel at another precision (the same network snapshot)."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Number of outputs M of the network."""
        return self.sides.outputs

    @property
    def specs(self) -> list[Layer]:
        """The parameter layers that add up to this kernel."""
        return self.left.specs

    @property
    def symmetric(self) -> bool:
        """Whether rows and columns are at the same points."""
        return self.sides.symmetric

    @property
    def rank_bound(self) -> int:
        """A bound on the rank of ``K = sum_m J_m J_m^T``: parameters, times the outputs that are summed over."""
        return self.left.shape[1] * (self.outputs if self.output == "trace" else 1)

    @cached_property
    def _highest(self) -> Self:
        """This kernel in fp64."""
        return self.at_precision("highest")

    def cost(self) -> Cost:
        """Return predicted bytes, FLOP and method of this kernel's operations."""
        return cost_of(self.sides, self.shape[0])

    # ---- entries -----------------------------------------------------------------------------------------------

    @overload
    def to_dense(self, out: None = None) -> Tensor: ...
    @overload
    def to_dense(self, out: Array) -> Array: ...
    def to_dense(self, out: Tensor | np.ndarray | None = None) -> Tensor | np.ndarray:
        """Return the dense kernel; between the same points it is symmetric to the last bit.

        In one process each pair of points is computed once.

        Parameters
        ----------
        out
            A tensor or NumPy array (a ``numpy.memmap`` for kernels beyond memory) of this shape and dtype to write
            into; None allocates a tensor.

        Raises
        ------
        MemoryBudgetError
            ``out`` is None and the kernel exceeds the budget; raised before allocating.
        """
        numbers, given = self.shape[0] * self.shape[1], None
        if out is not None:
            numbers, given = 0, self._as_target(out)
            if given.is_inference():  # it may be written in inference mode only, what is kept here must not be
                given = torch.from_dlpack(given)  # the same memory
        instead = "pass out=numpy.memmap(...), or use K @ V, K.columns(index), K.frobenius()"
        with self.sides.room_for(numbers, "the dense kernel", instead):
            self._need_range("the dense kernel")
            target = empty(self.shape, self.dtype, self.device) if given is None else given
            self.sides.fill_(target[self.partition.start : self.partition.stop])
        self.partition.complete_(target)
        return target if out is None else out

    def _as_target(self, out: Any) -> Tensor:
        return as_target(out, self.shape, self.dtype, self.device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return :meth:`to_dense` as ``numpy.asarray`` asks for it."""
        return as_numpy(self.to_dense(), dtype, copy)

    def columns(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return ``K[:, index]``, shape (rows, number of columns); one int gives one column of shape (rows, 1)."""
        wanted = check_index("index", index, self.shape[1]).to(self.device)
        self._need_range("columns of the kernel")
        return self.partition.gather(self.sides.columns(wanted))

    def submatrix(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return ``K[index][:, index]``, symmetric to the last bit."""
        self._need_symmetric("submatrix")
        wanted = check_index("index", index, self.shape[1]).to(self.device)
        self._need_range("a submatrix of the kernel")
        return self.sides.submatrix(wanted)

    # ---- products ----------------------------------------------------------------------------------------------

    def __matmul__(self, V: Array) -> Array:
        """Return ``K V``, through the factors or, for many columns, through tiles; never N x N.

        ``V`` is (columns,) or (columns, k), any floating dtype; it is rounded to the kernel's dtype. Of a NumPy array
        the product is one as well.
        """
        given = as_tensor("V", V, self.device)
        block = check_block("V", given, self.shape[1], self.device)
        out = self.partition.gather(self._product(self.partition.mine(block) if self.symmetric else block))
        return like(V, out[:, 0] if given.ndim == 1 else out)

    def _product(self, V: Tensor) -> Tensor:
        """Return this process's rows of ``K V`` for its rows of V; unchecked, as a check would wait for a GPU."""
        k, sides = V.shape[1], self.sides
        numbers = (sides.height + (0 if V.dtype == self.dtype else len(V))) * k
        with sides.room_for(numbers, f"K @ V of {k} columns", sides=(sides.left, sides.summed)):
            self._need_range("K @ V")
            return products.product(sides, V.to(self.dtype), self.partition.total, self._columns_at_once)

    @cached_property
    def _columns_at_once(self) -> int:
        """Number of columns of a product that the budget allows at a time, the same in every process."""
        return products.columns_at_once(self.sides)

    def product(self, V: Array, damping: float = 0.0) -> Array:
        """Return ``(K + damping I) V`` for one vector or a block of them, as ``K @ V`` does."""
        damping = check_float("damping", damping, minimum=0.0)
        if damping == 0:
            return self @ V
        self._need_symmetric("a damped product")
        given = as_tensor("V", V, self.device)
        return like(V, (self @ given).add_(given.detach().to(self.dtype), alpha=damping))

    # ---- reductions --------------------------------------------------------------------------------------------

    def diagonal(self) -> Tensor:
        """Return the diagonal (rows,), accumulated in fp64 and rounded to the kernel's dtype."""
        self._need_symmetric("diagonal")
        self._need_range("the diagonal")
        return self.partition.gather(self._diagonal).to(self.dtype, copy=True)

    @cached_property
    def _diagonal(self) -> Tensor:
        """The diagonal of this process's rows in fp64, from factors whose dtype holds it; to be read only."""
        by_operands = self.sides.exact_plan is not None
        if not by_operands and not surely_held(self.left.magnitude, self.dtype) and self.dtype != torch.float64:
            return self._highest._diagonal
        return self.sides.diagonal()

    def trace(self) -> float:
        """Return the trace, accumulated in fp64."""
        self._need_symmetric("trace")
        return self._trace

    @cached_property
    def _trace(self) -> float:
        return float(self.partition.total(self._diagonal.sum()))

    def frobenius(self) -> float:
        """Return the Frobenius norm ``|K|_F``, tile by tile, accumulated in fp64; nothing N x N is stored.

        The squares neither overflow nor vanish, as far as fp64 holds them, and the same kernel gives the same number to
        the last bit.

        Raises
        ------
        RangeError
            The kernel's largest entry is outside 1e-150 to 1e150.
        """
        if self.dtype == torch.float64:  # whose squares have a narrower range
            check_range("the squares of the Frobenius norm", self._largest, 1e-150, 1e150, self.dtype)
        elif not self._in_range():
            return self._highest.frobenius()
        return math.sqrt(self.partition.sum(self.sides.squared_norm(), self.device))

    def row_sums(self) -> Tensor:
        """Return the sums of the rows, ``K 1``, of shape (rows,) in the kernel's dtype, computed as ``K @ V`` is."""
        return self @ torch.ones(self.shape[1], dtype=self.dtype, device=self.device)

    def quadratic_form(self, Y: Array) -> Array:
        """Return ``Y^T K Y``: (k, k) for ``Y`` (rows, k), 0-dimensional for (rows,); fp64, symmetric to the last bit.

        For few columns it is ``(J^T Y)^T (J^T Y)`` (for ``output="trace"`` summed over outputs), half the cost of
        ``K @ Y`` and positive semidefinite up to fp64 rounding; from ``cost().break_even_columns`` columns on
        ``Y^T (K Y)`` by tiles, as accurate as their entries. Chunks of points and the last product are added up in
        fp64.

        Parameters
        ----------
        Y
            Vectors over the kernel's rows, any floating dtype; rounded to the kernel's dtype. Of a NumPy array the
            result is one as well.

        Raises
        ------
        ValueError, TypeError
            A kernel with ``coords2``; a Y of another shape or device, not floating, or not finite.
        """
        self._need_symmetric("quadratic_form")
        self._need_range("the quadratic form")
        whole = as_tensor("Y", Y, self.device)
        given = self.partition.mine(check_block("Y", whole, self.shape[1], self.device))
        k, sides = given.shape[1], self.sides
        by_products = products.form_by_products(sides, k)
        numbers = 0 if given.dtype == self.dtype else sides.height * k
        if by_products:
            numbers += sides.height * k
        with sides.room_for(numbers, f"the quadratic form of {k} columns", sides=(sides.left, sides.summed)):
            block = given.to(self.dtype)
            if by_products:
                total = self.partition.total(products.inner_products(block, self._product(block)))
            else:
                total = products.transposing(sides, k).form(sides, block, self.partition.total)
        total = (total + total.t()) / 2
        return like(Y, total[0, 0] if whole.ndim == 1 else total)

    # ---- errors of the entries ---------------------------------------------------------------------------------

    @cached_property
    def matrix_error(self) -> float:
        """Bound on the spectral norm of the rounding error of the entries, for ``precision="highest"``.

        It is relative to the kernel of the factors as computed; :attr:`jacobian_error` is their own. The matrix
        ``sqrt(K_ii K_jj)`` has norm trace(K). Factors that are not kept round differently each time they are computed,
        beside other points: then two entries may be of two kernels.
        """
        trace = self.trace()
        return self.entry_error * trace + (0.0 if self._keeps else 2 * kernel_error(self.jacobian_error, trace))

    @property
    def _keeps(self) -> bool:
        """Whether all entries come from the same factors, computed once."""
        return self.left.keeps(self.sides.plan)

    @cached_property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J, ``K = J J^T``, from rounding in the factor pass.

        Measured on a sample of points, with a safety factor of 8: see :mod:`inrfast.rounding`.
        """
        return math.sqrt(self.partition.sum(self.left.squared_pass_error(self.output), self.device))

    @property
    def entry_error(self) -> float:
        """Bound on the rounding error of an entry, relative to ``sqrt(K_ii K_jj)``, for ``precision="highest"``.

        An entry is a sum of products of inner products of length at most a and M b, so its error is at most ``c u``
        with c their sum (Higham, Accuracy and Stability, section 3.1).
        """
        c = max(a + self.outputs * b for a, b in self.sides.stored) + len(self.specs) + 2
        return c * torch.finfo(torch.float64).eps / 2

    # ---- spectrum and systems ----------------------------------------------------------------------------------

    def spectrum(
        self,
        rtol: float | Sequence[float] = 1e-6,
        k: int | None = None,
        method: str = "auto",
        eigenvectors: bool = False,
        seed: int = 0,
        progress: bool | None = None,
        levels: Sequence[float] = (),
    ) -> Spectrum:
        """Return the eigenvalues with their error, computed from fp64 factors whatever the kernel's precision.

        Parameters
        ----------
        rtol
            Smallest relative tolerance (of lambda_1) at which ranks will be asked for, from 1e-13 on; or several, all
            of which are then answered.
        k
            Only the k largest, to an error of ``rtol lambda_1``; None: all that the method gives.
        method
            ``"dense"``: LAPACK on the dense kernel, up to order 16,384. ``"cholesky"``: randomly pivoted Cholesky until
            the rank at ``rtol`` is known to 3 % (with ``k``: until the error is reached) or the memory budget is used
            up; the errors hold except with probability 1e-6 (:mod:`inrfast.linalg.certified`). ``"lanczos"``: the k
            (default 128) largest to a residual of ``rtol lambda_1``. ``"quadrature"``: lambda_1, and estimates for
            ``estimated_rank``. ``"inertia"``: lambda_1, and the counts at ``rtol`` or ``levels``, each proven by a
            factorisation of ``K - level I`` whatever the rank (:mod:`inrfast.linalg.inertia`).
            ``"auto"``: dense up to order 4,096. Above that Cholesky; where its pivots will not answer, or cost more,
            factorisations beside what they have shown (up to order 16,384 LAPACK, where that costs less), if they fit
            the budget; if not, the quadrature. ``note`` on the result says which and why, and which levels stay open.
            Only counts (without ``k`` and ``eigenvectors``) are left to factorisations.
        eigenvectors
            Whether to keep them, orthonormal functions on the grid: column i reshapes to the grid's shape.
        seed
            Of the randomised methods: same seed, same result on the same machine.
        progress
            Whether to show a bar; None: on a terminal and in a notebook.
        levels
            Absolute levels, in the kernel's units, whose counts must be known in place of those at ``rtol``, which is
            then not counted at: a layer's kernel is counted above the threshold of the whole one. They are taken as
            exact. Empty: the counts at ``rtol``.

        Raises
        ------
        NotAvailableError
            A dense spectrum beyond the dense limit.
        ResolutionError
            ``rtol`` is below the floor of fp64.
        RangeError
            Entries beyond fp64; with ``method="inertia"`` a norm outside 1e-130 to 1e130.
        MemoryBudgetError
            The method's matrices exceed the budget; the message says what they need.
        ValueError, TypeError
            Bad arguments, ``k`` or ``eigenvectors`` with ``method="inertia"`` among them; a kernel with ``coords2``.
        """
        self._need_symmetric("spectrum")
        return self._spectrum(rtol, k, method, eigenvectors, seed, progress, levels, True)

    def counts(
        self,
        rtol: float | Sequence[float] = 1e-6,
        levels: Sequence[float] = (),
        seed: int = 0,
        progress: bool | None = False,
    ) -> Spectrum:
        """Return a spectrum for ranks alone, as :meth:`spectrum` does, with its arguments and errors.

        The errors of its eigenvalues may be larger by far than the levels.
        """
        self._need_symmetric("counts")
        return self._spectrum(rtol, None, "auto", False, seed, progress, levels, False)

    def _spectrum(
        self,
        rtol: float | Sequence[float],
        k: int | None,
        method: str,
        eigenvectors: bool,
        seed: int,
        progress: bool | None,
        levels: Sequence[float],
        values: bool,
    ) -> Spectrum:
        """Return the spectrum, of a symmetric kernel."""
        exact = self.at_precision("highest")
        with self._whole_budget_told(exact):
            found = eigenvalues.spectrum(
                KernelOperator(exact),
                rtol,
                k,
                method,
                eigenvectors,
                min(self.shape[0], self.rank_bound),
                self._solver_budget(exact),
                seed,
                self._shown(progress),
                levels,
                values,
            )
        found = replace(found, output=self.output, outputs=self.outputs)
        if found.eigenvectors is None or found.method == "dense":  # a dense one is whole in every process
            return found
        return replace(found, eigenvectors=self.partition.gather(found.eigenvectors))

    def solve(
        self,
        y: Array,
        ridge: float = 0.0,
        tol: float = 1e-6,
        seed: int = 0,
        progress: bool | None = None,
        preconditioner: str | Callable[[Tensor], Tensor] | Factorization | None = None,
        method: str = "auto",
    ) -> Array:
        """Return x with ``(K + ridge I) x = y`` in fp64.

        Parameters
        ----------
        y
            Right-hand sides (n,) or (n, c). Of a NumPy array the solution is one as well.
        ridge
            Added to the diagonal, in the kernel's units; 0 or more.
        tol
            Relative residual ``|y - (K + ridge I) x| / |y|`` that every column of the result must reach.
        seed
            Of the pivots.
        progress
            Whether to show bars; None: on a terminal and in a notebook.
        preconditioner
            Of conjugate gradients, which then solve systems of any order: ``"pivoted_cholesky"``,
            ``"factorization"``, ``"diagonal"``, ``"none"``, another name of
            :data:`inrfast.linalg.preconditioners.PRECONDITIONERS`, a positive definite factorisation such as
            ``K.factor(-ridge)``, or a function that takes a residual (n, c) in fp64 and returns a tensor of its shape:
            an approximation of ``(K + ridge I)^-1`` times it, linear, symmetric and positive definite. Where processes
            share the kernel, each hands it the whole residual. None: a pivoted Cholesky factor of few columns.
        method
            ``"direct"``: a factorisation as of :meth:`factor`, in fp64 where the ridge is small and the budget allows,
            else in fp32, with iterative refinement. ``"cg"``: conjugate gradients, nothing n x n. ``"auto"``: up to
            order 4,096 a dense Cholesky factorisation; above conjugate gradients, as long as they cost fewer FLOP than
            a factorisation would, then that (a warning says so); where no factor fits the budget, and with a
            ``preconditioner``, conjugate gradients alone.

        Raises
        ------
        ResolutionError
            The system is singular to fp64, or the residual stays above ``tol``; raise ``ridge``.
        MemoryBudgetError
            The preconditioner, or the factor that was asked for, does not fit the budget.
        RangeError
            The solution has numbers beyond fp64.
        ValueError, TypeError
            Bad arguments; a kernel with ``coords2``; a function that random vectors show to be no preconditioner.

        Warns
        -----
        RuntimeWarning
            ``"auto"`` went over to a factorisation; by that, a system so near singular that rounding of the kernel
            changes its solution.
        """
        self._need_symmetric("solve")
        given = as_tensor("y", y, self.device)
        right = check_block("y", given, self.shape[0], self.device).to(torch.float64)
        ridge = check_float("ridge", ridge, minimum=0.0)
        tol = check_float("tol", tol, minimum=0.0, exclusive=True)
        exact = self.at_precision("highest")
        with self._whole_budget_told(exact):
            budget, shown = self._solver_budget(exact), self._shown(progress)
            found = systems.solve(KernelOperator(exact), right, ridge, tol, budget, seed, shown, preconditioner, method)
        return like(y, found.reshape(given.shape))

    def factor(
        self,
        shift: float,
        precision: str = "highest",
        out: str | os.PathLike[str] | np.ndarray | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Factorization:
        """Return a block LDL^T factorisation of ``K - shift I``, which may be indefinite.

        It costs ``n^3 / 3`` FLOP beside the entries, whatever the rank, and half a matrix of memory; and, where a
        quarter of the budget holds it, the lower half of K in fp64, which makes residual, solutions and log-determinant
        cheap. With ``shift = -noise`` it is the covariance of a Gaussian process with this kernel.

        Parameters
        ----------
        shift
            Any number up to 1e140 in size, in the kernel's units.
        precision
            Of the factor's entries: ``"highest"`` fp64, ``"high"`` fp32, half the memory and time. How far it is off is
            measured in fp64 either way.
        out
            A path, where the factor is too large for the memory: a factorisation that was stopped goes on from the
            file, a finished one is read from it. Or a one-dimensional array of the factor's dtype, such as a
            ``numpy.memmap``, of one factorisation at a time. None: in memory. A file in use must stay as it is: making
            it shorter ends the process (SIGBUS), other bytes give other numbers; deleting it is harmless.
        seed
            Of the random vectors that measure it.
        progress
            Whether to show bars; None: on a terminal and in a notebook.

        Raises
        ------
        MemoryBudgetError
            The factor exceeds the budget; raised before it is allocated, with what fits.
        ValueError, TypeError
            Bad arguments; a kernel with ``coords2``; a file of another factorisation.
        RangeError
            Entries are beyond the range of ``precision``.
        NotAvailableError, OSError
            ``out`` on a GPU or of a shared kernel; a full disk, or a file that another process is writing.

        Examples
        --------
        >>> import inrfast as inr
        >>> K = inr.ntk(inr.INR(2, 1, width=16), inr.grid((8, 8)))
        >>> F = K.factor(0.5)
        >>> F.positive + F.negative, F.residual < 1e-9
        (64, True)
        """
        self._need_symmetric("factor")
        exact = self.at_precision("highest")
        with self._whole_budget_told(exact):
            return factorize(
                KernelOperator(exact), shift, precision, self._solver_budget(exact), seed, self._shown(progress), out
            )

    def _solver_budget(self, exact: Self) -> int:
        """Return the bytes that methods of :mod:`inrfast.linalg` may take beside the factors of ``exact``."""
        raise NotImplementedError

    def _whole_budget_told(self, exact: Self) -> AbstractContextManager[None]:
        """Return a context in which errors of those methods name the memory budget that the kernel would need."""
        return nullcontext()

    def _shown(self, progress: bool | None) -> bool | None:
        """Return whether this process shows bars."""
        return None if progress is None else check_flag("progress", progress)

    def to_scipy(self) -> LinearOperator:
        """Return the kernel as a ``scipy.sparse.linalg.LinearOperator`` (products go through ``K @ V``).

        Complex vectors are multiplied part by part.
        """
        return as_scipy(self, self._transposed())

    def _transposed(self) -> TangentKernel:
        """Return the kernel with its sides exchanged."""
        return self

    # ---- checks ------------------------------------------------------------------------------------------------

    @cached_property
    def _largest(self) -> float:
        """The largest entry of the kernel, which lies on its diagonal; estimated at a few points if that will do."""
        guess = self.left.magnitude
        if self.symmetric and not surely_held(guess, self.dtype):
            return float(self.partition.gather(self._diagonal).amax())
        return guess

    def _in_range(self) -> bool:
        low, high = RANGE[self.dtype]
        return self._largest == 0 or low <= self._largest <= high

    def _need_range(self, what: str) -> None:
        """Refuse results that the kernel's dtype cannot hold, in every process or in none."""
        check_range(what, self._largest, *RANGE[self.dtype], self.dtype)

    def _need_symmetric(self, what: str) -> None:
        if not self.symmetric:
            raise ValueError(f"{what} is of a kernel between the same points; this one was made with coords2")

    def __repr__(self) -> str:
        parts = [f"shape={self.shape}", f"dtype={self.dtype}", f"output={self.output!r}"]
        return in_a_line(type(self).__name__, [*parts, f"layers={brief([spec.name for spec in self.specs])}"])
