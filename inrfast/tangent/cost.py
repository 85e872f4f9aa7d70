"""What a tangent kernel's operations cost: bytes and FLOP, predicted before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from inrfast.memory import format_bytes
from inrfast.records import Record
from inrfast.tangent.sides import Sides

NEVER = 1 << 62
"""Number of columns that stands for "no number is large enough"."""


@dataclass(frozen=True)
class Cost(Record):
    """Predicted cost of a kernel's operations; bytes and FLOP (one multiply-add is 2).

    Of a kernel that several processes share it is the cost in this one.

    Attributes
    ----------
    factor_bytes
        Factors of all points, both sides.
    factors_kept
        Whether they fit the budget and are computed once; otherwise chunks are recomputed.
    factor_flops
        One factor pass over all points.
    dense_bytes, dense_flops
        The dense kernel (the symmetric one computes each pair of points once).
    product_flops_per_column
        ``K @ v`` through the factors.
    break_even_columns
        Number of columns from which ``K @ V`` goes through kernel tiles instead.
    dense_method
        ``"tiles"`` in memory, or what to do where the dense kernel exceeds the budget.
    ways
        How the factors of every layer are made, by its name: two factors, which cost D_in + M D_out numbers per point;
        rows, which cost M numbers for each of its parameters; sparse rows; or rows by automatic differentiation, which
        are the slowest, with the reason.
    """

    factor_bytes: int
    factors_kept: bool
    factor_flops: int
    dense_bytes: int
    dense_flops: int
    product_flops_per_column: int
    break_even_columns: int
    dense_method: str
    ways: Mapping[str, str]

    def __str__(self) -> str:
        kept = "kept" if self.factors_kept else "recomputed in chunks"
        tiles = "" if self.break_even_columns == NEVER else f", by tiles from {self.break_even_columns} columns on"
        counts = Counter(way.partition(":")[0].partition(" (")[0] for way in self.ways.values())
        ways = ", ".join(f"{count} by {way}" for way, count in counts.items())
        return (
            f"factors {format_bytes(self.factor_bytes)} ({kept}), one pass {self.factor_flops:.3g} FLOP; dense kernel "
            f"{format_bytes(self.dense_bytes)}, {self.dense_flops:.3g} FLOP ({self.dense_method}); K @ v "
            f"{self.product_flops_per_column:.3g} FLOP per column{tiles}; layers: {ways}"
        )


def dense_flops(sides: Sides) -> int:
    """Return the FLOP of all entries in the rows computed here."""
    pairs = {"trace": sides.outputs, "full": sides.outputs**2}.get(str(sides.output), 1)
    per_pair = sum(2 * a + 2 * b * pairs for a, b in sides.stored)
    return len(sides.left.coords) * len(sides.right.coords) * per_pair // (2 if sides.same else 1)


def product_flops(sides: Sides) -> int:
    """Return the FLOP of ``J (J'^T v)`` in this process; for the trace one such product per output."""
    points, products = len(sides.left.coords) + len(sides.summed.coords), sides.outputs
    # Of sparse rows the entries count, of others every parameter.
    entries = sum(
        b if layer.sparse else layer.columns for layer, (_, b) in zip(sides.left.specs, sides.stored, strict=True)
    )
    return 2 * points * entries * (products if sides.output == "trace" else 1)


def break_even_columns(sides: Sides) -> int:
    """Return the number of columns from which ``K V`` costs less by tiles, :data:`NEVER` if there is none."""
    extra = 2 * sides.height * sides.width  # the multiplication of a tile with one column of V
    per_column = product_flops(sides)
    return NEVER if sides.shared or per_column <= extra else dense_flops(sides) // (per_column - extra) + 1


def cost_of(sides: Sides, rows: int) -> Cost:
    """Return the cost of a kernel with so many rows in all, of which ``sides`` computes this process's."""
    stores = {id(side.store): side.store for side in (sides.left, sides.summed)}.values()
    dense_bytes = rows * sides.width * sides.dtype.itemsize
    fits = dense_bytes <= sides.memory_budget
    return Cost(
        factor_bytes=sum(store.bytes_per_point * len(store.coords) for store in stores),
        factors_kept=all(store.fits for store in stores),
        # One forward pass, and one backward pass per output.
        factor_flops=sum(2 * len(store.coords) * store.capture.columns * (1 + sides.outputs) for store in stores),
        dense_bytes=dense_bytes,
        dense_flops=dense_flops(sides),
        product_flops_per_column=product_flops(sides),
        break_even_columns=break_even_columns(sides),
        dense_method="tiles" if fits else "exceeds the budget: to_dense(out=numpy.memmap), columns or products",
        ways={
            layer.name: sides.left.capture.way(index)
            for index, layer in zip(sides.left.indices, sides.left.specs, strict=True)
        },
    )
