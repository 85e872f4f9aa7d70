"""Tables that are read by rows: hash grids and embeddings, whose Jacobian has a few entries per row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer
from inrfast.ops.sparse_rows import coalesced


class Table(Layer):
    """A parameter (T, F) of which every point reads a few rows, weighted and added up.

    A module has such a table if its parameter is called ``table`` and its method ``reads(inputs)`` returns the rows
    that every point reads, ``index`` (n, L, C) int64, and their ``weights`` (n, L, C), in the dtype of the inputs:
    ``output[n, l * F + f] = sum_c weights[n, l, c] * table[index[n, l, c], f]``. L is the number of levels. An
    ``nn.Embedding`` on (n, ...) has a level for each row that a point reads, an ``nn.EmbeddingBag`` on (n, C) one of C
    rows; the row ``padding_idx`` has the weight 0.
    """

    kind: ClassVar[str] = "table"
    order: ClassVar[int] = 1
    sparse: ClassVar[bool] = True
    adds: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return the table of a module that says what it reads, or the weight of an embedding."""
        if type(module) in (nn.Embedding, nn.EmbeddingBag):
            sums = getattr(module, "mode", "sum") in ("sum", "mean")
            plain = sums and getattr(module, "max_norm", None) is None and not module.scale_grad_by_freq
            return [name for name in names if name == "weight" and plain]
        table = getattr(module, "table", None)
        reads = callable(getattr(module, "reads", None)) and isinstance(table, Tensor) and table.ndim == 2
        return [name for name in names if name == "table" and reads]

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: inputs without an axis of points before others."""
        if not isinstance(module, nn.Embedding):
            return super().reason_against(module, given, points)
        if given.ndim == 0 or len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, not (points, ...)"
        return None

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return index and weights (n, 2, L, C), both in fp64, which holds every index exactly."""
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            index, weights = module.reads(given)  # type: ignore[operator]
            return torch.stack([index.to(weights.dtype), weights], dim=1).detach()
        read = torch.ones_like(given) if module.padding_idx is None else given != module.padding_idx
        weights = read.double()
        if isinstance(module, nn.EmbeddingBag) and module.mode == "mean":
            weights /= weights.sum(1, keepdim=True).clamp(min=1)
        features = torch.stack([given.double(), weights], dim=1)
        return features.unsqueeze(2) if isinstance(module, nn.EmbeddingBag) else features.reshape(len(given), 2, -1, 1)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return sparse rows from sensitivities (n, M, L F), whose last axis may be several."""
        assert sensitivities is not None
        index, weights = features[:, 0].long(), features[:, 1]
        n, outputs = sensitivities.shape[:2]
        levels, width = index.shape[1], next(iter(self.shapes.values()))[1]
        s = sensitivities.reshape(n, outputs, levels, 1, width)
        entries = (weights.view(n, 1, levels, -1, 1) * s).flatten(2)
        columns = index.unsqueeze(-1) * width + torch.arange(width, device=index.device)
        return Factors(*coalesced(columns.flatten(1), entries))

    def added(self, calls: Sequence[Factors]) -> Factors:
        """Return the sparse rows of all calls side by side."""
        columns = [factors.features for factors in calls if factors.features is not None]
        entries = [factors.sensitivities for factors in calls if factors.sensitivities is not None]
        return Factors(*coalesced(torch.cat(columns, dim=1), torch.cat(entries, dim=2)))

    def parts(self, factors: Factors, ones: bool = True) -> Iterator[Factors]:
        """Yield the factors of the one parameter."""
        yield factors


LAYERS.add(Table.kind, Table)
