"""Whether an outer step of ``meta_learn`` is ever slower than the loop that everybody writes, on this processor.

    python bench/meta.py [--repeats 5] [--only WORD] [--clock cpu] [--out FILE]

The loop: for each signal of the batch, inner steps by ``torch.func.functional_call`` and ``torch.autograd.grad`` (with
``create_graph=True`` for MAML), then the gradient of the loss there. Rounds are interleaved, and the median and the
fastest of each are kept. No time is written unless both directions agree, to a thousandth of the largest entry. On a
machine that others use too, ``--clock cpu`` counts the processor's time in place of the wall's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

import inrfast as inr
from inrfast.ops import gemm
from inrfast.training.data import Data
from inrfast.training.meta.inner import Inner
from inrfast.training.meta.learn import learner_of
from inrfast.training.meta.signals import check_signals

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

ALIKE = 1e-3
"""How far the two directions may lie apart, in units of the largest entry."""

INNER = Inner(2, 1e-2)

BATCH = 3

BUDGET = 2**32


class Siren(nn.Module):
    """Sine layers as a module of its own, whose formula nobody knows."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width if i else 2, width) for i in range(hidden)])
        self.head = nn.Linear(width, 1)
        for index, layer in enumerate([*self.layers, self.head]):
            inr.init.siren_(layer, 30.0, first=index == 0)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30.0 * layer(x))
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """A network, the side of the image, and the way to a start."""

    name: str
    net: Callable[[], nn.Module]
    side: int
    method: str


def siren(width: int, hidden: int) -> inr.INR:
    """Return a SIREN with omega 30 in every layer."""
    return inr.INR(2, 1, width=width, hidden_layers=hidden, activation="sine", init="siren", omega=30.0, seed=0)


def relu(width: int, hidden: int) -> inr.INR:
    """Return a network of ReLU on random Fourier features."""
    return inr.INR(
        2, 1, width=width, hidden_layers=hidden, activation="relu", encoding=inr.RandomFourier(width, 10.0), seed=0
    )


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SIREN 3 x 64, 25 x 25": (lambda: siren(64, 3), 25),
    "SIREN 4 x 256, 25 x 25": (lambda: siren(256, 4), 25),
    "SIREN 4 x 256, 64 x 64": (lambda: siren(256, 4), 64),
    "Fourier features 256, ReLU 3 x 256, 64 x 64": (lambda: relu(256, 3), 64),
    "a module of its own, sine 3 x 64, 25 x 25": (lambda: Siren(64, 3), 25),
    "a module of its own, sine 3 x 128, 64 x 64": (lambda: Siren(128, 3), 64),
}


def plain(net: nn.Module, data: Data, method: str) -> dict[str, Tensor]:
    """Return the direction of an outer step by the loop that everybody writes."""
    start: dict[str, Tensor] = {name: p for name, p in net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in start.items()}
    for place in range(len(data.target)):
        x, y, _ = data.rows(slice(None), place)
        at = start
        for _ in range(INNER.steps):
            loss = (functional_call(net, at, (x,)) - y).square().mean()
            grads = torch.autograd.grad(loss, list(at.values()), create_graph=method == "maml")
            at = {name: p - INNER.lr * grad for (name, p), grad in zip(at.items(), grads, strict=True)}
            if method != "maml":
                at = {name: p.detach().requires_grad_() for name, p in at.items()}
        if method == "reptile":
            own = [(p.detach() - at[name].detach()) / INNER.lr for name, p in start.items()]
        else:
            loss = (functional_call(net, at, (x,)) - y).square().mean()
            own = list(torch.autograd.grad(loss, list((start if method == "maml" else at).values())))
        for name, grad in zip(total, own, strict=True):
            total[name] += grad / len(data.target)
    return total


def measure(case: Case, repeats: int, clock: str) -> dict[str, object]:
    """Return the times of both ways for one case."""
    torch.manual_seed(0)
    net = case.net()
    data = check_signals(net, inr.grid((case.side, case.side)), torch.rand(BATCH, case.side, case.side))
    learner = learner_of(net, data, case.method, INNER, BATCH, BUDGET)
    wanted, found = plain(net, data, case.method), learner(data).grads
    scale = max(float(own.abs().max()) for own in wanted.values())
    apart = max(float((own - found[name]).abs().max()) for name, own in wanted.items()) / scale
    assert apart < ALIKE, f"{case.name}, {case.method}: the directions lie {apart:.2g} apart"
    times: dict[str, list[float]] = {"plain": [], "inrfast": []}
    for _ in range(repeats):
        for way, run in (("plain", lambda: plain(net, data, case.method)), ("inrfast", lambda: learner(data))):
            start = CLOCKS[clock]()
            run()
            times[way].append(CLOCKS[clock]() - start)
    medians = {way: statistics.median(own) for way, own in times.items()}
    return {
        "case": case.name,
        "method": case.method,
        "seconds": {way: {"median": medians[way], "fastest": min(own)} for way, own in times.items()},
        "times as fast": medians["plain"] / medians["inrfast"],
        "times as fast, fastest rounds": min(times["plain"]) / min(times["inrfast"]),
        "apart": apart,
        "layout": learner.layout,
    }


def main() -> None:
    """Measure all cases, print a line for each, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = []
    for name, (net, side) in NETS.items():
        for method in ("maml", "fomaml", "reptile"):
            if given.only in name:
                found.append(measure(Case(name, net, side, method), given.repeats, given.clock))
                one = found[-1]
                fastest = one["times as fast, fastest rounds"]
                print(f"{name}, {method}: {one['times as fast']:.2f} ({fastest:.2f}) times as fast", flush=True)
    about = {
        "processor": gemm.processor(),
        "torch": torch.__version__,
        "threads": given.threads,
        "clock": given.clock,
        "batch": BATCH,
        "inner steps": INNER.steps,
    }
    if given.out is not None:
        given.out.write_text(json.dumps({"about": about, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
