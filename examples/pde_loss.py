"""Solve a Poisson problem with a network: a loss of one's own that holds derivatives by the coordinates.

python examples/pde_loss.py [steps]

-laplace f = 2 pi^2 sin(pi x) sin(pi y) inside the square [-1, 1]^2, f = 0 on its edge; the solution is
sin(pi x) sin(pi y). Prints the relative error of f before and after training.
"""

import math
import sys

import torch
from torch import Tensor

import inrfast as inr

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
coords = inr.grid((16, 16), dtype=torch.float64)
solution = torch.sin(math.pi * coords).prod(1, keepdim=True)
source = 2 * math.pi**2 * solution
edge = (coords.abs() == 1).any(1)


def poisson(pred: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """Mean square of the equation's residual, in units of its source, and of the values on the edge."""
    residual = (inr.derivatives.laplacian(pred, points) + target) / (2 * math.pi**2)
    return residual.square().mean() + pred[edge].square().mean()


net = inr.INR(2, 1, width=32, hidden_layers=2, activation="tanh", dtype=torch.float64)
for when in ("before", "after"):
    if when == "after":
        inr.fit(net, coords, source, steps=steps, lr=1e-2, loss=poisson)
    with torch.no_grad():
        error = torch.linalg.norm(net(coords) - solution) / torch.linalg.norm(solution)
    print(f"relative error {when} {steps} steps: {error:.2e}")
