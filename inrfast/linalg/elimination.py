"""How columns of an operator become columns of a pivoted Cholesky factor, tile by tile, on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.linalg.operators import SINGLE_UNIT
from inrfast.linalg.pivot_block import PivotBlock
from inrfast.ops import gemm

if TYPE_CHECKING:
    from inrfast.linalg.pivoted_cholesky import PivotedCholesky


@dataclass
class Sums:
    """What a worker adds up over rows of a block.

    Attributes
    ----------
    products
        Of all columns of F with the new ones.
    moved
        Of the columns' rounding to fp32 with itself, in a unit of its own.
    negative
        Smallest diagonal entry of the residual that no rounding explains.
    """

    products: Tensor
    moved: Tensor
    negative: Tensor


class Elimination:
    """The elimination of a block's columns.

    Parameters
    ----------
    factor
        The factor before the block.
    drawn
        The block's pivots.
    kept
        Where its columns of F go, those of all rows here.

    Attributes
    ----------
    unit
        Of what rounding to fp32 moves, so that fp32 holds the squares.
    """

    def __init__(self, factor: PivotedCholesky, drawn: PivotBlock, kept: Tensor) -> None:
        self.factor, self.drawn, self.kept = factor, drawn, kept
        self.upper = drawn.factor.t()
        self.heads = [factor.rows(part, drawn.pivots).t() for part in factor.blocks]
        known, exact = factor.exact_rows(drawn)
        order = known.argsort()
        self.known, self.exact = known[order] - factor.partition.start, exact[order]
        self.unit = 2.0 ** round(math.log2(SINGLE_UNIT * math.sqrt(factor.trace))) if drawn.single else 1.0

    def sums(self) -> Sums:
        """Return sums of no rows yet."""
        factor, count = self.factor, len(self.drawn.pivots)
        zeros = partial(torch.zeros, dtype=torch.float64, device=factor.diagonal.device)
        return Sums(zeros(factor.rank + count, count), zeros(count, count), zeros(()) + math.inf)

    def add(self, new: Tensor, panel: slice, rows: slice, sums: Sums) -> None:
        """Eliminate in some rows of a panel of K's columns, ``new``, in its place, and add up what they come to."""
        factor, drawn = self.factor, self.drawn
        for part in factor.tiles(rows):
            tile = new[part.start - panel.start : part.stop - panel.start]
            for block, head in zip(factor.blocks, self.heads, strict=True):
                gemm.addmm_(tile, block[part].to(tile), head, alpha=-1)
            torch.linalg.solve_triangular(self.upper, tile, upper=True, left=False, out=tile)
            first, last = (int(torch.searchsorted(self.known, end)) for end in (part.start, part.stop))
            tile[self.known[first:last] - part.start] = self.exact[first:last]
            if self.kept.dtype != tile.dtype:
                rounded = self.kept[part].copy_(tile).to(tile)
                if drawn.single:
                    moved = tile.sub_(rounded).mul_(1 / self.unit).to(torch.float32)
                    sums.moved += gemm.product(moved.t(), moved)
                tile.copy_(rounded)
            factor.add_products(sums.products, part, tile, self.kept[part] if drawn.single else None)
            squares, rank = tile.square().sum(1), factor.rank + len(drawn.pivots)
            sums.negative = torch.minimum(sums.negative, factor.subtract(part, squares, rank, drawn.single))
