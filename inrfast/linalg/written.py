"""A symmetric operator whose lower half is kept in fp64: its products then cost a pass over memory.

A proof by a factorisation takes some hundred products with vectors. A tangent kernel takes them through the factors of
its network, at the cost of the parameters for every point; the entries, once computed, are cheaper up to tens of
thousands of points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.linalg.block_ldl import shapes, sizes
from inrfast.linalg.lower_products import add_transposed_, sharing, times
from inrfast.linalg.lower_rows import LowerRows
from inrfast.linalg.operators import SymmetricOperator
from inrfast.memory import chunks
from inrfast.progress import progress_bar

PRODUCTS = 100
"""Products with one vector that a proof takes at least, with lambda_1."""


class WrittenOperator:
    """The lower half of an operator, computed once, in this process.

    Parameters
    ----------
    operator
        Symmetric, fp64, all of its rows in this process.
    progress
        Whether to show a bar while entries are computed; None: on a terminal and in a notebook.

    Attributes
    ----------
    operator
        The same.
    """

    def __init__(self, operator: SymmetricOperator, progress: bool | None = False) -> None:
        self.shape, self.device, self.partition = operator.shape, operator.device, operator.partition
        self.entry_flops, self.product_flops = 0.0, 2.0 * operator.shape[0] ** 2
        self.operator, n = operator, operator.shape[0]
        _, _, self._height = sizes(n, self.device)
        self._lower = LowerRows(shapes(n, self._height), torch.float64, self.device)
        with progress_bar(
            total=n * (n + 1) // 2, desc="entries", unit="", unit_scale=True, progress=progress, leave=False
        ) as bar:
            for columns in chunks(n, self._height):
                index = torch.arange(columns.start, columns.stop, device=self.device)
                targets = [(block[:, columns], rows) for rows, block in self._blocks() if rows.start >= columns.start]
                operator.blocks_(targets, index, torch.float64)
                bar.update(sum(n - row for row in range(columns.start, columns.stop)))

    def _blocks(self) -> list[tuple[slice, Tensor]]:
        """Return the rows of every block, and the block with the columns up to its last row."""
        return list(zip(chunks(self.shape[0], self._height), self._lower.blocks, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return self._lower.nbytes

    @property
    def matrix_error(self) -> float:
        """Bound on the spectral norm of the rounding error of the entries; measured when it is asked for."""
        return self.operator.matrix_error

    @property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J; measured when it is asked for."""
        return self.operator.jacobian_error

    def diagonal(self) -> Tensor:
        """Return the diagonal."""
        return self.operator.diagonal()

    def columns(self, index: Tensor) -> Tensor:
        """Return columns, computed anew."""
        return self.operator.columns(index)

    def submatrix(self, index: Tensor) -> Tensor:
        """Return rows and columns, computed anew."""
        return self.operator.submatrix(index)

    def blocks_(self, targets: Sequence[tuple[Tensor, slice]], index: Tensor, dtype: torch.dtype) -> None:
        """Write some rows of some columns into each target; in fp32 they are the entries in fp64, rounded."""
        start, stop = int(index[0]), int(index[-1]) + 1
        assert stop - start == len(index), "columns of a panel follow each other"
        for target, rows in targets:
            for own, block in self._blocks():
                first, last = max(own.start, rows.start), min(own.stop, rows.stop)
                if first < last:
                    # Rows above the columns' block are in the upper half.
                    assert stop <= own.stop, "rows of a panel are not above its columns"
                    found = block[first - own.start : last - own.start, start:stop]
                    target[first - rows.start : last - rows.start] = found

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product with a block of vectors (n, k)."""
        vectors = V.t().contiguous()
        out = torch.zeros_like(vectors)
        with sharing(self.device) as threads:
            for rows, block in self._blocks():
                out[:, rows] += times(block, vectors[:, : rows.stop], threads=threads)
                add_transposed_(out[:, : rows.start], block[:, : rows.start], vectors[:, rows], threads=threads)
        return out.t().contiguous()


def written_bytes(order: int, device: torch.device) -> int:
    """Return the bytes of a written operator."""
    _, _, height = sizes(order, device)
    return 8 * sum(rows * columns for rows, columns in shapes(order, height))


def written(
    operator: SymmetricOperator,
    budget: int,
    rest: int,
    products: float = PRODUCTS,
    filled: bool = False,
    progress: bool | None = False,
) -> tuple[SymmetricOperator, int]:
    """Return the operator, written down where that is cheaper, and what is left of the budget.

    Parameters
    ----------
    operator
        Symmetric, fp64.
    budget
        Bytes.
    rest
        Bytes that have to remain.
    products
        Products with one vector that will be taken, at least.
    filled
        Whether all entries are computed in fp64 anyway.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.
    """
    n, needed = operator.shape[0], written_bytes(operator.shape[0], operator.device)
    if isinstance(operator, WrittenOperator) or not operator.partition.whole or operator.device.type != "cpu":
        return operator, budget
    # An operator that doesn't tell its costs has its reasons to be a product alone.
    entries, product = (getattr(operator, name, math.nan) for name in ("entry_flops", "product_flops"))
    if needed + rest <= budget and (0.0 if filled else entries) < products * (product - 2.0 * n * n):
        return WrittenOperator(operator, progress), budget - needed
    return operator, budget
