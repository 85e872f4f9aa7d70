"""Dense tangent kernels at small and middle sizes against the tiles that everybody writes in PyTorch.

    python bench/dense.py [--sides 16 32 48 64 96] [--widths 64 128 256 512] [--threads 1 2] [--turns 9] [--out FILE]

From the network to the dense kernel, nothing cached: networks 2-w-w-w-M of ReLU or sine, M = 1 and 3, in fp32 with
precision="high". PyTorch's way is a forward pass that keeps activations, the way back for all outputs by hand, and
tiles ``(Z Z^T + 1) * (S S^T)`` summed over layers, each pair of tiles once, all in fp32; its tile is the best of
several for each case. Both take turns in one run, after some columns were compared with fp64; a ratio is the median
over turns of PyTorch's time over ours. Of one thread it is CPU time, which other work on the cores hits less.
OMP_NUM_THREADS must not be set: --threads says how many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast.info import info
from inrfast.ops import mlp_step
from inrfast.ops.gemm import processor

TILES = (128, 256, 512, 1024, 1 << 20)
"""Sides of PyTorch's tiles; the last one is the whole kernel."""

TOLERANCE = 1e-6
"""Of an entry of ours, relative to sqrt(K_ii K_jj); that of PyTorch's way is reported."""

IDLE_SECONDS = 0.005
"""Between two turns: idle threads of a library spin for a while before they sleep."""

DEPTH = 3
"""Hidden layers."""


@torch.no_grad()
def tiles_of_torch(net: inr.INR, coords: Tensor, side: int) -> Tensor:
    """Return the dense kernel, summed over outputs, by plain PyTorch in the network's dtype."""
    features, slopes, z = [coords], [], coords
    for layer, activation in zip(list(net.layers)[:-1], net.bound_activations, strict=True):
        u = torch.addmm(layer.bias, z, layer.weight.t())
        if activation.name == "relu":
            z = torch.relu(u)
            slopes.append(u > 0)
        else:
            phase = u.mul_(activation.numbers[0])
            z = torch.sin(phase)
            slopes.append(torch.cos(phase).mul_(activation.numbers[0]))
        features.append(z)
    n, outputs = len(coords), net.layers[-1].weight.shape[0]
    gradient, sensitivities = net.layers[-1].weight.expand(n, outputs, -1), []
    for index in range(len(slopes) - 1, -1, -1):
        own = gradient * slopes[index].unsqueeze(1)
        sensitivities.insert(0, own.reshape(n, -1))
        gradient = own @ net.layers[index].weight if index > 0 else own
    out = coords.new_empty(n, n)
    for start in range(0, n, side):
        for other in range(start, n, side):
            i, j = slice(start, start + side), slice(other, other + side)
            tile = torch.mm(features[-1][i], features[-1][j].t()).add_(1).mul_(outputs)
            for z, s in zip(features[:-1], sensitivities, strict=True):
                tile.addcmul_(torch.mm(z[i], z[j].t()).add_(1), torch.mm(s[i], s[j].t()))
            out[i, j] = tile
            if start != other:
                out[j, i] = tile.t()
    return out


def ours(net: inr.INR, coords: Tensor) -> Tensor:
    return inr.ntk(net, coords).to_dense()


def seconds(function: Callable[[], Any]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


def error_of(found: Tensor, net: inr.INR, coords: Tensor) -> float:
    """Return the largest error of some columns, relative to sqrt(K_ii K_jj)."""
    kernel, index = inr.ntk(net, coords, precision="highest"), [0, len(coords) // 3, len(coords) - 1]
    size = kernel.diagonal().sqrt()
    errors = (found[:, index].double() - kernel.columns(index)).abs() / torch.outer(size, size[index])
    return float(errors.max())


def case(side: int, width: int, outputs: int, activation: str, turns: int) -> dict[str, Any]:
    init = "siren" if activation == "sine" else "default"
    net = inr.INR(2, outputs, width=width, hidden_layers=DEPTH, activation=activation, init=init, seed=0)
    coords = inr.grid((side, side))
    errors = {"inrfast": error_of(ours(net, coords), net, coords)}
    if errors["inrfast"] > TOLERANCE:
        raise SystemExit(f"{side}x{side} {width} {activation}: error {errors['inrfast']:.1e}")
    errors["torch"] = error_of(tiles_of_torch(net, coords, 512), net, coords)
    tried = {tile: [seconds(lambda t=tile: tiles_of_torch(net, coords, t)) for _ in range(3)] for tile in TILES}  # type: ignore[misc]
    best = min(tried, key=lambda tile: min(tried[tile]))
    # As many of the faster ones as make a turn long enough for the clock.
    repeats = max(1, int(0.01 / min(tried[best])))
    times: dict[str, list[float]] = {"inrfast": [], "torch": []}
    ways = {"inrfast": lambda: ours(net, coords), "torch": lambda: tiles_of_torch(net, coords, best)}
    for turn in range(turns + 1):
        for way, function in ways.items():
            time.sleep(IDLE_SECONDS)
            taken = seconds(lambda f=function: [f() for _ in range(repeats)]) / repeats  # type: ignore[misc]
            if turn > 0:
                times[way].append(taken)
    ratios = [slow / fast for slow, fast in zip(times["torch"], times["inrfast"], strict=True)]
    return {
        "points": side * side,
        "width": width,
        "hidden layers": DEPTH,
        "outputs": outputs,
        "activation": activation,
        "threads": torch.get_num_threads(),
        "milliseconds": {way: round(1e3 * statistics.median(own), 3) for way, own in times.items()},
        "tile of torch": min(best, side * side),
        "ratio": round(statistics.median(ratios), 2),
        "quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)],
        "errors": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 24, 32, 48, 64, 96])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--activations", nargs="+", default=["relu", "sine"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dense.json")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS"):
        raise SystemExit("unset OMP_NUM_THREADS: --threads says how many threads there are")
    found = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for side in arguments.sides:
            for width in arguments.widths:
                for outputs in arguments.outputs:
                    for activation in arguments.activations:
                        own = case(side, width, outputs, activation, arguments.turns if side < 64 else 3)
                        print(json.dumps(own), flush=True)
                        found.append(own)
    about = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "instructions": mlp_step.instructions(),
        "versions": info()["versions"],
        "load": [round(own, 1) for own in os.getloadavg()],
        "smallest ratio": min(own["ratio"] for own in found),
        "cases": found,
    }
    arguments.out.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
