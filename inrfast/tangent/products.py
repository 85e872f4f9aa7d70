"""Products of a tangent kernel with vectors, ``K V`` and ``Y^T K Y``: the ways to compute them, in order of speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from inrfast.layers import Factors
from inrfast.memory import chunks
from inrfast.ops import gemm, reductions, tangent_product
from inrfast.ops import rows as row_ops
from inrfast.ops.operands import Plan
from inrfast.tangent.cost import break_even_columns
from inrfast.tangent.sides import Sides
from inrfast.tangent.store import STREAMED_ROWS
from inrfast.threads import together

Total = Callable[[Tensor], Tensor]
"""Adds up what every process has of a tensor; the identity where there is one."""


class ProductEngine(Protocol):
    """One way to multiply a kernel with a block of vectors."""

    name: str

    def reason_against(self, sides: Sides, columns: int) -> str | None:
        """Return why this way is not taken for so many vectors, or None if it is."""

    def product(self, sides: Sides, V: Tensor, total: Total) -> Tensor:
        """Return the rows here of ``K V`` in the kernel's dtype, V (points summed over here, k) of the same dtype."""


class Transposing(ProductEngine, Protocol):
    """A way through ``J'^T V``, which costs memory and gives ``Y^T K Y`` at half the price."""

    def bytes_per_column(self, sides: Sides, dtype: torch.dtype) -> int:
        """Return the bytes that ``J'^T V`` in ``dtype`` takes per column of V, with the scratch of its computation."""

    def form(self, sides: Sides, Y: Tensor, total: Total) -> Tensor:
        """Return ``sum_m (J_m^T Y)^T (J_m^T Y)`` (k, k) in fp64."""


class Tiles:
    """Tiles of the kernel are computed in cache, multiplied with V and dropped: cheapest for many columns."""

    name = "tiles"

    def reason_against(self, sides: Sides, columns: int) -> str | None:
        """Return why: too few columns, or a kernel of which each process has its own rows of V only."""
        if sides.shared:
            return "each process holds only its own rows of V"
        least = break_even_columns(sides)
        if columns < least:
            return f"{columns} columns cost less through the factors; tiles pay from {least} columns on"
        return None

    def product(self, sides: Sides, V: Tensor, total: Total) -> Tensor:
        """Return ``K V``."""
        out = torch.zeros(sides.height, V.shape[1], dtype=sides.dtype, device=sides.device)

        def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
            transposed = (out[j], V[i]) if sides.same and columns is not None else None
            reductions.add_product_(out[i], rows, columns, V[j], sides.output, sides.outputs, transposed)

        sides.for_each_block(compute)
        return out


class ByOperands:
    """``J (J'^T V)`` by fused kernels on the operands that a GPU keeps: in fp64, rounded once at the end."""

    name = "operands"

    def reason_against(self, sides: Sides, columns: int) -> str | None:
        """Return why: the torch backend keeps factors, not operands."""
        return "the backend is torch, which makes no operands of fused kernels" if sides.exact_plan is None else None

    def product(self, sides: Sides, V: Tensor, total: Total) -> Tensor:
        """Return ``K V``."""
        plan = self._plan(sides)
        sums, out = total(self._transposed_product(sides, V, plan)), None
        for rows, operands in sides.exact_blocks(sides.left, plan):
            found = tangent_product.product(operands, sums).to(sides.dtype)
            if operands.rows == sides.height:
                return found
            if out is None:
                out = torch.empty(sides.height, V.shape[1], dtype=sides.dtype, device=sides.device)
            out[rows] = found
        assert out is not None
        return out

    def form(self, sides: Sides, Y: Tensor, total: Total) -> Tensor:
        """Return ``Y^T K Y``."""
        plan = self._plan(sides)
        return tangent_product.inner_products(plan.layout, total(self._transposed_product(sides, Y, plan)))

    def bytes_per_column(self, sides: Sides, dtype: torch.dtype) -> int:
        """Return the bytes of one column of ``J'^T V``, always fp64."""
        return 3 * tangent_product.bytes_of_column(self._plan(sides).layout)

    def _plan(self, sides: Sides) -> Plan:
        assert sides.exact_plan is not None
        return sides.exact_plan

    def _transposed_product(self, sides: Sides, V: Tensor, plan: Plan) -> Tensor:
        """Return ``J'^T V``, as :mod:`inrfast.ops.tangent_product` lays it out, over all blocks of points."""
        sums: Tensor | None = None
        wide = V.to(torch.float64)
        for rows, operands in sides.exact_blocks(sides.summed, plan):
            part = tangent_product.transposed_product(operands, wide[rows])
            sums = part if sums is None else sums.add_(part)
        assert sums is not None
        return sums


