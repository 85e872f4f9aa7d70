"""How long do a user's first steps take? Imports, ``inrfast --help``, ``--version`` and ``info``, a first diagnosis.

    python bench/first_minutes.py [--repeats 9] [--out bench/results/first-minutes.json]

Every step runs in a process of its own, all steps in turn, ``--repeats`` times after one round that is not counted;
the medians are printed and written. "beyond" are seconds after ``import torch``, by a clock inside the process; the
others are those of the whole process, from outside. The first diagnosis is that of a small network on 32x32 points.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "bench" / "results" / "first-minutes.json"

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, inrfast": ["-c", "import torch, inrfast"],
    "inrfast --help": ["-m", "inrfast", "--help"],
    "inrfast --version": ["-m", "inrfast", "--version"],
    "inrfast fti (a mistake)": ["-m", "inrfast", "fti"],
    "inrfast info": ["-m", "inrfast", "info"],
}
"""Whole processes."""

STEPS = """
import json, time
import torch
clock, marks = time.perf_counter, {}
def mark(name, begun):
    marks[name] = clock() - begun
begun = all_begun = clock()
import inrfast as inr
mark("import inrfast", begun)
begun = clock()
net, coords = inr.INR(2, 1, width=64, hidden_layers=3, activation="sine", init="siren"), inr.grid((32, 32))
mark("INR and grid", begun)
begun = clock()
str(inr.diagnose(net, coords, progress=False))
mark("first diagnose", begun)
begun = clock()
str(inr.diagnose(net, coords, progress=False))
mark("second diagnose", begun)
begun = clock()
inr.fit(net, coords, torch.rand(1024, 1), steps=10, progress=False)
mark("first fit, 10 steps", begun)
begun = clock()
import inrfast.public
mark("all other public names", begun)
print(json.dumps(marks))
"""
"""Inside a process, beyond ``import torch``."""


def run(arguments: list[str]) -> tuple[float, str]:
    """Return the seconds of a process of this Python, and what it printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{arguments} failed: {done.stderr}")
    return seconds, done.stdout


def measured(repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of whole processes and, of the steps inside one, those beyond ``import torch``."""
    whole: dict[str, list[float]] = {name: [] for name in COMMANDS}
    beyond: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            seconds, _ = run(arguments)
            if repeat:
                whole[name].append(seconds)
        _, printed = run(["-c", STEPS])
        for name, seconds in json.loads(printed).items():
            if repeat:
                beyond.setdefault(name, []).append(seconds)
    return whole, beyond


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median and extremes of every step."""
    return {
        name: {"median": round(statistics.median(own), 4), "least": round(min(own), 4), "most": round(max(own), 4)}
        for name, own in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    whole, beyond = measured(arguments.repeats)

    from inrfast.info import info
    from inrfast.ops.gemm import processor

    found = {
        "date": str(date.today()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "versions": info()["versions"],
        "repeats": arguments.repeats,
        "seconds of a whole process": summary(whole),
        "seconds beyond import torch": summary(beyond),
    }
    for title in ("seconds of a whole process", "seconds beyond import torch"):
        print(f"{title:<32}{'median':>9}{'least':>9}{'most':>9}")
        for name, own in found[title].items():  # type: ignore[attr-defined]
            print(f"  {name:<30}{own['median']:>9.3f}{own['least']:>9.3f}{own['most']:>9.3f}")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
