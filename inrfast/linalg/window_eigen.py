"""Eigenvalues of small symmetric matrices on the host, while the device that made them goes on with other work.

A window of a block factorisation (:mod:`inrfast.linalg.block_ldl`) has up to some hundred rows. On a GPU, solvers of
such a size are slower than LAPACK, and the elimination needs the number of kept directions on the host in any case. So
the matrix is copied to the host without waiting, the device is given work that does not need the result, and the host
waits once, for the copy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.errors import RangeError


@dataclass(frozen=True)
class Directions:
    """Eigenvectors of a window, those that are kept first.

    Attributes
    ----------
    kept
        How many are kept; the others are passed on.
    values
        Eigenvalues (count,) in the order of the vectors, fp64, on the host.
    pivots, basis
        The same eigenvalues, and the eigenvectors as columns (count, count), fp64, on the matrix's device.
    """

    kept: int
    values: Tensor
    pivots: Tensor
    basis: Tensor


class WindowEigen:
    """The eigenvalues of one symmetric matrix (count, count), asked for when it is made and taken when they are needed.

    What is launched on its device in between runs beside the host's work; the current stream counts. On the CPU
    everything happens in :meth:`take`.

    Parameters
    ----------
    matrix
        fp64, symmetric; its lower half counts. A copy is on its way to the host when this returns.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.device = matrix.device
        self._copied: torch.cuda.Event | None = None
        if self.device.type != "cuda":
            self._host = matrix
            return
        self._host = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=True)
        self._host.copy_(matrix, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self.device))

    def take(self, delay: float, last: bool) -> Directions:
        """Return the directions; the one place that waits for the device.

        Those whose eigenvalue is at least ``delay`` in size are kept, at least half of all (the larger ones), and every
        one if ``last``.

        Raises
        ------
        RangeError
            The matrix holds NaN or Inf.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not bool(torch.isfinite(self._host).all()):
            raise RangeError("the factorisation met NaN or Inf: the operator's entries, or their products, overflow")
        found, basis = torch.linalg.eigh(self._host)
        keep = torch.ones_like(found, dtype=torch.bool) if last else found.abs() >= delay
        if int(keep.sum()) < len(found) // 2:
            keep = found.abs() >= found.abs().median()
        order = torch.cat([keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]])
        kept, values = int(keep.sum()), found[order]
        if self._copied is None:
            return Directions(kept, values, values, basis[:, order])
        both = torch.empty(1 + len(found), len(found), dtype=found.dtype, pin_memory=True)
        both[0], both[1:] = values, basis[:, order]
        moved = both.to(self.device, non_blocking=True)  # pinned memory is reused after the copy alone
        return Directions(kept, values, moved[0], moved[1:])
