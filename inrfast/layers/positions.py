"""Linear layers that a point passes at several positions, or several times: rows, added up over all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer
from inrfast.layers.linear import Linear, fused_tap
from inrfast.nn import FusedLinear


class Positions(Layer):
    """``nn.Linear`` and :class:`inrfast.nn.FusedLinear` on (n, ..., D_in): rows ``sum_p S[p] (x) Z[p]``."""

    kind: ClassVar[str] = "positions"
    order: ClassVar[int] = 1
    adds: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of a module whose forward pass is that of a linear layer."""
        return Linear.takes(module, names)

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: an input whose first axis is not that of the points."""
        if given.ndim < 2 or len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, ..., features) has rows of its own"
        return None

    def tap(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pre-activation, as :class:`inrfast.layers.linear.Linear` does."""
        return fused_tap(module, given) if isinstance(module, FusedLinear) else super().tap(module, given, output)

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return Z (n, positions, 1, D_in)."""
        return given.reshape(len(given), -1, 1, given.shape[-1])

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from Z and S (n, M, ..., D_out)."""
        assert sensitivities is not None
        n, outputs, *_, width = sensitivities.shape
        return self._summed(features, sensitivities.reshape(n, outputs, -1, 1, width))

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return the weight with one row per output, (D_out, a), if it has entries."""
        weight = module.get_parameter("weight")
        return weight.flatten(1) if weight.numel() > 0 else None

    def _summed(self, features: Tensor, sensitivities: Tensor) -> Factors:
        """Return the rows from Z (n, positions, groups, a) and S (n, M, positions, groups, b)."""
        rows = [
            torch.einsum("npga,nmpgb->nmgba", features, sensitivities).flatten(2)
            if len(shape) > 1
            else sensitivities.sum(2).flatten(2)
            for shape in self.shapes.values()
        ]
        return Factors(None, torch.cat(rows, dim=2))


LAYERS.add(Positions.kind, Positions)
