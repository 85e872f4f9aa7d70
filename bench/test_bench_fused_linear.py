"""The fused layer against eager PyTorch on the CPU, forward and backward, pair by pair in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import inrfast as inr
from inrfast.ops.fused_linear import fused_linear

PAIRS = 7
TARGET = 1.0
OMEGA = 30.0

SHAPES = [
    (16, 2, 16),
    (64, 64, 64),
    (1024, 2, 256),
    (1024, 256, 256),
    (16384, 64, 64),
    (4096, 1024, 1024),
    (65536, 2, 256),
    (65536, 256, 256),
    (65536, 256, 3),
]
"""Rows, inputs and outputs: layers so small that the host's time is all there is, those of the usual networks, of a
batch and of a full 256 x 256 grid."""

ACTIVATIONS = {
    "relu": F.relu,
    "sine": lambda u: torch.sin(OMEGA * u),
    "gaussian": lambda u: torch.exp(-((OMEGA * u) ** 2)),
}
"""As anyone would write them."""


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    """Time both in turns; the ratio is theirs to ours, its median and quartiles."""
    for function in (ours, theirs):
        function()
    times: list[tuple[float, float]] = []
    for _ in range(PAIRS):
        pair = []
        for function in (theirs, ours):
            begin = time.perf_counter()
            function()
            pair.append(time.perf_counter() - begin)
        times.append((pair[0], pair[1]))
    ratios = [slow / fast for slow, fast in times]
    return {
        "eager_seconds": statistics.median(t for t, _ in times),
        "seconds": statistics.median(t for _, t in times),
        "measured": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4),
    }


@pytest.mark.benchmark(group="fused linear layer")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_fused_linear_against_eager(benchmark: Any, shape: tuple[int, int, int], activation: str, dtype: str) -> None:
    n, inputs, outputs = shape
    kind = getattr(torch, dtype)
    rng = torch.Generator().manual_seed(0)
    x, weight, bias, g = (
        torch.randn(*size, generator=rng).to(kind)
        for size in ((n, inputs), (outputs, inputs), (outputs,), (n, outputs))
    )
    weight /= inputs**0.5 * (OMEGA if activation == "sine" else 1.0)
    parameters = [t.requires_grad_() for t in (x, weight, bias)]

    def ours() -> Tensor:
        return fused_linear(x, weight, bias, activation, OMEGA)

    def theirs() -> Tensor:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))

    def gradients(run: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(run(), parameters, g)

    exact = ACTIVATIONS[activation](F.linear(x.double(), weight.double(), bias.double()))
    unit = torch.finfo(kind).eps
    assert float((ours().double() - exact).abs().max()) <= 8 * unit * inputs**0.5 * (
        OMEGA if activation == "sine" else 1
    )
    with torch.no_grad():
        forward = pairs(ours, theirs)
        benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    both = pairs(gradients(ours), gradients(theirs))
    benchmark.extra_info.update(target=TARGET, forward=forward, both=both, version=inr.__version__)
