"""The exact gradient of a loss by fp64 automatic differentiation: the independent truth of the tests of fits."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.data import check_data
from inrfast.training.engines import Gradient, Task, gradient_of
from inrfast.training.objective import check_objective
from inrfast.training.stack import Stack

BUDGET = 2**30
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def signal(net: inr.INR, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    dtype = net.layers[0].weight.dtype
    coords = 2 * torch.rand(n, net.in_features, generator=rng, dtype=dtype) - 1
    return coords, torch.rand(n, net.out_features, generator=rng, dtype=dtype)


def of(
    net: nn.Module, coords: Tensor, target: Tensor, loss: Any = "mse", weight: Any = None, **options: Any
) -> Gradient:
    """The gradient that a fit of this network would take."""
    net.train()
    objective = check_objective(loss, weight is not None)
    task = Task([net], check_data(net, coords, target, weight), objective, **{"budget": BUDGET, **options})
    return gradient_of(Stack([net]), task)


def flat(gradient: Gradient, index: int = 0) -> Tensor:
    """What a gradient left behind for one network, in the order of its trainable parameters."""
    return torch.cat([grad[index].double().flatten() for grad in gradient.stack.grads.values()])


FORMULAS: dict[str, Any] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce": F.binary_cross_entropy_with_logits,
}
"""The named losses as PyTorch has them."""


def losses() -> st.SearchStrategy[Any]:
    """Named losses; Huber's with kinks inside and outside of the errors."""
    deltas = st.floats(0.05, 2.0).map(lambda delta: {"name": "huber", "delta": delta})
    return st.sampled_from(["mse", "l1", "bce"]) | deltas


def formula(loss: Any, weight: Tensor | None = None) -> Any:
    """The plain formula of a named loss, for :func:`exact`: the mean, weighted if there are weights of its rows."""
    numbers = {"name": loss} if isinstance(loss, str) else dict(loss)
    of_entries = FORMULAS[numbers.pop("name")]

    def mean(pred: Tensor, target: Tensor) -> Tensor:
        spread = torch.ones_like(pred) if weight is None else weight.to(pred).expand_as(pred)
        return (spread * of_entries(pred, target, reduction="none", **numbers)).sum() / spread.sum()

    return mean


def off_kinks(net: nn.Module, coords: Tensor, target: Tensor) -> Tensor:
    """Targets in [0, 1] that no prediction is near: there the slope of the absolute error jumps."""
    with torch.no_grad():
        pred = copy.deepcopy(net).train()(coords)
    return torch.where((pred - target).abs() < 1e-3, (target + 0.5) % 1, target)


def exact(net: nn.Module, coords: Tensor, target: Tensor, loss: Any = F.mse_loss) -> tuple[float, Tensor]:
    """Loss and gradient by fp64 autodiff of the whole batch."""
    twin = copy.deepcopy(net).double()
    twin.zero_grad(set_to_none=True)
    value = loss(twin(coords.double()), target.double())
    value.backward()
    return float(value.detach()), torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])


def assert_exact(
    net: nn.Module, gradient: Gradient, coords: Tensor, target: Tensor, batch: Any, loss: Any = F.mse_loss
) -> None:
    rows = slice(None) if batch is None else batch
    value, expected = exact(net, coords[rows], target[rows], loss)
    tolerance = TOLERANCE[coords.dtype]
    assert float(gradient(None if batch is None else batch.unsqueeze(0))) == pytest.approx(value, rel=tolerance)
    assert float((flat(gradient) - expected).norm()) <= tolerance * float(expected.norm()) + 1e-30
