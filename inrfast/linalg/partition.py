"""Which rows of every vector a process holds, and what needs all of them: sums, picks, orthonormal blocks.

The methods of this folder are written against :class:`Whole`, which holds all rows and exchanges nothing;
:mod:`inrfast.distributed` holds a part of them and talks to the processes that hold the rest.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.memory import chunks


@dataclass(frozen=True)
class Window:
    """Consecutive rows of one process.

    Attributes
    ----------
    owner
        Number of the process that holds them.
    rows
        The rows, counted over those of the owner.
    index
        The same, counted over all.
    """

    owner: int
    rows: slice
    index: slice

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


class Whole:
    """All ``size`` rows in this process.

    Attributes
    ----------
    size
        Rows of all processes.
    start, stop
        The rows here are numbers ``start`` to ``stop`` of all.
    rank, processes
        Number of this process, and of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.start, self.stop = 0, size
        self.rank, self.processes = 0, 1

    def windows(self, size: int) -> list[Window]:
        """Return windows of at most ``size`` rows that hold every row once, in the order in which they are eliminated.

        Several processes take turns, so that each of them has rows left to work on for as long as it goes.
        """
        return [Window(0, rows, rows) for rows in chunks(self.size, size)]

    def from_owner(self, owner: int, tensor: Tensor) -> Tensor:
        """Return the ``tensor`` of one process, of the same shape and dtype everywhere."""
        return tensor

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of every process's ``part``."""
        return part

    def sum(self, number: float, device: torch.device) -> float:
        """Return the sum of every process's ``number``; ``device`` is the kernel's."""
        return number

    def largest(self, part: Tensor) -> Tensor:
        """Return the largest of every process's ``part``, entry by entry; NaN where one is."""
        return part

    def gather(self, rows: Tensor) -> Tensor:
        """Return all rows of a tensor of which this process holds ``rows``."""
        return rows

    def agree(self, tensor: Tensor) -> Tensor:
        """Return the first process's ``tensor``, of the same shape and dtype everywhere."""
        return tensor

    def all_or_none(self) -> AbstractContextManager[None]:
        """Return a block that exchanges nothing, in which an error of one process is raised in all."""
        return nullcontext()

    def complete_(self, matrix: Tensor) -> None:
        """Fill in the rows of a symmetric matrix (size, size) that other processes have, and mirror its lower half."""

    def mine(self, full: Tensor) -> Tensor:
        """Return this process's rows of a tensor that every process has whole."""
        return full[self.start : self.stop]

    @property
    def whole(self) -> bool:
        """Whether this process holds every row: then no row that is asked for may be missing."""
        return self.stop - self.start == self.size

    def pick(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the rows ``index`` (counted over all) of a tensor of which this process holds ``rows``."""
        if self.whole:
            return self.total(rows[index])
        here = (index >= self.start) & (index < self.stop)
        found = rows.new_zeros(len(index), *rows.shape[1:])
        found[here] = rows[index[here] - self.start]
        return self.total(found)

    def place_(self, rows: Tensor, index: Tensor, values: Tensor) -> None:
        """Write ``values`` into the rows ``index`` (counted over all) of ``rows``, those of them that are here.

        A row may be named twice if its values are the same both times.
        """
        if not self.whole:
            here = (index >= self.start) & (index < self.stop)
            index, values = index[here] - self.start, values[here]
        rows[index] = values

    def random(self, columns: int, seed: int, like: Tensor) -> Tensor:
        """Return this process's rows of a Gaussian matrix (size, columns) drawn from ``seed``, fp64."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.size, columns, generator=generator, dtype=torch.float64)
        return self.mine(drawn).to(like.device)

    def norm(self, block: Tensor) -> Tensor:
        """Return the Euclidean norms of the columns of a block of vectors."""
        return self.total(block.square().sum(0)).sqrt()

    def orthonormal(self, block: Tensor) -> Tensor:
        """Return an orthonormal basis of a block (rows, p), of p columns whatever its rank, by Householder's QR."""
        if block.shape[1] == 1:
            return _unit(block)
        return torch.linalg.qr(block).Q


def _unit(vector: Tensor) -> Tensor:
    """Return a vector (rows, 1) divided by its norm, the first unit vector in place of zero; no number is read.

    The same as a QR of one column, without its many launches on a GPU, and faster than LAPACK's on a CPU: 65,536 rows
    took that 90 ms. Dividing by the largest entry first keeps the squares in range.
    """
    largest = torch.linalg.vector_norm(vector, math.inf)
    missing = largest == 0
    scaled = vector / (largest + missing)
    scaled[0].add_(missing)
    return scaled.div_(torch.linalg.vector_norm(scaled))
