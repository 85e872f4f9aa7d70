"""Full-grid spectra: time, memory, width of the certified rank, and cost against N.

    python bench/spectra.py                      # every case; writes bench/results/spectra.json and spectra.png
    python bench/spectra.py default truth        # some of them

Every case runs in a process of its own, for its own peak memory. The time of pivoting is compared with the
time that its FLOPs take in fp64 matrix products, measured between blocks of the same run: a machine that takes its
cores away now and then hits both alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import inrfast as inr
from inrfast.analysis import diagnosis
from inrfast.linalg.certified import _Growth
from inrfast.linalg.complement import Complement
from inrfast.linalg.pivoted_cholesky import PivotedCholesky
from inrfast.linalg.rank_proof import RankProof

RESULTS = Path(__file__).parent / "results"

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank_expanding": {"init": "rank_expanding"},
    "siren": {"activation": "sine", "init": "siren", "omega": 30.0},
    "siren-6": {"activation": "sine", "init": "siren", "omega": 6.0},
    "fourier": {"encoding": inr.RandomFourier(256, 10.0)},
    "sphere": {"norm": "sphere"},
}

TARGET_SECONDS = {"default": 25, "rank_expanding": 40, "siren": 90, "fourier": 120}
"""Of 256x256 at rtol 1e-6, on two cores."""

SIDES = (128, 256, 512)

RTOLS = (1e-2, 1e-4, 1e-6, 1e-8)


class ProductRate:
    """The fp64 rate of matrix products, in samples taken between the pieces of another work."""

    def __init__(self) -> None:
        self.a, self.out = torch.randn(1024, 1024, dtype=torch.float64), torch.empty(1024, 1024, dtype=torch.float64)
        self.samples: list[float] = []

    def sample(self, repeats: int = 24) -> None:
        """Take one sample, as long as a fraction of a second."""
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(self.a, self.a, out=self.out)
        self.samples.append(repeats * 2 * 1024**3 / (time.perf_counter() - start))

    @property
    def rate(self) -> float:
        """FLOP a second over all samples, pauses of the machine included."""
        return statistics.harmonic_mean(self.samples)


def kernel_of(name: str, side: int, budget: int | None = None) -> inr.NTK:
    """Return the kernel of a network of width 256 with 3 hidden layers and one output."""
    net = inr.INR(2, 1, width=256, hidden_layers=3, seed=0, **NETWORKS[name])
    return inr.ntk(net, inr.grid((side, side)), precision="highest", memory_budget=budget)


def full_grid(name: str, side: int) -> dict[str, Any]:
    """Time the rank at 1e-6 of one network on one grid."""
    kernel, rate, spent = kernel_of(name, side), ProductRate(), {"pivoting": 0.0, "bounds": 0.0, "products": 0.0}
    grow, bounds, tried, norm = PivotedCholesky.grow, _Growth._bounds, RankProof.tried, Complement.norm
    flops, steps = [0.0], [0]
    n, per_pair = side * side, sum(2 * a + 2 * b for a, b in kernel.sides.widths)

    def timed_grow(self: PivotedCholesky, columns: int) -> int:
        start, before = time.perf_counter(), self.rank
        grown = grow(self, columns)
        spent["pivoting"] += time.perf_counter() - start
        # Columns, elimination by the columns before, the triangular solve, and the Gram matrix.
        flops[0] += n * grown * (per_pair + 2 * before + grown + 2 * (before + grown))
        start = time.perf_counter()
        rate.sample()
        spent["products"] += time.perf_counter() - start
        return grown

    def timed_bounds(*arguments: Any) -> Any:
        start = time.perf_counter()
        found = bounds(*arguments)
        spent["bounds"] += time.perf_counter() - start
        steps[0] += found.steps
        return found

    def timed_tried(*arguments: Any) -> Any:
        start = time.perf_counter()
        found = tried(*arguments)
        spent["bounds"] += time.perf_counter() - start
        return found

    def counted_norm(*arguments: Any) -> Any:
        found = norm(*arguments)
        steps[0] += found.steps
        return found

    PivotedCholesky.grow, _Growth._bounds = timed_grow, timed_bounds  # type: ignore[method-assign]
    RankProof.tried, Complement.norm = timed_tried, counted_norm  # type: ignore[method-assign]
    start = time.perf_counter()
    s = kernel.spectrum(1e-6, method="auto" if side > 64 else "cholesky", progress=False)
    total = time.perf_counter() - start - spent["products"]
    interval = s.count_above(1e-6 * float(s.eigenvalues[0]), 1e-6)
    found = {
        "points": n,
        "seconds": total,
        "target_seconds": TARGET_SECONDS.get(name) if side == 256 else None,
        "pivoting_seconds": spent["pivoting"],
        "bounds_seconds": spent["bounds"],
        "lanczos_steps": steps[0],
        "gemm_gflops": rate.rate / 1e9,
        "pivoting_over_its_flops": spent["pivoting"] / (flops[0] / rate.rate),
        "all_flops_seconds_at_165_gflops": (flops[0] + steps[0] * 4.0 * n * kernel.left.shape[1]) / 165e9,
        "pivots": len(s.eigenvalues),
        "rank": [interval.lower, interval.upper],
        "width": (interval.upper - interval.lower) / max(interval.lower, 1),
        "floor": s.floor,
        "note": s.note,
    }
    if s.counts is not None:
        rtol = s.counts.smallest_rtol()
        found["quadrature"] = {"rtol": None, "resolution": s.counts.resolution()}
        if math.isfinite(rtol):
            count = s.counts.count(rtol)
            found["quadrature"] |= {"rtol": rtol, "count": [count.lower, count.upper]}
    return found


def top_pairs() -> dict[str, Any]:
    """The 128 largest eigenpairs on 1024x1024 points, with some true residuals, and the ranks of representations."""
    kernel = kernel_of("default", 1024, 13 << 29)
    start = time.perf_counter()
    s = kernel.spectrum(1e-6, k=128, eigenvectors=True, progress=False)
    seconds = time.perf_counter() - start
    largest = float(s.eigenvalues[0])
    sample = [0, 1, 31, 63, 127]
    assert s.eigenvectors is not None
    vectors = s.eigenvectors[:, sample]
    residuals = torch.linalg.vector_norm(kernel @ vectors - vectors * s.eigenvalues[sample], dim=0) / largest
    start = time.perf_counter()
    capture, rtols = kernel.capture, diagnosis.RTOLS
    rows = diagnosis._chunk_rows(capture, kernel.memory_budget)
    representations, _ = diagnosis._full_grid(capture, kernel.coords, rows, rtols, tqdm(disable=True))
    return {
        "points": 1024**2,
        "seconds": seconds,
        "target_seconds": 1800,
        "method": s.method,
        "note": s.note,
        "pairs": len(s.eigenvalues),
        "certified_residual": max(s.lower_error, s.upper_error) / largest,
        "residuals_of": sample,
        "residuals": residuals.tolist(),
        "representations_seconds": time.perf_counter() - start,
        "representations": {r.name: [str(rank) for rank in r.with_ones.ranks] for r in representations},
    }


def truth() -> dict[str, Any]:
    """Intervals against dense eigenvalues on 64x64 points: every network, every tolerance."""
    contained, widths, unresolved, count = 0, [], 0, 0
    for name in NETWORKS:
        kernel = kernel_of(name, 64)
        exact = torch.linalg.eigvalsh(kernel.to_dense())
        for rtol in RTOLS:
            s = kernel.spectrum(rtol, method="cholesky", progress=False)
            interval = s.count_above(rtol * float(s.eigenvalues[0]), rtol)
            rank = int((exact > rtol * exact[-1]).sum())
            contained += rank in interval
            unresolved += s.floor > rtol
            if rtol >= 10 * s.floor:
                widths.append((interval.upper - interval.lower) / rank)
            count += 1
    return {
        "cases": count,
        "contained": contained,
        "unresolved": unresolved,
        "median_width": statistics.median(widths),
        "widest": max(widths),
    }


CASES = {
    **{name: (lambda name=name: full_grid(name, 256)) for name in TARGET_SECONDS},
    **{f"default-{side}": (lambda side=side: full_grid("default", side)) for side in SIDES if side != 256},
    "top-pairs": top_pairs,
    "truth": truth,
}


def main() -> None:
    """Run the cases, each in its own process, and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"out of {', '.join(CASES)} (default: all)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [case for case in arguments.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; choose from {', '.join(CASES)}")
    if arguments.inside:
        found = CASES[arguments.cases[0]]()
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(found))
        return
    path = RESULTS / "spectra.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for case in arguments.cases or CASES:
        finished = subprocess.run(
            [sys.executable, __file__, case, "--inside"], stdout=subprocess.PIPE, text=True, check=False
        )
        found = json.loads(finished.stdout) if finished.returncode == 0 else {"failed": finished.returncode}
        report[case] = {
            **found,
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
        }
        print(case, json.dumps(report[case], indent=1))
        path.write_text(json.dumps(report, indent=1) + "\n")
    plot(report)


def plot(report: dict[str, Any]) -> None:
    """Draw the cost against the number of points: time in units of the run's own products, and FLOPs."""
    rows = [report.get("default" if side == 256 else f"default-{side}", {}) for side in SIDES]
    rows = [row for row in rows if "seconds" in row]
    if len(rows) < 2:
        return
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    points = [row["points"] for row in rows]
    flops = [row["all_flops_seconds_at_165_gflops"] * 0.165 for row in rows]
    axes.loglog(
        points, [row["seconds"] * row["gemm_gflops"] / 1e3 for row in rows], "o-", label="FLOPs of products in its time"
    )
    axes.loglog(points, flops, "s-", label="its FLOPs")
    axes.loglog(points, [flops[0] * n / points[0] for n in points], ":", color="grey", label="linear")
    axes.set_xticks(points, [f"{math.isqrt(n)}x{math.isqrt(n)}" for n in points])
    axes.minorticks_off()
    axes.set(xlabel="points", ylabel="1e12 FLOP", title="NTK rank at 1e-6, certified; torch default, width 256")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "spectra.png", dpi=120)


if __name__ == "__main__":
    main()
