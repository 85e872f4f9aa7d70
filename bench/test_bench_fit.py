"""A fit's steps against eager PyTorch and torch.compile, taken in turns in one run, after comparing the gradients.

The machines this runs on are noisy: rivals take their steps between ours, and ratios are medians over such rounds.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.memory import chunks
from inrfast.ops.gemm import multiplies_bf16
from inrfast.threads import cores
from inrfast.training.data import check_data
from inrfast.training.engines import Task, gradient_of
from inrfast.training.objective import check_objective
from inrfast.training.stack import Stack

SIDE, WIDTH, OUTPUTS = 256, 256, 3
ROUNDS, COMPARED = 31, 11
TOLERANCE = 1e-5

INITS = {"relu": "default", "sine": "siren"}

MANY, MANY_SIDE, MANY_WIDTH, MANY_STEPS = 16, 64, 64, 5

NORMED, NORMED_ROUNDS, NORMED_COMPARED = 4, 7, 5


class Sine(nn.Module):
    """As SIREN's authors write it."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


def eager_network(net: inr.INR) -> nn.Sequential:
    """The same weights as anyone would write the network."""
    modules: list[nn.Module] = []
    for layer, norm, name, omega in zip(net.layers, net.norms, net.activations, net.omegas, strict=False):
        unit: nn.Module = nn.ReLU() if name == "relu" else Sine(omega)
        pair = [copy.deepcopy(norm), unit] if net.norm_position == "pre" else [unit, copy.deepcopy(norm)]
        modules += [copy.deepcopy(layer), *(module for module in pair if not isinstance(module, nn.Identity))]
    return nn.Sequential(*modules, copy.deepcopy(net.layers[-1]))


def eager_step(net: nn.Module, coords: Tensor, target: Tensor, narrow: bool = False) -> Callable[[], float]:
    """The step that everybody writes; with ``narrow`` under autocast to bfloat16."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            pred = net(coords)
        loss = F.mse_loss(pred.float(), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


IDLE_SECONDS = 0.05
"""Between two turns: a library's idle threads spin for a while before they sleep, and would slow the next one down."""


class Turns:
    """Takes the steps of rivals between those of a fit, so many at a time: a schedule is called before every update."""

    def __init__(self, rivals: dict[str, Callable[[], Any]], steps: int = 1, warmup: int = 2) -> None:
        self.rivals, self.steps, self.warmup, self.called = rivals, steps, warmup, 0
        self.losses: dict[str, list[Any]] = {name: [] for name in rivals}
        self.seconds: dict[str, list[float]] = {name: [] for name in ("inrfast", *rivals)}
        self.left, self.cores = 0.0, torch.get_num_threads()

    def __call__(self, step: int) -> float:
        entered, (turn, later) = time.perf_counter(), divmod(self.called, self.steps)
        self.called += 1
        if later:
            return 1.0
        if turn > self.warmup:
            self.seconds["inrfast"].append((entered - self.left) / self.steps)
        with cores(self.cores):  # between its steps a fit leaves torch one core: its own threads have the others
            for name, rival in self.rivals.items():
                time.sleep(IDLE_SECONDS)
                start = time.perf_counter()
                self.losses[name] += [rival() for _ in range(self.steps)]
                if turn >= self.warmup:
                    self.seconds[name].append((time.perf_counter() - start) / self.steps)
        time.sleep(IDLE_SECONDS)
        self.left = time.perf_counter()
        return 1.0

    def report(self, targets: dict[str, float]) -> dict[str, Any]:
        mine = self.seconds["inrfast"]
        ratios = {
            name: [slow / fast for slow, fast in zip(self.seconds[name], mine, strict=False)] for name in self.rivals
        }
        return {
            "targets": targets,
            "measured": {name: statistics.median(found) for name, found in ratios.items()},
            "quartiles": {name: statistics.quantiles(found, n=4) for name, found in ratios.items()},
            "median_seconds": {name: statistics.median(times) for name, times in self.seconds.items()},
            "least_seconds": {name: min(times) for name, times in self.seconds.items()},
            "threads": self.cores,
        }


def exact_gradient(net: nn.Module, coords: Tensor, target: Tensor) -> Tensor:
    twin = copy.deepcopy(net).double()
    for rows in chunks(len(coords), 8192):
        loss = (twin(coords[rows].double()) - target[rows].double()).square().sum() / target.numel()
        loss.backward()
    return torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])


def gradient_errors(net: inr.INR, coords: Tensor, target: Tensor) -> dict[str, float]:
    """Relative errors of gradients against fp64, eager ones included."""
    eager = eager_network(net)
    exact = exact_gradient(eager, coords, target)
    found: dict[str, Tensor] = {}
    for name, narrow in (("inrfast", False), ("inrfast bf16", True)):
        gradient = gradient_of(Stack([net]), Task([net], check_data(net, coords, target), narrow=narrow))
        gradient(None)
        found[name] = torch.cat([grad.flatten() for grad in gradient.stack.grads.values()])
    for name, narrow in (("eager", False), ("eager autocast bf16", True)):
        eager.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            pred = eager(coords)
        F.mse_loss(pred.float(), target).backward()
        found[name] = torch.cat([p.grad.flatten() for p in eager.parameters() if p.grad is not None])
    return {name: float((grad.double() - exact).norm() / exact.norm()) for name, grad in found.items()}


