"""Certified ranks by a factorisation of the shifted kernel: time, memory, interval, beside other ways to count.

    python bench/inertia.py                        # every case but the grids; writes bench/results/inertia.json
    python bench/inertia.py gaussian-1e-4 order-2304
    python bench/inertia.py grid-256 --file PATH   # 65,536 points, the factor in a file of 8.6 GB; resumes

Every case runs in a process of its own, for its own peak memory. Times of one case are taken in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import inrfast as inr
from inrfast.info import info
from inrfast.ops import gemm

RESULTS = Path(__file__).parent / "results"

NETWORKS: dict[str, dict[str, Any]] = {
    "gaussian": {"activation": "gaussian"},
    "sine-60": {"activation": "sine", "omega": 60.0},
    "trained-siren": {"activation": "sine", "init": "siren", "omega": 30.0},
}
"""Of width 256 with 3 hidden layers and one output. Their ranks are beyond the reach of pivots."""

RTOLS = (1e-2, 1e-4, 1e-6)
ORDERS = (1024, 2304, 4096)
ROUNDS = 3
SECONDS, GIGABYTES = 60, 3
"""What a rank at 128x128 points may take, on two cores."""


def kernel_of(name: str, side: int, budget: int | None = None) -> inr.NTK:
    """Return the kernel of a network; a trained one has fitted a picture of smooth and sharp parts for 500 steps."""
    net, coords = inr.INR(2, 1, width=256, hidden_layers=3, seed=0, **NETWORKS[name]), inr.grid((side, side))
    if name.startswith("trained"):
        points = inr.grid((128, 128))
        target = ((8 * points).sin().prod(1) > 0).float() * 0.5 + 0.25 * (1 + (5 * points[:, 0]).sin())
        inr.fit(net, points, target.unsqueeze(1), steps=500, lr=1e-4, progress=False, seed=0)
    return inr.ntk(net, coords, precision="highest", memory_budget=budget)


def product_rate(dtype: torch.dtype) -> float:
    """Return the FLOP per second of the fastest product of two matrices of order 2,048, the median of five."""
    a, out = torch.randn(2048, 2048, dtype=dtype), torch.empty(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / statistics.median(seconds(lambda: gemm.mm(a, a, out)) for _ in range(5))


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def full_grid(name: str, rtol: float, budget: int | None = None) -> dict[str, Any]:
    """Time one certified rank on 128x128 points."""
    kernel = kernel_of(name, 128, budget)
    start = time.perf_counter()
    s = kernel.spectrum(rtol, method="inertia", progress=False)
    taken = time.perf_counter() - start
    rank = s.rank(rtol)
    (count,) = s.certified
    return {
        "points": kernel.shape[0],
        "rtol": rtol,
        "rank": [rank.lower, rank.upper],
        "seconds": taken,
        "target_seconds": SECONDS,
        "target_gb": GIGABYTES,
        "precision": count.precision,
        "residual_over_level": count.residual / count.low,
        "note": s.note,
    }


def factor_rate(precision: str) -> dict[str, Any]:
    """Compare the FLOP per second of a factorisation at 128x128 with those of plain products, in one run."""
    kernel = kernel_of("gaussian", 128)
    n, dtype = kernel.shape[0], torch.float32 if precision == "high" else torch.float64
    level = 1e-4 * float(kernel.spectrum(1e-2, method="quadrature", progress=False).eigenvalues[0])
    before = product_rate(dtype)
    taken = seconds(lambda: kernel.factor(level, precision=precision, progress=False))
    after = product_rate(dtype)
    rate = statistics.harmonic_mean([before, after])
    fill = n * n / 2 * sum(2 * a + 2 * b for a, b in kernel.sides.widths)
    return {
        "points": n,
        "precision": precision,
        "seconds": taken,
        "gflops": n**3 / 3 / taken / 1e9,
        "gflops_with_entries": (n**3 / 3 + fill) / taken / 1e9,
        "product_gflops": rate / 1e9,
        "share_of_products": (n**3 / 3 + fill) / taken / rate,
    }


def rivals(kernel: inr.NTK, rtol: float) -> dict[str, Callable[[], int]]:
    """Return the ways to count the eigenvalues above ``rtol lambda_1`` from the network on, by name."""
    from scipy.linalg import eigvalsh, ldl

    def by_inertia(precision: str) -> int:
        return kernel.spectrum(rtol, method="inertia", progress=False).rank(rtol).lower

    def by_torch() -> int:
        values = torch.linalg.eigvalsh(kernel.to_dense())
        return int((values > rtol * values[-1]).sum())

    def by_ldl() -> int:
        matrix = kernel.to_dense().numpy()
        n = len(matrix)
        largest = eigvalsh(matrix, subset_by_index=[n - 1, n - 1])[0]
        matrix[np.diag_indices(n)] -= rtol * largest
        _, blocks, _ = ldl(matrix, overwrite_a=True)
        return int((np.linalg.eigvalsh(blocks) > 0).sum()) if n <= 1024 else _positive_of_blocks(blocks)

    return {"inertia": lambda: by_inertia("highest"), "eigvalsh": by_torch, "scipy_ldl": by_ldl}


def _positive_of_blocks(blocks: np.ndarray) -> int:
    """Return the number of positive eigenvalues of a block diagonal matrix of blocks of order 1 and 2."""
    diagonal, beside = np.diagonal(blocks).copy(), np.diagonal(blocks, -1)
    positive, i = 0, 0
    while i < len(diagonal):
        if i < len(beside) and beside[i] != 0:
            positive += int((np.linalg.eigvalsh(blocks[i : i + 2, i : i + 2]) > 0).sum())
            i += 2
        else:
            positive += int(diagonal[i] > 0)
            i += 1
    return positive


def against(order: int, only: str | None = None) -> dict[str, Any]:
    """Compare the count at 1e-4 with LAPACK's ways, in turns; with ``only``, run that way once for its memory."""
    kernel = kernel_of("sine-60", math.isqrt(order))
    ways = rivals(kernel, 1e-4)
    if only is not None:
        ways[only]()
        return {}  # the process's own peak is added
    times: dict[str, list[float]] = {name: [] for name in ways}
    counts = {name: way() for name, way in ways.items()}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(seconds(way))
    assert len(set(counts.values())) == 1, counts
    found: dict[str, Any] = {"points": order, "count": counts["inertia"]}
    found["seconds"] = {name: statistics.median(taken) for name, taken in times.items()}
    found["peak_gb_of"] = {name: _alone(f"order-{order}", "--only", name)["peak_gb"] for name in ways}
    return found


