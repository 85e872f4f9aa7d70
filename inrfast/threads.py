"""Threads that take whole pieces of work: they synchronise once per job, not once per operation.

A parallel tensor operation ends in a barrier, so that a delay on one core stops all cores. Where a job consists of
independent pieces (tiles, chunks of points), one single-threaded worker per core does the same work without barriers.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TypeVar

import torch

from inrfast import system
from inrfast.errors import check_int
from inrfast.system import INTERRUPTS

T = TypeVar("T")

NAME = "inrfast-worker"

MOST_THREADS = 16
"""Only one thread at a time runs Python between operations: more threads than this would wait for the GIL."""


def _one_core() -> None:
    """Restrict the tensor operations of this thread to one core."""
    torch.get_num_threads()  # Read once, so that torch initialises this thread's count before we override it.
    torch.set_num_threads(1)


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Set how many cores this thread's tensor operations use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_core() -> AbstractContextManager[None]:
    """Keep this thread's tensor operations on one core: beside workers, parallel ones only wait at barriers."""
    return cores(1)


@functools.cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads whose tensor operations run on one core each; one pool per number of threads."""
    check_int("threads", threads, minimum=1)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, NAME, initializer=_one_core)
    started = threading.Barrier(threads + 1)
    waiting = [pool.submit(started.wait) for _ in range(threads)]
    started.wait()
    wait(waiting)
    torch.set_num_threads(before)  # torch starts later threads with the number that the last thread set
    return pool


# Threads do not survive a fork; the child makes its own pool.
system.after_fork(workers.cache_clear)


def together(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run one job per thread and return their results; no job keeps running after an interrupt.

    A single job, and jobs started inside a job, run in the calling thread: a pool that waits for itself would deadlock.
    Inside ``torch.inference_mode`` the jobs run in it too, since they may write to inference tensors.
    """
    if len(jobs) == 1 or threading.current_thread().name.startswith(NAME):
        return [job() for job in jobs]
    inference = torch.is_inference_mode_enabled()

    def run(job: Callable[[], T]) -> T:
        with torch.inference_mode(inference):
            return job()

    pool = workers(len(jobs))
    running = [pool.submit(run, job) for job in jobs]
    try:
        return [job.result() for job in running]
    finally:
        wait(running)


def share(pieces: Iterable[T], jobs: Sequence[Callable[[T], None]]) -> None:
    """Hand every piece to the next free job; each job runs in its own thread.

    After the first error no more pieces are handed out, and it is raised.
    """
    if len(jobs) == 1:
        for piece in pieces:
            jobs[0](piece)
        return
    lock, source, stopped = threading.Lock(), iter(pieces), threading.Event()

    def take(job: Callable[[T], None]) -> None:
        try:
            while not stopped.is_set():
                with lock:
                    piece = next(source, None)
                if piece is None:
                    return
                job(piece)
        except BaseException:
            stopped.set()
            raise

    try:
        together([functools.partial(take, job) for job in jobs])
    except BaseException:
        stopped.set()
        raise


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until the end of the block, for work that must not stop halfway.

    Only in the main thread, and only for signals with a Python handler; others end the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))}
    holding, came = [True], []

    def later(number: int, frame: FrameType | None) -> None:
        if holding:
            came.append((number, frame))
        else:  # a signal came between the last two statements below
            before[signal.Signals(number)](number, frame)

    try:
        for number in before:
            signal.signal(number, later)
        yield
    finally:
        holding.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
        for signalled in came:  # also if the block failed: whoever catches its error would miss the signals
            before[signal.Signals(signalled[0])](*signalled)
