"""Products in fp64 with blocks of rows of a factor that is kept in fp32 or fp64, without a copy of it in fp64.

Vectors lie in rows here, (k, n): so the products are fast where there are few of them. Entries in fp32 are converted by
pieces that stay in the cache of a core; on a CPU every core takes pieces of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from inrfast.memory import chunks
from inrfast.threads import MOST_THREADS, one_core, share

PIECE, PIECE_GPU = (64, 1024), (2048, 2048)
"""Rows and columns of a piece: 512 KiB in fp64, which stays in the second-level cache of a core; 32 MiB in that of a
large GPU, and few launches."""


SHARED = 2**19
"""Entries from which on threads share a product; fewer take as long as handing them out."""


def piece_of(device: torch.device) -> tuple[int, int]:
    """Return rows and columns of a piece: so many terms are added up by one product, then the sums of pieces."""
    return PIECE if device.type == "cpu" else PIECE_GPU


def terms(order: int, device: torch.device) -> int:
    """Return after how many additions a sum of ``order`` terms is complete, by rows or by columns, at most."""
    return max(min(order, size) + -(-order // size) for size in piece_of(device))


@dataclass
class _Pieces:
    """Pieces of a matrix (rows, columns) in fp64, or their absolute values, in memory that the next one overwrites."""

    matrix: Tensor
    absolute: bool
    memory: Tensor | None = None

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        piece = self.matrix[rows, columns]
        if piece.dtype == torch.float64 and not self.absolute:
            return piece
        if self.memory is None or self.memory.numel() < piece.numel():
            self.memory = torch.empty(piece.numel(), dtype=torch.float64, device=piece.device)
        out = self.memory[: piece.numel()].view(piece.shape).copy_(piece)
        return out.abs_() if self.absolute else out


@contextmanager
def sharing(device: torch.device) -> Iterator[int]:
    """Keep operations of this thread on one core in a block; yield how many threads may share its large products.

    Small ones would only wait for each other's threads.
    """
    if device.type != "cpu":
        yield 1
        return
    threads = min(torch.get_num_threads(), MOST_THREADS)
    with one_core():
        yield threads


def times(matrix: Tensor, vectors: Tensor, absolute: bool = False, threads: int = 1) -> Tensor:
    """Return ``vectors @ matrix^T`` (k, rows), fp64, for vectors (k, columns) in fp64.

    ``absolute`` takes the absolute values of the matrix.
    """
    out = vectors.new_zeros(vectors.shape[0], matrix.shape[0])
    height, width = piece_of(matrix.device)

    def work(pieces: _Pieces, rows: slice) -> None:
        for columns in chunks(matrix.shape[1], width):
            out[:, rows].addmm_(vectors[:, columns], pieces(rows, columns).t())

    _share(chunks(matrix.shape[0], height), _Pieces(matrix, absolute), threads, work)
    return out


def add_transposed_(sums: Tensor, matrix: Tensor, vectors: Tensor, absolute: bool = False, threads: int = 1) -> None:
    """Add ``vectors @ matrix`` to ``sums`` (k, columns), for vectors (k, rows), all in fp64."""
    height, width = piece_of(matrix.device)

    def work(pieces: _Pieces, columns: slice) -> None:
        for rows in chunks(matrix.shape[0], height):
            sums[:, columns].addmm_(vectors[:, rows], pieces(rows, columns))

    _share(chunks(matrix.shape[1], width), _Pieces(matrix, absolute), threads, work)


def _share(parts: Iterator[slice], pieces: _Pieces, threads: int, work: Callable[[_Pieces, slice], None]) -> None:
    """Do the work on every part, by several threads where there is enough of it."""
    count = threads if pieces.matrix.numel() >= SHARED else 1
    share(parts, [partial(work, replace(pieces)) for _ in range(count)])
