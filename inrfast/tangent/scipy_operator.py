"""A tangent kernel as SciPy's linear operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from inrfast.tangent.kernel import TangentKernel


def as_scipy(kernel: TangentKernel, transposed: TangentKernel) -> LinearOperator:
    """Return a kernel, whose transpose is another one, as an operator whose products go through ``K @ V``."""
    from scipy.sparse.linalg import LinearOperator  # costs a fifth of the whole import, and few need it

    forward, backward = _product_of(kernel), _product_of(transposed)
    return LinearOperator(
        kernel.shape,
        matvec=forward,
        matmat=forward,
        rmatvec=backward,
        rmatmat=backward,
        dtype=np.float64 if kernel.dtype == torch.float64 else np.float32,
    )


def _product_of(kernel: TangentKernel) -> Callable[[np.ndarray], np.ndarray]:
    """Return the product with NumPy's vectors; complex ones are multiplied part by part."""

    def apply(v: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(v):
            return apply(v.real) + 1j * apply(v.imag)
        return (kernel @ torch.from_numpy(np.array(v)).to(kernel.device, kernel.dtype)).cpu().numpy()

    return apply
