"""What the kernel alignment regulariser costs: time of a step beside a plain one, memory, and against eager PyTorch.

    python bench/kar.py [--repeats 5] [--clock cpu] [--only WORD] [--out FILE]

Every case has a process of its own, so that its peak of memory is its own. A picture of 256 x 256 pixels is fitted with
all of them in each step; plain steps and those with the regulariser are interleaved, and medians of the steps are kept.
``all rows and keys`` is equation 12 as it stands, with tiles of the matrix of weights and, where that fits, with the
whole matrix as one writes it in PyTorch; values and gradients of both must agree. On a machine that others use too,
``--clock cpu`` counts the processor's time in place of the wall's.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.checkpoint import checkpoint

import inrfast as inr
from inrfast.ops import gemm
from inrfast.training.regularizers.attention import KEYS, ROWS, attend
from inrfast.training.regularizers.kar import KEYS_DRAWN, ROWS_DRAWN

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

SIDE, STEPS, FACTOR = 256, 4, 1e-2

PARTS: dict[str, dict[str, Any]] = {"kar": {}, "kar, 1,024 rows": {"rows": 1024, "keys": 1024}}
"""Points of a step, the default and more."""

NETS: dict[str, dict[str, Any]] = {
    "siren 3 x 128": {"width": 128, "activation": "sine", "init": "siren"},
    "relu 3 x 128": {"width": 128},
    "siren 3 x 256": {"width": 256, "activation": "sine", "init": "siren"},
    "relu 3 x 256": {"width": 256},
}

ALL = {"all 4,096 rows and keys": 64, "all 65,536 rows and keys": 256}

ATTENTION = {"attention of 1,024": 1024, "attention of 4,096": 4096}
"""Rows, and keys, of the attention alone, with 100 features and one value, forward and back."""

ALIKE = 1e-3
"""How far the gradients of tiles and of the whole matrix may lie apart, in units of the largest entry."""


class Clock:
    """A callback that takes the time of every step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, [clock()]

    def on_step(self, state: Any) -> None:
        self.times.append(self.clock())

    @property
    def steps(self) -> list[float]:
        return [b - a for a, b in zip(self.times[1:], self.times[2:], strict=False)]


def picture(side: int) -> tuple[Tensor, Tensor]:
    points = inr.grid((side, side))
    return points, torch.sin(9 * points[:, :1]) * torch.cos(5 * points[:, 1:] ** 2)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def eager_step(net: nn.Module, kar: inr.KAR, points: Tensor, target: Tensor, adam: torch.optim.Adam, step: int) -> None:
    """A step as one writes it, with the same random points."""
    adam.zero_grad()
    loss = (net(points) - target).square().mean() + FACTOR * whole(net, kar, *kar.drawn(points, step))
    loss.backward()
    adam.step()


def whole(net: nn.Module, kar: inr.KAR, rows: Tensor, keys: Tensor) -> Tensor:
    """The regulariser with the whole matrix of weights."""
    logits = kar.attention(rows) @ kar.attention(keys).t()
    if not kar.own:
        logits = logits.masked_fill((rows[:, None] == keys[None]).all(2), -torch.inf)
    return (net(rows) - torch.softmax(logits, 1) @ net(keys)).norm(dim=1).mean()


