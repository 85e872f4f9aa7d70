"""Batch norm: ``torch.nn.BatchNorm1d``, whose statistics are frozen in eval mode, and then a map of single points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.norms import NORMS, Norm, NormFactors, NormSlope


@dataclass(frozen=True)
class BatchNorm(Norm):
    """``scale (u - mean) inverse_std + shift`` with the running statistics, each of shape (D,)."""

    mean: Tensor
    inverse_std: Tensor
    scale: Tensor
    shift: Tensor
    training: bool

    module = nn.BatchNorm1d

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> nn.BatchNorm1d:
        """See :class:`inrfast.norms.Norm`."""
        return nn.BatchNorm1d(width, device=device, dtype=dtype)

    @classmethod
    def state(cls, width: int) -> dict[str, tuple[int, ...]]:
        """See :class:`inrfast.norms.Norm`."""
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {**dict.fromkeys(vectors, (width,)), "num_batches_tracked": ()}

    @classmethod
    def of(cls, module: nn.BatchNorm1d) -> BatchNorm | str:
        """See :class:`inrfast.norms.Norm`."""
        if module.running_mean is None or module.running_var is None:
            return "keeps no running statistics, so it couples points in every mode"
        # Once, and not in every pass: what rounding does to a pass is measured operation by operation.
        inverse_std = (module.running_var + module.eps).rsqrt()
        scale = torch.ones_like(inverse_std) if module.weight is None else module.weight.detach()
        shift = torch.zeros_like(inverse_std) if module.bias is None else module.bias.detach()
        return cls(module.running_mean, inverse_std, scale, shift, module.training)

    @property
    def couples(self) -> bool:
        """See :class:`inrfast.norms.Norm`: in train mode the statistics are those of the batch."""
        return self.training

    def forward(self, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See :class:`inrfast.norms.Norm`."""
        normalised = (u - self.mean) * self.inverse_std
        return normalised * self.scale + self.shift, (normalised, self.scale * self.inverse_std)

    def backward(self, gradient: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, NormFactors]:
        """See :class:`inrfast.norms.Norm`."""
        normalised, slope = state
        return gradient * slope, NormFactors(normalised, gradient.contiguous())

    def slope(self, state: tuple[Tensor, Tensor]) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        return NormSlope(state[1])


NORMS.add("batch", BatchNorm)
