"""Parts of ``bench/gpu.py``: training steps, of one network or a hundred, against PyTorch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import inrfast as inr
from inrfast.backends import capturing
from inrfast.kernels import fused_mlp as kernels
from inrfast.modes import products
from inrfast.training.batches import Batches
from inrfast.training.data import Data
from inrfast.training.fused import FusedGradient, FusedOptimizer, FusedSteps
from inrfast.training.stack import Stack

RATE = 1e-3
ERRORS = {"medium": 2e-2, "high": 1e-3}
"""Largest error of a gradient, relative to its norm: ReLU's gates near 0 are a part of it."""

CANDIDATES = {
    "LARGE": [(128, 128, 64, 8, 2), (128, 128, 64, 8, 4), (128, 64, 64, 8, 3), (64, 128, 64, 8, 3)],
    "LARGE_ON_CHIP": [(128, 128, 64, 8, 1), (64, 128, 64, 8, 2), (128, 128, 64, 4, 2)],
    "WEIGHT_GRADIENTS": [(128, 128, 64, 8, 3), (128, 128, 32, 8, 4), (64, 128, 64, 4, 3), (128, 256, 32, 8, 3)],
}
"""Other tiles of the fused step: rows, columns, terms, warps, stages."""


@dataclasses.dataclass
class Problem:
    """Networks of one shape on one grid, each with a target of its own."""

    nets: list[inr.INR]
    coords: Tensor
    targets: Tensor

    @classmethod
    def make(cls, bench: Any, side: int, width: int, count: int, activation: str) -> Problem:
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
        gradient = FusedGradient(stack, data, len(self.coords), 1 << 40, precision == "medium")
        batches = Batches(len(self.coords), None, [0] * len(self.nets), self.coords.device)
        steps = FusedSteps(gradient, FusedOptimizer(stack, "adam"), batches)
        rates = [[RATE] * len(self.nets)] * at_once
        self.gradient = gradient
        return lambda: steps.take(0, rates)

    def error(self) -> float:
        """Return the relative error of the fused gradient of the first network, against fp64 autodiff."""
        self.gradient(None)
        found = torch.cat([g[0].double().flatten() for g in self.gradient.stack.grads.values()])
        twin = inr.INR(2, 3, width=self.nets[0].width, hidden_layers=3, activation=self.nets[0].activations[0])
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


def tf32(allowed: bool) -> products:
    """Let fp32 products run in TF32, or not, inside."""
    return products("high" if allowed else "highest")


def captured(step: Callable[[], None], device: torch.device, at_once: int) -> Callable[[], None]:
    """Return ``at_once`` steps as one CUDA graph; where there are none, as a loop."""
    if device.type != "cuda":

        def loop() -> None:
            for _ in range(at_once):
                step()

        return loop
    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, device):
        for _ in range(at_once):
            step()
    return graph.replay


def floor(bench: Any, points: int, width: int, models: int) -> dict[str, float]:
    """Return the seconds a step in 16 bits cannot beat, with the rates measured in this run.

    All products at the rate of the best fp16 product, and features and errors written once and read once.
    """
    ceilings = bench.results["ceilings"]
    flops = 6.0 * points * models * (2 * width * width + 5 * width)
    moved = 2.0 * points * models * width * (3 + 2 + 2 + 2)
    arithmetic = flops / ceilings["fp16"]["flops_per_second"]
    traffic = moved / ceilings["copy"]["bytes_per_second"]
    return {"arithmetic": arithmetic, "traffic": traffic, "seconds": arithmetic + traffic}


def step_of_one(
    bench: Any, side: int, width: int, activation: str, precision: str, compiled: bool, found: dict[str, Any]
) -> None:
    """A full-batch step of one network against eager fp32 and, if ``compiled``, against TF32 compiled and captured."""
    at_once = 32 if bench.device.type == "cuda" else 2
    problem = Problem.make(bench, side, width, 1, activation)
    net, target = Problem.make(bench, side, width, 1, activation).nets[0], problem.targets[0]
    take = problem.fused(precision, at_once)
    found["error"] = {"gradient": problem.error(), "target": ERRORS[precision]}
    if not found["error"]["gradient"] <= ERRORS[precision]:
        raise AssertionError(f"error {found['error']}: no time is reported")

    def scaled(entry: dict[str, Any]) -> dict[str, Any]:
        return entry | {"seconds": entry["seconds"] / at_once, "quartiles": [q / at_once for q in entry["quartiles"]]}

    found["fused"] = scaled(bench.seconds(take))
    eager = stepper(net, problem.coords, target)
    found["eager fp32"] = bench.seconds(eager)
    with tf32(True):
        found["eager TF32"] = bench.seconds(eager)
        if not compiled:
            return _ratios(bench, found, side * side, width, 1)
        try:
            options = {"capturable": True, "fused": True} if bench.device.type == "cuda" else {}
            rival = torch.compile(Problem.make(bench, side, width, 1, activation).nets[0])
            graph = captured(stepper(rival, problem.coords, target, **options), bench.device, at_once)
            found["compiled TF32, CUDA graph"] = scaled(bench.seconds(graph))
        except Exception as error:
            found["compiled"] = f"{type(error).__name__}: {error}"[:500]
    return _ratios(bench, found, side * side, width, 1)


