"""Gaussian measurements: products with a random matrix, which is kept or drawn again in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_float, check_int, check_seed
from inrfast.inverse.magnitudes import Magnitude
from inrfast.inverse.operators import Operator, Shape, check_shape
from inrfast.memory import budget_bytes, require

ENTRIES_PER_BLOCK = 2**22
"""Entries of one block of rows, which is drawn from a seed of its own: part of what the matrix is."""


class Gaussian(Operator):
    """``A x`` with A of independent entries N(0, 1 / m): signals (*shape, M), N points, to (m, M).

    The matrix is drawn in fp32, row block by row block, each from a seed of its own, so that it is the same in every
    dtype, on every device, and whether it is kept or drawn again. Where it does not fit the memory budget, every
    product draws it anew, one block at a time, and so does every gradient.

    Parameters
    ----------
    shape
        Sizes of the grid.
    ratio
        s: measurements over the signal's length in each dimension, as the paper of PEAK defines it; m is the product of
        ``ceil(s n)`` over the axes, so that an image with s = 0.8 has 0.64 N measurements.
    measurements
        m, in the place of ``ratio``.
    seed
        Of the matrix.
    memory_budget
        Bytes for the matrix; None: half of what is free.

    Attributes
    ----------
    kept
        Whether the matrix is in memory.

    Raises
    ------
    ValueError, TypeError
        A ratio that is not above 0; both or neither of ``ratio`` and ``measurements``.
    MemoryBudgetError
        Not even one block of rows, drawn and in fp64, fits.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        ratio: float | None = None,
        measurements: int | None = None,
        seed: int = 0,
        memory_budget: int | None = None,
    ) -> None:
        sizes = check_shape("shape", shape)
        super().__init__(sizes, (_count(sizes, ratio, measurements),))
        self.seed = check_seed("seed", seed)
        self.points = math.prod(sizes)
        self.rows = max(1, min(self.shape_out[0], ENTRIES_PER_BLOCK // self.points))
        budget = budget_bytes(memory_budget)
        size, block = 4 * self.points * self.shape_out[0], 12 * self.points * self.rows
        require(
            block, budget, f"a block of {self.rows} rows of {self!r}", "take a smaller signal or a larger memory_budget"
        )
        self.kept = size + block <= budget
        self._blocks: list[Tensor] | None = None
        self._cast: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what tells this operator from others: the matrix follows from it."""
        return {**self.__dict__, "_blocks": None, "_cast": {}}

    @property
    def starts(self) -> range:
        """First rows of the blocks."""
        return range(0, self.shape_out[0], self.rows)

    def block(self, number: int, like: Tensor) -> Tensor:
        """Return a block of rows (rows, N) in the real dtype of ``like`` and on its device."""
        dtype, device = like.real.dtype if like.is_complex() else like.dtype, like.device
        if not self.kept:
            return self._drawn(number).to(device, dtype)
        if self._blocks is None:
            self._blocks = [self._drawn(own) for own in range(len(self.starts))]
        if (dtype, device) == (torch.float32, torch.device("cpu")):
            return self._blocks[number]
        if dtype == torch.float64:  # twice the memory, for one block at a time
            return self._blocks[number].to(device, dtype)
        if (dtype, device) not in self._cast:
            self._cast = {(dtype, device): [own.to(device, dtype) for own in self._blocks]}
        return self._cast[dtype, device][number]

    def _drawn(self, number: int) -> Tensor:
        rows = min(self.rows, self.shape_out[0] - number * self.rows)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**32)
        drawn = torch.randn(rows, self.points, generator=generator, dtype=torch.float32)
        return drawn.mul_(self.shape_out[0] ** -0.5)

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        flat = x.reshape(self.points, x.shape[-1])
        return _Products.apply(flat, self, False)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return _Products.apply(y, self, True).reshape(*self.shape_in, y.shape[-1])

    def products(self, x: Tensor) -> Tensor:
        """Return ``A x`` (m, M) of (N, M), block by block."""
        found = x.new_empty(self.shape_out[0], x.shape[-1])
        for number, start in enumerate(self.starts):
            block = self.block(number, x)
            found[start : start + len(block)] = _times(block, x)
        return found

    def transposed_products(self, y: Tensor) -> Tensor:
        """Return ``A^T y`` (N, M) of (m, M), block by block."""
        found = y.new_zeros(self.points, y.shape[-1])
        for number, start in enumerate(self.starts):
            block = self.block(number, y)
            found += _times(block.mT, y[start : start + len(block)])
        return found


def _times(block: Tensor, x: Tensor) -> Tensor:
    return torch.complex(block @ x.real, block @ x.imag) if x.is_complex() else block @ x


class _Products(torch.autograd.Function):
    """``A x``, or ``A^T x``, whose gradient draws the blocks again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Gaussian, transposed: bool) -> Tensor:
        ctx.operator, ctx.transposed = operator, transposed
        return operator.transposed_products(x) if transposed else operator.products(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Products.apply(gradients[0], ctx.operator, not ctx.transposed), None, None


class GaussianMagnitude(Magnitude):
    """Gaussian phase retrieval: ``|A x|`` with the real matrix of :class:`Gaussian`; signals (*shape, M) to (m, M).

    A signal cannot be told from its negative: compare with :func:`inrfast.inverse.align_ambiguities`.

    Parameters
    ----------
    shape, ratio, measurements, seed, memory_budget
        As in :class:`Gaussian`.
    epsilon
        Of the loss, which compares ``sqrt(|A x|^2 + epsilon)`` with ``sqrt(y^2 + epsilon)``; 0 by default, since the
        paper's Net-GD takes magnitudes as they are.

    Attributes
    ----------
    inner
        The linear operator.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        ratio: float | None = None,
        measurements: int | None = None,
        seed: int = 0,
        epsilon: float = 0.0,
        memory_budget: int | None = None,
    ) -> None:
        self.inner = Gaussian(shape, ratio, measurements, seed, memory_budget)
        super().__init__(self.inner.shape_in, self.inner.shape_out, epsilon)

    def linear_part(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.magnitudes.Magnitude`."""
        return self.inner.apply(x)


def _count(sizes: Shape, ratio: float | None, measurements: int | None) -> int:
    if (ratio is None) == (measurements is None):
        raise ValueError("one of ratio and measurements must be given, got " + ("neither" if ratio is None else "both"))
    if ratio is None:
        return check_int("measurements", measurements, minimum=1)
    per_axis = check_float("ratio", ratio, minimum=0.0, exclusive=True)
    return math.prod(math.ceil(round(per_axis * size, 9)) for size in sizes)
