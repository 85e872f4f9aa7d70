"""Parts of ``bench/gpu.py``: training steps, of one network or a hundred, against PyTorch's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_bench import Bench
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import inrfast as inr
from inrfast.modes import products
from inrfast.training.batches import Batches
from inrfast.training.data import Data
from inrfast.training.engines import Task
from inrfast.training.engines.fused import FusedGradient, FusedOptimizer, FusedSteps
from inrfast.training.optimizers.adam import Adam
from inrfast.training.stack import Stack

RATE = 1e-3
ERRORS = {"medium": 2e-2, "high": 1e-3}
"""Largest error of a gradient, relative to its norm: ReLU's gates near 0 are a part of it."""


@dataclasses.dataclass
class Problem:
    """Networks of one shape on one grid, each with a target of its own."""

    nets: list[inr.INR]
    coords: Tensor
    targets: Tensor

    @classmethod
    def make(cls, bench: Bench, side: int, width: int, count: int, activation: str) -> Problem:
        options = {"activation": activation} | ({"init": "siren"} if activation == "sine" else {})
        nets = [inr.INR(2, 3, width=width, hidden_layers=3, seed=k, **options).to(bench.device) for k in range(count)]
        coords = inr.grid((side, side), device=bench.device)
        phases = torch.arange(1, count + 1, device=bench.device, dtype=torch.float32)[:, None, None]
        waves = torch.stack([coords[:, 0] * 3, coords[:, 1] * 5, coords.prod(1) * 4], 1)
        return cls(nets, coords, 0.5 * torch.sin(waves + phases))

    def fused(self, precision: str, at_once: int) -> Callable[[], Any]:
        """Return what takes ``at_once`` fused steps of all networks."""
        stack = Stack(self.nets, flat=True)
        data = Data(self.coords.unsqueeze(0), self.targets)
        gradient = FusedGradient(stack, Task(self.nets, data, budget=1 << 40, narrow=precision == "medium"))
        batches = Batches(len(self.coords), None, [0] * len(self.nets), self.coords.device)
        steps = FusedSteps(gradient, FusedOptimizer(stack, Adam), batches)
        rates = [[RATE] * len(self.nets)] * at_once
        self.gradient = gradient
        return lambda: steps.take(0, rates)

    def error(self) -> float:
        """Return the relative error of the fused gradient of the first network, against fp64 autodiff."""
        self.gradient(None)
        found = torch.cat([g[0].double().flatten() for g in self.gradient.stack.grads.values()])
        twin = inr.INR(2, 3, width=self.nets[0].width, hidden_layers=3, activation=self.nets[0].activations[0], seed=0)
        twin.to(self.coords).double().load_state_dict(self.nets[0].state_dict())
        F.mse_loss(twin(self.coords.double()), self.targets[0].double()).backward()
        exact = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
        return float((found - exact).norm() / exact.norm())


def stepper(net: nn.Module, coords: Tensor, target: Tensor, **options: Any) -> Callable[[], None]:
    """Return one step of a plain training loop."""
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, **options)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(net(coords), target).backward()
        optimizer.step()

    return step


def floor(bench: Bench, points: int, width: int, models: int) -> dict[str, float] | None:
    """Return the seconds a step in 16 bits cannot beat, with the rates measured in this run, or None without them.

    All products at the rate of the best fp16 product, and features and errors written once and read once.
    """
    best, copied = bench.rate("fp16"), bench.rate("copy", "bytes_per_second")
    if best is None or copied is None:
        return None
    flops = 6.0 * points * models * (2 * width * width + 5 * width)
    moved = 2.0 * points * models * width * (3 + 2 + 2 + 2)
    return {"arithmetic": flops / best, "traffic": moved / copied, "seconds": flops / best + moved / copied}


def step_of_one(bench: Bench, side: int, activation: str, precision: str) -> None:
    """A full-batch step of one network against eager fp32 and TF32, and against compiled steps in a CUDA graph.

    The compiled rivals are TF32, and bf16 autocast, with Adam fused into one kernel.
    """
    at_once = 32 if bench.large else 2
    side = side if bench.large else bench.grid
    problem = Problem.make(bench, side, bench.width, 1, activation)
    take = problem.fused(precision, at_once)
    bench.found["error"] = {"gradient": problem.error(), "target": ERRORS[precision]}
    bench.check(bench.found["error"]["gradient"] <= ERRORS[precision], f"error {bench.found['error']}")
    take()  # the first call compiles, the second captures
    bench.found["fused"] = _shared(bench.seconds(take), at_once)

    def rival(compiled: bool, **options: Any) -> Callable[[], None]:
        net = Problem.make(bench, side, bench.width, 1, activation).nets[0]
        return stepper(torch.compile(net) if compiled else net, problem.coords, problem.targets[0], **options)

    with products("highest"):
        bench.attempt("eager fp32", lambda: bench.seconds(rival(False), 5))
    with products("high"):
        bench.attempt("eager TF32", lambda: bench.seconds(rival(False), 5))
        captured: dict[str, Any] = {"capturable": True, "fused": True}
        for name, narrow in (("compiled TF32, CUDA graph", False), ("compiled bf16, CUDA graph", True)):
            step = functools.partial(_several, rival(True, **captured), at_once, narrow)
            bench.attempt(name, lambda step=step: _shared(bench.seconds(bench.graph(step), 5), at_once))
    _ratios(bench, side * side, bench.width, 1)
    if bench.found.get("ratio to eager fp32", 0) < 5:
        bench.profile("profile", take)


