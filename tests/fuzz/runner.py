"""Processes that run the cases, a watch on their time, and what is told in the end.

A case is named ``target:seed:number``; its generator is seeded with that name, so that it is the same everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fuzz.laws import SECONDS, Outcome, obey, prepare_process

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "fuzz"
KEPT = 3
"""Cases of one fault that are kept: the others are the same fault again."""

GIVEN = "given"
"""Folder of a process with the files and the words of its case, as they were before the call."""

PATIENCE = 120.0
"""Seconds in which a process must have imported everything and made its case."""


@dataclass(frozen=True)
class Job:
    """One case by its name."""

    target: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.target}:{self.seed}:{self.number}"

    @classmethod
    def of(cls, text: str) -> Job:
        """Return the job of a name."""
        target, _, rest = text.partition(":")
        seed, _, number = rest.partition(":")
        return cls(target, int(seed), int(number))

    def make(self, registry: Mapping[str, Any], folder: Path) -> Any:
        """Return the case, its files in ``folder``."""
        return registry[self.target].make(random.Random(str(self)), folder)


# ---- in a process that runs cases ----------------------------------------------------------------------------------


def work(connection: Connection, module: str, place: Path) -> None:
    """Run the jobs that come in until None comes; tell when each begins and ends, and how it ended.

    All that is written lies in ``place``, a folder of this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, which then ends its processes
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what readers in C print is no part of a report
    warnings.simplefilter("ignore")
    tqdm.set_lock(threading.RLock())  # its own is of the system, and stays behind where a process is killed
    tempfile.tempdir = os.environ["TMPDIR"] = str(place)
    _without_other_programs(place)
    registry = importlib.import_module(module).TARGETS
    prepare_process()
    folder = place / "case"
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send("ready")
        for job in iter(connection.recv, None):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            os.chdir(folder)
            connection.send(_outcome(job, registry, folder, connection))


def _outcome(job: Job, registry: Mapping[str, Any], folder: Path, connection: Connection) -> Outcome:
    try:
        case = job.make(registry, folder)
    except Exception as error:
        trace = "".join(traceback.format_exception(error)[-6:])
        return Outcome("broken", "fuzzer", f"the case cannot be made: {trace}", type(error).__name__)
    shutil.rmtree(folder.parent / GIVEN, ignore_errors=True)
    (folder.parent / GIVEN).mkdir()
    for path in case.files:
        shutil.copy(path, folder.parent / GIVEN)
    (folder.parent / GIVEN / "words.txt").write_text(case.words, "utf-8", "backslashreplace")
    return obey(case, lambda: connection.send("begun"), lambda: connection.send("ended"))


