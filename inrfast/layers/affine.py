"""Elementwise affine parameters of norms, ``w * x_hat + b``: a diagonal layer with rows ``[S * x_hat, S]``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer, points_first


class Affine(Layer):
    """``nn.LayerNorm`` and ``nn.RMSNorm`` on (n, ..., D), ``nn.BatchNorm1d`` with frozen statistics on (n, D).

    Rows are added up over the positions of a point.
    """

    kind: ClassVar[str] = "affine"
    order: ClassVar[int] = 1
    adds: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of one of the three norms, which a subclass may change."""
        if type(module) not in (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm):
            return ()
        return [name for name in ("weight", "bias") if name in names]

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return (1, n, D) and (n / k, k, D) as (n, D); the second axis of a batch norm is that of its channels."""
        return tensor if isinstance(module, nn.BatchNorm1d) else points_first(tensor, points)

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: an input without an axis of points before those that are normalised."""
        fits = given.ndim == 2
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            fits = given.ndim > len(module.normalized_shape)
        if not fits or len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, ..., features) has rows of its own"
        return None

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return ``x_hat``, which the norm multiplies by its weight."""
        if isinstance(module, nn.BatchNorm1d):
            return F.batch_norm(given, module.running_mean, module.running_var, eps=module.eps)
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(given, list(module.normalized_shape), eps=module.eps)
        assert isinstance(module, nn.RMSNorm)
        return F.rms_norm(given, list(module.normalized_shape), eps=module.eps)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from ``x_hat`` (n, ..., D) and S (n, M, ..., D)."""
        assert sensitivities is not None
        n, outputs, width = *sensitivities.shape[:2], self.sizes[0]
        x, s = features.reshape(n, 1, -1, width), sensitivities.reshape(n, outputs, -1, width)
        rows = [s * x if name.rpartition(".")[2] == "weight" else s for name in self.parameters]
        return Factors(None, torch.cat([own[:, :, 0] if own.shape[2] == 1 else own.sum(2) for own in rows], dim=2))


LAYERS.add(Affine.kind, Affine)
