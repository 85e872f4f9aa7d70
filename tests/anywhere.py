"""The numerical tests on simulated processors: ``python tests/anywhere.py [--changed] [--minutes M] [for pytest ...]``.

Libraries and the native extension are told to use older instructions than this processor has, each by its environment
variable. The processors below have every value of every variable at least once, in combinations as they occur; all
combinations would be 216. Without files among the arguments all numerical tests run.

``--changed`` runs only the numerical test files that the current change touches: against the merge base with the main
branch, or against the commit before. ``--minutes`` bounds the time: what has not run by then is named.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

PLAIN_LIBRARIES = {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
AVX2_LIBRARIES = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX512_LIBRARIES = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "DNNL_MAX_CPU_ISA": "AVX512_CORE",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
}


@dataclass(frozen=True)
class Processor:
    """A simulated processor: its environment, and what the real one must have (``flags`` of ``/proc/cpuinfo``)."""

    name: str
    environment: Mapping[str, str]
    needs: tuple[str, ...]


PROCESSORS = (
    Processor(
        "SSE 4.2, no native step, 1 thread",
        {**PLAIN_LIBRARIES, "INRFAST_NATIVE": "plain", "OMP_NUM_THREADS": "1"},
        (),
    ),
    Processor(
        "AVX2, 2 threads",
        {**AVX2_LIBRARIES, "INRFAST_NATIVE": "avx2", "OMP_NUM_THREADS": "2"},
        ("avx2", "fma"),
    ),
    Processor(
        "AVX-512, 1 thread",
        {**AVX512_LIBRARIES, "INRFAST_NATIVE": "avx512", "OMP_NUM_THREADS": "1"},
        ("avx512f", "avx512dq", "avx512bw", "avx512vl"),
    ),
    Processor(
        "AVX2 with MKL's SSE code, no native extension, 2 threads",
        {**AVX2_LIBRARIES, "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "INRFAST_NATIVE": "absent", "OMP_NUM_THREADS": "2"},
        ("avx2", "fma"),
    ),
)

NOT_NUMERICAL = (
    "tests/bench/test_gpu.py",
    "tests/bench/test_step_report.py",
    "tests/cli/",
    "tests/experiments/",
    "tests/kernels/test_ahead_of_time.py",
    "tests/signals/test_audio.py",
    "tests/signals/test_image.py",
    "tests/signals/test_paths.py",
    "tests/signals/test_volume.py",
    "tests/test_anywhere.py",
    "tests/test_backends.py",
    "tests/test_cli.py",
    "tests/test_doctests.py",
    "tests/test_errors.py",
    "tests/test_files.py",
    "tests/test_fuzz.py",
    "tests/test_info.py",
    "tests/test_memory.py",
    "tests/test_plots.py",
    "tests/test_pretend_gpu.py",
    "tests/test_readme.py",
)
"""Test files and folders whose results no rounding can change, or that are of a GPU."""


def is_numerical(path: str) -> bool:
    """Return whether a path relative to the root is that of a numerical test file."""
    name = path.rpartition("/")[2]
    return (
        path.startswith("tests/")
        and name.startswith("test_")
        and name.endswith(".py")
        and not path.startswith(NOT_NUMERICAL)
    )


def numerical_files() -> list[str]:
    """Return all numerical test files."""
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
    return sorted(filter(is_numerical, found))


def git(*arguments: str, root: Path = ROOT) -> list[str] | None:
    """Return the lines that git prints, or None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else None


def base(root: Path = ROOT) -> str | None:
    """Return the commit that the current change starts from, None if there is none."""
    head = git("rev-parse", "HEAD", root=root)
    for branch in ("origin/HEAD", "origin/main", "origin/master", "main", "master"):
        found = git("merge-base", "HEAD", branch, root=root)
        if found and found != head:
            return found[0]
    before = git("rev-parse", "--verify", "--quiet", "HEAD~1", root=root)
    return before[0] if before else None


def changed_files(root: Path = ROOT) -> tuple[str, list[str]]:
    """Return, in words, what the working tree was compared with, and the numerical test files that differ."""
    start = base(root)
    if start is None:
        return "no earlier commit to compare with", []
    differing = git("diff", "--name-only", "--diff-filter=d", start, root=root) or []
    new = git("ls-files", "--others", "--exclude-standard", root=root) or []
    return f"compared with {start[:9]}", sorted(filter(is_numerical, {*differing, *new}))


def flags() -> set[str]:
    """Return the instructions that the real processor says it has."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def run(processor: Processor, arguments: Sequence[str], seconds: float | None) -> str:
    """Run pytest on a simulated processor; return ``"passed"``, ``"FAILED"``, or why there is no result."""
    missing = [flag for flag in processor.needs if flag not in flags()]
    if missing:
        return f"left out: this processor has no {', '.join(missing)}"
    if seconds is not None and seconds <= 0:
        return "left out: no time left"
    environment = {name: value for name, value in os.environ.items() if name != "INRFAST_GEMM"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin at every barrier slow each other down
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env={**environment, **processor.environment})
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return cut_short(results)
    # Status 5 is pytest's for "no test was selected".
    return "passed" if status == 0 else "no test selected" if status == 5 else "FAILED"


def cut_short(results: Path) -> str:
    """Return what an interrupted run had found; its exit status tells of the interrupt alone."""
    if not results.exists():
        return "cut short: no time left, no results"
    text = results.read_text(errors="replace")
    return "FAILED" if "<failure" in text or "<error" in text else "cut short: no time left, no failure until then"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a summary, and return 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changed", action="store_true", help="only the numerical test files of this change")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, at the first failure too")
    options, arguments = parser.parse_known_args(argv)
    if options.changed:
        words, files = changed_files()
        print(f"numerical test files of this change ({words}): {' '.join(files) or 'none, nothing to run'}")
        if not files:
            return 0
        arguments += files
    elif not any((ROOT / argument.partition("::")[0]).exists() for argument in arguments):
        arguments += numerical_files()
    if options.minutes is not None:
        arguments = ["-x", *arguments]
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    results = {}
    for processor in PROCESSORS:
        setting = " ".join(f"{name}={value}" for name, value in processor.environment.items())
        print(f"\n== {processor.name}: {setting}", flush=True)
        begun = time.monotonic()
        result = run(processor, arguments, None if end is None else end - begun)
        results[processor.name] = f"{result} ({time.monotonic() - begun:.0f} s)"
        print(result, flush=True)
    print("\nsummary")
    for name, result in results.items():
        print(f"  {name}: {result}")
    return int(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