def _without_other_programs(place: Path) -> None:
    """Put programs that do nothing in place of those that a reader might start: starting one is to be heard."""
    programs = place / "bin"
    programs.mkdir()
    for name in ("gs", "djpeg", "convert", "xdg-open", "ffmpeg"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"


class Worker:
    """A process that runs cases, and what it is at."""

    def __init__(self, module: str, place: Path, seconds: float) -> None:
        self.job: Job | None = None
        self.place = place
        self.stage, self.since, self.given, self.seconds = "starting", time.monotonic(), 0.0, seconds
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, module, place), daemon=True)
        self.process.start()
        other.close()

    def give(self, job: Job) -> None:
        """Start a case."""
        self.job, self.stage, self.since = job, "preparing", time.monotonic()
        self.given = self.since
        self.connection.send(job)

    def hear(self) -> Outcome | None:
        """Take one message; return the outcome if it is that, or if the process is dead."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code, stage = self.process.exitcode, self.stage
            what = f"the process ended with code {code} while {'in the call' if stage == 'begun' else stage}"
            return Outcome("broken", "crash", what, f"exit code {code}, {stage}")
        if isinstance(message, Outcome):
            return message
        self.stage, self.since = message, time.monotonic()
        return None

    def overdue(self) -> Outcome | None:
        """Return the outcome of a case that takes too long, None while it does not."""
        limit = self.seconds if self.stage == "begun" else PATIENCE
        if time.monotonic() - self.since < limit:
            return None
        if self.stage == "begun":
            return Outcome("broken", "time", f"no end after {limit:.0f} s", "time")
        return Outcome("broken", "fuzzer", f"{self.stage} for over {limit:.0f} s: a fault of the target", self.stage)

    def stop(self) -> None:
        """End the process: politely if it waits for a case."""
        if self.stage == "ready":
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(5)
        self.process.kill()
        self.process.join()
        self.connection.close()


# ---- which cases -------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """The cases to run: so many of each target, or as many as there is time for, the same time for each target."""

    names: Sequence[str]
    seed: int
    counts: Mapping[str, int] | None
    end: float
    spent: dict[str, float] = field(default_factory=dict)
    given: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Job]:
        while time.monotonic() < self.end:
            left = [name for name in self.names if self.counts is None or self.given[name] < self.counts[name]]
            if not left:
                return
            if self.counts is None:
                name = min(left, key=lambda one: self.spent.get(one, 0.0))
            else:
                counts = self.counts
                name = min(left, key=lambda one: self.given[one] / counts[one])
            self.spent[name] = self.spent.get(name, 0.0) + 1e-4  # two processes take different targets
            yield Job(name, self.seed, self.given[name])
            self.given[name] += 1

    def took(self, name: str, seconds: float) -> None:
        """Add the time that a case took."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds


def run_jobs(
    plan: Plan, module: str, processes: int, place: Path, seconds: float, bar: Any
) -> Iterator[tuple[Job, Outcome, Path]]:
    """Yield every case as it ends, with its outcome and the folder of its files; a process that fails is replaced."""
    jobs = iter(plan)

    def worker_in_a_folder() -> Worker:
        return Worker(module, Path(tempfile.mkdtemp(dir=place)), seconds)

    workers = [worker_in_a_folder() for _ in range(processes)]
    try:
        while True:
            for worker in workers:
                if worker.stage == "ready" and (job := next(jobs, None)) is not None:
                    worker.give(job)
            busy = [worker for worker in workers if worker.stage != "ready"]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=0.5)
            for worker in busy:
                outcome = worker.hear() if worker.connection in ready else worker.overdue()
                if outcome is None:
                    continue
                if worker.job is None:
                    raise RuntimeError(f"a process for cases does not start: {outcome.detail}")
                plan.took(worker.job.target, time.monotonic() - worker.given)
                yield worker.job, outcome, worker.place / GIVEN
                if outcome.law in ("crash", "time") or (worker.stage == "preparing" and worker.overdue()):
                    worker.stop()
                    workers[workers.index(worker)] = worker_in_a_folder()
                worker.job, worker.stage = None, "ready"
            if not ready:
                bar.refresh()  # the time goes on
    finally:
        for worker in workers:
            worker.stop()


