"""The kernels on a GPU, in one shot under nine minutes: right or wrong first, then times, then the tests.

``bash bench/gpu.sh`` calls this. Every part runs in a process of its own with a limit of its own: a crash, a hang or a
wrong result in one leaves the others. ``gpu.json`` is whole after every part; a line is printed as each ends. No time
is reported for a result that is wrong. Exit status: 0; 1 if a part failed or none ran; 2 to 6 what was missing (see
``gpu.sh``); 64 wrong arguments; 130 and 143 after Ctrl-C and SIGTERM, which end the parts that run.

    bash bench/gpu.sh                everything, on the GPU
    bash bench/gpu.sh --rehearse     the same on the pretend GPU, kernels interpreted, tiny: its times mean nothing
    bash bench/gpu.sh --compile      compile all that is launched, for carrying: see bench/gpu_cache.py
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import gpu_cache
import gpu_table
from gpu_parts import LAST_BEFORE_TESTS, NOT_INTERPRETED, PARTS, Part

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS = 525.0
"""The deadline of all."""

LEAST = 12.0
"""Seconds without which no part begins: Python, torch and the GPU's context take half of them."""

PATIENCE = 20
"""How many times a part's limit compiling it may take, on a machine of few cores."""

FIRST_LIMIT = 60.0
"""Seconds that a file of the first tests may take."""

FOR_TESTS = 75.0
"""Seconds kept for the tests while the parts of least value run."""

FIRST_TESTS = (
    "tests/kernels/test_gram.py", "tests/kernels/test_factors.py", "tests/ops/test_reductions.py",
    "tests/ops/test_triton_linear.py",
)  # fmt: skip
"""What is tested before anything is timed: times of kernels that are wrong are worth nothing."""

TESTS = (
    "tests/kernels/test_rows.py", "tests/kernels/test_activations.py", "tests/kernels/test_fused_linear.py",
    "tests/kernels/test_fused_mlp.py", "tests/ops/test_gram.py", "tests/ops/test_factors.py", "tests/ops/test_rows.py",
    "tests/ops/test_fused_linear.py", "tests/ops/test_fused_mlp.py", "tests/ops/test_grid_init.py",
    "tests/tangent/test_kernel.py", "tests/tangent/test_jacobian.py", "tests/training/engines/test_fused.py",
)  # fmt: skip


STOPPED = threading.Event()
"""Set once the run was told to stop: nothing begins any more."""

_running: set[subprocess.Popen[bytes]] = set()
_starting = threading.RLock()


class Stopped(BaseException):
    """The run was told to stop by the signal of this number."""


def stop(number: int, _: Any) -> None:
    """End every part that runs, with all its processes, and raise :class:`Stopped` in the main thread."""
    with _starting:
        STOPPED.set()
        for process in _running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    raise Stopped(number)


