"""Singular values of tall matrices that arrive in chunks of rows: one pass, memory of one chunk and one square.

Two ways, both in fp64. The Gram matrix, added up over the chunks, costs one product per chunk but squares the condition
number: it resolves ``sigma / sigma_1`` down to about 1e-7, where its error is the square root of rounding. TSQR keeps
the triangular factor instead and resolves down to rounding itself, at some ten times the time.

The stated errors take single rounding errors as independent with mean zero, so that c of them add up to ``sqrt(c) u``
(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019); worst-case bounds have c there and are never met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from inrfast.errors import ResolutionError, check_float, check_tensor
from inrfast.linalg.spectrum import RankInterval

GRAM_RTOL = 1e-7
"""Smallest relative tolerance at which the Gram matrix is tried before TSQR."""

CHUNK_ROWS = 512
"""Rows per chunk (or the number of columns, if larger): enough for products at full speed, few enough for caches."""

HOST_ORDER = 512
"""Order up to which a GPU's Gram matrix is decomposed on the CPU: 20 ms at 512, where cuSOLVER takes as long."""

ROUNDOFF = torch.finfo(torch.float64).eps / 2


@dataclass(frozen=True)
class SingularValues:
    """All singular values of a matrix, with their error.

    Attributes
    ----------
    values
        Descending, fp64, on the CPU, as many as the smaller side of the matrix.
    error
        ``"tsqr"``: every true value lies within ``error`` of the computed one; ``"gram"``: its square does.
    shape
        Of the matrix.
    method
        ``"gram"`` or ``"tsqr"``.
    matrix_error
        Spectral-norm bound on the error of the matrix itself, which the bounds and the floor take in; 0 if it is exact.
    """

    values: Tensor
    error: float
    shape: tuple[int, int]
    method: str
    matrix_error: float = 0.0

    @property
    def lower(self) -> Tensor:
        """Lower bound of every value."""
        if self.method == "gram":
            found = (self.values.square() - self.error).clamp_min(0).sqrt()
        else:
            found = self.values - self.error
        return (found - self.matrix_error).clamp_min(0)

    @property
    def upper(self) -> Tensor:
        """Upper bound of every value."""
        found = (self.values.square() + self.error).sqrt() if self.method == "gram" else self.values + self.error
        return found + self.matrix_error

    @property
    def floor(self) -> float:
        """Relative tolerance below which a zero singular value cannot be told from one above the threshold."""
        zero = (math.sqrt(self.error) if self.method == "gram" else self.error) + self.matrix_error
        largest = float(self.lower[0])
        if largest > 0:
            return zero / largest
        return 0.0 if zero == 0 else math.inf

    def rank(self, rtol: float) -> RankInterval:
        """Return the number of singular values above ``rtol * sigma_1`` as an interval that contains it.

        Raises
        ------
        ResolutionError
            ``rtol`` is below the floor.
        """
        rtol = check_float("rtol", rtol, minimum=0.0, exclusive=True)
        if rtol < self.floor:
            raise ResolutionError(
                f"rtol={rtol:g} is below the floor {self.floor:.2e} of these singular values ({self.method})"
            )
        return self.interval(rtol)

    def interval(self, rtol: float) -> RankInterval:
        """Return :meth:`rank` at a checked tolerance, whatever the floor is: below it the interval is wide."""
        lower = int((self.lower > rtol * float(self.upper[0])).sum())
        upper = int((self.upper > rtol * float(self.lower[0])).sum())
        return RankInterval(lower, max(lower, upper), rtol)

    def stable_rank(self) -> float:
        """Return ``|A|_F^2 / sigma_1^2``; 0 for the zero matrix."""
        largest = float(self.values[0])
        return float((self.values / largest).square().sum()) if largest > 0 else 0.0

    def effective_rank(self) -> float:
        """Return ``exp(H)`` with H the entropy of ``sigma^2 / |A|_F^2``; 0 for the zero matrix.

        This is the effective rank (Roy and Vetterli, EUSIPCO 2007) of ``A A^T``, so that representations and kernels
        are measured alike.
        """
        if float(self.values[0]) == 0:
            return 0.0
        p = (self.values / self.values[0]).square()
        p = p[p > 0] / p.sum()
        return float(torch.exp(-(p * p.log()).sum()))


