"""Sphere norm: the projection of each point's features onto the sphere of radius ``sqrt(m)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.norms import NORMS, Norm, NormSlope


class SphereNorm(nn.Module):
    """Projection of each sample onto the sphere of radius ``sqrt(m)``: ``sqrt(m) z / max(|z|, tiny)``.

    Shape ``(..., m)`` to ``(..., m)``. At ``z = 0`` the value and the derivative are 0.
    """

    def forward(self, features: Tensor) -> Tensor:
        # Dividing by the largest entry first keeps |z|^2 from under- or overflowing; the factor cancels.
        tiny = torch.finfo(features.dtype).tiny
        scale = features.detach().abs().amax(-1, keepdim=True)
        zero = scale < tiny
        unit = features / scale.masked_fill(zero, 1.0)
        norm = torch.linalg.vector_norm(unit.masked_fill(zero, 1.0), dim=-1, keepdim=True)
        return (features.shape[-1] ** 0.5 * unit / norm).masked_fill(zero, 0.0)


@dataclass(frozen=True)
class Sphere(Norm):
    """The projection with its derivative ``factor (I - y y^T / m)``, ``factor = sqrt(m) / |z|``; both 0 at z = 0."""

    module = SphereNorm

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> SphereNorm:
        """See :class:`inrfast.norms.Norm`."""
        return SphereNorm()

    @classmethod
    def of(cls, module: SphereNorm) -> Sphere:
        """See :class:`inrfast.norms.Norm`."""
        return cls()

    def forward(self, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See :class:`inrfast.norms.Norm`."""
        # Dividing by the largest entry first keeps |z|^2 from under- or overflowing.
        scale = u.abs().amax(-1, keepdim=True)
        zero = scale < torch.finfo(u.dtype).tiny
        scale = scale.masked_fill(zero, 1.0)
        unit = u / scale
        factor = u.shape[-1] ** 0.5 / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).masked_fill(zero, 1.0)
        projected = (unit * factor).masked_fill(zero, 0.0)
        return projected, (projected, (factor / scale).masked_fill(zero, 0.0))

    def backward(self, gradient: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        """See :class:`inrfast.norms.Norm`."""
        projected, factor = state
        y = projected.unsqueeze(1)
        along = (gradient * y).sum(-1, keepdim=True) / projected.shape[-1]
        return factor.unsqueeze(1) * (gradient - y * along), None

    def slope(self, state: tuple[Tensor, Tensor]) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        projected, factor = state
        # Where one unit is left, the direction is a one: its derivative vanishes exactly.
        return NormSlope(factor, (projected / projected.shape[1] ** 0.5).unsqueeze(1))


NORMS.add("sphere", Sphere)
