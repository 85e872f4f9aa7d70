"""Eigenvalue variances of tangent kernels beside what one writes in PyTorch: seconds, peak memory, errors.

    python bench/variance.py [--out FILE]

The network is the default ``INR(2, 1)``, 2-256-256-256-1, ReLU. Every number comes from a process of its own, whose
peak memory is counted from after the imports; ways that are compared take turns, three times, and medians are given.

``exact``: all pairs of 128x128 points, with the layers' pairs and similarities, against the same from tiles of
``(Z Z^T + 1) * (S S^T)`` by plain torch; and v alone, by ``K.frobenius()`` and plain torch. ``jacobian``: 48x48 points
against tiles of ``J J^T`` with J by ``torch.func``. ``estimate``: 512x512 points to 1 %, against an estimate of 0.1 %
with another seed, and at 128x128 points its intervals against the exact value, over 20 seeds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call, jacrev, vmap

import inrfast as inr
from inrfast.ops.gemm import processor

ROUNDS, TILE = 3, 2048


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def by_factors(net: inr.INR, coords: torch.Tensor, pairs: bool = False) -> float:
    """Return v from tiles of a plain torch program that knows the formula of the kernel of a ReLU network.

    With ``pairs`` the inner products of all pairs of layers and the similarities of features, sensitivities and gates
    are computed too, as the library does.
    """
    layers, features, gates = list(net.layers), [coords], []
    for layer in layers[:-1]:
        u = layer(features[-1])
        features.append(u.relu())
        gates.append((u > 0).float())
    s = [layers[-1].weight.expand(len(coords), -1) * gates[-1]]
    for layer, gate in zip(reversed(layers[1:-1]), reversed(gates[:-1]), strict=True):
        s.insert(0, (s[0] @ layer.weight) * gate)
    square, trace = 0.0, 0.0
    products, alike = torch.zeros(len(layers), len(layers), dtype=torch.float64), 0.0
    for start in range(0, len(coords), TILE):
        for other in range(start, len(coords), TILE):
            i, j = slice(start, start + TILE), slice(other, other + TILE)
            K = features[-1][i] @ features[-1][j].t() + 1
            parts = [K.clone()] if pairs else []
            for z, own, gate in zip(features[:-1], s, gates, strict=True):
                left, right = z[i] @ z[j].t() + 1, own[i] @ own[j].t()
                K += left * right
                if pairs:
                    parts.append(left * right)
                    e = (z.square().sum(1) + 1) * own.square().sum(1)
                    for t in (left, right, gate[i] @ gate[j].t()):
                        alike += float(e[i] @ t.square() @ e[j])
            if pairs:
                stacked = torch.stack(parts).flatten(1).double()
                products += stacked @ stacked.t()
            square += (1 if start == other else 2) * float(K.double().square().sum())
            trace += float(K.double().trace()) if start == other else 0.0
    return square / len(coords) - (trace / len(coords)) ** 2


def by_jacobian(net: inr.INR, coords: torch.Tensor) -> float:
    """Return v from tiles of ``J J^T``, J by torch.func."""
    parameters = {name: own.detach() for name, own in net.named_parameters()}

    def output(chosen: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, chosen, (x.unsqueeze(0),))[0, 0]

    rows = vmap(jacrev(output), (None, 0))
    blocks = []
    for part in coords.split(256):
        found = rows(parameters, part)
        blocks.append(torch.cat([own.flatten(1) for own in found.values()], 1))
    square, trace = 0.0, 0.0
    for i, left in enumerate(blocks):
        for j in range(i, len(blocks)):
            K = left @ blocks[j].t()
            square += (1 if i == j else 2) * float(K.double().square().sum())
            trace += float(K.double().trace()) if i == j else 0.0
    return square / len(coords) - (trace / len(coords)) ** 2


@torch.no_grad()
def measured(way: str, side: int, seed: int, rtol: float) -> dict[str, Any]:
    """Return what one call gives in this process, after a small one."""
    net = inr.INR(2, 1, seed=0)
    ways = {"factors": by_factors, "factors, pairs": partial(by_factors, pairs=True), "jacobian": by_jacobian}

    def norm(net: inr.INR, coords: torch.Tensor) -> float:
        K = inr.ntk(net, coords)
        return K.frobenius() ** 2 / len(coords) - (K.trace() / len(coords)) ** 2

    ways["K.frobenius()"] = norm

    def call(coords: torch.Tensor) -> dict[str, Any]:
        if way in ways:
            return {"variance": ways[way](net, coords)}
        found = inr.variance(net, coords, method=way, seed=seed, rtol=rtol, progress=False)
        return {"variance": found.variance, "error": found.error, "used": found.used, "note": found.note}

    call(inr.grid((20, 20)))
    before, start = peak(), time.perf_counter()
    found = call(inr.grid((side, side)))
    return {**found, "seconds": time.perf_counter() - start, "megabytes": peak() - before}


def apart(way: str, side: int, seed: int = 0, rtol: float = 0.01) -> dict[str, Any]:
    """Return :func:`measured` of a process of its own."""
    words = [sys.executable, __file__, "--one", way, str(side), str(seed), str(rtol)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def compared(side: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Return the medians of ways that take turns; all must give one number."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            runs[way].append(apart(way, side))
    values = [own[0]["variance"] for own in runs.values()]
    assert max(values) <= min(values) * (1 + 1e-4), values
    return {
        way: {key: round(statistics.median(run[key] for run in own), 3) for key in ("seconds", "megabytes")}
        for way, own in runs.items()
    }


def estimates() -> dict[str, Any]:
    """Return seconds, memory and errors of estimates."""
    fine = apart("estimate", 512, seed=1000, rtol=0.001)
    runs = [apart("estimate", 512, seed) for seed in range(ROUNDS)]
    exact = apart("exact", 128)
    found = [apart("estimate", 128, seed) for seed in range(20)]
    off = [own["variance"] / exact["variance"] - 1 for own in found]
    return {
        "512x512": {
            "seconds": round(statistics.median(run["seconds"] for run in runs), 3),
            "megabytes": round(statistics.median(run["megabytes"] for run in runs), 1),
            "half width of 95 %": [run["error"] / run["variance"] for run in runs],
            "off the finer estimate": [run["variance"] / fine["variance"] - 1 for run in runs],
            "note": runs[0]["note"],
            "finer estimate": {key: fine[key] for key in ("variance", "error", "seconds", "note")},
        },
        "128x128": {
            "off the exact value": off,
            "half width of 95 %": statistics.median(own["error"] / own["variance"] for own in found),
            "intervals that hold": sum(abs(own["variance"] - exact["variance"]) <= own["error"] for own in found),
            "of": len(found),
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "variance.json"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, side, seed, rtol = arguments.one
        print(json.dumps(measured(way, int(side), int(seed), float(rtol))))
        return
    found = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "network": "INR(2, 1): 2-256-256-256-1, ReLU",
        "exact, 128x128": compared(128, ("exact", "factors, pairs", "K.frobenius()", "factors")),
        "48x48": compared(48, ("exact", "factors", "jacobian")),
        "estimate": estimates(),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    Path(arguments.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
