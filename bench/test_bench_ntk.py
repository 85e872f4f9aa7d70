"""The tangent kernel against the machine's best matrix product and against torch.func, side by side in one run."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vjp, vmap

import inrfast as inr
from inrfast.ops import gemm

CHUNKS = (None, 256, 64)
"""Sample chunks of the torch.func baselines; the best one counts."""

RUNS = 60
"""Runs of the dense kernel for one of torch.func."""


def seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """Return the time of so many calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return time.perf_counter() - start


class BestProduct:
    """The fastest fp32 matrix product of any library here, among square and tile shapes, by medians."""

    def __init__(self) -> None:
        self.rate = 0.0
        for m, n, k in ((1024, 1024, 256), (512, 512, 256), (2048, 2048, 1024)):
            a, b, out = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
            for name, library in gemm.LIBRARIES.items():
                if gemm._works(name, torch.float32):
                    product = functools.partial(library, a, b.t(), out)
                    time.sleep(0.05)  # the threads of the library before stop spinning
                    times = [seconds(product) for _ in range(25)]
                    rate = 2 * m * n * k / statistics.median(times[5:])
                    if rate > self.rate:
                        self.rate, self.name, self.product, self.flops = (
                            rate,
                            f"{name} {m}x{n}x{k}",
                            product,
                            2 * m * n * k,
                        )

    def seconds(self, flops: float) -> float:
        """Return the time of so many FLOP in such products, one after the other.

        As long as what it is compared with: where a machine takes the cores away now and then, it hits both alike.
        """
        repeats = max(1, round(flops / self.flops))
        return seconds(self.product, repeats) * flops / (repeats * self.flops)


def fraction_of_best_product(
    benchmark: Any, function: Callable[[], Any], flops: float, target: float, pairs: int
) -> None:
    """Record which fraction of the best product's rate a function reaches: the median over neighbouring runs."""
    best = BestProduct()
    function()
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(seconds(function))
        theirs.append(best.seconds(flops))
    fractions = [product / own for own, product in zip(ours, theirs, strict=True)]
    benchmark.extra_info.update(
        target=target,
        measured=statistics.median(fractions),
        quartiles=statistics.quantiles(fractions, n=4),
        pairs=pairs,
        best_product=best.name,
        best_product_gflops={"burst": best.rate / 1e9, "same length": flops / statistics.median(theirs) / 1e9},
        own_gflops={"median": flops / statistics.median(ours) / 1e9, "best": flops / min(ours) / 1e9},
        flops=flops,
    )


def siren(in_features: int = 2) -> inr.INR:
    return inr.INR(in_features, 1, width=256, hidden_layers=4, activation="sine", init="siren", seed=0)


def exact_columns(net: inr.INR, coords: Tensor, index: list[int]) -> Tensor:
    return inr.ntk(net, coords, precision="highest").columns(index)


@pytest.mark.benchmark(group="dense NTK, 64x64 grid, SIREN 2-256-256-256-256-1, high")
def test_dense_kernel_against_the_best_gemm(benchmark: Any) -> None:
    """From the network to the dense kernel, nothing cached: at least 65% of the best GEMM rate of this run."""
    net, coords = siren(), inr.grid((64, 64))
    dense = inr.ntk(net, coords).to_dense()
    assert isinstance(dense, Tensor)
    index = [0, 777, 4095]
    size = torch.outer(dense.diagonal().sqrt(), dense.diagonal()[index].sqrt())
    assert ((dense[:, index] - exact_columns(net, coords, index)).abs() <= 1e-6 * size).all()
    flops = inr.ntk(net, coords).cost().dense_flops
    fraction_of_best_product(benchmark, lambda: inr.ntk(net, coords).to_dense(), flops, target=0.65, pairs=15)
    benchmark.pedantic(lambda: inr.ntk(net, coords).to_dense(), rounds=7, warmup_rounds=1)


