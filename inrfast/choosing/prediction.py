"""What the kernel of a network predicts between samples: gradient descent of the linearised network, stopped best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.tangent.local import ntk

TIMES = 10.0 ** torch.arange(0.0, 6.5, 0.5, dtype=torch.float64)
"""Numbers of steps, in units of ``1 / lambda_1``, of which the best one counts."""


@dataclass(frozen=True)
class Halves:
    """Points and values of the two halves of a sample, fp64; ``part`` numbers the part of a held-out point."""

    train: Tensor
    train_values: Tensor
    held: Tensor
    held_values: Tensor
    part: Tensor


def predicted(net: nn.Module, halves: Halves, memory_budget: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the numbers of steps (T,), and squared errors (T, held-out points), averaged over outputs."""
    both = torch.cat([halves.train, halves.held])
    dtype = next(net.parameters()).dtype
    n = len(halves.train)
    with torch.no_grad():
        start = net(both.to(dtype)).double()
    kernel = ntk(net, both.to(dtype), output=0, precision="highest", memory_budget=memory_budget).to_dense()
    assert isinstance(kernel, Tensor)
    values, vectors = torch.linalg.eigh(kernel[:n, :n])
    values = values.clamp_min(1e-15 * float(values[-1]))
    residual = vectors.T @ (halves.train_values - start[:n])
    cross = kernel[n:, :n] @ vectors
    errors = []
    for steps in TIMES:
        gain = -torch.expm1(steps * torch.log1p(-(values / values[-1]).clamp_max(1 - 1e-15))) / values
        found = start[n:] + cross @ (gain[:, None] * residual)
        errors.append((found - halves.held_values).square().mean(1))
    return TIMES, torch.stack(errors)