def _several(step: Callable[[], None], count: int, narrow: bool) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=narrow, cache_enabled=False):
        for _ in range(count):
            step()


def _shared(entry: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a time of ``count`` steps as that of one."""
    return entry | {"seconds": entry["seconds"] / count, "quartiles": [q / count for q in entry["quartiles"]]}


def step_of_many(bench: Bench, count: int, side: int, precision: str) -> None:
    """A full-batch step of many networks against a loop of eager steps, and against ``vmap``."""
    at_once, width = (8, bench.width // 2) if bench.large else (1, bench.width)
    count, side = (count, side) if bench.large else (2, bench.grid)
    problem = Problem.make(bench, side, width, count, "relu")
    twins = Problem.make(bench, side, width, count, "relu")
    take = problem.fused(precision, at_once)
    bench.found["error"] = {"gradient": problem.error(), "target": ERRORS[precision]}
    bench.check(bench.found["error"]["gradient"] <= ERRORS[precision], f"error {bench.found['error']}")
    take()
    bench.found["fused"] = _shared(bench.seconds(take), at_once)
    loop = [stepper(net, twins.coords, y) for net, y in zip(twins.nets, twins.targets, strict=True)]
    with products("highest"):
        bench.attempt("eager fp32", lambda: bench.seconds(lambda: [step() for step in loop], 3))
        bench.attempt("vmap", lambda: bench.seconds(by_vmap(twins), 5))
    with products("high"):
        bench.attempt("vmap, TF32", lambda: bench.seconds(by_vmap(twins), 5))
    _ratios(bench, side * side, width, count)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": {"norm": "batch"},
    "normed pre": {"norm": "batch", "norm_position": "pre"},
    "mixed": {"activation": {"first": "sine", "hidden": "relu"}, "init": {"first": "siren", "hidden": "default"}},
}
"""Networks of the inlet rank collapse's table, for which a fit takes different engines."""


def fits_of_many(bench: Bench, kind: str) -> None:
    """A step of ``fit_many`` of 16 networks at 256x256 points, per network, against an eager step of one in TF32.

    The difference of a long and a short fit leaves out what a fit does once. ``engine`` says who took the steps.
    """
    count, side, few, many = (16, 256, 8, 40) if bench.large else (2, bench.grid, 1, 2)
    coords = inr.grid((side, side), device=bench.device)
    targets = torch.stack([0.5 * torch.sin((3 + k) * coords[:, :1] + coords) for k in range(count)])

    def made() -> list[inr.INR]:
        return [inr.INR(2, 2, width=bench.width, seed=k, **KINDS[kind]).to(bench.device) for k in range(count)]

    def fitted(steps: int, nets: list[inr.INR]) -> None:
        results = inr.fit_many(nets, coords, targets, steps=steps, precision="medium", progress=False, seed=0)
        bench.found["engine"] = results[0].config["gradient"]

    short, long = (bench.seconds(functools.partial(fitted, steps), 3, made)["seconds"] for steps in (few, many))
    bench.found["fit_many"] = {"seconds": (long - short) / (many - few) / count}
    net = made()[0].train()
    with products("high"):
        bench.attempt("eager TF32", lambda: bench.seconds(stepper(net, coords, targets[0]), 5))
    if "seconds" in bench.found["eager TF32"] and bench.large:
        bench.found["ratio to eager TF32"] = bench.found["eager TF32"]["seconds"] / bench.found["fit_many"]["seconds"]


def by_vmap(problem: Problem) -> Callable[[], None]:
    """Return one step of all networks by ``torch.func``."""
    parameters, buffers = stack_module_state(problem.nets)
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    base = problem.nets[0]
    assert not any(buffers.values())

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(base, (own, {}), (x,)), y)

    gradients = vmap(grad(loss), (0, None, 0))
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)

    def step() -> None:
        for name, value in gradients(parameters, problem.coords, problem.targets).items():
            parameters[name].grad = value
        optimizer.step()

    return step


def _ratios(bench: Bench, points: int, width: int, models: int) -> None:
    found, ours = bench.found, bench.found["fused"]["seconds"]
    for name in [key for key, entry in found.items() if isinstance(entry, dict) and "seconds" in entry]:
        if name != "fused":
            found[f"ratio to {name}"] = found[name]["seconds"] / ours
    least = floor(bench, points, width, models)
    if least is not None:
        found |= {"floor": least, "ratio of the floor": ours / least["seconds"]}


TARGETS: dict[str, dict[str, float]] = {
    "step 512x512 relu medium": {
        "ratio to eager fp32": 5, "ratio to compiled TF32, CUDA graph": 2, "ratio of the floor": 2.5,
    },
    "step 64x64 relu medium": {"ratio to eager fp32": 15},
    "steps of 100, 64x64 medium": {"ratio to eager fp32": 20, "ratio to vmap": 3},
    **{f"fits, {kind}": {"ratio to eager TF32": 1} for kind in KINDS},
}  # fmt: skip
"""What the steps are meant to reach: ratios of at least so much, and of the floor at most."""