def solving() -> dict[str, Any]:
    """Compare direct and iterative solutions of ``(K + ridge I) x = y`` on 2,304 and 5,184 points, in turns."""
    rows = []
    for side in (48, 72):
        kernel = kernel_of("gaussian", side)
        y = torch.randn(kernel.shape[0], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ridge = 1e-7 * kernel.trace()
        times: dict[str, list[float]] = {"direct": [], "cg": []}
        failed: dict[str, str] = {}
        for _ in range(ROUNDS):
            for method in times:
                start = time.perf_counter()
                try:
                    kernel.solve(y, ridge, tol=1e-8, method=method, progress=False)
                except inr.errors.ResolutionError as error:
                    failed[method] = str(error)[:200]
                times[method].append(time.perf_counter() - start)
        medians = {method: statistics.median(taken) for method, taken in times.items()}
        rows.append({"points": kernel.shape[0], "ridge_over_trace": 1e-7, "seconds": medians, "failed": failed})
    return {"systems": rows}


def large_grid(side: int, file: str | None) -> dict[str, Any]:
    """Count the eigenvalues above 1e-4 on side x side points, the factor in fp32; a resumed run times itself alone."""
    kernel = kernel_of("gaussian", side)
    start = time.perf_counter()
    largest = float(kernel.spectrum(1e-4, k=1, method="lanczos", progress=False).eigenvalues[0])
    first = time.perf_counter()
    factored = kernel.factor(1e-4 * largest, precision="high", out=file, progress=None)
    second = time.perf_counter()
    count = factored.count()
    third = time.perf_counter()
    return {
        "points": kernel.shape[0],
        "level_over_lambda_1": 1e-4,
        "count": [count.lower, count.upper],
        "residual_over_level": factored.residual / factored.shift,
        "lambda_1_seconds": first - start,
        "factor_seconds": second - first,
        "count_seconds": third - second,
        "factor_gb": factored.nbytes / 1e9,
    }


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"{name}-{t:g}": (lambda name=name, t=t: full_grid(name, t)) for name in NETWORKS for t in RTOLS},
    "gaussian-0.0001-in-2-gb": lambda: full_grid("gaussian", 1e-4, 1_600_000_000),
    **{
        f"factor-{precision}": (lambda precision=precision: factor_rate(precision)) for precision in ("high", "highest")
    },
    **{f"order-{order}": (lambda order=order: against(order)) for order in ORDERS},
    "solve": solving,
}


LARGE = {"grid-192": 192, "grid-256": 256}
"""Sides of grids that take minutes."""


def _alone(*arguments: str) -> dict[str, Any]:
    """Run a case in a process of its own and return what it says."""
    finished = subprocess.run(
        [sys.executable, __file__, *arguments, "--inside"], stdout=subprocess.PIPE, text=True, check=False
    )
    return json.loads(finished.stdout) if finished.returncode == 0 else {"failed": finished.returncode}


def main() -> None:
    """Run the cases, each in its own process, and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, *LARGE]
    parser.add_argument("cases", nargs="*", help=f"out of {', '.join(names)} (default: all but the grids)")
    parser.add_argument("--file", help="where a grid keeps its factor; in memory without it")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [case for case in arguments.cases if case not in names]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; choose from {', '.join(names)}")
    if arguments.inside:
        case = arguments.cases[0]
        if arguments.only:
            found = against(int(case.removeprefix("order-")), arguments.only)
        else:
            found = large_grid(LARGE[case], arguments.file) if case in LARGE else CASES[case]()
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(found))
        return
    path = RESULTS / "inertia.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for case in arguments.cases or CASES:
        extra = ["--file", arguments.file] if case in LARGE and arguments.file else []
        report[case] = {
            **_alone(case, *extra),
            "date": time.strftime("%Y-%m-%d"),
            "processor": f"{gemm.processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
            "versions": info()["versions"],
        }
        print(case, json.dumps(report[case], indent=1), flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
