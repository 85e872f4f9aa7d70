"""A weight and a bias per channel of (n, C, ...): rows ``[S * x_hat, S]``, added up over a channel's positions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, Factors, Layer, points_first

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
"""Each with the axes of its input."""


class Channels(Layer):
    """Batch norms with frozen statistics, ``nn.GroupNorm``, instance norms and ``nn.PReLU``."""

    kind: ClassVar[str] = "channels"
    order: ClassVar[int] = 1
    adds: ClassVar[bool] = True

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return weight and bias of one of these modules, which a subclass may change."""
        if type(module) not in (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.PReLU):
            return ()
        return [name for name in ("weight", "bias") if name in names]

    def by_points(self, module: nn.Module, tensor: Tensor, points: int) -> Tensor:
        """Return (1, C, n) as (n, C) where each number of a channel is changed alone."""
        if self.columns == 1 and isinstance(module, nn.PReLU):  # any axis may be that of the points
            return points_first(tensor, points)
        alone = isinstance(module, (*BATCH_NORMS, nn.PReLU)) and tensor.ndim > 2
        if alone and len(tensor) != points and len(tensor) * math.prod(tensor.shape[2:]) == points:
            return tensor.movedim(1, -1).flatten(0, -2)
        return tensor

    def reason_against(self, module: nn.Module, given: Tensor, points: int) -> str | None:
        """Return why: an input whose first axis is not that of the points."""
        axes = INSTANCE_NORMS.get(type(module), given.ndim)  # type: ignore[arg-type]
        if given.ndim != axes or given.ndim == 0 or len(given) != points:
            return f"its input has the shape {tuple(given.shape)}, where (points, channels, ...) has rows of its own"
        return None

    def features(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return what the module multiplies by its weight."""
        if isinstance(module, nn.PReLU):
            return given.clamp(max=0)
        if isinstance(module, BATCH_NORMS):
            return F.batch_norm(given, module.running_mean, module.running_var, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(given, module.num_groups, eps=module.eps)
        assert isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        own = module.training or module.running_mean is None  # statistics of every point itself
        mean, variance = (None, None) if own else (module.running_mean, module.running_var)
        return F.instance_norm(given, mean, variance, use_input_stats=own, eps=module.eps)

    def factors(self, features: Tensor, sensitivities: Tensor | None) -> Factors:
        """Return the rows from (n, C, ...) and S (n, M, C, ...); all channels may have one weight."""
        assert sensitivities is not None
        n, outputs = sensitivities.shape[:2]
        rows = []
        for name, width in zip(self.parameters, self.sizes, strict=True):
            own = sensitivities * features.unsqueeze(1) if name.rpartition(".")[2] == "weight" else sensitivities
            rows.append(own.reshape(n, outputs, width, -1).sum(3))
        return Factors(None, torch.cat(rows, dim=2))


LAYERS.add(Channels.kind, Channels)
