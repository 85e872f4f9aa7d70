"""Products in fp64 with blocks of rows of a factor that is kept in fp32 or fp64, without a copy of it in fp64.

Vectors lie in rows here, (k, n): so the products are fast where there are few of them. Entries in fp32 are converted by
pieces that stay in the cache of a core; on a CPU every core takes pieces of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from inrfast.memory import chunks
from inrfast.threads import MOST_THREADS, share

PIECE, PIECE_GPU = (128, 512), (2048, 2048)
"""Rows and columns of a piece: 512 KiB in fp64, which stays in the second-level cache of a core; 32 MiB in that of a
large GPU, and few launches."""


def piece_of(device: torch.device) -> tuple[int, int]:
    """Return rows and columns of a piece: so many terms are added up by one product, then the sums of pieces."""
    return PIECE if device.type == "cpu" else PIECE_GPU


def terms(order: int, device: torch.device) -> int:
    """Return after how many additions a sum of ``order`` terms is complete, by rows or by columns, at most."""
    return max(min(order, size) + -(-order // size) for size in piece_of(device))


class _Pieces:
    """Pieces of a matrix (rows, columns) in fp64, or their absolute values, in memory that the next one overwrites."""

    def __init__(self, matrix: Tensor, absolute: bool) -> None:
        self.matrix, self.absolute = matrix, absolute
        self.copied = absolute or matrix.dtype != torch.float64
        self.memory = matrix.new_empty(0, dtype=torch.float64)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        piece = self.matrix[rows, columns]
        if not self.copied:
            return piece
        if self.memory.numel() < piece.numel():
            self.memory = self.matrix.new_empty(piece.numel(), dtype=torch.float64)
        out = self.memory[: piece.numel()].view(piece.shape).copy_(piece)
        return out.abs_() if self.absolute else out


def _share(parts: Iterator[slice], matrix: Tensor, absolute: bool, work: Callable[[slice, _Pieces], None]) -> None:
    """Do the work on every part, on a CPU by as many threads as torch may use."""
    threads = min(torch.get_num_threads(), MOST_THREADS) if matrix.device.type == "cpu" else 1
    pieces = [_Pieces(matrix, absolute) for _ in range(threads)]
    share(parts, [lambda part, own=own: work(part, own) for own in pieces])  # type: ignore[misc]


def times(matrix: Tensor, vectors: Tensor, absolute: bool = False) -> Tensor:
    """Return ``vectors @ matrix^T`` (k, rows), fp64, for vectors (k, columns) in fp64.

    ``absolute`` takes the absolute values of the matrix.
    """
    out = vectors.new_zeros(vectors.shape[0], matrix.shape[0])
    height, width = piece_of(matrix.device)

    def work(rows: slice, pieces: _Pieces) -> None:
        for columns in chunks(matrix.shape[1], width):
            out[:, rows].addmm_(vectors[:, columns], pieces(rows, columns).t())

    _share(chunks(matrix.shape[0], height), matrix, absolute, work)
    return out


def add_transposed_(sums: Tensor, matrix: Tensor, vectors: Tensor, absolute: bool = False) -> None:
    """Add ``vectors @ matrix`` to ``sums`` (k, columns), for vectors (k, rows), all in fp64."""
    height, width = piece_of(matrix.device)

    def work(columns: slice, pieces: _Pieces) -> None:
        for rows in chunks(matrix.shape[0], height):
            sums[:, columns].addmm_(vectors[:, rows], pieces(rows, columns))

    _share(chunks(matrix.shape[1], width), matrix, absolute, work)
