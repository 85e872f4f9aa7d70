"""The neural tangent kernel in one process: factors kept within a memory budget, or recomputed chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from inrfast import notebook
from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import MemoryBudgetError, check_choice, check_index, check_int
from inrfast.grids import check_shape
from inrfast.linalg.partition import Whole
from inrfast.memory import budget_bytes, format_bytes, over_budget
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.kernel import TangentKernel
from inrfast.tangent.probes import check_points
from inrfast.tangent.rounded import rounded
from inrfast.tangent.sides import Sides
from inrfast.tangent.single import SingleProducts
from inrfast.tangent.store import FactorStore, backend_for, check_range
from inrfast.wrapped import unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@methods_in_own_modes
class NTK(TangentKernel):
    """A tangent kernel all of whose rows are computed in this process; built by :func:`ntk`.

    It can be pickled (``spawn``, joblib) if its network can.

    Parameters
    ----------
    left, right
        The Jacobians of rows and columns; None: the same points.
    output
        ``"trace"``, ``"full"`` or the number of one output.
    """

    def __init__(self, left: LayerwiseJacobian, right: LayerwiseJacobian | None, output: str | int) -> None:
        sides = Sides(left, left if right is None else right, output)
        super().__init__(sides, left.coords, Whole(sides.height))

    @cached_property
    def layers(self) -> Mapping[str, NTK]:
        """Per-layer kernels by qualified module name; their sum is this kernel."""
        return {
            name: NTK(left, None if self.symmetric else self.right.layers[name], self.output)
            for name, left in self.left.layers.items()
        }

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        shape = " x ".join(f"{size:,}" for size in self.shape)
        rows = [("layer", "kind", "parameters")]
        rows += [(spec.name or "network", spec.kind, f"{spec.columns:,}") for spec in self.specs]
        about = f"output {self.output!r} of {self.outputs}, {self.dtype}, precision {self.capture.precision!r}"
        points = f"{len(self.coords):,} points" + ("" if self.symmetric else f" and {len(self.right.coords):,} others")
        lazy = "Lazy: nothing is computed before it is asked for."
        return notebook.Page(f"Tangent kernel, {shape}", rows, [f"{about}, {self.device}, {points}. {lazy}"])

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        points: int | Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
    ) -> Figure:
        """Return a figure of the kernel between some points and all points, ``K(x, x0)`` over x.

        On one axis a slice is a curve, on two a picture, blue below zero and red above, on more the picture through
        x0; a ring marks x0. All share one scale. With ``output="full"`` outputs are summed, as by ``"trace"``. It
        computes as many columns of the kernel as there are points drawn.

        Parameters
        ----------
        path
            Of a .png, .pdf or .svg to write it to, whole or not at all; None: none is written.
        points
            Numbers of the points x0, one or several; None: the middle of the grid, and three towards its borders.
        shape
            Of the grid, row after row; None: that of the coordinates, which must then be a full grid.

        Raises
        ------
        ValueError, TypeError, IndexError
            The points are no grid and ``shape`` is not given, or is another; a kernel between different points; points
            that do not exist; another suffix.
        """
        from inrfast.tangent.kernel_figure import draw, usual  # most draw nothing

        self._need_symmetric("plot")
        count = len(self.coords)
        sizes = check_shape(shape, count, self.coords)
        if sizes is None:
            raise ValueError(f"shape must be given: the {count} points of this kernel are no full grid")
        wanted = usual(sizes) if points is None else check_index("points", points, count).tolist()
        return draw(self, wanted, sizes, path)

    def at_precision(self, precision: str) -> NTK:
        """Return the same kernel at another precision (the same network snapshot)."""
        if precision == self.capture.precision:
            return self

        def moved(side: LayerwiseJacobian) -> LayerwiseJacobian:
            return LayerwiseJacobian(side.store.at_precision(precision), side.memory_budget, side.only)

        return NTK(moved(self.left), None if self.symmetric else moved(self.right), self.output)

    def rounded(self, lowest: Callable[[float], float], budget: int) -> tuple[NTK, SingleProducts] | None:
        """Return the kernel of factors rounded to fp32, in fp64, where counts above levels gain by it; or None.

        Beside it are its products in fp32.
        """
        return rounded(self, lowest, budget) if self.symmetric and self.dtype == torch.float64 else None

    def squarable(self) -> NTK:
        """Return this kernel at a precision that holds its entries, whose squares fp64 holds.

        Raises
        ------
        RangeError
            The largest entry is outside 1e-150 to 1e150.
        """
        held = self if self.dtype == torch.float64 or self._in_range() else self._highest
        if held.dtype == torch.float64:
            check_range("the squares of its entries", held._largest, 1e-150, 1e150, held.dtype)
        return held

    def _transposed(self) -> NTK:
        return self if self.symmetric else NTK(self.right, self.left, self.output)

    # ---- the budget of spectrum and solve ----------------------------------------------------------------------

    def _solver_budget(self, exact: NTK) -> int:
        """Return the bytes of the budget that the factors of ``exact``, and those kept here, leave."""
        return max(self.memory_budget - self._held_under(self.memory_budget, exact), 0)

    def _held_under(self, budget: int, exact: NTK) -> int:
        """Return the bytes that factors take of a budget, those of ``exact`` and those kept here."""
        stores = {id(kernel.left.store): kernel.left.store for kernel in (self, exact)}.values()
        own = exact.left.store
        used = [store for store in stores if store.kept or store is own]
        return sum(
            store.held_under(budget * store.budget // self.memory_budget, self.output if store is own else None)
            for store in used
        )

    @contextmanager
    def _whole_budget_told(self, exact: NTK) -> Iterator[None]:
        """Name whole budgets in the error of a method that has what factors leave of one."""
        try:
            yield
        except MemoryBudgetError as error:
            if error.needed is None:
                raise
            budget = error.needed
            while budget - (held := self._held_under(budget, exact)) < error.needed:
                budget = error.needed + held
            instead, held = error.instead, self._held_under(self.memory_budget, exact)
            if held > 0:
                instead += (
                    f". The network's factors, {format_bytes(held)}, count in what is needed and in the budget, not in "
                    "other sizes"
                )
            raise over_budget(max(budget, self.memory_budget + 1), self.memory_budget, error.what, instead) from None


def check_output(output: object, outputs: int) -> str | int:
    """Return ``output`` if it is ``"trace"``, ``"full"`` or the number of one of so many outputs."""
    if isinstance(output, str):
        return check_choice("output", output, ("trace", "full"))
    number = check_int("output", output, minimum=0)
    if number >= outputs:
        raise ValueError(f"output must be below the network's {outputs} outputs, got {number}")
    return number


@in_own_modes
def ntk(
    net: nn.Module,
    coords: ArrayLike,
    coords2: ArrayLike | None = None,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    memory_budget: int | None = None,
) -> NTK:
    """Return the neural tangent kernel of ``net`` on ``coords`` as a lazy operator.

    It is ``K = J J^T``, added up from the blocks of the layers (Zheng et al., arXiv 2602.01526, equations 1 and 4).

    Parameters
    ----------
    net
        Any module that treats its points one by one, in eval mode: :class:`inrfast.INR` in closed form, other modules
        by hooks. Linear layers, norms and tables are kept as small factors (:mod:`inrfast.layers`); every other
        parameter, also one used twice or outside its layer (a head tied by hand, a network that returns its own
        slopes), costs its number of entries per point and output, and a warning says so. Refused are parametrised
        modules (weight norm, spectral norm), which are to be baked in first, and modules that draw random numbers. One
        inside ``DistributedDataParallel``, ``DataParallel``, ``AveragedModel`` or ``torch.compile`` is taken out of it
        and keeps its own names; networks in pieces (FSDP, ``DTensor``) are refused. The parameters are copied: training
        the network later does not change the kernel.
    coords, coords2
        Points (N, d) of the rows and (N', d) of the columns; None: the same points. Copied, as the parameters are. All
        axes but the last may be several: of (B, N, d) or (H, W, d) the kernel's rows are the points in row-major order,
        and a network that is no INR is called with as many axes as ``coords`` has, leading ones of size 1.
    output
        ``"trace"`` sums over the M outputs (no division), ``"full"`` is (N M) x (N' M) with the output index fast, an
        int picks one output.
    params
        Names of parameters or modules to differentiate; None: every trainable one.
    select
        A key, an index, the name of an attribute (of a dataclass or named tuple) or a function that takes the output
        tensor from what ``net`` returns.
    precision
        ``"highest"``: fp64 throughout; ``"high"``: ``|dK_ij| <= 1e-6 sqrt(K_ii K_jj)``, fp32 results; ``"medium"``:
        2e-4 (on a CPU the same as ``"high"``). The coordinates and parameters count as the exact numbers they hold.
    backend
        ``"triton"`` computes dense kernels, columns and tiles by fused kernels on a CUDA GPU (sm_80 and newer),
        ``"torch"`` everywhere; ``"auto"`` picks. A named backend that cannot run raises.
    memory_budget
        Bytes for factors, results and scratch; None: half of what is free.

    Raises
    ------
    UnsupportedModuleError
        The network cannot be captured exactly; the message says why.
    NotAvailableError, ValueError, TypeError
        An absent backend; bad arguments.

    Notes
    -----
    NumPy arrays, and arrays of other libraries with ``__dlpack__``, are taken wherever a tensor is, here and in all of
    the library. Results are tensors, but the product or solution of a NumPy array is a NumPy array, and
    ``numpy.asarray(K)`` is the dense kernel.

    The network is probed at each call. For an :class:`inrfast.INR` in closed form that is the comparison with
    automatic differentiation at two points. With the native extension it is made once per configuration (all but the
    numbers) of plain networks: those of this very class, in fp32 or fp64 on a CPU, with ReLU, sine or FINER alone and
    without encoding, norms, filters, hooks, shared parameters, and methods or attributes of their own. Later calls then
    skip the comparison, and copy parameters but no module. They still check that numbers are finite, and by a pass over
    four points with disturbances that the network does not amplify rounding; if it does, they take all probes.

    Any other module is run some 40 times, over 2,800 to 4,800 points in all: in fp64 and in its own dtype, with points
    moved, permuted, one by one and up to 2,048 at once, and with its parameters moved. For a SIREN of four layers of
    width 256 that takes as long as four to five forward passes over 4,096 points on one thread, one and a half steps of
    training. Unless its dtype is fp64 it is run over all points too, in fp64 and in its own dtype, in chunks: for a
    SIREN of four layers of width 256 on 65,536 points as long as four forward passes over them on one thread. Points
    where the two are other functions, as where an index or a branch made from coordinates lies on the border of a cell,
    are warned of, and refused where they are over 1 % of all.
    :func:`inrfast.watch` makes these probes once.

    A kernel can be pickled (``spawn``, joblib) if its network can. After a ``fork``, torch's own products hang in the
    child once the parent has run threads: start processes with ``spawn``.

    Examples
    --------
    >>> import inrfast as inr
    >>> K = inr.ntk(inr.INR(2, 1, width=16), inr.grid((8, 8)))
    >>> K.shape, sorted(K.layers)
    ((64, 64), ['layers.0', 'layers.1', 'layers.2', 'layers.3'])
    """
    capture = Capture(net, coords, params, select, precision, memory_budget)
    output = check_output(output, capture.outputs)
    backend = backend_for(capture, backend)
    budget = budget_bytes(memory_budget, capture.device)
    left = LayerwiseJacobian(FactorStore(capture, capture.points("coords", coords), budget // 2, backend), budget)
    right = None
    if coords2 is not None:
        points = capture.points("coords2", coords2)
        if not capture.closed_form:
            check_points(unwrapped(net), capture.network, points)
        left.store.budget = budget // 4
        right = LayerwiseJacobian(FactorStore(capture, points, budget // 4, backend), budget)
    return NTK(left, right, output)