def signal(side: int) -> tuple[Tensor, Tensor]:
    coords = inr.grid((side, side))
    waves = [torch.sin((k + 1) * 3 * coords[:, :1] + k) * torch.cos(4 * coords[:, 1:]) for k in range(OUTPUTS)]
    return coords, 0.4 * torch.cat(waves, dim=1)


@pytest.mark.benchmark(group="fit step, 256x256 full batch, 2-256-256-256-3")
@pytest.mark.parametrize(("activation", "precision"), [("relu", "high"), ("relu", "medium"), ("sine", "high")])
def test_fit_step(benchmark: Any, activation: str, precision: str) -> None:
    narrow = precision == "medium"
    if narrow and not multiplies_bf16():
        pytest.skip("bfloat16 products do not pay on this processor")
    coords, target = signal(SIDE)
    net = inr.INR(2, OUTPUTS, width=WIDTH, hidden_layers=3, activation=activation, init=INITS[activation], seed=0)
    errors = gradient_errors(net, coords, target)
    assert errors["inrfast"] <= TOLERANCE
    assert errors["inrfast bf16"] <= max(0.02, 2 * errors["eager autocast bf16"])
    gradient = gradient_of(Stack([net]), Task([net], check_data(net, coords, target), narrow=narrow))
    with cores(1):  # as in a fit
        benchmark.pedantic(gradient, args=(None,), rounds=5, warmup_rounds=1)

    eager, compiled = eager_network(net), eager_network(net)
    rivals = {"eager": eager_step(eager, coords, target)}
    rivals["torch.compile"] = eager_step(torch.compile(compiled), coords, target)  # type: ignore[arg-type]
    if narrow:
        rivals["eager autocast bf16"] = eager_step(eager_network(net), coords, target, narrow=True)
    turns = Turns(rivals)
    result = inr.fit(net, coords, target, steps=ROUNDS, lr=1e-3, schedule=turns, precision=precision, seed=0)
    for name in ("eager", "torch.compile"):
        followed = turns.losses[name][:COMPARED]  # later the digits of any two implementations part
        assert result.losses[:COMPARED] == pytest.approx(followed, rel=0.05 if narrow else 1e-3)
    targets = {} if narrow or activation == "sine" else {"eager": 2.0, "torch.compile": 1.6}
    benchmark.extra_info.update(turns.report(targets), gradient_errors=errors)


def variation(net: nn.Module) -> Tensor:
    """Total variation of 1,024 points along the first axis."""
    points = inr.grid((32, 32))
    return (net(points + torch.tensor([0.01, 0.0])) - net(points)).abs().mean()


def decay(net: nn.Module) -> Tensor:
    """Squares of all parameters."""
    return torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()


def penalty(net: nn.Module) -> Tensor:
    """Return both, with their factors."""
    return 0.1 * variation(net) + 1e-4 * decay(net)


def regularized_step(net: nn.Module, coords: Tensor, target: Tensor) -> Callable[[], float]:
    """The step that everybody writes, with the penalty in its loss."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.mse_loss(net(coords), target) + penalty(net)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def whole_step(net: nn.Module, coords: Tensor, target: Tensor) -> Callable[[], float]:
    """The same by a loss of one's own, which autograd takes as a whole."""
    objective = check_objective(lambda prediction, values: F.mse_loss(prediction, values) + penalty(net), False)
    gradient = gradient_of(Stack([net]), Task([net], check_data(net, coords, target), objective))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> float:
        loss = float(gradient(None))
        optimizer.step()
        return loss

    return step


@pytest.mark.benchmark(group="regularised fit step, 256x256 full batch, 2-256-256-256-3")
def test_regularized_fit_step(benchmark: Any) -> None:
    """The data term stays with the native step; autograd takes the regularisers alone."""
    coords, target = signal(SIDE)
    net = inr.INR(2, OUTPUTS, width=WIDTH, hidden_layers=3, seed=0)
    regularizers: list[Any] = [(variation, 0.1), (decay, 1e-4)]
    objective = check_objective("mse", False, regularizers)
    gradient = gradient_of(Stack([net]), Task([net], check_data(net, coords, target), objective))
    with cores(1):  # as in a fit
        benchmark.pedantic(gradient, args=(None,), rounds=5, warmup_rounds=1)
    rivals = {
        "eager": regularized_step(eager_network(net), coords, target),
        "whole autograd": whole_step(copy.deepcopy(net), coords, target),
    }
    turns = Turns(rivals)
    result = inr.fit(net, coords, target, steps=ROUNDS, lr=1e-3, schedule=turns, regularizers=regularizers, seed=0)
    for name in rivals:
        assert result.losses[:COMPARED] == pytest.approx(turns.losses[name][:COMPARED], rel=1e-3)
    benchmark.extra_info.update(turns.report({"eager": 1.6, "whole autograd": 1.6}))


