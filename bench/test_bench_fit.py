"""One step of a fit against eager PyTorch, step by step in one run, after comparing the gradients with fp64."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.memory import chunks
from inrfast.training.gradients import gradient_of
from inrfast.training.loop import fit

SIDE, WIDTH, OUTPUTS = 256, 256, 3
PAIRS = 9
TARGET = 1.8
TOLERANCE = 1e-5


def eager_network(net: inr.INR) -> nn.Sequential:
    """The same weights as anyone would write the network."""
    modules: list[nn.Module] = []
    for layer in net.layers:
        modules += [copy.deepcopy(layer), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def flat_gradient(net: nn.Module) -> Tensor:
    return torch.cat(
        [parameter.grad.double().flatten() for parameter in net.parameters() if parameter.grad is not None]
    )


def exact_gradient(net: nn.Module, coords: Tensor, target: Tensor) -> Tensor:
    twin = copy.deepcopy(net).double()
    for rows in chunks(len(coords), 8192):
        loss = (twin(coords[rows].double()) - target[rows].double()).square().sum() / target.numel()
        loss.backward()
    return flat_gradient(twin)


@pytest.mark.benchmark(group="fit step, 256x256 full batch, 2-256-256-256-3")
def test_fit_step_against_eager(benchmark: Any) -> None:
    coords = inr.grid((SIDE, SIDE))
    target = torch.rand(SIDE * SIDE, OUTPUTS, generator=torch.Generator().manual_seed(0))
    net = inr.INR(2, OUTPUTS, width=WIDTH, hidden_layers=3)
    eager = eager_network(net)
    optimizer = torch.optim.Adam(eager.parameters(), lr=1e-3)

    def eager_gradient() -> float:
        optimizer.zero_grad()
        loss = F.mse_loss(eager(coords), target)
        loss.backward()
        return loss.item()

    exact = exact_gradient(eager, coords, target)
    gradient = gradient_of(net, coords, target, "mse", 2**32)
    gradient(None)
    eager_gradient()
    errors = {
        "inrfast": float((flat_gradient(net) - exact).norm() / exact.norm()),
        "eager": float((flat_gradient(eager) - exact).norm() / exact.norm()),
    }
    assert errors["inrfast"] <= TOLERANCE
    benchmark.pedantic(gradient, args=(None,), rounds=5, warmup_rounds=1)

    eager_losses, eager_times, fit_times = [], [], []
    left_at = 0.0

    def eager_step_between(step: int) -> float:
        """A schedule is called once before every update of the fit: here the eager loop takes its turn."""
        nonlocal left_at
        entered = time.perf_counter()
        if step > 0:
            fit_times.append(entered - left_at)
        eager_losses.append(eager_gradient())
        optimizer.step()
        left_at = time.perf_counter()
        eager_times.append(left_at - entered)
        return 1.0

    result = fit(net, coords, target, steps=PAIRS + 1, lr=1e-3, schedule=eager_step_between)
    assert result.losses == pytest.approx(eager_losses, rel=1e-3)
    ratios = [slow / fast for slow, fast in zip(eager_times, fit_times, strict=False)]
    benchmark.extra_info.update(
        target=TARGET,
        measured=statistics.median(ratios),
        quartiles=statistics.quantiles(ratios, n=4),
        eager_seconds=statistics.median(eager_times),
        fit_seconds=statistics.median(fit_times),
        gradient_error=errors,
        threads=torch.get_num_threads(),
    )