def step_case(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    points, target = picture(SIDE)
    net = inr.INR(2, 1, hidden_layers=3, seed=0, **NETS[name])
    kars = {part: inr.KAR(points, **options) for part, options in PARTS.items()}
    other, theirs = copy.deepcopy(net), copy.deepcopy(kars["kar"])
    adam = torch.optim.Adam([*other.parameters(), *theirs.parameters()], lr=1e-4)
    found: dict[str, list[float]] = {"plain": [], **{part: [] for part in PARTS}, "eager kar": []}
    engine = ""
    for _ in range(repeats):
        for way in ("plain", *PARTS):
            terms = [(kars[way], FACTOR)] if way in kars else []
            watch = Clock(clock)
            options = {"seed": 0, "lr": 1e-4, "regularizers": terms, "progress": False, "eval_every": STEPS + 1}
            result = inr.fit(net, points, target, steps=STEPS, callbacks=[watch], **options)
            found[way] += watch.steps
            engine = result.config["gradient"]
    ours = peak_mebibytes()
    for step in range(repeats):
        start = clock()
        eager_step(other, theirs, points, target, adam, step)
        found["eager kar"].append(clock() - start)
    seconds = {way: statistics.median(times) for way, times in found.items()}
    return {
        "case": name,
        "rows, keys": f"{ROWS_DRAWN}, {KEYS_DRAWN}",
        "gradient": engine,
        "seconds": {way: round(own, 5) for way, own in seconds.items()},
        **{f"{part} / plain": round(seconds[part] / seconds["plain"], 3) for part in PARTS},
        "eager kar / kar": round(seconds["eager kar"] / seconds["kar"], 2),
        "peak MiB": round(ours),
        "peak MiB with the eager one": round(peak_mebibytes()),
    }


def all_case(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    points, _ = picture(ALL[name])
    net = inr.INR(2, 1, hidden_layers=3, seed=0, **NETS["siren 3 x 128"])
    kar = inr.KAR(points, rows="all", keys="all")
    parameters = [*net.parameters(), *kar.parameters()]
    before, small = peak_mebibytes(), len(points) <= 2**13

    def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        start = clock()
        grads = torch.autograd.grad(call(), parameters)
        return clock() - start, torch.cat([grad.flatten() for grad in grads])

    ours = [timed(lambda: kar(net, points)) for _ in range(repeats if small else 1)]
    found = {
        "case": name,
        "seconds": {"kar": round(statistics.median(time for time, _ in ours), 4)},
        "peak MiB": round(peak_mebibytes()),
        "peak MiB before": round(before),
    }
    if small:
        theirs = [timed(lambda: whole(net, kar, points, points)) for _ in range(repeats)]
        apart = float((ours[0][1] - theirs[0][1]).abs().max() / theirs[0][1].abs().max())
        if apart > ALIKE:
            raise SystemExit(f"gradients of {name} differ by {apart:.1e}")
        found["seconds"]["eager"] = round(statistics.median(time for time, _ in theirs), 4)
        found["gradients apart"] = float(f"{apart:.2g}")
        found["peak MiB with the eager one"] = round(peak_mebibytes())
    else:
        found["peak MiB of the matrix of weights alone"] = round(4 * len(points) ** 2 / 2**20)
    return found


def by_checkpoints(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of 256 rows whose weights torch makes anew."""
    blocks = [
        checkpoint(lambda own: torch.softmax(own @ k.t(), 1) @ v, own, use_reentrant=False) for own in q.split(256)
    ]
    return torch.cat(blocks)


def attention_case(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    n, generator = ATTENTION[name], torch.Generator().manual_seed(0)
    given = [torch.randn(n, width, generator=generator).mul_(0.3).requires_grad_() for width in (100, 100, 1)]
    ways: dict[str, Callable[..., Tensor]] = {
        "attend": lambda q, k, v: attend(q, k, v)[0],
        "attend, weights made anew": lambda q, k, v: attend(q, k, v, None, (ROWS, KEYS))[0],
        "scaled_dot_product_attention": lambda q, k, v: sdpa(q[None, None], k[None, None], v[None, None], scale=1.0)[
            0, 0
        ],
        "checkpoints": by_checkpoints,
        "whole matrix": lambda q, k, v: torch.softmax(q @ k.t(), 1) @ v,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, call in ways.items():
            start = clock()
            grads = torch.autograd.grad(call(*given).square().sum(), given)
            times[way].append(clock() - start)
            if way == "attend":
                wanted = grads
            apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads, wanted, strict=True))
            if apart > ALIKE:
                raise SystemExit(f"gradients of {way} differ by {apart:.1e}")
    return {"case": name, "seconds": {way: round(statistics.median(own[1:]), 5) for way, own in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--only", default="")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.case:
        case = attention_case if given.case in ATTENTION else all_case if given.case in ALL else step_case
        print(json.dumps(case(given.case, given.repeats, CLOCKS[given.clock])))
        return
    rows = []
    for name in [*ATTENTION, *NETS, *ALL]:
        if given.only in name:
            options = ["--repeats", str(given.repeats), "--clock", given.clock, "--case", name]
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "pixels": SIDE * SIDE,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": gemm.processor(),
        "clock": given.clock,
        "repeats": given.repeats,
        "rows": rows,
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