def step_of_many(bench: Any, count: int, side: int, width: int, precision: str, found: dict[str, Any]) -> None:
    """A full-batch step of many networks against a loop of eager steps, and against ``vmap``."""
    at_once = 8 if bench.device.type == "cuda" else 1
    problem = Problem.make(bench, side, width, count, "relu")
    twins = Problem.make(bench, side, width, count, "relu")
    take = problem.fused(precision, at_once)
    found["error"] = {"gradient": problem.error(), "target": ERRORS[precision]}
    if not found["error"]["gradient"] <= ERRORS[precision]:
        raise AssertionError(f"error {found['error']}: no time is reported")
    found["fused"] = bench.seconds(take)
    found["fused"]["seconds"] /= at_once
    found["fused"]["quartiles"] = [q / at_once for q in found["fused"]["quartiles"]]

    loop = [stepper(net, twins.coords, y) for net, y in zip(twins.nets, twins.targets, strict=True)]
    found["eager fp32"] = bench.seconds(lambda: [step() for step in loop], 3)

    parameters, buffers = stack_module_state(twins.nets)
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    base = twins.nets[0]

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(base, (own, {}), (x,)), y)

    gradients = vmap(grad(loss), (0, None, 0))
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE, fused=bench.device.type == "cuda")

    def by_vmap() -> None:
        for name, value in gradients(parameters, twins.coords, twins.targets).items():
            parameters[name].grad = value
        optimizer.step()

    assert not any(buffers.values())
    found["vmap"] = bench.seconds(by_vmap)
    with tf32(True):
        found["vmap, TF32"] = bench.seconds(by_vmap)
    _ratios(bench, found, side * side, width, count)


def _ratios(bench: Any, found: dict[str, Any], points: int, width: int, models: int) -> None:
    ours = found["fused"]["seconds"]
    for name in [key for key, entry in found.items() if isinstance(entry, dict) and "seconds" in entry]:
        if name != "fused":
            found[f"ratio to {name}"] = found[name]["seconds"] / ours
    found["floor"] = floor(bench, points, width, models)
    found["ratio of the floor"] = ours / found["floor"]["seconds"]


def step_candidates(bench: Any, side: int, width: int, found: dict[str, Any]) -> None:
    """Time a step in "medium" with other tiles, those in use first: the figures from which to choose."""
    at_once = 16 if bench.device.type == "cuda" else 1
    for name, tiles in CANDIDATES.items():
        table = getattr(kernels, name)
        in_use = table["fp16"]
        try:
            for config in [in_use, *(kernels.Config(*tile) for tile in tiles)]:
                if bench.late:
                    found["stopped"] = "out of time"
                    return
                table["fp16"] = config
                try:
                    take = Problem.make(bench, side, width, 1, "sine").fused("medium", at_once)
                    entry = bench.seconds(take, 3)
                    found[f"{name}, {config}"] = entry | {"seconds": entry["seconds"] / at_once}
                except Exception as error:
                    found[f"{name}, {config}"] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        finally:
            table["fp16"] = in_use


TARGETS: dict[str, dict[str, float]] = {
    "step 512x512 relu medium": {
        "ratio to eager fp32": 5, "ratio to compiled TF32, CUDA graph": 2, "ratio of the floor": 2.5,
    },
    "step 64x64 relu medium": {"ratio to eager fp32": 15},
    "steps of 100, 64x64 medium": {"ratio to eager fp32": 20, "ratio to vmap": 3},
}  # fmt: skip
"""What the steps are meant to reach: ratios of at least so much, and of the floor at most."""


def summary(name: str, entry: dict[str, Any]) -> Sequence[str]:
    """Return the lines of one part for the short table."""
    fused = 1e6 * entry["fused"]["seconds"]
    lines = [f"{name:32} {fused:9.1f} us a step, gradient {entry['error']['gradient']:.1e}"]
    for key, ratio in entry.items():
        if key.startswith("ratio"):
            target = TARGETS.get(name, {}).get(key)
            lines.append(f"{'':32} {key}: {ratio:.2f}" + (f" (target {target:g})" if target else ""))
    return lines
