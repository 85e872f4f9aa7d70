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


def points_of_models(size: int, dim: int | None, points: Tensor, models: int) -> Tensor:
    """Return points (1 or models, n, d) for a batch of models: as they are if all share them, else each model's own."""
    if dim is None and len(points) == 1:
        return points
    points = points.expand(size, *points.shape) if dim is None else points.movedim(dim, 0)
    return points.expand(size, models, *points.shape[2:]).flatten(0, 1)
