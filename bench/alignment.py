"""What is measured of kernel alignment: how often Theorem 3.3 of PEAK holds, wide networks, and the cost of a picture.

    python bench/alignment.py [--only pairs|random|wide|cost] [--out FILE]

``pairs``: all ordered pairs of dot-product kernels of a list, K* scaled to K(1); ``random``: pairs of polynomials with
positive random coefficients of sum 1. Each pair is one of: ``range`` (K* has values that K does not take where it
increases), ``negative`` (h = K^-1 o K* has negative coefficients, so that no encoding gives it; with the smallest
error of any encoding up to the degree, relative to K(1)), ``singular`` (h is not analytic inside the disc), ``kernel``
(it exists). ``wide``: tangent kernels of networks of width 4096 against the limit, Gaussian and uniform weights in the
first layer. ``cost``: alignment of 65,536 points with a target, plain and centred. Times are the processor's.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import math
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast.analysis.dot_product import evaluated

F64 = torch.float64
DEGREE, TOLERANCE, PAIRS = 8, 1e-2, 200
SIDE, BUDGET = 256, 2**28
COORDS = inr.grid((3, 3), dtype=F64) * 1.3 + 0.05


def kernels() -> dict[str, Any]:
    """Return the dot-product kernels of the list."""
    found: dict[str, Any] = {}
    for bias in (0.0, 1.0):
        for depth in (1, 2, 3):
            wide = inr.infinite_ntk(depth, bias_variance=bias)
            found[f"NTK, depth {depth}, biases {bias:g}"] = wide
            found[f"NNGP, depth {depth}, biases {bias:g}"] = functools.partial(wide.of_cosine, kind="nngp")
    for width in (0.25, 0.5, 1.0, 2.0, 4.0):
        found[f"exp((c - 1) / {width:g})"] = functools.partial(gaussian, width=width)
    return found


def gaussian(c: Tensor, width: float) -> Tensor:
    """Return a Gaussian kernel on the sphere."""
    return torch.exp((c - 1) / width)


def verdict(kernel: Any, target: Any) -> tuple[str, float]:
    """Return what becomes of a pair, and the smallest error of an encoding relative to K(1)."""
    try:
        found = inr.dot_product_encoding(kernel, target, TOLERANCE, DEGREE, normalize=True)
    except ValueError as error:
        if "takes where it increases" not in str(error):
            raise
        return "range", math.nan
    one = torch.ones(1, dtype=F64)
    top = kernel.of_cosine(one) if isinstance(kernel, inr.InfiniteNTK) else kernel(one)
    kind = "kernel" if found.exact else "negative" if found.series else "singular"
    return kind, found.error / float(top)


def pairs() -> dict[str, Any]:
    """Return the verdict on all ordered pairs, counted, by the kind of K."""
    named, rows = kernels(), {}
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, kernel in named.items():
        for other, target in named.items():
            if name != other:
                kind, error = verdict(kernel, target)
                counts[name.partition(",")[0].partition("(")[0]][kind] += 1
                rows[f"{name} -> {other}"] = [kind, None if math.isnan(error) else round(error, 4)]
    return {"counts": counts, "pairs": rows}


def random() -> dict[str, Any]:
    """Return the verdicts on random polynomials, counted."""
    generator, found = torch.Generator().manual_seed(0), {}
    for degree in (2, 4, 8):
        counts: collections.Counter[str] = collections.Counter()
        for _ in range(PAIRS):
            both = torch.rand(2, degree + 1, generator=generator, dtype=F64)
            both /= both.sum(1, keepdim=True)
            first, second = (functools.partial(evaluated, own) for own in both)
            counts[verdict(first, second)[0]] += 1
        found[f"degree {degree}"] = counts
    return found


def uniform_limit(width: int) -> Tensor:
    """Return the limit of torch's default weights in two dimensions, the first layer integrated on a grid."""
    middles = ((torch.arange(120, dtype=F64) + 0.5) / 60 - 1) / 2**0.5
    covariance, gates = torch.zeros(9, 9, dtype=F64), torch.zeros(9, 9, dtype=F64)
    draws = torch.cartesian_prod(middles, middles, middles)
    for part in torch.split(draws, 200_000):
        h = COORDS @ part[:, :2].t() + part[:, 2]
        z, s = h.relu(), (h > 0).double()
        covariance += z @ z.t() / len(draws)
        gates += s @ s.t() / len(draws)
    second = covariance / 3 + 1 / (3 * width)
    roots = second.diagonal().sqrt()
    cosine = (second / roots / roots[:, None]).clamp(-1, 1)
    angle = cosine.acos()
    third = roots * roots[:, None] * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    head = (math.pi - angle) / (6 * math.pi)
    return (COORDS @ COORDS.t() + 1) * head * gates / 3 + (width * covariance + 1) * head + width * third + 1


def wide() -> dict[str, Any]:
    """Return how far networks of width 4096 are from the limit, in Frobenius norm: single ones, and their mean."""
    width, found = 4096, {}
    limits = {
        "kaiming": inr.infinite_ntk(2, parametrization="standard", width=width)(COORDS),
        "default": inr.infinite_ntk(2, 1 / 3, [1 / 6] + [1 / (3 * width)] * 2, "standard", width)(COORDS),
    }
    for init, limit in limits.items():
        nets = [inr.INR(2, 1, width=width, hidden_layers=2, init=init, seed=seed) for seed in range(8)]
        own = torch.stack([inr.ntk(net, COORDS.float()).to_dense().double() for net in nets])
        off = [float((one - limit).norm() / limit.norm()) for one in own]
        found[init] = {"single": off, "mean of 8": float((own.mean(0) - limit).norm() / limit.norm())}
    exact = uniform_limit(width)
    gap = (exact - limits["default"]).abs()
    found["limit of uniform weights against the Gaussian one"] = {
        "norm": float(gap.norm() / exact.norm()), "largest entry": float((gap / exact.abs()).amax()),
    }  # fmt: skip
    return found


def cost() -> dict[str, Any]:
    """Return seconds and memory of the alignment of a picture's points with a target."""
    coords = inr.grid((SIDE, SIDE))
    target = torch.sin(6 * coords[:, 0]) * torch.cos(4 * coords[:, 1])
    K = inr.ntk(inr.INR(2, 1, width=32, hidden_layers=2, seed=0), coords, memory_budget=BUDGET)
    found = {}
    for centered in (False, True):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        value = inr.alignment(K, target, centered=centered)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found["centred" if centered else "plain"] = {
            "alignment": value, "seconds": round(time.process_time() - start, 1), "MiB": round(grown / 1024),
        }  # fmt: skip
    return found


PARTS = {"pairs": pairs, "random": random, "wide": wide, "cost": cost}


def main() -> None:
    """Run the parts and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {name: part() for name, part in PARTS.items() if arguments.only in (None, name)}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
