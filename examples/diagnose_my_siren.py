"""Diagnose a SIREN that you wrote yourself: no rewrite, any module will do.

python examples/diagnose_my_siren.py [omega_0 of the first layer]

Prints how each layer's part of the tangent kernel is computed, then where along the layers rank is won and lost, and
which layer holds how much of the kernel.
"""

import math
import sys

import torch
from torch import Tensor, nn

import inrfast as inr


class Sine(nn.Module):
    """A sine layer with the initialisation of the SIREN paper, as many repositories have it."""

    def __init__(self, inputs: int, outputs: int, omega_0: float, first: bool = False) -> None:
        super().__init__()
        self.omega_0, self.linear = omega_0, nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega_0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


omega_0 = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
torch.manual_seed(0)
siren = nn.Sequential(Sine(2, 64, omega_0, first=True), Sine(64, 64, 30.0), nn.Linear(64, 1))
coords = inr.grid((32, 32))

print(inr.ntk(siren, coords).cost())
print(inr.diagnose(siren, coords, rtols=(1e-2, 1e-4)))