class Run:
    """All parts of one call: what they found, and the time that is left."""

    def __init__(self, out: Path, seconds: float, rehearse: str = "") -> None:
        self.out, self.rehearse = out, rehearse
        self.file, self.logs = out / "gpu.json", out / "gpu-logs"
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.results: dict[str, Any] = {}
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.file.exists():  # or it would pass for what this run found
            os.replace(self.file, self.file.with_name("gpu.before.json"))

    @property
    def left(self) -> float:
        """Seconds until the deadline; none once the run was told to stop."""
        return 0.0 if STOPPED.is_set() else self.end - time.monotonic()

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Add what a part found, write all, and print its lines."""
        self.results[name] = found
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(new, self.file)
        for line in gpu_table.lines(name, found):
            print(line, flush=True)

    def command(self, part: Part, file: Path, limit: float) -> list[str]:
        """Return the command line of a part."""
        chosen = [sys.executable, str(HERE / "gpu_part.py"), part.name, "--out", str(file), "--seconds", str(limit)]
        chosen += ["--results", str(self.file)]
        return chosen + (["--rehearse", self.rehearse] if self.rehearse else [])

    def part(self, part: Part, reserve: float = 0.0) -> dict[str, Any]:
        """Run a part in its own process and return what it found; ``"skipped"`` if there is no time for it."""
        if self.left - reserve < LEAST:
            return {"skipped": "no time left"}
        limit = min(part.limit * (PATIENCE if self.rehearse == "compile" else 1), self.left - reserve)
        file = self.logs / (re.sub(r"[^\w.]+", "-", part.name) + ".json")
        file.unlink(missing_ok=True)
        begin = time.monotonic()
        ended = run_alone(self.command(part, file, limit), limit, file.with_suffix(".log"))
        found = json.loads(file.read_text()) if file.exists() else {}
        if ended and not str(found.get("failed", "")).startswith("WrongResult"):
            found["failed"] = f"{ended}; {found['failed']}" if "failed" in found else ended
        return found | {"took": round(time.monotonic() - begin, 1)}

    def all(self, parts: Sequence[Part], at_once: int) -> None:
        """Run the smokes side by side, then the others one after another, in their order."""
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            running = {pool.submit(self.part, part): part for part in parts if part.smoke}
            for done in concurrent.futures.as_completed(running):
                self.keep(running[done].name, done.result())
        reserve = 0.0
        for part in parts:
            if not part.smoke:
                self.keep(part.name, self.part(part, reserve))
            reserve = FOR_TESTS if part.name == LAST_BEFORE_TESTS else reserve

    def tests(self, files: Sequence[str], at_once: int, limit: float = 150.0) -> None:
        """Run test files side by side, each with a limit; list what failed."""

        def one(file: str) -> dict[str, Any]:
            if self.left < LEAST:
                return {"skipped": "no time left"}
            log = self.logs / (re.sub(r"\W+", "-", file) + ".log")
            command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", file]
            ended = run_alone(command, min(limit, self.left), log)
            text = log.read_text(errors="replace")
            failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, flags=re.MULTILINE)
            last = text.strip().splitlines()[-1:] or [""]
            found: dict[str, Any] = {"summary": last[0][:200]}
            return found | ({"failed": f"{ended}; {len(failures)} failures", "failures": failures} if ended else {})

        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            running = {pool.submit(one, file): file for file in files}
            for done in concurrent.futures.as_completed(running):
                self.keep(running[done], done.result())


def run_alone(command: Sequence[str], limit: float, log: Path) -> str:
    """Run a command with its output in ``log``; return how it ended badly, or an empty string.

    Past its limit the whole process group is killed; a process that even that cannot end is left behind.
    """
    with log.open("wb") as output:
        with _starting:
            if STOPPED.is_set():
                return "not begun: the run was told to stop"
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=ROOT,
            )  # fmt: skip
            _running.add(process)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                return f"hangs: past {limit:.0f} s, and cannot be killed"
            return f"hangs: killed after {limit:.0f} s"
        finally:
            _running.discard(process)
    if status < 0:
        return f"crashed: {signal.Signals(-status).name}"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
    return f"status {status}: {last[0][:300]}" if status else ""


def preflight(rehearse: str) -> dict[str, Any]:
    """Return what :func:`gpu_machine.preflight` finds, asked in a process that may hang or crash."""
    command = [sys.executable, "-W", "ignore", str(HERE / "gpu_machine.py"), *(["pretend"] if rehearse else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"stop": "torch does not answer within 90 s", "status": 3}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return {"stop": f"the question what is here ended with {last[0]}", "status": 3}


def build(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """Build the native modules, the CUDA half where nvcc is; each is put in place whole. What cannot be is an error."""
    cuda = "nvcc" not in found["missing"]
    place = run.logs / "build"
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(place),
        "--build-temp",
        f"{place}-temp",
    ]
    os.environ |= {"INRFAST_CUDA": "1" if cuda else "0", "INRFAST_NATIVE_BUILD": "1"}
    ended = run_alone(command, min(150.0, run.left), run.logs / "build.log")
    for file in place.glob("inrfast/_C*"):
        os.replace(file, ROOT / "inrfast" / file.name)
    how = "with CUDA" if cuda else "without CUDA: nvcc is not here"
    return {"failed": ended} if ended else {"summary": f"built {how}"}


class Arguments(argparse.ArgumentParser):
    """A parser whose complaints have a status that says nothing else."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit."""
        self.exit(64, f"stopped: {message}; see --help\n")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, or exit with one line that says which is wrong."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="the folder of gpu.json")
    parser.add_argument("--seconds", type=float, help="the deadline, 525; later parts are skipped by name")
    parser.add_argument("--only", default="", help="a regular expression: run the parts whose names it is found in")
    parser.add_argument("--at-once", type=int, help="smokes and test files side by side; default: by the cores")
    parser.add_argument("--no-tests", action="store_true")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rehearse", action="store_const", const="interpret", default="")
    how.add_argument("--compile", action="store_const", const="compile", dest="rehearse")
    chosen = parser.parse_args(arguments)
    if chosen.seconds is not None and not 0 < chosen.seconds < float("inf"):
        parser.error(f"--seconds must be a positive number, got {chosen.seconds}")
    if chosen.at_once is not None and chosen.at_once < 1:
        parser.error(f"--at-once must be at least 1, got {chosen.at_once}")
    try:
        names = [
            name for name in (*(part.name for part in PARTS), *FIRST_TESTS, *TESTS) if re.search(chosen.only, name)
        ]
    except re.error as error:
        parser.error(f"--only must be a regular expression, got {chosen.only!r}: {error}")
    if not names:
        parser.error(f"--only {chosen.only!r} is found in no part's name")
    chosen.out = chosen.out.resolve()
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=chosen.out).close()
    except OSError as error:
        parser.error(f"--out {chosen.out} cannot be written: {error.strerror}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, then run; see the module's docstring."""
    chosen = parsed(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        return measured(chosen)
    except Stopped as stopped:
        number = int(stopped.args[0])
        print(f"stopped by {signal.Signals(number).name}; what was found is in {chosen.out}", file=sys.stderr)
        return 128 + number


def measured(chosen: argparse.Namespace) -> int:
    """Do what the arguments say, and return the exit status."""
    rehearse = chosen.rehearse
    seconds = chosen.seconds or (float("inf") if rehearse == "compile" else SECONDS)
    run = Run(chosen.out, seconds, rehearse)
    found = preflight(rehearse)
    print("; ".join(f"{name} {value}" for name, value in found.items() if not isinstance(value, dict)), flush=True)
    if "stop" in found:
        print(f"stopped: {found['stop']}", file=sys.stderr)
        return int(found["status"])
    if rehearse:
        print("a rehearsal on a pretend GPU: no time in it means anything", flush=True)
    cache = gpu_cache.use(run.out / "triton-cache")
    run.keep("environment", found | {"rehearsal": rehearse, "cache": cache})
    parts = [part for part in PARTS if re.search(chosen.only, part.name)]
    if rehearse == "interpret":
        parts = [part for part in parts if not any(word in part.name for word in NOT_INTERPRETED)]
    at_once = chosen.at_once or max(1, min(14, (os.cpu_count() or 1) - 2))
    without_tests = rehearse or chosen.no_tests or {"pytest", "hypothesis"} & set(found["missing"])
    with concurrent.futures.ThreadPoolExecutor(1) as aside:
        building = None if rehearse or chosen.only else aside.submit(build, run, found)
        run.all([part for part in parts if part.smoke], at_once)
        if not without_tests:
            run.tests([file for file in FIRST_TESTS if re.search(chosen.only, file)], at_once, FIRST_LIMIT)
        run.all([part for part in parts if not part.smoke], at_once)
        if building is not None:
            run.keep("extension", building.result())
    if not without_tests:
        run.tests([file for file in TESTS if re.search(chosen.only, file)], at_once)
    print(gpu_table.last(run.results, time.monotonic() - run.begin), flush=True)
    ran = [entry for name, entry in run.results.items() if name != "environment" and "skipped" not in entry]
    return int(not ran or any("failed" in entry for entry in ran))


if __name__ == "__main__":
    sys.exit(main())
