"""Linear layers ``Z W^T + b``: two factors, the input with a column of ones and the sensitivities of the output."""

from __future__ import annotations

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

    def tap(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pre-activation: that of a fused layer is computed once more, without its activation."""
        if isinstance(module, FusedLinear):
            preactivation = F.linear(given, module.weight, module.bias)
            return preactivation, module.activate(preactivation)
        return super().tap(module, given, output)

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return ``[Z, 1]``."""
        return torch.cat([given, given.new_ones(len(given), 1)], dim=1)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the factors from ``[Z, 1]`` (n, D_in + 1) and S (n, M, D_out)."""
        if self._with_weight:
            return Factors(features if self._with_bias else features[:, :-1], sensitivities)
        return Factors(features[:, -1:], None) if sensitivities is None else Factors(None, sensitivities)

    @property
    def _with_weight(self) -> bool:
        return len(next(iter(self.shapes.values()))) == 2

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
        return self._with_weight and self._with_bias

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
        if not self._with_weight or factors.features is None:
            return None
        return factors.features[:, : next(iter(self.shapes.values()))[1]]

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return W (D_out, D_in), if it has entries."""
        assert isinstance(module, nn.Linear)
        return module.weight if module.weight.numel() > 0 else None


LAYERS.add(Linear.kind, Linear)
