"""Centres and widths of Gabor filters: rows of their own, ``S h gamma (x - mu)`` and ``-S h |x - mu|^2 / 2``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer
from inrfast.modulations.gabor import Gabor


class GaborEnvelope(Layer):
    """``mu`` and ``gamma`` of :class:`inrfast.modulations.gabor.Gabor`; its linear layer is one of its own."""

    kind: ClassVar[str] = "gabor"
    order: ClassVar[int] = 1
    adds: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return mu and gamma of a Gabor filter, which a subclass may change."""
        return [name for name in ("mu", "gamma") if name in names] if type(module) is Gabor else []

    @torch.no_grad()
    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return the derivatives of the filter in its own mu and gamma, (n, m, d + 1) or what of it is asked for."""
        assert isinstance(module, Gabor)
        apart, found = module.apart(given), []
        h = F.linear(given, module.linear.weight, module.linear.bias).sin() * torch.exp(-0.5 * module.gamma * apart)
        for name in self.parameters:
            if name.rpartition(".")[2] == "mu":
                found.append((h * module.gamma).unsqueeze(2) * (given.unsqueeze(1) - module.mu))
            else:
                found.append((-0.5 * h * apart).unsqueeze(2))
        return torch.cat(found, dim=2)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from (n, m, d + 1) and S (n, M, m)."""
        assert sensitivities is not None
        units, rows, at = sensitivities.shape[2], [], 0
        for size in self.sizes:
            own = features[:, :, at : (at := at + size // units)]
            rows.append((sensitivities.unsqueeze(3) * own.unsqueeze(1)).flatten(2))
        return Factors(None, torch.cat(rows, dim=2))


LAYERS.add(GaborEnvelope.kind, GaborEnvelope)