F = TypeVar("F", float, Tensor)


def gram_error(order: F, additions: int, longest: F, total: F, largest: F, products: F) -> F:
    """Return a bound on the error of the eigenvalues of a computed Gram matrix of order d, in fp64.

    Entry (i, j) has an error of ``sqrt(c) u |a_i| |a_j|``; a matrix of independent errors of that size has a spectral
    norm of at most about ``4 sqrt(c) u max |a_i| |A|_F`` (Bandeira and van Handel, Ann. Probab. 44(4), 2016). The
    eigenvalue solver adds ``d u lambda_1``, underflow ``d`` times the smallest normal number per product.

    Parameters
    ----------
    order
        d; like the following a number, or a tensor of one per matrix.
    additions
        c, the length of the sums.
    longest, total, largest
        ``max |a_i|^2``, ``|A|_F^2`` and lambda_1.
    products
        Number of products in a sum, times what they are multiplied by afterwards.
    """
    error = (4 * math.sqrt(additions) * longest**0.5 * total**0.5 + order * largest) * ROUNDOFF
    return error + products * order * torch.finfo(torch.float64).tiny


class StreamedGram:
    """The Gram matrix ``A^T A`` of the rows added so far, in fp64.

    Parameters
    ----------
    columns
        Of the matrix.
    device
        Of its rows.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._additions = 0
        self._longest = 0
        self._read: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add a chunk of rows (n, columns); nothing waits for a GPU.

        Blocks of a long chunk are summed apart, which keeps the sums short and fills a GPU; that takes as much memory
        as the chunk at most.
        """
        rows = rows.to(self._gram.dtype)
        block = max(CHUNK_ROWS, len(self._gram))
        whole = len(rows) - len(rows) % block if len(rows) >= 2 * block else 0
        if whole > 0:
            blocks = rows[:whole].unflatten(0, (-1, block))
            self._gram += torch.bmm(blocks.mT, blocks).sum(0)
            self._count(block, whole // block)
        if whole < len(rows):
            self._gram.addmm_(rows[whole:].t(), rows[whole:])
            self._count(len(rows) - whole, 1)
        self.rows += len(rows)
        self._read = None

    def _count(self, length: int, number: int) -> None:
        """Count the additions behind an entry: ``number`` sums of ``length`` terms, then the sum of those."""
        longest = max(self._longest, length)
        self._additions += longest - self._longest + number
        self._longest = longest

    def without_zeros(self) -> int:
        """Leave out columns of zeros (one stays, if all are); return how many are left."""
        alive = (self._gram.diagonal() != 0).cpu().nonzero().flatten()
        if len(alive) < len(self._gram):
            alive = (alive if len(alive) > 0 else torch.tensor([0])).to(self._gram.device)
            self._gram = self._gram[alive][:, alive]
            self._read = None
        return len(self._gram)

    def _matrix(self) -> Tensor:
        """Return the matrix where it is decomposed: on the CPU up to :data:`HOST_ORDER`, read there once."""
        if self._read is None:
            small = len(self._gram) <= HOST_ORDER
            self._read = self._gram.cpu() if small else self._gram
        return self._read

    def singular_values(self, columns: int | None = None) -> SingularValues:
        """Return the singular values of all columns, or of the first ``columns``; :func:`gram_error` is theirs."""
        gram = self._matrix()[:columns, :columns]
        d = len(gram)
        shape, count = (self.rows, d), min(self.rows, d)
        if not bool(torch.isfinite(gram).all()):  # the squares overflow: nothing is known, TSQR has to do it
            return SingularValues(torch.zeros(count, dtype=gram.dtype), math.inf, shape, "gram")
        eigenvalues = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).cpu()
        squares, largest = gram.diagonal(), float(eigenvalues[0])
        longest, total = float(squares.max()), float(squares.sum())
        error = gram_error(float(d), self._additions, longest, total, largest, float(self.rows))
        return SingularValues(eigenvalues[:count].sqrt(), error, shape, "gram")


