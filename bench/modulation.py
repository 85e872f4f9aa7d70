"""Fits and kernels of networks with Fourier and Gabor filters against the loops that everybody writes in PyTorch.

    python bench/modulation.py [--repeats 5] [--threads 1 2] [--out FILE]

Fits: networks 2-256-256-256-1, 16,384 points in each step; several steps of Adam by ``inr.fit``, its preparation
included, and by an eager loop of the same network, in turns. Kernels: 2-64-64-64-1, a grid of 64 x 64 as a dense fp32
matrix, by ``inr.ntk`` and by torch.func's Jacobian of all points. Ratios are medians over the turns.
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
from torch.func import functional_call, jacrev, vmap

import inrfast as inr
from inrfast.ops.gemm import processor

SIDE, WIDTH, STEPS, KERNEL_SIDE, KERNEL_WIDTH = 128, 256, 4, 64, 64


class Eager(nn.Module):
    """The same weights as one writes the network, with Gabor's distances as its authors compute them."""

    def __init__(self, net: inr.INR) -> None:
        super().__init__()
        self.layers, self.filters = copy.deepcopy(net.layers), copy.deepcopy(net.modulations)

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for layer, own in zip(self.layers, self.filters, strict=False):
            h = own.linear(x).sin()
            if hasattr(own, "gamma"):
                apart = x.square().sum(-1, keepdim=True) + own.mu.square().sum(-1) - 2 * x @ own.mu.T
                h = h * torch.exp(-0.5 * apart * own.gamma)
            z = F.relu(layer(z)) * h
        return self.layers[-1](z)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def eager_fit(net: nn.Module, x: Tensor, y: Tensor) -> None:
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        adam.zero_grad()
        F.mse_loss(net(x), y).backward()
        adam.step()


def func_kernel(net: nn.Module, x: Tensor) -> Tensor:
    own = {name: parameter.detach() for name, parameter in net.named_parameters()}
    rows = vmap(jacrev(lambda given, point: functional_call(net, given, (point[None],))[0, 0]), (None, 0))(own, x)
    jacobian = torch.cat([part.flatten(1) for part in rows.values()], dim=1)
    return jacobian @ jacobian.T


def case(what: str, name: str, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    width, side = (WIDTH, SIDE) if what == "fit" else (KERNEL_WIDTH, KERNEL_SIDE)
    x, net = inr.grid((side, side)), inr.INR(2, 1, width=width, modulation={"name": name, "scale": 16}, seed=0)
    y = torch.sin(5 * x[:, :1])
    if what == "fit":
        calls = [lambda: inr.fit(copy.deepcopy(net), x, y, steps=STEPS, seed=0), lambda: eager_fit(Eager(net), x, y)]
    else:
        calls = [lambda: inr.ntk(net, x).to_dense(), lambda: func_kernel(Eager(net), x)]
    turns = [[timed(call) for call in calls] for _ in range(repeats + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(b / a for a, b in turns)
    return {"what": what, "modulation": name, "threads": threads, "inrfast_s": ours, "torch_s": theirs, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("bench/results/modulation.json"))
    asked = parser.parse_args()
    found = []
    for threads in asked.threads:
        for what in ("fit", "kernel"):
            for name in ("fourier", "gabor"):
                found.append(case(what, name, threads, asked.repeats))
                print(json.dumps(found[-1]), flush=True)
    about = {
        "fit": f"{STEPS} steps, 2-{WIDTH}-{WIDTH}-{WIDTH}-1, {SIDE * SIDE} points, full batch",
        "kernel": f"dense fp32, 2-{KERNEL_WIDTH}-{KERNEL_WIDTH}-{KERNEL_WIDTH}-1, {KERNEL_SIDE} x {KERNEL_SIDE} points",
        "processor": processor(),
        "torch": torch.__version__,
        "repeats": asked.repeats,
        "load": [round(own, 1) for own in os.getloadavg()],
    }
    asked.out.write_text(json.dumps({**about, "cases": found}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