# ---- what is told ------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Counts of outcomes, and the faults: cases by target, law and place in the code."""

    out: Path
    seconds: dict[str, float]
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: dict[tuple[str, str, str], list[tuple[Job, Outcome]]] = field(default_factory=dict)

    def take(self, job: Job, outcome: Outcome, given: Path) -> None:
        """Count an outcome; keep the files of a case that broke a law, which are in the folder ``given``."""
        self.counts.setdefault(job.target, Counter())[outcome.kind] += 1
        if outcome.kind != "broken":
            return
        same = self.faults.setdefault((job.target, outcome.law, outcome.place), [])
        same.append((job, outcome))
        if len(same) > KEPT:
            return
        folder = self.out / str(job).replace(":", "-")
        shutil.rmtree(folder, ignore_errors=True)
        if given.is_dir() and outcome.law != "fuzzer":
            shutil.copytree(given, folder)
        folder.mkdir(parents=True, exist_ok=True)
        said = f"{outcome.law}\n{outcome.detail}\nagain: make fuzz PYTEST_ARGS='--case {job}'\n"
        (folder / "fault.txt").write_text(said, "utf-8", "backslashreplace")

    def __str__(self) -> str:
        lines = [f"{'target':<17}{'cases':>8}{'accepted':>10}{'refused':>9}{'broken':>8}{'seconds':>9}"]
        for name, counts in self.counts.items():
            numbers = (counts.total(), counts["accepted"], counts["refused"], counts["broken"])
            lines.append("{:<17}{:>8}{:>10}{:>9}{:>8}{:>9.0f}".format(name, *numbers, self.seconds[name]))
        for (target, law, _), cases in sorted(self.faults.items(), key=lambda item: -len(item[1])):
            job, outcome = cases[0]
            detail = " ".join(outcome.detail.split())[:300]
            lines.append(f"\n{target}, {law}, {len(cases)} cases such as {job}: {detail}")
        if self.faults:
            lines.append(f"\nfiles and words of {len(self.faults)} faults are in {self.out}")
        return "\n".join(lines)


def fuzz(
    module: str,
    names: Sequence[str] = (),
    seed: int = 0,
    count: int | None = None,
    minutes: float = 10.0,
    processes: int = 2,
    out: Path = OUT,
    progress: bool = True,
    seconds: float = SECONDS,
    single: Job | None = None,
) -> Report:
    """Run the cases of a module's ``TARGETS`` and return what they did; Ctrl-C ends it with what there is."""
    registry = importlib.import_module(module).TARGETS
    chosen = [name for name in registry if not names or any(name.startswith(start) for start in names)]
    counts = None if count is None else {name: max(1, round(count * registry[name].share)) for name in chosen}
    plan = Plan(chosen, seed, counts, time.monotonic() + 60 * minutes)
    jobs: Any = plan
    if single is not None:
        jobs = Plan([single.target], single.seed, {single.target: single.number + 1}, plan.end)
        jobs.given[single.target] = single.number
    report = Report(out, jobs.spent)
    total = None if jobs.counts is None else sum(jobs.counts.values()) - sum(jobs.given.values())
    form = (
        None if total is not None else "{n_fmt} cases in {elapsed} of " + f"{minutes:g} min ({{rate_fmt}}) {{postfix}}"
    )
    with (
        tempfile.TemporaryDirectory(prefix="inrfast-fuzz-", ignore_cleanup_errors=True) as place,
        tqdm(total=total, bar_format=form, disable=None if progress else True, unit=" cases", mininterval=0.5) as bar,
    ):
        try:
            for job, outcome, given in run_jobs(jobs, module, processes, Path(place), seconds, bar):
                report.take(job, outcome, given)
                bar.update()
                bar.set_postfix_str(f"{len(report.faults)} faults", refresh=False)
        except KeyboardInterrupt:
            print("interrupted; what was found until then:", file=sys.stderr)
    if total is not None and sum(counter.total() for counter in report.counts.values()) < total:
        print(f"the time of {minutes:g} minutes ended before the last case", file=sys.stderr)
    return report


def main(argv: Sequence[str] | None = None, module: str = "fuzz.targets", out: Path = OUT) -> int:
    """Run, print the table and the faults, and return 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="at most (default: %(default)s)")
    parser.add_argument("--count", type=int, help="so many cases of a format, fewer of what is slow (default: by time)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="targets whose names begin like this")
    parser.add_argument("--seed", default="0", help="a number, or random (default: %(default)s)")
    parser.add_argument("--case", type=Job.of, help="one case again, by the name that it was reported under")
    parser.add_argument("--processes", type=int, default=2, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(10**9) if options.seed == "random" else int(options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = fuzz(
        module,
        options.only,
        seed,
        options.count,
        options.minutes,
        1 if options.case else options.processes,
        out,
        single=options.case,
    )
    print(f"seed {seed}\n{report}")
    return int(bool(report.faults))
