"""A tangent kernel, or a Jacobian, as SciPy's linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from inrfast.arrays import as_tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Product(Protocol):
    """What multiplies vectors (columns,) and blocks of them (columns, k)."""

    shape: Any
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product, of the same form."""


def as_scipy(kernel: Product, transposed: Product) -> LinearOperator:
    """Return a kernel or Jacobian, with its transpose, as an operator whose products go through ``K @ V``."""
    from scipy.sparse.linalg import LinearOperator  # costs a fifth of the whole import, and few need it

    forward, backward = _Apply(kernel), _Apply(transposed)
    return LinearOperator(
        kernel.shape,
        matvec=forward,
        matmat=forward,
        rmatvec=backward,
        rmatmat=backward,
        dtype=np.float64 if kernel.dtype == torch.float64 else np.float32,
    )


@dataclass(frozen=True)
class _Apply:
    """The product with NumPy's vectors, which can be pickled; complex ones are multiplied part by part."""

    kernel: Product

    def __call__(self, v: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(v):
            return self(v.real) + 1j * self(v.imag)
        dtype = np.float64 if self.kernel.dtype == torch.float64 else np.float32
        real: np.ndarray = np.asarray(v, dtype=dtype)
        return (self.kernel @ as_tensor("V", real, self.kernel.device)).cpu().numpy()