class StreamedQR:
    """The triangular factor of the rows added so far: the QR factorisation of ``[R; chunk]``, chunk after chunk.

    Sequential TSQR (Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34(1), 2012).

    Parameters
    ----------
    columns
        Of the matrix.
    device
        Of its rows.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._r = torch.zeros(0, columns, dtype=torch.float64, device=device)
        self._additions = 0

    def add(self, rows: Tensor) -> None:
        """Add a chunk of rows (n, columns)."""
        stacked = torch.cat([self._r, rows.to(self._r.dtype)])
        self._r = torch.linalg.qr(stacked, mode="r").R
        self._additions = max(self._additions, len(stacked)) + 1
        self.rows += len(rows)

    def singular_values(self, columns: int | None = None) -> SingularValues:
        """Return the singular values of all columns, or of the first ``columns``.

        Householder QR perturbs every column by ``sqrt(c) u`` of its norm, hence ``4 sqrt(c) u |A|_F`` overall.
        """
        r = self._r[:, :columns]
        r = r.cpu() if len(r) <= HOST_ORDER else r
        if not bool(torch.isfinite(r).all()):
            raise ValueError("the matrix holds NaN or Inf, or numbers near the largest of fp64")
        values = torch.linalg.svdvals(r)[: self.rows].cpu()
        largest = float(values[0])
        # Scaled, so that no square over- or underflows.
        frobenius = largest * float(torch.linalg.vector_norm(values / largest)) if largest > 0 else 0.0
        error = 4 * math.sqrt(self._additions) * ROUNDOFF * frobenius
        return SingularValues(values, error, (self.rows, r.shape[1]), "tsqr")


def singular_values(source: Callable[[], Iterable[Tensor]], rtol: float) -> SingularValues:
    """Return the singular values of the matrix whose chunks of rows ``source()`` yields, resolved down to ``rtol``.

    The Gram matrix is tried where ``rtol >= 1e-7``; where its floor turns out higher than ``rtol`` (or ``rtol`` is
    smaller), TSQR takes a pass of its own.

    Parameters
    ----------
    source
        Called once per pass; yields chunks (n, D), n >= 1, of one D, any floating dtype (taken as exact in fp64), best
        of ``max(CHUNK_ROWS, D)`` rows.
    rtol
        Smallest tolerance, relative to sigma_1, at which ranks will be asked for.

    Raises
    ------
    ValueError, TypeError
        No rows; chunks that are not finite matrices of one width; a bad ``rtol``.
    """
    rtol = check_float("rtol", rtol, minimum=0.0, exclusive=True)
    if rtol >= GRAM_RTOL:
        found = _stream(StreamedGram, source)
        if found.floor <= rtol:
            return found
    return _stream(StreamedQR, source)


def _stream(kind: type[StreamedGram] | type[StreamedQR], source: Callable[[], Iterable[Tensor]]) -> SingularValues:
    stream: StreamedGram | StreamedQR | None = None
    for chunk in source():
        chunk = check_tensor("chunk", chunk, ndim=2)
        if stream is None:
            stream, columns = kind(chunk.shape[1], chunk.device), chunk.shape[1]
        if chunk.shape[1] != columns:
            raise ValueError(f"chunk must have {columns} columns like those before it, got shape {tuple(chunk.shape)}")
        stream.add(chunk)
    if stream is None:
        raise ValueError("source must yield at least one chunk of rows, got none")
    return stream.singular_values()
