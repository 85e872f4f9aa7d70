"""The certified rank on a grid before and after a change: seconds, CPU seconds, peak memory, interval, pivots.

    git worktree add ../before REVISION && (cd ../before && python setup.py build_ext --inplace)
    python bench/rank_speed.py --before ../before [--side 256] [--repeats 3] [--rtol 1e-6] [--ask counts]

Writes bench/results/rank-speed.json. Each measurement is a process of its own, before and after in turns, from the
network on: its factors, pivots and certificate. Memory is the peak beyond what the process holds after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import inrfast as inr
from inrfast.ops.gemm import processor

HERE = Path(__file__).parent
NETWORKS = ("default", "rank_expanding", "siren")


def megabytes(name: str) -> float:
    """Return this process's ``VmRSS`` or ``VmHWM``. (``ru_maxrss`` may be that of the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def measured(options: dict[str, Any], side: int, rtol: float, ask: str) -> dict[str, Any]:
    """Return what one rank takes in this process, after a small one that loads what it needs."""

    def rank(side: int) -> dict[str, Any]:
        net = inr.INR(2, 1, width=256, hidden_layers=3, seed=0, **options)
        kernel = inr.ntk(net, inr.grid((side, side)), precision="highest")
        s = kernel.counts(rtol) if ask == "counts" else kernel.spectrum(rtol, method=ask, progress=False)
        found = s.count_above(rtol * float(s.eigenvalues[0]), rtol)
        return {"interval": [found.lower, found.upper], "pivots": len(s.eigenvalues), "note": s.note}

    held = megabytes("VmRSS")
    rank(20)
    start, cpu = time.perf_counter(), time.process_time()
    found = rank(side)
    taken, busy = time.perf_counter() - start, time.process_time() - cpu
    return found | {"seconds": taken, "cpu_seconds": busy, "megabytes": megabytes("VmHWM") - held, "of": inr.__file__}


def apart(root: Path, *arguments: Any) -> dict[str, Any]:
    """Return :func:`measured` in a process of its own, with the package that lies in ``root``."""
    command = [sys.executable, __file__, "--inside", json.dumps(arguments)]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    finished = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(finished.stdout)
    if not Path(found.pop("of")).is_relative_to(root):
        raise RuntimeError(f"the process did not take the package in {root}")
    return found


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of some runs, and what the first of them found."""
    (lower, upper) = runs[0]["interval"]
    return {
        **{
            key: round(statistics.median(run[key] for run in runs), 2)
            for key in ("seconds", "cpu_seconds", "megabytes")
        },
        "all_seconds": [round(run["seconds"], 2) for run in runs],
        "interval": [lower, upper],
        "width": round((upper - lower) / max(lower, 1), 4),
        "pivots": runs[0]["pivots"],
        "note": runs[0]["note"],
    }


def main() -> None:
    """Measure both in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a working tree of the code before, with its extension built")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument(
        "--ask", default="counts", help="'counts': the rank alone; or a method of spectrum(), with eigenvalues' errors"
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rank-speed.json")
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measured(*arguments.inside)))
        return
    if arguments.before is None:
        parser.error("--before is missing: the working tree to compare with")
    import spectra

    roots = {"before": arguments.before.resolve(), "after": HERE.parent.resolve()}
    report: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "points": arguments.side**2,
        "rtol": arguments.rtol,
        "ask": arguments.ask,
    }
    for name in arguments.networks:
        runs: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
        for _ in range(arguments.repeats):
            for which, root in roots.items():
                options = spectra.NETWORKS[name]
                runs[which].append(apart(root, options, arguments.side, arguments.rtol, arguments.ask))
        found = {which: medians(own) for which, own in runs.items()}
        times_faster = {key: found["before"][key] / found["after"][key] for key in ("seconds", "cpu_seconds")}
        found["times faster"] = {key: round(ratio, 2) for key, ratio in times_faster.items()}
        found["share of the memory"] = round(found["after"]["megabytes"] / found["before"]["megabytes"], 2)
        report[name] = found
        print(name, json.dumps(found, indent=1), flush=True)
        arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