def contraction(net: inr.INR, coords: Tensor, chunk: int | None, method: str) -> Tensor:
    """The kernel as torch.func computes it: per-sample Jacobians by reverse mode, then one product a parameter."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def output(chosen: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, chosen, (x.unsqueeze(0),))[0]

    def rows(x: Tensor) -> dict[str, Tensor]:
        if method == "jacrev":
            return {name: j[0] for name, j in jacrev(output)(parameters, x).items()}
        value, pullback = vjp(lambda chosen: output(chosen, x), parameters)
        return pullback(torch.ones_like(value))[0]

    jacobian = vmap(rows, chunk_size=chunk)(coords)
    kernel = torch.zeros(len(coords), len(coords))
    for block in jacobian.values():
        kernel.addmm_(block.flatten(1), block.flatten(1).t())
    return kernel


@pytest.mark.benchmark(group="dense NTK, 32x32 grid, SIREN 2-256-256-256-256-1, high")
def test_dense_kernel_against_torch_func(benchmark: Any) -> None:
    """At least 60 times the best torch.func contraction."""
    net, coords = siren(), inr.grid((32, 32))
    ours = inr.ntk(net, coords).to_dense()
    theirs = contraction(net, coords, None, "jacrev")
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-4
    baselines = {}
    for method in ("jacrev", "vjp"):
        for chunk in CHUNKS:
            times = [seconds(lambda m=method, c=chunk: contraction(net, coords, c, m)) for _ in range(3)]  # type: ignore[misc]
            baselines[f"{method}, chunk {chunk}"] = statistics.median(times)
    best = min(baselines, key=baselines.__getitem__)
    method, chunk = best.split(", chunk ")
    ratios = []
    for _ in range(7):
        # As long a run as the other's, so that pauses of the machine hit both alike.
        fast = seconds(lambda: inr.ntk(net, coords).to_dense(), RUNS) / RUNS
        slow = seconds(lambda: contraction(net, coords, None if chunk == "None" else int(chunk), method))
        ratios.append(slow / fast)
    benchmark.extra_info.update(
        target=60.0,
        measured=statistics.median(ratios),
        quartiles=statistics.quantiles(ratios, n=4),
        baselines=baselines,
    )
    benchmark.pedantic(lambda: inr.ntk(net, coords).to_dense(), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="K @ V, 32 columns, 256x256 grid, SIREN 2-256-256-256-256-1, high")
def test_product_against_the_best_gemm(benchmark: Any) -> None:
    """Factors kept, products only: at least 50% of the best GEMM rate of this run."""
    net, coords = siren(), inr.grid((256, 256))
    K = inr.ntk(net, coords)
    V = torch.randn(len(coords), 32, generator=torch.Generator().manual_seed(0))
    product = K @ V
    index = [0, 40000]
    exact = exact_columns(net, coords, index).t() @ V.double()
    size = (K.diagonal()[index].sqrt().unsqueeze(1) * (K.diagonal().sqrt() @ V.abs())).double()
    assert ((product[index] - exact).abs() <= 1e-6 * size).all()
    flops = 32 * K.cost().product_flops_per_column
    fraction_of_best_product(benchmark, lambda: K @ V, flops, target=0.5, pairs=5)
    benchmark.pedantic(lambda: K @ V, rounds=3)


DIAGNOSIS = """
import resource, inrfast as inr
report = inr.diagnose(inr.INR(2, 1, width=256), inr.grid((256, 256)), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.benchmark(group="diagnosis of the 256x256 grid at width 256, memory")
def test_peak_memory_of_a_diagnosis(benchmark: Any) -> None:
    """In a process of its own: below 4 GB, the interpreter and torch included."""

    def diagnose() -> int:
        done = subprocess.run([sys.executable, "-c", DIAGNOSIS], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1])

    peak = benchmark.pedantic(diagnose, rounds=1)
    benchmark.extra_info.update(target=4e9, measured=peak)
    assert peak < 4e9
