"""The lower half of a square matrix as blocks of rows of growing length: half the memory of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.memory import empty


class LowerRows:
    """Blocks of rows, in memory.

    Parameters
    ----------
    shapes
        (rows, columns) of every block.
    dtype, device
        Of the entries.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.blocks = [empty(shape, dtype, device) for shape in shapes]

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(block.nbytes for block in self.blocks)

    def __getitem__(self, block: int) -> Tensor:
        """Return a block (rows, columns): a view."""
        return self.blocks[block]
