"""The inverse of the diagonal (Jacobi): for systems whose rows have very different sizes and whose ridge is large."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.linalg.preconditioners import PRECONDITIONERS, Apply, System, require_iteration


def diagonal(system: System) -> Apply:
    """Return ``V -> V / (diag(K) + ridge)``; a row of zeros without a ridge is left as it is."""
    require_iteration(system)
    sizes = (system.operator.diagonal() + system.ridge).unsqueeze(1)
    inverse = torch.where(sizes > 0, 1 / sizes, 1.0)

    def apply(V: Tensor) -> Tensor:
        return V * inverse

    return apply


PRECONDITIONERS.add("diagonal", diagonal)
