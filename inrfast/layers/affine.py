"""Elementwise affine parameters of norms, ``w * x_hat + b``: a diagonal layer with rows ``[S * x_hat, S]``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer


class Affine(Layer):
    """``nn.BatchNorm1d`` with frozen statistics, ``nn.LayerNorm`` and ``nn.RMSNorm``."""

    kind: ClassVar[str] = "affine"
    order: ClassVar[int] = 1

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of one of the three norms, which a subclass may change."""
        if type(module) not in (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm):
            return ()
        return [name for name in ("weight", "bias") if name in names]

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return ``x_hat``, which the norm multiplies by its weight."""
        if isinstance(module, nn.BatchNorm1d):
            return F.batch_norm(given, module.running_mean, module.running_var, eps=module.eps)
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(given, list(module.normalized_shape), eps=module.eps)
        assert isinstance(module, nn.RMSNorm)
        return F.rms_norm(given, list(module.normalized_shape), eps=module.eps)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from ``x_hat`` (n, D) and S (n, M, D): one factor holds them, the other is constant."""
        assert sensitivities is not None
        rows = [
            sensitivities * features.unsqueeze(1) if name.rpartition(".")[2] == "weight" else sensitivities
            for name in self.parameters
        ]
        return Factors(None, torch.cat(rows, dim=2))


LAYERS.add(Affine.kind, Affine)
