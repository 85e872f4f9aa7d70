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

import inrfast as inr
from inrfast.ops import gemm

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

SIDE, STEPS, FACTOR = 256, 4, 1e-2

NETS: dict[str, dict[str, Any]] = {
    "siren 3 x 128": {"width": 128, "activation": "sine", "init": "siren"},
    "relu 3 x 128": {"width": 128},
    "siren 3 x 256": {"width": 256, "activation": "sine", "init": "siren"},
    "relu 3 x 256": {"width": 256},
}

ALL = {"all 4,096 rows and keys": 64, "all 65,536 rows and keys": 256}

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
    net = inr.INR(2, 1, hidden_layers=3, **NETS[name])
    kar = inr.KAR(points)
    other, theirs = copy.deepcopy(net), copy.deepcopy(kar)
    adam = torch.optim.Adam([*other.parameters(), *theirs.parameters()], lr=1e-4)
    found: dict[str, list[float]] = {"plain": [], "kar": [], "eager kar": []}
    engine = ""
    for _ in range(repeats):
        for way, terms in (("plain", []), ("kar", [(kar, FACTOR)])):
            watch = Clock(clock)
            options = {"lr": 1e-4, "regularizers": terms, "progress": False, "eval_every": STEPS + 1}
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
        "rows": 1024,
        "keys": 1024,
        "gradient": engine,
        "seconds": {way: round(own, 5) for way, own in seconds.items()},
        "kar / plain": round(seconds["kar"] / seconds["plain"], 3),
        "eager kar / kar": round(seconds["eager kar"] / seconds["kar"], 2),
        "peak MiB": round(ours),
        "peak MiB with the eager one": round(peak_mebibytes()),
    }


def all_case(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    points, _ = picture(ALL[name])
    net = inr.INR(2, 1, hidden_layers=3, **NETS["siren 3 x 128"])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--only", default="")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.case:
        case = all_case if given.case in ALL else step_case
        print(json.dumps(case(given.case, given.repeats, CLOCKS[given.clock])))
        return
    rows = []
    for name in [*NETS, *ALL]:
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
