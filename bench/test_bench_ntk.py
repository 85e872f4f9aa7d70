"""The tangent kernel against the machine's best matrix product and against torch.func, side by side in one run."""

from __future__ import annotations

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


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def best_gemm_rate() -> float:
    """The best fp32 rate of any library here, FLOP/s: the highest median over libraries and shapes."""
    rates = []
    for m, n, k in ((1024, 1024, 256), (512, 512, 256), (2048, 2048, 1024)):
        a, b, out = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
        for name, product in gemm.LIBRARIES.items():
            if gemm._works(name, torch.float32):
                time.sleep(0.05)  # the threads of the library before stop spinning
                times = [seconds(lambda p=product, a=a, b=b, o=out: p(a, b.t(), o)) for _ in range(25)]  # type: ignore[misc]
                rates.append(2 * m * n * k / statistics.median(times[5:]))
    return max(rates)


def siren(in_features: int = 2) -> inr.INR:
    return inr.INR(in_features, 1, width=256, hidden_layers=4, activation="sine", init="siren")


def exact_columns(net: inr.INR, coords: Tensor, index: list[int]) -> Tensor:
    return inr.ntk(net, coords, precision="highest").columns(index)


@pytest.mark.benchmark(group="dense NTK, 64x64 grid, SIREN 2-256-256-256-256-1, high")
def test_dense_kernel_against_the_best_gemm(benchmark: Any) -> None:
    """From the network to the dense kernel, nothing cached: at least 60% of the best GEMM rate of this run."""
    net, coords = siren(), inr.grid((64, 64))
    dense = inr.ntk(net, coords).to_dense()
    assert isinstance(dense, Tensor)
    index = [0, 777, 4095]
    size = torch.outer(dense.diagonal().sqrt(), dense.diagonal()[index].sqrt())
    assert ((dense[:, index] - exact_columns(net, coords, index)).abs() <= 1e-6 * size).all()
    flops = inr.ntk(net, coords).cost().dense_flops
    fractions = []
    for _ in range(3):
        rate = best_gemm_rate()
        times = [seconds(lambda: inr.ntk(net, coords).to_dense()) for _ in range(5)]
        fractions.append(flops / statistics.median(times) / rate)
    benchmark.extra_info.update(target=0.6, measured=statistics.median(fractions), gemm_gflops=rate / 1e9, flops=flops)
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
        fast = statistics.median([seconds(lambda: inr.ntk(net, coords).to_dense()) for _ in range(5)])
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
    fractions = []
    for _ in range(3):
        rate = best_gemm_rate()
        fractions.append(flops / seconds(lambda: K @ V) / rate)
    benchmark.extra_info.update(target=0.5, measured=statistics.median(fractions), gemm_gflops=rate / 1e9, flops=flops)
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
