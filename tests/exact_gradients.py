"""The exact gradient of a loss by fp64 automatic differentiation: the independent truth of the tests of fits."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.gradients import Gradient

BUDGET = 2**30
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def signal(net: inr.INR, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    dtype = net.layers[0].weight.dtype
    coords = 2 * torch.rand(n, net.in_features, generator=rng, dtype=dtype) - 1
    return coords, torch.rand(n, net.out_features, generator=rng, dtype=dtype)


def flat_gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


def exact(net: nn.Module, coords: Tensor, target: Tensor, loss: Any = F.mse_loss) -> tuple[float, Tensor]:
    """Loss and gradient by fp64 autodiff of the whole batch."""
    twin = copy.deepcopy(net).double()
    twin.zero_grad(set_to_none=True)
    value = loss(twin(coords.double()), target.double())
    value.backward()
    return float(value.detach()), flat_gradient(twin)


def assert_exact(net: nn.Module, gradient: Gradient, coords: Tensor, target: Tensor, batch: Any) -> None:
    rows = slice(None) if batch is None else batch
    loss, expected = exact(net, coords[rows], target[rows])
    tolerance = TOLERANCE[coords.dtype]
    assert gradient(batch) == pytest.approx(loss, rel=tolerance)
    assert float((flat_gradient(net) - expected).norm()) <= tolerance * float(expected.norm()) + 1e-30