class ByFactors:
    """``J (J'^T V)`` through the factors, kept or computed chunk by chunk; for the trace one product per output."""

    name = "factors"

    def reason_against(self, sides: Sides, columns: int) -> str | None:
        """Return None: it works for every kernel."""
        return None

    def product(self, sides: Sides, V: Tensor, total: Total) -> Tensor:
        """Return ``K V``."""
        if sides.output == "full":
            return sides.left @ total(sides.summed.vjp(V))
        blocks = self._transposed_product(sides, V, sides.dtype)
        return self._spread(sides, [[total(block) for block in layers] for layers in blocks], V)

    def form(self, sides: Sides, Y: Tensor, total: Total) -> Tensor:
        """Return ``Y^T K Y``; for ``"full"`` outputs share their parameters, all but the head's."""
        found = torch.zeros(Y.shape[1], Y.shape[1], dtype=torch.float64, device=sides.device)
        for (_, b), *blocks in zip(sides.widths, *self._transposed_product(sides, Y, torch.float64), strict=True):
            for block in [sum(blocks)] if sides.output == "full" and b > 0 else blocks:
                flat = total(block.flatten(1))
                found += flat @ flat.t()
        return found

    def bytes_per_column(self, sides: Sides, dtype: torch.dtype) -> int:
        """Return the bytes of one column of ``J'^T V``, its sums of all threads and a layer's part among them."""
        parameters = sum(max(b, 1) * max(a, 1) for a, b in sides.widths)
        workers = gemm.threads(sides.left.capture.dtype, sides.device)
        return dtype.itemsize * parameters * (len(sides.picked) * (workers + 1) + 2)

    def _spread(self, sides: Sides, blocks: list[list[Tensor]], like: Tensor) -> Tensor:
        """Return ``J P`` for the blocks that :meth:`_transposed_product` makes of vectors ``like`` (columns, k)."""
        left = sides.left
        out = torch.zeros(sides.height, like.shape[1], dtype=sides.dtype, device=sides.device)

        def spread(share: slice) -> None:
            scratch = row_ops.scratch_for(left.product_rows, sides.widths, like)
            for points, factors in left.chunks(within=share):
                for m, layers in zip(sides.picked, blocks, strict=True):
                    for layer, block in zip(factors, layers, strict=True):
                        row_ops.block_jvp_(out[points], layer.features, _of_output(layer, m), block, scratch)

        together([partial(spread, share) for share in left.store.shares(left.product_rows)])
        return out

    def _transposed_product(self, sides: Sides, V: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
        """Return ``J'_m^T V`` of every picked output and layer, (k, b, a) each: added up over chunks in ``dtype``.

        For ``output="full"`` V's rows are those of output m.
        """
        k, summed = V.shape[1], sides.summed
        # The head's identity sensitivities select one row of its block per output, so b = 1 there.
        shapes = [(k, max(b, 1), max(a, 1)) for a, b in sides.widths]
        by_output = V.reshape(len(summed.coords), sides.fold, k)

        def gather(share: slice) -> list[list[Tensor]]:
            """Return the sums over some points; every worker has its own, which are added up in order afterwards."""
            sums = [[torch.zeros(shape, dtype=dtype, device=sides.device) for shape in shapes] for _ in sides.picked]
            scratch = row_ops.scratch_for(sides.left.product_rows, sides.widths, V)
            for points, factors in summed.chunks(within=share):
                for m, blocks in zip(sides.picked, sums, strict=True):
                    v = by_output[points, m if sides.fold > 1 else 0]
                    for layer, total in zip(factors, blocks, strict=True):
                        part = total if dtype == sides.dtype else torch.zeros_like(total, dtype=sides.dtype)
                        row_ops.block_vjp_(part, layer.features, _of_output(layer, m), v, scratch)
                        if part is not total:
                            total += part
            return sums

        shares = summed.store.shares(sides.left.product_rows)
        first, *others = together([partial(gather, share) for share in shares])
        for sums in others:
            for blocks, more in zip(first, sums, strict=True):
                for total, part in zip(blocks, more, strict=True):
                    total += part
        return first


TRANSPOSING: tuple[Transposing, ...] = (ByOperands(), ByFactors())
"""The ways through ``J'^T V``, fastest first."""

ENGINES: tuple[ProductEngine, ...] = (Tiles(), *TRANSPOSING)
"""All ways to compute ``K V``, fastest first: the first without a reason against it is taken."""


def transposing(sides: Sides, columns: int) -> Transposing:
    """Return the fastest way through ``J'^T V`` for so many columns."""
    return next(engine for engine in TRANSPOSING if engine.reason_against(sides, columns) is None)


def product(sides: Sides, V: Tensor, total: Total, most: int) -> Tensor:
    """Return the rows here of ``K V`` for V (points summed over here, k) of the kernel's dtype.

    ``most`` columns at a time go through ``J'^T V``, of which more would exceed the budget.
    """
    k = V.shape[1]
    engine = next(engine for engine in ENGINES if engine.reason_against(sides, k) is None)
    if engine.name == Tiles.name or k <= most:
        return engine.product(sides, V, total)
    out = torch.empty(sides.height, k, dtype=sides.dtype, device=sides.device)
    for some in chunks(k, most):
        out[:, some] = engine.product(sides, V[:, some], total)
    return out


def columns_at_once(sides: Sides) -> int:
    """Return the number of columns whose ``J'^T V`` takes a quarter of the budget."""
    return max(1, sides.memory_budget // (4 * transposing(sides, 1).bytes_per_column(sides, sides.dtype)))


def form_by_products(sides: Sides, columns: int) -> bool:
    """Return whether ``Y^T (K Y)`` is computed for so many columns, not ``(J^T Y)^T (J^T Y)``.

    So it is where tiles are the fastest way, and where ``J^T Y`` in fp64 would exceed half of the budget.
    """
    if Tiles().reason_against(sides, columns) is None:
        return True
    needed = transposing(sides, columns).bytes_per_column(sides, torch.float64)
    return 2 * columns * needed > sides.memory_budget


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left^T right`` for blocks of vectors (n, k), added up in fp64."""
    found = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for rows in chunks(len(left), STREAMED_ROWS):
        found += left[rows].double().t() @ right[rows].double()
    return found


def _of_output(layer: Factors, output: int) -> Tensor | None:
    return None if layer.sensitivities is None else layer.sensitivities[:, output]
