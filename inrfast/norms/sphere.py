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
        return on_sphere(features)


def on_sphere(features: Tensor) -> Tensor:
    """Return the projection of ``features`` (..., m) that autograd follows."""
    # Dividing by the largest entry first keeps |z|^2 from under- or overflowing; the factor cancels.
    tiny = torch.finfo(features.dtype).tiny
    scale = features.detach().abs().amax(-1, keepdim=True)
    zero = scale < tiny
    unit = features / scale.masked_fill(zero, 1.0)
    norm = torch.linalg.vector_norm(unit.masked_fill(zero, 1.0), dim=-1, keepdim=True)
    return (features.shape[-1] ** 0.5 * unit / norm).masked_fill(zero, 0.0)


Projected = tuple[Tensor, Tensor]
"""A projection ``y`` (n, m) and its ``factor`` (n, 1), with which its derivative is ``factor (I - y y^T / m)``."""


def project(u: Tensor) -> Projected:
    """Return the projection of each row of ``u`` (n, m), and its factor ``sqrt(m) / |u|``; both are 0 at u = 0."""
    # Dividing by the largest entry first keeps |z|^2 from under- or overflowing.
    scale = u.abs().amax(-1, keepdim=True)
    zero = scale < torch.finfo(u.dtype).tiny
    scale = scale.masked_fill(zero, 1.0)
    unit = u / scale
    factor = u.shape[-1] ** 0.5 / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).masked_fill(zero, 1.0)
    return (unit * factor).masked_fill(zero, 0.0), (factor / scale).masked_fill(zero, 0.0)


def project_back(gradient: Tensor, projected: Projected) -> Tensor:
    """Return the gradient (n, M, m) in the input of a projection from that in its values."""
    direction = project_directions(projected)
    along = (gradient * direction).sum(-1, keepdim=True)
    return projected[1].unsqueeze(1) * (gradient - direction * along)


def project_directions(projected: Projected) -> Tensor:
    """Return the directions (n, 1, m) that a projection takes out, of length 1 (0 at u = 0)."""
    # Where one unit is left, the direction is a one: its derivative vanishes exactly.
    y = projected[0]
    return (y / y.shape[1] ** 0.5).unsqueeze(1)


@dataclass(frozen=True)
class Sphere(Norm):
    """The projection with its derivative ``factor (I - y y^T / m)``, ``factor = sqrt(m) / |z|``; both 0 at z = 0."""

    module = SphereNorm
    native = "sphere"

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> SphereNorm:
        """See :class:`inrfast.norms.Norm`."""
        return SphereNorm()

    @classmethod
    def of(cls, module: SphereNorm) -> Sphere:
        """See :class:`inrfast.norms.Norm`."""
        return cls()

    def forward(self, u: Tensor) -> tuple[Tensor, Projected]:
        """See :class:`inrfast.norms.Norm`."""
        found = project(u)
        return found[0], found

    def backward(self, gradient: Tensor, state: Projected) -> tuple[Tensor, None]:
        """See :class:`inrfast.norms.Norm`."""
        return project_back(gradient, state), None

    def slope(self, state: Projected) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        return NormSlope(state[1], project_directions(state))


NORMS.add("sphere", Sphere)
