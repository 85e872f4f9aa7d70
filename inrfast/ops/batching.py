"""``torch.vmap`` of operators with a model axis: a batch becomes more models, one launch for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def as_models(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[Any]:
    """Return tensors (models, ...) with their batch of ``size``, at ``dims``, as more models; None stays None."""
    return [
        None if t is None else (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, dims, strict=True)
    ]
