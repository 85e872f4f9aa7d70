"""Linear layers ``Z W^T + b``: two factors, the input with a column of ones and the sensitivities of the output."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer
from inrfast.nn import FusedLinear


class Linear(Layer):
    """``nn.Linear`` and :class:`inrfast.nn.FusedLinear`: the block is ``[W, b]``, features ``[Z, 1]``."""

    kind: ClassVar[str] = "linear"
    order: ClassVar[int] = 1

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of a module whose forward pass is that of a linear layer."""
        if not isinstance(module, nn.Linear) or type(module).forward not in (nn.Linear.forward, FusedLinear.forward):
            return ()
        return [name for name in ("weight", "bias") if name in names]

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: inputs that are not (n, D_in), with or without axes of length 1 between the two."""
        if given.ndim < 2 or len(given) != points or math.prod(given.shape[:-1]) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, features) has a form of two factors"
        return None

    def tap(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pre-activation: that of a fused layer is computed once more, without its activation."""
        return fused_tap(module, given) if isinstance(module, FusedLinear) else super().tap(module, given, output)

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return ``[Z, 1]``."""
        given = given.flatten(0, -2)
        return torch.cat([given, given.new_ones(len(given), 1)], dim=1)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the factors from ``[Z, 1]`` (n, D_in + 1) and S (n, M, ..., D_out)."""
        if sensitivities is not None and sensitivities.ndim > 3:
            sensitivities = sensitivities.flatten(2)
        if self.with_weight:
            return Factors(features if self._with_bias else features[:, :-1], sensitivities)
        return Factors(features[:, -1:], None) if sensitivities is None else Factors(None, sensitivities)

    @property
    def with_weight(self) -> bool:
        """Whether the weight is differentiated, not the bias alone."""
        return len(next(iter(self.shapes.values()))) > 1

    @property
    def _with_bias(self) -> bool:
        return len(list(self.shapes.values())[-1]) == 1

    @property
    def block(self) -> tuple[int, int]:
        """Shape (D_out, D_in + 1), or without what is not differentiated."""
        outputs = next(iter(self.shapes.values()))[0]
        return outputs, self.columns // outputs

    @property
    def ends_with_ones(self) -> bool:
        """Whether weight and bias are both differentiated."""
        return self.with_weight and self._with_bias

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``[W, b]`` (k, D_out, D_in + 1)."""
        return torch.cat([part.reshape(len(part), self.block[0], -1) for part in parts], dim=2)

    def divide(self, block: Tensor) -> list[Tensor]:
        """Return W and b of ``[W, b]``."""
        widths = [size // self.block[0] for size in self.sizes]
        return [part.flatten(1) for part in block.split(widths, dim=2)]

    def parts(self, factors: Factors, ones: bool = True) -> Iterator[Factors]:
        """Yield ``(Z, S)`` for the weight and ``(1, S)`` for the bias."""
        features, sensitivities = factors
        if not self.ends_with_ones:
            yield factors
            return
        assert features is not None
        yield Factors(features[:, :-1], sensitivities)
        yield Factors(features[:, -1:] if ones else None, sensitivities)

    def representation(self, factors: Factors) -> Tensor | None:
        """Return Z, where the weight is differentiated."""
        if not self.with_weight or factors.features is None:
            return None
        return factors.features[:, : self.sizes[0] // self.block[0]]

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return W (D_out, D_in), if it has entries."""
        assert isinstance(module, nn.Linear)
        return module.weight if module.weight.numel() > 0 else None


def fused_tap(module: FusedLinear, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pre-activation of a fused layer, computed once more, and its output made of that."""
    preactivation = F.linear(given, module.weight, module.bias)
    return preactivation, module.activate(preactivation)


LAYERS.add(Linear.kind, Linear)
