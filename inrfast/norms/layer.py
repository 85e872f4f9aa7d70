"""Layer norm: ``torch.nn.LayerNorm`` over the units of a layer, with a weight and a bias for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.norms import NORMS, Norm, NormFactors, NormSlope


@dataclass(frozen=True)
class LayerNorm(Norm):
    """``scale xhat + shift`` with ``xhat = (u - mean(u)) / sqrt(var(u) + eps)`` over the D units of each point.

    With ``r = 1 / sqrt(var(u) + eps)`` the derivative is ``diag(scale) r (I - 1 1^T / D - xhat xhat^T / D)``, exactly
    also for ``eps > 0``; the two directions are orthogonal, since xhat has mean 0.

    Source: Ba, Kiros, Hinton, Layer Normalization, arXiv 1607.06450, section 3.
    """

    scale: Tensor
    shift: Tensor
    eps: float

    module = nn.LayerNorm

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> nn.LayerNorm:
        """See :class:`inrfast.norms.Norm`."""
        return nn.LayerNorm(width, device=device, dtype=dtype)

    @classmethod
    def state(cls, width: int) -> dict[str, tuple[int, ...]]:
        """See :class:`inrfast.norms.Norm`."""
        return {"weight": (width,), "bias": (width,)}

    @classmethod
    def of(cls, module: nn.LayerNorm) -> LayerNorm | str:
        """See :class:`inrfast.norms.Norm`."""
        weight, bias = module.weight, module.bias
        if weight is None or bias is None or weight.ndim != 1:
            return "is not of single units with a weight and a bias"
        return cls(weight.detach(), bias.detach(), module.eps)

    def forward(self, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See :class:`inrfast.norms.Norm`."""
        centred = u - u.mean(-1, keepdim=True)
        inverse_std = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        normalised = centred * inverse_std
        return normalised * self.scale + self.shift, (normalised, inverse_std)

    def backward(self, gradient: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, NormFactors]:
        """See :class:`inrfast.norms.Norm`."""
        normalised, inverse_std = (tensor.unsqueeze(1) for tensor in state)
        scaled = gradient * self.scale
        along = (scaled * normalised).mean(-1, keepdim=True)
        below = (scaled - scaled.mean(-1, keepdim=True) - normalised * along) * inverse_std
        return below, NormFactors(state[0], gradient)

    def slope(self, state: tuple[Tensor, Tensor]) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        normalised, inverse_std = state
        directions = torch.stack([torch.ones_like(normalised), normalised], 1) / normalised.shape[1] ** 0.5
        return NormSlope(self.scale * inverse_std, directions)


NORMS.add("layer", LayerNorm)
