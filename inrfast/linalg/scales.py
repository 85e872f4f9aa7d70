"""Right-hand sides scaled to a size whose squares fp64 holds, and their solutions scaled back."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.errors import RangeError


def powers(y: Tensor) -> Tensor:
    """Return for every column the power of two with which its largest entry is in [1, 2); 1 for a column of zeros."""
    largest = y.abs().amax(0)
    mantissas = torch.frexp(largest).mantissa
    return torch.where(largest > 0, largest / (2 * mantissas), 1.0)  # exact: the quotient is a power of two


def scaled_back(x: Tensor, factors: Tensor, instead: str) -> Tensor:
    """Return solutions of the systems that were scaled.

    Raises
    ------
    RangeError
        They have numbers beyond fp64; the message says what to do ``instead``.
    """
    found = x * factors
    if not bool(torch.isfinite(found).all()):
        raise RangeError(f"the solution would hold numbers beyond fp64; {instead}")
    return found