@pytest.mark.benchmark(group="16 networks at 64x64, 2-64-64-64-3, one step of each")
def test_many_networks(benchmark: Any) -> None:
    coords, target = signal(MANY_SIDE)
    nets = [inr.INR(2, OUTPUTS, width=MANY_WIDTH, hidden_layers=3, seed=seed) for seed in range(MANY)]
    stack = Stack(copy.deepcopy(nets))
    gradient = gradient_of(stack, Task(stack.nets, check_data(nets[0], coords, target)))
    with cores(1):  # as in a fit
        benchmark.pedantic(gradient, args=(None,), rounds=5, warmup_rounds=1)

    def sixteen(threads: int) -> Callable[[], list[float]]:
        steps = [eager_step(eager_network(net), coords, target) for net in nets]

        def step() -> list[float]:
            with cores(threads):  # networks so small may be quicker on one core
                return [one() for one in steps]

        return step

    one_by_one = copy.deepcopy(nets)
    rivals = {"sixteen eager fits": sixteen(torch.get_num_threads()), "on one core": sixteen(1)}
    turns = Turns(rivals, steps=MANY_STEPS)

    def once(step: int) -> float:
        """Of the sixteen networks' rates, asked for one after another, the first takes the others' turn."""
        once.asked = getattr(once, "asked", -1) + 1  # type: ignore[attr-defined]
        return turns(step) if once.asked % MANY == 0 else 1.0  # type: ignore[attr-defined]

    results = inr.fit_many(nets, coords, target, steps=MANY_STEPS * ROUNDS, lr=1e-3, schedule=once, seed=0)
    for place, result in enumerate(results):
        followed = [losses[place] for losses in turns.losses["sixteen eager fits"][:COMPARED]]
        assert result.losses[:COMPARED] == pytest.approx(followed, rel=1e-3)
    # Equality with separate fits of this library, and their time: what stacking itself brings.
    start = time.perf_counter()
    alone = [inr.fit(net, coords, target, steps=20, lr=1e-3, schedule="constant", seed=0) for net in one_by_one]
    separate = time.perf_counter() - start
    start = time.perf_counter()
    fresh = [inr.INR(2, OUTPUTS, width=MANY_WIDTH, hidden_layers=3, seed=seed) for seed in range(MANY)]
    again = inr.fit_many(fresh, coords, target, steps=20, lr=1e-3, schedule="constant", seed=0)
    stacked = time.perf_counter() - start
    for one, other in zip(alone, again, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
    benchmark.extra_info.update(
        turns.report({"sixteen eager fits": 2.5, "on one core": 2.5}), separate_over_stacked=separate / stacked
    )


@pytest.mark.benchmark(group="batch norm in train mode, 256x256 full batch, 2-256-256-256-3")
@pytest.mark.parametrize("count", [1, NORMED])
@pytest.mark.parametrize("norm", ["batch", ["batch", None, None]], ids=["every layer", "first layer"])
def test_batch_norm_step(benchmark: Any, norm: Any, count: int) -> None:
    """One network by ``fit``, several by ``fit_many``, against as many plain loops."""
    coords, target = signal(SIDE)
    options: dict[str, Any] = {"width": WIDTH, "hidden_layers": 3, "norm": norm, "norm_position": "post"}
    nets = [inr.INR(2, OUTPUTS, seed=seed, **options).train() for seed in range(count)]
    copies = copy.deepcopy(nets)
    gradient = gradient_of(Stack(copies), Task(copies, check_data(copies[0], coords, target)))
    with cores(1):  # as in a fit
        benchmark.pedantic(gradient, args=(None,), rounds=3, warmup_rounds=1)
    steps = [eager_step(eager_network(net).train(), coords, target) for net in nets]
    turns = Turns({"eager": lambda: [step() for step in steps]})
    asked = itertools.count()

    def once(step: int) -> float:
        """Of the networks' rates, asked for one after another, the first takes the others' turn."""
        return turns(step) if next(asked) % count == 0 else 1.0

    results = inr.fit_many(
        nets, coords, target, steps=NORMED_ROUNDS, lr=1e-3, schedule=once, eval_every=NORMED_ROUNDS, seed=0
    )
    for place, result in enumerate(results):
        followed = [losses[place] for losses in turns.losses["eager"]]
        # Eager statistics in fp32 are off by 2e-5 themselves, and the first updates of Adam multiply that.
        assert result.losses[:NORMED_COMPARED] == pytest.approx(followed[:NORMED_COMPARED], rel=0.02)
    benchmark.extra_info.update(turns.report({"eager": 1.6}))
