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
    ``nn.Embedding`` is the case of one level and one row, of weight 1.
    """

    kind: ClassVar[str] = "table"
    order: ClassVar[int] = 1
    sparse: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return the table of a module that says what it reads, or the weight of an embedding."""
        if type(module) is nn.Embedding:
            plain = module.padding_idx is None and module.max_norm is None
            return [name for name in names if name == "weight" and plain]
        table = getattr(module, "table", None)
        reads = callable(getattr(module, "reads", None)) and isinstance(table, Tensor) and table.ndim == 2
        return [name for name in names if name == "table" and reads]

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: an embedding that a point reads more than once, or inputs without one row per point."""
        if isinstance(module, nn.Embedding):
            return None if given.shape == (points,) else f"its input has the shape {tuple(given.shape)}, not (points,)"
        return super().reason_against(module, given, points)

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return index and weights (n, 2, L, C), both in fp64, which holds every index exactly."""
        if isinstance(module, nn.Embedding):
            index = given.view(-1, 1, 1)
            return torch.stack([index, torch.ones_like(index)], dim=1).double()
        index, weights = module.reads(given)  # type: ignore[operator]
        return torch.stack([index.to(weights.dtype), weights], dim=1).detach()

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return sparse rows from sensitivities (n, M, L F)."""
        assert sensitivities is not None
        index, weights = features[:, 0].long(), features[:, 1]
        n, outputs, _ = sensitivities.shape
        levels, width = index.shape[1], next(iter(self.shapes.values()))[1]
        s = sensitivities.view(n, outputs, levels, 1, width)
        entries = (weights.view(n, 1, levels, -1, 1) * s).flatten(2)
        columns = index.unsqueeze(-1) * width + torch.arange(width, device=index.device)
        return Factors(*coalesced(columns.flatten(1), entries))

    def parts(self, factors: Factors, ones: bool = True) -> Iterator[Factors]:
        """Yield the factors of the one parameter."""
        yield factors


LAYERS.add(Table.kind, Table)
