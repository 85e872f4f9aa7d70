"""The neural tangent kernel as a lazy operator, whole or by layer: products, columns, norms, dense form, spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast import backends
from inrfast.errors import (
    MemoryBudgetError,
    check_block,
    check_choice,
    check_coords,
    check_float,
    check_int,
)
from inrfast.layers import Factors, Layer
from inrfast.linalg import eigenvalues, systems
from inrfast.linalg.partition import Whole
from inrfast.linalg.spectrum import Spectrum, kernel_error
from inrfast.memory import budget_bytes, chunks, empty, format_bytes, over_budget
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.ops import gemm, reductions, tangent_product
from inrfast.ops import gram as gram_ops
from inrfast.ops import rows as row_ops
from inrfast.ops.operands import Operands, Plan, joint, make_plan
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.network import Select
from inrfast.tangent.store import RANGE, STREAMED_ROWS, UNCOUNTED, FactorStore, check_range, rows_on, surely_held
from inrfast.threads import together

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@dataclass(frozen=True)
class Cost:
    """Predicted cost of a kernel's operations; bytes and FLOP (one multiply-add is 2).

    Attributes
    ----------
    factor_bytes
        Factors of all points, both sides.
    factors_kept
        Whether they fit the budget and are computed once; otherwise chunks are recomputed.
    factor_flops
        One factor pass over all points.
    dense_bytes, dense_flops
        The dense kernel (the symmetric one computes each pair once).
    product_flops_per_column
        ``K @ v`` through the factors.
    break_even_columns
        Number of columns from which ``K @ V`` goes through kernel tiles instead.
    dense_method
        ``"tiles"`` in memory, or what to do where the dense kernel exceeds the budget.
    """

    factor_bytes: int
    factors_kept: bool
    factor_flops: int
    dense_bytes: int
    dense_flops: int
    product_flops_per_column: int
    break_even_columns: int
    dense_method: str

    def __str__(self) -> str:
        kept = "kept" if self.factors_kept else "recomputed in chunks"
        return (
            f"factors {format_bytes(self.factor_bytes)} ({kept}), one pass {self.factor_flops:.3g} FLOP; dense kernel "
            f"{format_bytes(self.dense_bytes)}, {self.dense_flops:.3g} FLOP ({self.dense_method}); K @ v "
            f"{self.product_flops_per_column:.3g} FLOP a column, by tiles from {self.break_even_columns} columns on"
        )


@methods_in_own_modes
class NTK:
    """A neural tangent kernel ``K = sum_l (Z_l Z_l'^T + 1) * (S_l S_l'^T)`` between two sets of points, lazy.

    Built by :func:`ntk`; nothing is computed before something is asked for, and never the Jacobian.

    Attributes
    ----------
    shape
        (N, N'), or (N M, N' M) for ``output="full"`` with the output index fast.
    dtype
        fp64 for ``precision="highest"``, else fp32: the dtype of every result.
    layers
        Mapping from layer name to that layer's own kernel; they add up to this one.
    """

    def __init__(self, rows: LayerwiseJacobian, columns: LayerwiseJacobian | None, output: str | int) -> None:
        self.rows = rows
        self.columns_side = columns
        self.output = output
        self.capture: Capture = rows.capture
        self.coords = rows.coords
        self.memory_budget = rows.memory_budget
        self.dtype = rows.dtype
        self.device = rows.device
        other = rows if columns is None else columns
        self.shape = (len(rows.coords) * self._fold, len(other.coords) * self._fold)

    # ---- structure ---------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Number of outputs M of the network."""
        return self.capture.outputs

    @property
    def _fold(self) -> int:
        """Rows of the kernel a point."""
        return self.outputs if self.output == "full" else 1

    @property
    def specs(self) -> list[Layer]:
        """The parameter layers that add up to this kernel."""
        return self.rows.specs

    @property
    def _widths(self) -> list[tuple[int, int]]:
        """Widths (a, b) of the stored factors of this kernel's layers."""
        return [self.capture.widths[i] for i in self.rows.indices]

    @property
    def symmetric(self) -> bool:
        """Whether both sides are the same points."""
        return self.columns_side is None

    @property
    def partition(self) -> Whole:
        """Which rows of the kernel this process holds: all."""
        return Whole(self.shape[0])

    @property
    def _other(self) -> LayerwiseJacobian:
        return self.rows if self.columns_side is None else self.columns_side

    @cached_property
    def layers(self) -> Mapping[str, NTK]:
        """Per-layer kernels by qualified module name; their sum is this kernel."""
        other = self.columns_side
        return {
            name: NTK(rows, None if other is None else other.layers[name], self.output)
            for name, rows in self.rows.layers.items()
        }

    def at_precision(self, precision: str) -> NTK:
        """Return the same kernel at another precision (the same network snapshot)."""
        if precision == self.capture.precision:
            return self
        sides = [
            None
            if side is None
            else LayerwiseJacobian(side.store.at_precision(precision), side.memory_budget, side.only)
            for side in (self.rows, self.columns_side)
        ]
        assert sides[0] is not None
        return NTK(sides[0], sides[1], self.output)

    @cached_property
    def _highest(self) -> NTK:
        """This kernel in fp64."""
        return self.at_precision("highest")

    def cost(self) -> Cost:
        """Return predicted bytes, FLOP and method of this kernel's operations."""
        item = self.dtype.itemsize
        n, m = len(self.coords), len(self._other.coords)
        parameters = self.rows.shape[1]
        sides = [self.rows.store] if self.symmetric else [self.rows.store, self._other.store]
        factor_bytes = sum(store.bytes_per_point * len(store.coords) for store in sides)
        products = self.outputs if self.output == "trace" else 1
        per_pair = self._tile_flops_per_pair()
        dense_flops = n * m * per_pair // (2 if self.symmetric else 1)
        per_column = 2 * (n + m) * parameters * products
        extra = 2 * self.shape[0] * self.shape[1]
        break_even = dense_flops // max(per_column - extra, 1) + 1 if per_column > extra else 1 << 62
        dense_bytes = self.shape[0] * self.shape[1] * item
        fits = dense_bytes <= self.memory_budget
        return Cost(
            factor_bytes=factor_bytes,
            factors_kept=all(store.fits for store in sides),
            # One forward, and one backward an output.
            factor_flops=sum(2 * len(s.coords) * s.capture.columns * (1 + self.outputs) for s in sides),
            dense_bytes=dense_bytes,
            dense_flops=dense_flops,
            product_flops_per_column=per_column,
            break_even_columns=break_even,
            dense_method="tiles" if fits else "exceeds the budget: to_dense(out=numpy.memmap), columns or products",
        )

    def _tile_flops_per_pair(self) -> int:
        pairs = {"trace": self.outputs, "full": self.outputs**2}.get(str(self.output), 1)
        return sum(2 * a + 2 * b * pairs for a, b in self._widths)

    # ---- tiles -------------------------------------------------------------------------------------------------

    @cached_property
    def _plan(self) -> Plan | None:
        """How both sides enter a fused kernel; None for the torch backend."""
        if self.rows.store.backend == "torch":
            return None
        precision = self.capture.precision
        sides = [self.rows] if self.columns_side is None else [self.rows, self.columns_side]
        ranges = [] if precision == "highest" else joint([side.ranges(self.output) for side in sides])
        return make_plan(precision, self.rows.layout(self.output), ranges)

    @cached_property
    def _exact_plan(self) -> Plan | None:
        """How both sides enter the products in fp64, whatever the kernel's precision; None for the torch backend."""
        if self.rows.store.backend == "torch":
            return None
        return make_plan("highest", self.rows.layout(self.output), [])

    def _blocks(self, side: LayerwiseJacobian) -> Iterator[slice]:
        """Yield the blocks of points that one side of a product may hold: one if they fit, else as many as needed."""
        return chunks(len(side.coords), side.gram_rows(self._plan))

    def _exact_sides(self, side: LayerwiseJacobian, plan: Plan) -> Iterator[tuple[slice, Operands]]:
        """Yield blocks of points of a side as rows of the kernel, and their operands in fp64."""
        for points in chunks(len(side.coords), side.gram_rows(plan)):
            operands = side.side(points, plan)
            assert isinstance(operands, Operands)
            yield slice(points.start * self._fold, points.stop * self._fold), operands

    def _sides(self) -> Iterator[tuple[slice, Any]]:
        """Yield blocks of points and what they are as the rows of a product, each once; the next overwrites it."""
        if self._plan is None and not self.rows.store.fits:
            yield from self.rows.chunks(rows_on(self.device, STREAMED_ROWS))
        else:
            for points in self._blocks(self.rows):
                yield points, self.rows.side(points, self._plan)

    def _for_each_block(self, compute: Callable[[slice, slice, Any, Any], None]) -> None:
        """Call ``compute(rows, columns, row side, column side)`` on all blocks of the kernel, or its upper ones.

        The column side is None where both are the same points; slices count rows of the kernel.
        """
        fold = self._fold
        for points in self._blocks(self.rows):
            rows: Any = self.rows.side(points, self._plan)
            for others in self._blocks(self._other):
                if self.symmetric and others.start < points.start:
                    continue
                same = self.symmetric and others.start == points.start
                columns = None if same else self._other.side(others, self._plan)
                i, j = (slice(part.start * fold, part.stop * fold) for part in (points, others))
                compute(i, j, rows, columns)
                columns = None  # or it would be there beside the next one
            rows = None

    def _room_for(
        self, numbers: int, what: str, instead: str = "take fewer points or columns"
    ) -> AbstractContextManager[None]:
        """Leave room in a block for so many numbers of the kernel's dtype, and for tiles, beside the factors.

        Raises
        ------
        MemoryBudgetError
            They do not fit the budget.
        """
        item = self.dtype.itemsize
        side = min(gram_ops.TILE if self.device.type == "cpu" else gram_ops.TILE_GPU, max(self.shape))
        tiles = 3 * item * side * side * (gemm.threads(self.dtype, self.device) - 1)  # one thread's go uncounted
        # What further threads take is made room for, and is no reason to refuse what one thread could do.
        taken = max(numbers * item, min(numbers * item + tiles, self.memory_budget // 2))
        return self.rows.room_for(taken, what, instead, self.columns_side)

    # ---- entries -----------------------------------------------------------------------------------------------

    def to_dense(self, out: Tensor | np.ndarray | None = None) -> Tensor | np.ndarray:
        """Return the dense kernel; the symmetric one computes each pair of points once and is exactly symmetric.

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
        with self._room_for(numbers, "the dense kernel", instead):
            self._need_range("the dense kernel")
            target = empty(self.shape, self.dtype, self.device) if given is None else given

            def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
                gram_ops.fill_(target[i, j], rows, columns, self.output, self.outputs)
                if self.symmetric and columns is not None:
                    target[j, i] = target[i, j].t()

            self._for_each_block(compute)
        return target if out is None else out

    def _as_target(self, out: Any) -> Tensor:
        if isinstance(out, np.ndarray):
            if not out.flags.writeable:
                raise ValueError("out must be writable")
            if self.device.type != "cpu":
                raise ValueError(f"out is a NumPy array but the kernel is on {self.device}; pass a tensor there")
            if not out.dtype.isnative:
                raise ValueError(f"out must have this machine's byte order, got dtype {out.dtype.str!r}")
            if any(stride < 0 for stride in out.strides):
                raise ValueError(f"out must have no negative strides, got {out.strides} (a reversed view)")
            if any(stride % out.itemsize for stride in out.strides):
                raise ValueError(f"out must have strides in whole entries of {out.itemsize} bytes, got {out.strides}")
            if out.dtype not in (np.float32, np.float64):
                raise ValueError(f"out must have dtype {str(self.dtype)[6:]}, got {out.dtype}")
            out = torch.from_numpy(out)
        if not isinstance(out, Tensor):
            raise TypeError(f"out must be a tensor or a NumPy array, got {type(out).__name__}")
        if tuple(out.shape) != self.shape or out.dtype != self.dtype or out.device != self.device:
            raise ValueError(
                f"out must have shape {self.shape}, dtype {self.dtype} and device {self.device}, got "
                f"{tuple(out.shape)}, {out.dtype}, {out.device}"
            )
        extent = 0
        for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
            if size > 1 and stride <= extent:
                raise ValueError(f"out must have memory of its own for every entry, got strides {out.stride()}")
            extent += stride * (size - 1)
        return out

    def columns(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return ``K[:, index]``, shape (rows, number of columns); one int gives one column of shape (rows, 1)."""
        return self._columns(*self._points_of(self._column_index(index)))

    def columns_at(self, index: Tensor) -> Tensor:
        """Return :meth:`columns` of an index known to be right: int64, in range, on the device; rows may repeat.

        A GPU is not waited for.
        """
        if self.device.type == "cpu":
            return self._columns(*self._points_as_named(index))
        self._need_range("columns of the kernel")
        numbers = (self.shape[0] + self._numbers_of(1)) * len(index)
        with self._room_for(numbers, f"{len(index)} columns of order {self.shape[0]}", "ask for fewer of them"):
            chosen = self._operands_at(self._other, index)
            if chosen is not None:
                return self._columns_of(chosen, len(index))
        return self._columns(*self._points_as_named(index))

    def _columns(self, points: Tensor, picked: Tensor | None) -> Tensor:
        """Return the columns of some points, or those of them that are ``picked``."""
        count = len(points) * self._fold
        given = count if picked is None else len(picked)
        numbers = self.shape[0] * (count if picked is None else count + given) + self._numbers_of(len(points))
        with self._room_for(numbers, f"{given} columns of order {self.shape[0]}", "ask for fewer of them"):
            self._need_range("columns of the kernel")
            out = self._columns_of(self._other.side_of(points, self._plan), count)
            return out if picked is None else out[:, picked]

    def _columns_of(self, chosen: Any, count: int) -> Tensor:
        """Return the columns of a side of so many rows of the kernel."""
        out = empty((self.shape[0], count), self.dtype, self.device)
        for rows, side in self._sides():
            part = out[rows.start * self._fold : rows.stop * self._fold]
            gram_ops.fill_(part, side, chosen, self.output, self.outputs)
        return out

    def _points_of(self, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the points whose columns are wanted, each once, and where the wanted are among theirs.

        The second is None where they are all of them, in order.
        """
        points, inverse = torch.unique(wanted // self._fold, return_inverse=True)
        picked = inverse * self._fold + wanted % self._fold
        return points, None if _in_order(picked, len(points) * self._fold) else picked

    def _points_as_named(self, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the same, points in the order of the wanted, perhaps twice: nothing of a GPU is read."""
        fold = self._fold
        if fold == 1:
            return wanted, None
        if self.device.type == "cpu":  # where several outputs of a point need not cost more than one
            return self._points_of(wanted)
        return wanted // fold, torch.arange(len(wanted), device=wanted.device) * fold + wanted % fold

    def _operands_at(self, side: LayerwiseJacobian, index: Tensor) -> Operands | None:
        """Return some rows of a side's operands, where those of all its rows are one piece; else None."""
        if self._plan is None or not side.store.fits or side.gram_rows(self._plan) < len(side.coords):
            return None
        whole = side.side(slice(0, len(side.coords)), self._plan)
        assert isinstance(whole, Operands)
        return whole.at(index)

    def _numbers_of(self, points: int) -> int:
        """Return how many numbers the factors of so many points hold."""
        return points * sum(a + self.outputs * b for a, b in self.capture.widths)

    def submatrix(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return ``K[index][:, index]``, symmetric to the last bit."""
        self._need_symmetric("submatrix")
        return self._submatrix(*self._points_of(self._column_index(index)))

    def submatrix_at(self, index: Tensor) -> Tensor:
        """Return :meth:`submatrix` of an index known to be right, as for :meth:`columns_at`."""
        if self.device.type == "cpu":
            return self._submatrix(*self._points_as_named(index))
        self._need_range("a submatrix of the kernel")
        count = len(index)
        with self._room_for((count + self._numbers_of(1)) * count, f"a submatrix of order {count}"):
            chosen = self._operands_at(self.rows, index)
            if chosen is not None:
                out = empty((count, count), self.dtype, self.device)
                return gram_ops.fill_(out, chosen, None, self.output, self.outputs)
        return self._submatrix(*self._points_as_named(index))

    def _submatrix(self, points: Tensor, picked: Tensor | None) -> Tensor:
        """Return the rows and columns of some points, or those of them that are ``picked``."""
        order = len(points) * self._fold
        given = order if picked is None else len(picked)
        numbers = order**2 + (0 if picked is None else given**2) + self._numbers_of(len(points))
        with self._room_for(numbers, f"a submatrix of order {given}", "ask for a smaller one"):
            self._need_range("a submatrix of the kernel")
            chosen = self.rows.side_of(points, self._plan)
            out = empty((order, order), self.dtype, self.device)
            gram_ops.fill_(out, chosen, None, self.output, self.outputs)
            return out if picked is None else out[picked.unsqueeze(1), picked]

    def _column_index(self, index: Any) -> Tensor:
        n = self.shape[1]
        if isinstance(index, slice):
            wanted = torch.arange(n)[index]
        elif isinstance(index, Tensor):
            if index.is_floating_point() or index.dtype == torch.bool or index.ndim != 1:
                raise TypeError(f"index must be one-dimensional and integer, got {index.dtype} {tuple(index.shape)}")
            wanted = index.to("cpu", torch.int64)
        else:
            given = list(index) if isinstance(index, (Sequence, np.ndarray)) else [index]
            wanted = torch.tensor([check_int("index", i) for i in given], dtype=torch.int64)
        if len(wanted) == 0:
            raise ValueError("index must name at least one column")
        if bool(((wanted < -n) | (wanted >= n)).any()):
            raise IndexError(f"index is out of range for {n} columns: {int(wanted.min())} to {int(wanted.max())}")
        return (wanted % n).to(self.device)

    # ---- products ----------------------------------------------------------------------------------------------

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return ``K V``, through the factors or, for many columns, through tiles; never N x N.

        ``V`` is (columns,) or (columns, k), any floating dtype; it is rounded to the kernel's dtype.
        """
        out = self.times(check_block("V", V, self.shape[1], self.device))
        return out[:, 0] if V.ndim == 1 else out

    def times(self, V: Tensor) -> Tensor:
        """Return ``K V`` for a block V (columns, k) that needs no check: on a GPU that would wait for its numbers."""
        k = V.shape[1]
        numbers = (self.shape[0] + (0 if V.dtype == self.dtype else self.shape[1])) * k
        with self._room_for(numbers, f"K @ V of {k} columns"):
            self._need_range("K @ V")
            block = V.to(self.dtype)
            by_tiles = k >= self.cost().break_even_columns
            return self._product_by_tiles(block) if by_tiles else self.product_by_factors(block)

    def product(self, V: Tensor, damping: float = 0.0) -> Tensor:
        """Return ``(K + damping I) V`` for one vector or a block of them."""
        damping = check_float("damping", damping, minimum=0.0)
        if damping == 0:
            return self @ V
        self._need_symmetric("a damped product")
        return (self @ V).add_(V.detach().to(self.dtype), alpha=damping)

    def _product_by_tiles(self, V: Tensor) -> Tensor:
        out = torch.zeros(self.shape[0], V.shape[1], dtype=self.dtype, device=self.device)

        def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
            mirror = (out[j], V[i]) if self.symmetric and columns is not None else None
            reductions.add_product_(out[i], rows, columns, V[j], self.output, self.outputs, mirror)

        self._for_each_block(compute)
        return out

    def product_by_factors(self, V: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return ``J (J'^T V)``; for the trace, one such product an output.

        ``total`` is applied to ``J'^T V``: where other processes hold more of its rows, it adds theirs. Without it, V
        is taken a few columns at a time where ``J'^T V`` of all of them would exceed the budget.
        """
        if total is not None:
            return self._product_by_factors(V, total)
        most = max(1, self.memory_budget // (4 * self._transposed_bytes(self.dtype)))
        if V.shape[1] <= most:
            return self._product_by_factors(V, lambda part: part)
        out = torch.empty(self.shape[0], V.shape[1], dtype=self.dtype, device=self.device)
        for some in chunks(V.shape[1], most):
            out[:, some] = self._product_by_factors(V[:, some], lambda part: part)
        return out

    def _product_by_factors(self, V: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        if self._exact_plan is not None:
            return self._product_by_operands(V, self._exact_plan, total)
        if self.output == "full":
            return self.rows @ total(self._other.vjp(V))
        blocks = self._transposed_product(V, self.dtype)
        return self._spread([[total(block) for block in layers] for layers in blocks], V)

    def _product_by_operands(self, V: Tensor, plan: Plan, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``J (J'^T V)`` by the fused kernels: in fp64, rounded at the end."""
        sums, out = total(self._transposed_operand_product(V, plan)), None
        for rows, operands in self._exact_sides(self.rows, plan):
            found = tangent_product.product(operands, sums).to(self.dtype)
            if operands.rows == self.shape[0]:
                return found
            if out is None:
                out = torch.empty(self.shape[0], V.shape[1], dtype=self.dtype, device=self.device)
            out[rows] = found
        assert out is not None
        return out

    def _transposed_operand_product(self, V: Tensor, plan: Plan) -> Tensor:
        """Return ``J'^T V``, as :mod:`inrfast.ops.tangent_product` lays it out, over all blocks of points."""
        sums: Tensor | None = None
        wide = V.to(torch.float64)
        for rows, operands in self._exact_sides(self._other, plan):
            part = tangent_product.transposed_product(operands, wide[rows])
            sums = part if sums is None else sums.add_(part)
        assert sums is not None
        return sums

    def _transposed_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of one column of ``J'^T V``, its sums of all threads and what a layer takes among them."""
        if self._exact_plan is not None:
            return 3 * tangent_product.bytes_of_column(self._exact_plan.layout)
        parameters = sum(max(b, 1) * max(a, 1) for a, b in self._widths)
        workers = gemm.threads(self.capture.dtype, self.device)
        return dtype.itemsize * parameters * (len(self._picked) * (workers + 1) + 2)

    def _spread(self, blocks: list[list[Tensor]], like: Tensor) -> Tensor:
        """Return ``J P`` for the blocks that :meth:`_transposed_product` makes of vectors ``like`` (columns, k)."""
        out = torch.zeros(self.shape[0], like.shape[1], dtype=self.dtype, device=self.device)

        def spread(share: slice) -> None:
            scratch = row_ops.scratch_for(self.rows.product_rows, self._widths, like)
            for points, factors in self.rows.chunks(within=share):
                for m, layers in zip(self._picked, blocks, strict=True):
                    for layer, total in zip(factors, layers, strict=True):
                        row_ops.block_jvp_(out[points], layer.features, _of_output(layer, m), total, scratch)

        together([partial(spread, share) for share in self.rows.store.shares(self.rows.product_rows)])
        return out

    @property
    def _picked(self) -> Sequence[int]:
        """The outputs of the network that enter this kernel."""
        return [self.output] if isinstance(self.output, int) else range(self.outputs)

    def _transposed_product(self, V: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
        """Return ``J'_m^T V`` of every picked output and layer, (k, b, a) each: added up over chunks in ``dtype``.

        For ``output="full"`` V's rows are those of output m.
        """
        k = V.shape[1]
        # The head's identity sensitivities select one row of its block an output, so b = 1 there.
        shapes = [(k, max(b, 1), max(a, 1)) for a, b in self._widths]
        by_output = V.reshape(len(self._other.coords), self._fold, k)

        def gather(share: slice) -> list[list[Tensor]]:
            """The sums of some points: each worker its own, added up in order afterwards."""
            sums = [[torch.zeros(shape, dtype=dtype, device=self.device) for shape in shapes] for _ in self._picked]
            scratch = row_ops.scratch_for(self.rows.product_rows, self._widths, V)
            for points, factors in self._other.chunks(within=share):
                for m, blocks in zip(self._picked, sums, strict=True):
                    v = by_output[points, m if self._fold > 1 else 0]
                    for layer, total in zip(factors, blocks, strict=True):
                        part = total if dtype == self.dtype else torch.zeros_like(total, dtype=self.dtype)
                        row_ops.block_vjp_(part, layer.features, _of_output(layer, m), v, scratch)
                        if part is not total:
                            total += part
            return sums

        shares = self._other.store.shares(self.rows.product_rows)
        first, *others = together([partial(gather, share) for share in shares])
        for sums in others:
            for blocks, more in zip(first, sums, strict=True):
                for total, part in zip(blocks, more, strict=True):
                    total += part
        return first

    # ---- reductions --------------------------------------------------------------------------------------------

    def diagonal(self) -> Tensor:
        """Return the diagonal, accumulated in fp64 and rounded to the kernel's dtype."""
        self._need_range("the diagonal")
        return self.exact_diagonal().to(self.dtype, copy=True)

    def exact_diagonal(self) -> Tensor:
        """Return the diagonal in fp64, whatever the kernel's dtype, from factors whose dtype holds it; kept, to be read
        only."""
        self._need_symmetric("diagonal")
        return self._diagonal

    @cached_property
    def _diagonal(self) -> Tensor:
        by_operands = self._exact_plan is not None
        if not by_operands and not surely_held(self.rows.magnitude, self.dtype) and self.dtype != torch.float64:
            return self._highest.exact_diagonal()
        fold = self._fold
        taken = 2 * torch.float64.itemsize * self.shape[0]  # the result is rounded beside it
        with self.rows.room_for(max(0, taken - UNCOUNTED), "the diagonal", "take fewer points"):
            found = torch.empty(self.shape[0], dtype=torch.float64, device=self.device)
            if self._exact_plan is not None:
                for rows, operands in self._exact_sides(self.rows, self._exact_plan):
                    found[rows] = tangent_product.diagonal(operands)
                return found
            for points, factors in self.rows.chunks():
                rows = slice(points.start * fold, points.stop * fold)
                found[rows] = gram_ops.gram_diagonal(factors, self.output, self.outputs)
        return found

    def trace(self) -> float:
        """Return the trace, accumulated in fp64."""
        self._need_symmetric("trace")
        return self._trace

    @cached_property
    def _trace(self) -> float:
        return float(self.exact_diagonal().sum())

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
        squares = []

        def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
            square = reductions.squared_norm(rows, columns, self.output, self.outputs, self.dtype)
            squares.append(2 * square if self.symmetric and columns is not None else square)

        with self._room_for(0, "the Frobenius norm", "take fewer points"):
            self._for_each_block(compute)
        return math.sqrt(sum(squares))

    def row_sums(self) -> Tensor:
        """Return the sums of the rows, ``K 1``, of shape (rows,) in the kernel's dtype, computed as ``K @ V`` is."""
        return self @ torch.ones(self.shape[1], dtype=self.dtype, device=self.device)

    def quadratic_form(self, Y: Tensor) -> Tensor:
        """Return ``Y^T K Y``: (k, k) for ``Y`` (rows, k), 0-dimensional for (rows,); fp64, symmetric to the last bit.

        For few columns it is ``(J^T Y)^T (J^T Y)`` (for ``output="trace"`` summed over outputs), half the cost of
        ``K @ Y`` and positive semidefinite up to fp64 rounding; from ``cost().break_even_columns`` columns on
        ``Y^T (K Y)`` by tiles, as accurate as their entries. Chunks of points and the last product are added up in
        fp64.

        Parameters
        ----------
        Y
            Vectors over the kernel's rows, any floating dtype; rounded to the kernel's dtype.

        Raises
        ------
        ValueError, TypeError
            A kernel with ``coords2``; a Y of another shape or device, not floating, or not finite.
        """
        self._need_symmetric("quadratic_form")
        self._need_range("the quadratic form")
        given = check_block("Y", Y, self.shape[1], self.device)
        k = given.shape[1]
        numbers = 0 if given.dtype == self.dtype else self.shape[0] * k
        # By products also where the factors' way would hold more numbers than the budget.
        by_products = k >= self.cost().break_even_columns or (
            2 * k * self._transposed_bytes(torch.float64) > self.memory_budget
        )
        if by_products:
            numbers += self.shape[0] * k
        with self._room_for(numbers, f"the quadratic form of {k} columns"):
            block = given.to(self.dtype)
            if by_products:
                image = self @ block
                total = torch.zeros(k, k, dtype=torch.float64, device=self.device)
                for rows in chunks(len(block), STREAMED_ROWS):
                    total += block[rows].double().t() @ image[rows].double()
            else:
                total = self._quadratic_form_by_factors(block)
        total = (total + total.t()) / 2
        return total[0, 0] if Y.ndim == 1 else total

    def _quadratic_form_by_factors(self, Y: Tensor) -> Tensor:
        """``sum_m (J_m^T Y)^T (J_m^T Y)``; for ``"full"`` outputs share their parameters, all but the head's."""
        if self._exact_plan is not None:
            sums = self._transposed_operand_product(Y, self._exact_plan)
            return tangent_product.inner_products(self._exact_plan.layout, sums)
        total = torch.zeros(Y.shape[1], Y.shape[1], dtype=torch.float64, device=self.device)
        for (_, b), *blocks in zip(self._widths, *self._transposed_product(Y, torch.float64), strict=True):
            for block in [sum(blocks)] if self.output == "full" and b > 0 else blocks:
                total += block.flatten(1) @ block.flatten(1).t()
        return total

    # ---- spectrum and systems ----------------------------------------------------------------------------------

    def spectrum(
        self,
        rtol: float = 1e-6,
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
            Smallest relative tolerance (of lambda_1) at which ranks will be asked for, from 1e-13 on.
        k
            Only the k largest, to an error of ``rtol lambda_1``; None: all that the method gives.
        method
            ``"dense"``: LAPACK on the dense kernel, up to order 16,384. ``"cholesky"``: randomly pivoted Cholesky until
            the rank at ``rtol`` is known to 3 % (with ``k``: until the error is reached) or the memory budget is used
            up; the errors hold except with probability 1e-6 (:mod:`inrfast.linalg.certified`). ``"lanczos"``: the k
            (default 128) largest to a residual of ``rtol lambda_1``. ``"quadrature"``: lambda_1, and estimates for
            ``estimated_rank``. ``"auto"``: dense up to order 4,096, above that Cholesky, and the quadrature beside it
            where that cannot resolve ``rtol``; ``note`` on the result says which and why.
        eigenvectors
            Whether to keep them, orthonormal functions on the grid: column i reshapes to the grid's shape.
        seed
            Of the randomised methods: same seed, same result on the same machine.
        progress
            Whether to show a bar; None: on a terminal only.
        levels
            Absolute levels, in the kernel's units, whose counts must be known in place of the one at ``rtol``: a
            layer's kernel is counted above the threshold of the whole one.

        Raises
        ------
        NotAvailableError
            A dense spectrum beyond the dense limit.
        ResolutionError
            ``rtol`` is below the floor of fp64.
        MemoryBudgetError
            The method's matrices exceed the budget; the message says what they need.
        ValueError, TypeError
            Bad arguments; a kernel with ``coords2``.
        """
        self._need_symmetric("spectrum")
        operator = self.at_precision("highest")
        with self._whole_budget_told(operator):
            found = eigenvalues.spectrum(
                _Operator(operator),
                rtol,
                k,
                method,
                eigenvectors,
                min(self.shape[0], self.rank_bound),
                self._left_beside(operator),
                seed,
                progress,
                levels,
            )
        return replace(found, outputs=self.outputs if self.output == "trace" else 1)

    @property
    def rank_bound(self) -> int:
        """Parameters times outputs summed over: the rank of K = sum_m J_m J_m^T is at most M P."""
        return self.rows.shape[1] * (self.outputs if self.output == "trace" else 1)

    @cached_property
    def matrix_error(self) -> float:
        """Bound on the spectral norm of the rounding error of the entries, for ``precision="highest"``.

        It is relative to the kernel of the factors as computed; :attr:`jacobian_error` is their own. The matrix
        ``sqrt(K_ii K_jj)`` has norm trace(K). Factors that are not kept round differently each time they are computed,
        beside other points: then two entries may be of two kernels.
        """
        trace = self.trace()
        kept = self.rows.keeps(self._plan)
        return self.entry_error * trace + (0.0 if kept else 2 * kernel_error(self.jacobian_error, trace))

    @cached_property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J, ``K = J J^T``, from rounding in the factor pass.

        Measured on a sample of points, with a safety factor of 8: see :mod:`inrfast.rounding`.
        """
        return math.sqrt(self.rows.squared_pass_error(self.output))

    @property
    def entry_error(self) -> float:
        """Bound on the rounding error of an entry, relative to ``sqrt(K_ii K_jj)``, for ``precision="highest"``.

        An entry is a sum of products of inner products of length at most a and M b, so its error is at most ``c u``
        with c their sum (Higham, Accuracy and Stability, section 3.1).
        """
        c = max(a + self.outputs * b for a, b in self._widths) + len(self.specs) + 2
        return c * torch.finfo(torch.float64).eps / 2

    def solve(
        self, y: Tensor, ridge: float = 0.0, tol: float = 1e-6, seed: int = 0, progress: bool | None = None
    ) -> Tensor:
        """Return x with ``(K + ridge I) x = y`` in fp64.

        Up to order 4,096 by a dense Cholesky factorisation, above by conjugate gradients with the factor of a pivoted
        one as preconditioner (nothing n x n).

        Parameters
        ----------
        y
            Right-hand sides (n,) or (n, c).
        ridge
            Added to the diagonal, in the kernel's units; 0 or more.
        tol
            Relative residual ``|y - (K + ridge I) x| / |y|`` that every column of the result must reach.
        seed
            Of the pivots.
        progress
            Whether to show bars; None: on a terminal only.

        Raises
        ------
        ResolutionError
            The system is singular to fp64, or the residual stays above ``tol``; raise ``ridge``.
        MemoryBudgetError
            The preconditioner does not fit the budget.
        """
        self._need_symmetric("solve")
        right = check_block("y", y, self.shape[0], self.device).to(torch.float64)
        ridge = check_float("ridge", ridge, minimum=0.0)
        tol = check_float("tol", tol, minimum=0.0, exclusive=True)
        operator = self.at_precision("highest")
        with self._whole_budget_told(operator):
            budget = self._left_beside(operator)
            return systems.solve(_Operator(operator), right, ridge, tol, budget, seed, progress).reshape(y.shape)

    def _left_beside(self, operator: NTK) -> int:
        """Return the bytes of the budget that the factors of ``operator``, and those kept here, leave."""
        return max(self.memory_budget - self._held_under(self.memory_budget, operator), 0)

    def _held_under(self, budget: int, operator: NTK) -> int:
        """Return the bytes that factors take of a budget, those of ``operator`` and those kept here."""
        stores = {id(kernel.rows.store): kernel.rows.store for kernel in (self, operator)}.values()
        own = operator.rows.store
        used = [store for store in stores if store.kept or store is own]
        return sum(
            store.held_under(budget * store.budget // self.memory_budget, self.output if store is own else None)
            for store in used
        )

    @contextmanager
    def _whole_budget_told(self, operator: NTK) -> Iterator[None]:
        """Name whole budgets in the error of a method that has what factors leave of one."""
        try:
            yield
        except MemoryBudgetError as error:
            if error.needed is None:
                raise
            budget = error.needed
            while budget - (held := self._held_under(budget, operator)) < error.needed:
                budget = error.needed + held
            raise over_budget(
                max(budget, self.memory_budget + 1), self.memory_budget, error.what, error.instead
            ) from None

    def to_scipy(self) -> LinearOperator:
        """Return the kernel as a ``scipy.sparse.linalg.LinearOperator`` (products go through ``K @ V``).

        Complex vectors are multiplied part by part.
        """

        from scipy.sparse.linalg import LinearOperator  # costs a fifth of the whole import, and few need it

        def forward(kernel: NTK) -> Callable[[np.ndarray], np.ndarray]:
            def apply(v: np.ndarray) -> np.ndarray:
                if np.iscomplexobj(v):
                    return apply(v.real) + 1j * apply(v.imag)
                return (kernel @ torch.from_numpy(np.array(v)).to(kernel.device, kernel.dtype)).cpu().numpy()

            return apply

        transposed = self if self.columns_side is None else NTK(self.columns_side, self.rows, self.output)
        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        return LinearOperator(
            self.shape,
            matvec=forward(self),
            matmat=forward(self),
            rmatvec=forward(transposed),
            rmatmat=forward(transposed),
            dtype=dtype,
        )

    @cached_property
    def _largest(self) -> float:
        """The largest entry of the kernel, which lies on its diagonal; from a few points if they leave no question."""
        guess = self.rows.magnitude
        if self.symmetric and not surely_held(guess, self.dtype):
            return float(self.exact_diagonal().amax())
        return guess

    def _in_range(self) -> bool:
        low, high = RANGE[self.dtype]
        return self._largest == 0 or low <= self._largest <= high

    def _need_range(self, what: str) -> None:
        """Refuse results that the kernel's dtype cannot hold."""
        check_range(what, self._largest, *RANGE[self.dtype], self.dtype)

    def _need_symmetric(self, what: str) -> None:
        if not self.symmetric:
            raise ValueError(f"{what} is of a kernel between the same points; this one was made with coords2")

    def __repr__(self) -> str:
        names = [spec.name for spec in self.specs]
        return f"NTK(shape={self.shape}, dtype={self.dtype}, output={self.output!r}, layers={names})"


class _Operator:
    """A kernel as the methods of :mod:`inrfast.linalg` take it: vectors that they made themselves are not checked."""

    def __init__(self, kernel: NTK) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __matmul__(self, V: Tensor) -> Tensor:
        return self._kernel.times(V)


def _in_order(picked: Tensor, count: int) -> bool:
    """Return whether an index picks all of so many rows, in their order."""
    return len(picked) == count and bool((picked == torch.arange(count, device=picked.device)).all())


def _of_output(layer: Factors, output: int) -> Tensor | None:
    return None if layer.sensitivities is None else layer.sensitivities[:, output]


@in_own_modes
def ntk(
    net: nn.Module,
    coords: Tensor,
    coords2: Tensor | None = None,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    memory_budget: int | None = None,
) -> NTK:
    """Return the neural tangent kernel of ``net`` on ``coords`` as a lazy operator (P1, equation 1, by layer (4)).

    Parameters
    ----------
    net
        :class:`inrfast.INR` (closed form) or any module of supported layers (see :mod:`inrfast.tangent.capture`). Its
        parameters are copied: training it later does not change the kernel.
    coords, coords2
        Points (N, d) of the rows and (N', d) of the columns; None: the same points. Copied, as the parameters are.
    output
        ``"trace"`` sums over the M outputs (no division), ``"full"`` is (N M) x (N' M) with the output index fast, an
        int picks one output.
    params
        Names of parameters or modules to differentiate; None: every trainable one.
    select
        A key, an index or a function that takes the output tensor from what ``net`` returns.
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
    A kernel can be pickled (``spawn``, joblib) if its network can. After a ``fork``, torch's own products hang in the
    child once the parent has run threads: start processes with ``spawn``.

    Examples
    --------
    >>> import inrfast as inr
    >>> K = inr.ntk(inr.INR(2, 1, width=16), inr.grid((8, 8)))
    >>> K.shape, sorted(K.layers)
    ((64, 64), ['layers.0', 'layers.1', 'layers.2', 'layers.3'])
    """
    if isinstance(output, str):
        check_choice("output", output, ("trace", "full"))
    else:
        output = check_int("output", output, minimum=0)
    capture = Capture(net, coords, params, select, precision, memory_budget)
    if isinstance(output, int) and output >= capture.outputs:
        raise ValueError(f"output must be below the network's {capture.outputs} outputs, got {output}")
    backend = backends.resolve(backend, capture.device)
    budget = budget_bytes(memory_budget, capture.device)
    rows = LayerwiseJacobian(FactorStore(capture, coords.detach().clone(), budget // 2, backend), budget)
    columns = None
    if coords2 is not None:
        check_coords("coords2", coords2, capture.in_features, capture.device)
        rows.store.budget = budget // 4
        columns = LayerwiseJacobian(FactorStore(capture, coords2.detach().clone(), budget // 4, backend), budget)
    return NTK(rows, columns, output)
