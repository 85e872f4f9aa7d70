"""Training steps with sphere norm, TopK and TopK on a sphere against the loops that everybody writes in PyTorch.

    python bench/norm_steps.py [--repeats 15] [--threads 1 2] [--out FILE]

Networks 2-256-256-256-3 and 16,384 points, all of them in each step. Both take their steps in turns in one run, after
their gradients were compared; ratios are medians over the turns, and their quartiles. Beside the native step of fp32
networks there is the path of torch's operations, which fp64 networks and builds without the extension take.
OMP_NUM_THREADS must not be set: --threads says how many there are.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.ops import mlp_step
from inrfast.ops.gemm import processor
from inrfast.training.data import check_data
from inrfast.training.engines import Task, engine_of, gradient_of
from inrfast.training.stack import Stack

SIDE, WIDTH, LAYERS, OUTPUTS, K = 128, 256, 3, 3, 64

NORMS: dict[str, Any] = {
    "none": None,
    "sphere": "sphere",
    "topk": {"name": "topk", "k": K},
    "topk_sphere": {"name": "topk_sphere", "k": K},
}

INITS = {"relu": "default", "sine": "siren"}

ALIKE = 1e-4
"""How far the gradients may lie apart, relative to their length: units next to the k-th may be selected otherwise."""

IDLE_SECONDS = 0.02
"""Between two turns: idle threads of a library spin for a while before they sleep."""


class Eager(nn.Module):
    """The same weights as one writes the network."""

    def __init__(self, net: inr.INR, norm: str) -> None:
        super().__init__()
        self.layers, self.act, self.norm = copy.deepcopy(net.layers), net.activations[0], norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = layer(x)
            x = torch.relu(x) if self.act == "relu" else torch.sin(30 * x)
            if self.norm.startswith("topk"):
                kept = torch.zeros_like(x).scatter_(-1, x.abs().topk(K, dim=-1).indices, 1.0)
                x = x * kept
            if self.norm.endswith("sphere"):
                x = WIDTH**0.5 * F.normalize(x, dim=-1)
        return self.layers[-1](x)


def case(act: str, norm: str, dtype: torch.dtype, threads: int, repeats: int, native: bool) -> dict[str, Any]:
    torch.set_num_threads(threads)
    options = {"width": WIDTH, "hidden_layers": LAYERS, "activation": act, "init": INITS[act], "norm": NORMS[norm]}
    net = inr.INR(2, OUTPUTS, **options, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    coords = inr.grid((SIDE, SIDE)).to(dtype)
    target = torch.rand(len(coords), OUTPUTS, generator=generator).to(dtype)
    eager = Eager(net, norm)
    task = Task([net], check_data(net, coords, target))
    stack = Stack([net])
    engine, gradient = engine_of(task)[0], gradient_of(stack, task)
    if bool(getattr(gradient, "native", "")) != native:
        raise SystemExit(f"{act} {norm} {dtype} takes {engine.name}, native={getattr(gradient, 'native', '')!r}")

    def theirs() -> None:
        eager.zero_grad()
        F.mse_loss(eager(coords), target).backward()

    theirs()
    gradient(None)
    wanted = torch.cat([parameter.grad.flatten() for parameter in eager.parameters()])  # type: ignore[union-attr]
    found = torch.cat([stack.grads[f"layers.{name}"][0].flatten() for name, _ in eager.layers.named_parameters()])
    apart = float((found - wanted).norm() / wanted.norm())
    if apart > ALIKE:
        raise SystemExit(f"gradients of {act} {norm} {dtype} differ by {apart:.1e}")
    seconds: dict[str, list[float]] = {"inrfast": [], "eager": []}
    ways: dict[str, Callable[[], Any]] = {"inrfast": lambda: gradient(None), "eager": theirs}
    for turn in range(repeats + 1):
        for way, step in ways.items():
            time.sleep(IDLE_SECONDS)
            start = time.perf_counter()
            step()
            if turn > 0:
                seconds[way].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(seconds["eager"], seconds["inrfast"], strict=True)]
    return {
        "activation": act,
        "norm": norm,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "native": getattr(gradient, "native", "") or None,
        "milliseconds": {way: round(1e3 * statistics.median(own), 2) for way, own in seconds.items()},
        "eager / inrfast": round(statistics.median(ratios), 2),
        "quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)],
        "gradients apart": float(f"{apart:.2g}"),
    }


def without_native(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The path of a build without the extension."""
    before, mlp_step.instructions = mlp_step.instructions, lambda: ""  # type: ignore[assignment]
    try:
        return call()
    finally:
        mlp_step.instructions = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("bench/results/norm-steps.json"))
    asked = parser.parse_args()
    found = []
    for threads in asked.threads:
        for act in INITS:
            for norm in NORMS:
                found.append(case(act, norm, torch.float32, threads, asked.repeats, native=True))
                print(json.dumps(found[-1]), flush=True)
        for norm in NORMS:
            own = (threads, max(3, asked.repeats // 3), False)
            found.append(without_native(lambda: case("relu", norm, torch.float32, *own)))  # noqa: B023
            print(json.dumps(found[-1]), flush=True)
            found.append(case("relu", norm, torch.float64, *own))
            print(json.dumps(found[-1]), flush=True)
    about = {
        "what": f"one training step, 2-{WIDTH}-{WIDTH}-{WIDTH}-{OUTPUTS}, {SIDE * SIDE} points, k={K}, full batch",
        "processor": processor(),
        "torch": torch.__version__,
        "repeats": asked.repeats,
        "load": [round(own, 1) for own in os.getloadavg()],
    }
    asked.out.write_text(json.dumps({**about, "cases": found}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
