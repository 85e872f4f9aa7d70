"""A tangent kernel's two Jacobians as sides of Gram products: its tiles, columns, submatrices, diagonal and squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inrfast.kernels.formats import PADDING
from inrfast.memory import chunks, empty
from inrfast.ops import gemm, reductions, tangent_product
from inrfast.ops import gram as gram_ops
from inrfast.ops.operands import Operands, Plan, joint, make_plan
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.store import STREAMED_ROWS, UNCOUNTED, rows_on


class Sides:
    """``K = J J'^T`` as this process computes it: rows at the points of ``left``, columns at those of ``right``.

    Nothing is checked here and nothing is exchanged between processes: :class:`inrfast.tangent.kernel.TangentKernel`
    does both.

    Parameters
    ----------
    left
        J at the points whose rows of the kernel are computed here.
    right
        J' at the points of all columns; ``left`` itself where both are the same points.
    output
        ``"trace"``, ``"full"`` or the number of one output.

    Attributes
    ----------
    summed
        J' at the points that ``J'^T V`` is summed over here: all of ``right``, or this process's part of them.
    outputs, fold
        Outputs M of the network; rows of the kernel per point (M for ``"full"``, else 1).
    height, width
        Rows of the kernel computed here, and columns.
    same
        Whether both sides are one: then each pair of points is computed once.
    """

    def __init__(self, left: LayerwiseJacobian, right: LayerwiseJacobian, output: str | int) -> None:
        self.left, self.right, self.summed = left, right, right
        self.output = output
        self.outputs: int = left.capture.outputs
        self.fold = self.outputs if output == "full" else 1
        self.height, self.width = len(left.coords) * self.fold, len(right.coords) * self.fold
        self.same = right is left
        self.dtype, self.device = left.dtype, left.device
        self.memory_budget = left.memory_budget

    @property
    def symmetric(self) -> bool:
        """Whether rows and columns are at the same points."""
        return self.same

    @property
    def shared(self) -> bool:
        """Whether other processes hold rows of the kernel."""
        return False

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Widths (a, b) of features and sensitivities of this kernel's layers; 0 for one that is not stored."""
        return [self.left.capture.widths[index] for index in self.left.indices]

    @property
    def stored(self) -> list[tuple[int, int]]:
        """Columns (a, b) of this kernel's factors as they are stored: fewer than the widths where rows are sparse."""
        return [self.left.capture.stored[index] for index in self.left.indices]

    @property
    def picked(self) -> Sequence[int]:
        """The network's outputs that enter this kernel."""
        return [self.output] if isinstance(self.output, int) else range(self.outputs)

    @cached_property
    def plan(self) -> Plan | None:
        """How both sides enter a fused kernel; None for the torch backend."""
        if self.left.store.backend == "torch":
            return None
        precision = self.left.capture.precision
        sides = [self.left] if self.same else [self.left, self.right]
        ranges = [] if precision == "highest" else joint([side.ranges(self.output) for side in sides])
        return make_plan(precision, self.left.layout(self.output), ranges)

    @cached_property
    def exact_plan(self) -> Plan | None:
        """How both sides enter the products in fp64, whatever the kernel's precision; None for the torch backend."""
        if self.left.store.backend == "torch":
            return None
        return make_plan("highest", self.left.layout(self.output), [])

    def room_for(
        self,
        numbers: int,
        what: str,
        instead: str = "take fewer points or columns",
        sides: tuple[LayerwiseJacobian, LayerwiseJacobian] | None = None,
    ) -> AbstractContextManager[None]:
        """Leave room in a block for so many numbers of the kernel's dtype, and for tiles, beside the factors of sides.

        Raises
        ------
        MemoryBudgetError
            They do not fit the budget.
        """
        item = self.dtype.itemsize
        side = min(gram_ops.TILE if self.device.type == "cpu" else gram_ops.TILE_GPU, max(self.height, self.width))
        tiles = 3 * item * side * side * (gemm.threads(self.dtype, self.device) - 1)  # those of one thread not counted
        # Tiles of further threads get room where there is some; they are no reason to refuse what one thread can do.
        taken = max(numbers * item, min(numbers * item + tiles, self.memory_budget // 2))
        first, second = (self.left, self.right) if sides is None else sides
        return first.room_for(taken, what, instead, None if second is first else second)

    # ---- blocks ------------------------------------------------------------------------------------------------

    def _blocks(self, side: LayerwiseJacobian) -> Iterator[slice]:
        """Yield the blocks of points that one side of a product may hold: one if they fit, else as many as needed."""
        return chunks(len(side.coords), side.gram_rows(self.plan))

    def _entries(self, points: slice) -> slice:
        """Return the rows or columns of the kernel that some points have."""
        return slice(points.start * self.fold, points.stop * self.fold)

    def exact_blocks(self, side: LayerwiseJacobian, plan: Plan) -> Iterator[tuple[slice, Operands]]:
        """Yield blocks of a side's points, as rows of the kernel, with their operands in fp64."""
        for points in chunks(len(side.coords), side.gram_rows(plan)):
            operands = side.side(points, plan)
            assert isinstance(operands, Operands)
            yield self._entries(points), operands

    def _row_blocks(self) -> Iterator[tuple[slice, Any]]:
        """Yield blocks of rows of the kernel, each once, as the left side of a product; the next overwrites it."""
        if self.plan is None and not self.left.store.fits:
            for points, factors in self.left.chunks(rows_on(self.device, STREAMED_ROWS)):
                yield self._entries(points), factors
        else:
            for points in self._blocks(self.left):
                yield self._entries(points), self.left.side(points, self.plan)

    def for_each_block(self, compute: Callable[[slice, slice, Any, Any], None]) -> None:
        """Call ``compute(i, j, rows, columns)`` on all blocks of the kernel here; of a symmetric one on the upper ones.

        ``i`` and ``j`` are rows and columns of the kernel, ``rows`` and ``columns`` the sides of their product;
        ``columns`` is None on the diagonal of a symmetric kernel.
        """
        for points in self._blocks(self.left):
            rows: Any = self.left.side(points, self.plan)
            for others in self._blocks(self.right):
                if self.same and others.start < points.start:
                    continue
                same = self.same and others.start == points.start
                columns = None if same else self.right.side(others, self.plan)
                compute(self._entries(points), self._entries(others), rows, columns)
                columns = None  # freed before the next one is made
            rows = None

    # ---- entries -----------------------------------------------------------------------------------------------

    def fill_(self, target: Tensor) -> None:
        """Write the rows of the kernel that are computed here into ``target`` (height, width)."""

        def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
            gram_ops.fill_(target[i, j], rows, columns, self.output, self.outputs)
            if self.same and columns is not None:
                target[j, i] = target[i, j].t()

        self.for_each_block(compute)

    def columns(self, index: Tensor) -> Tensor:
        """Return the rows here of the columns ``index`` (int64, in range), each point computed once."""
        return self._columns(*self._points_of(index))

    def columns_as_named(self, index: Tensor) -> Tensor:
        """Return :meth:`columns` without waiting for a GPU: a point named twice is computed twice there."""
        if self.device.type == "cpu":
            return self._columns(*self._points_as_named(index))
        numbers = (self.height + self._numbers_of(1)) * len(index)
        with self.room_for(numbers, f"{len(index)} columns of order {self.height}", "ask for fewer of them"):
            chosen = self._operands_at(self.right, index)
            if chosen is not None:
                return self._columns_of(chosen, len(index))
        return self._columns(*self._points_as_named(index))

    def _columns(self, points: Tensor, picked: Tensor | None) -> Tensor:
        """Return the columns of some points, or those of them that are ``picked``."""
        count = len(points) * self.fold
        given = count if picked is None else len(picked)
        numbers = self.height * (count if picked is None else count + given) + self._numbers_of(len(points))
        with self.room_for(numbers, f"{given} columns of order {self.height}", "ask for fewer of them"):
            out = self._columns_of(self.right.side_of(points, self.plan), count)
            return out if picked is None else out[:, picked]

    def _columns_of(self, chosen: Any, count: int) -> Tensor:
        """Return the ``count`` columns of a right side."""
        out = empty((self.height, count), self.dtype, self.device)
        for rows, side in self._row_blocks():
            gram_ops.fill_(out[rows], side, chosen, self.output, self.outputs)
        return out

    def submatrix(self, index: Tensor) -> Tensor:
        """Return rows and columns ``index`` of a symmetric kernel, each point computed once."""
        return self._submatrix(*self._points_of(index))

    def submatrix_as_named(self, index: Tensor) -> Tensor:
        """Return :meth:`submatrix` without waiting for a GPU, as :meth:`columns_as_named` does."""
        if self.device.type == "cpu":
            return self._submatrix(*self._points_as_named(index))
        count, alone = len(index), (self.right, self.right)
        numbers = (count + self._numbers_of(1)) * count
        with self.room_for(numbers, f"a submatrix of order {count}", sides=alone):
            chosen = self._operands_at(self.right, index)
            if chosen is not None:
                out = empty((count, count), self.dtype, self.device)
                return gram_ops.fill_(out, chosen, None, self.output, self.outputs)
        return self._submatrix(*self._points_as_named(index))

    def _submatrix(self, points: Tensor, picked: Tensor | None) -> Tensor:
        """Return the rows and columns of some points, or those of them that are ``picked``."""
        order, alone = len(points) * self.fold, (self.right, self.right)
        given = order if picked is None else len(picked)
        numbers = order**2 + (0 if picked is None else given**2) + self._numbers_of(len(points))
        with self.room_for(numbers, f"a submatrix of order {given}", "ask for a smaller one", alone):
            chosen = self.right.side_of(points, self.plan)
            out = empty((order, order), self.dtype, self.device)
            gram_ops.fill_(out, chosen, None, self.output, self.outputs)
            return out if picked is None else out[picked.unsqueeze(1), picked]

    def blocks_(self, targets: Sequence[tuple[Tensor, slice]], index: Tensor) -> None:
        """Write rows here of the columns ``index`` (int64, in range) into each target: ``(out (rows, count), rows)``.

        Where the operands of all points are kept, a GPU is not waited for, and a target whose rows begin at a multiple
        of :data:`PADDING` is one launch. Processes that share a kernel call it together, with targets of their own.
        """
        picked: Tensor | None = None
        chosen: Any = self._operands_at(self.right, index)
        count = len(index)
        if chosen is None:
            points, picked = self._points_as_named(index)
            chosen, count = self.right.side_of(points, self.plan), len(points) * self.fold
            if picked is not None and isinstance(chosen, Operands):
                chosen, picked, count = chosen.at(picked), None, len(index)
        whole = self._whole_operands(self.left)
        for out, rows in targets:
            if whole is not None:
                self._operand_block_(out, whole, rows, chosen)
            else:
                self._block_(out, rows, chosen, picked, count)

    def _block_(self, out: Tensor, rows: slice, chosen: Any, picked: Tensor | None, count: int) -> None:
        """Write some rows of the ``count`` columns of a right side, or of those of them that are ``picked``."""
        first, last = rows.start // self.fold, -(-rows.stop // self.fold)
        for part in chunks(last - first, self.left.gram_rows(self.plan)):
            own = slice(first + part.start, first + part.stop)
            entries = self._entries(own)
            wanted = slice(max(entries.start, rows.start), min(entries.stop, rows.stop))
            target = out[wanted.start - rows.start : wanted.stop - rows.start]
            side = self.left.side(own, self.plan)
            if picked is None and wanted == entries:
                gram_ops.fill_(target, side, chosen, self.output, self.outputs)
                continue
            whole = empty((entries.stop - entries.start, count), self.dtype, self.device)
            gram_ops.fill_(whole, side, chosen, self.output, self.outputs)
            kept = whole[wanted.start - entries.start : wanted.stop - entries.start]
            target.copy_(kept if picked is None else kept[:, picked])

    def _operand_block_(self, out: Tensor, whole: Operands, rows: slice, chosen: Operands) -> None:
        """Write some rows of all operands times the chosen ones into ``out``; the rows before a multiple of the
        padding, which are no part of what is in memory, by themselves."""
        first = min(-(-rows.start // PADDING) * PADDING, rows.stop)
        if first > rows.start:
            ragged = whole.at(torch.arange(rows.start, first, device=self.device))
            gram_ops.fill_(out[: first - rows.start], ragged, chosen, self.output, self.outputs)
        if rows.stop > first:
            gram_ops.fill_(out[first - rows.start :], whole.part(first, rows.stop), chosen, self.output, self.outputs)

    def _points_of(self, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the points of some columns, each once, and where among their columns the wanted ones are.

        The second is None where they are all of them, in order.
        """
        points, inverse = torch.unique(wanted // self.fold, return_inverse=True)
        picked = inverse * self.fold + wanted % self.fold
        return points, None if _in_order(picked, len(points) * self.fold) else picked

    def _points_as_named(self, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the same with points in the order of the wanted columns, perhaps twice; a GPU is not waited for."""
        if self.fold == 1:
            return wanted, None
        if self.device.type == "cpu":  # several columns of one point need not cost more than one
            return self._points_of(wanted)
        picked = torch.arange(len(wanted), device=wanted.device) * self.fold + wanted % self.fold
        return wanted // self.fold, picked

    def _operands_at(self, side: LayerwiseJacobian, index: Tensor) -> Operands | None:
        """Return some rows of a side's operands, where those of all its rows are kept in one piece; else None."""
        whole = self._whole_operands(side)
        return None if whole is None else whole.at(index)

    def _whole_operands(self, side: LayerwiseJacobian) -> Operands | None:
        """Return the operands of all rows of a side where they are kept in one piece; else None."""
        if self.plan is None or not side.store.fits or side.gram_rows(self.plan) < len(side.coords):
            return None
        whole = side.side(slice(0, len(side.coords)), self.plan)
        assert isinstance(whole, Operands)
        return whole

    def _numbers_of(self, points: int) -> int:
        """Return how many numbers the factors of so many points hold."""
        return points * self.left.capture.numbers_per_point

    # ---- reductions --------------------------------------------------------------------------------------------

    def diagonal(self) -> Tensor:
        """Return the diagonal of the rows here in fp64, from factors of the kernel's precision (exact operands)."""
        taken = 2 * torch.float64.itemsize * self.height  # the caller rounds it into a second tensor
        with self.left.room_for(max(0, taken - UNCOUNTED), "the diagonal", "take fewer points"):
            found = torch.empty(self.height, dtype=torch.float64, device=self.device)
            if self.exact_plan is not None:
                for rows, operands in self.exact_blocks(self.left, self.exact_plan):
                    found[rows] = tangent_product.diagonal(operands)
                return found
            for points, factors in self.left.chunks():
                found[self._entries(points)] = gram_ops.gram_diagonal(factors, self.output, self.outputs)
        return found

    def squared_norm(self) -> float:
        """Return the sum of the squares of the entries in the rows here, in fp64."""
        squares = []

        def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
            square = reductions.squared_norm(rows, columns, self.output, self.outputs, self.dtype)
            squares.append(2 * square if self.same and columns is not None else square)

        with self.room_for(0, "the Frobenius norm", "take fewer points"):
            self.for_each_block(compute)
        return sum(squares)


def _in_order(picked: Tensor, count: int) -> bool:
    """Return whether an index picks all of so many rows, in their order."""
    return len(picked) == count and bool((picked == torch.arange(count, device=picked.device)).all())
