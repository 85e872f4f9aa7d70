"""Threads that each take whole pieces of work: they wait for each other once a job, not once an operation.

A parallel tensor operation ends in a barrier, and whatever disturbs one core then stops all. Where a job falls into
independent pieces (tiles, chunks of points), one single-threaded worker a core does the same work without barriers.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TypeVar

import torch

from inrfast.errors import check_int

T = TypeVar("T")

NAME = "inrfast-worker"

MOST_THREADS = 16
"""Between two operations only one thread runs Python: more threads than this would wait for it."""


def _one_core() -> None:
    """Give the tensor operations of this thread one core."""
    torch.get_num_threads()  # a thread takes over torch's common number at its first question: let that be past
    torch.set_num_threads(1)


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Let this thread's tensor operations take so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_core() -> AbstractContextManager[None]:
    """Keep this thread's tensor operations on one core: beside workers, small ones only wait for their barriers."""
    return cores(1)


@functools.cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Return started threads whose own tensor operations run on one core each; the same pool for the same number."""
    check_int("threads", threads, minimum=1)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, NAME, initializer=_one_core)
    started = threading.Barrier(threads + 1)
    waiting = [pool.submit(started.wait) for _ in range(threads)]
    started.wait()
    wait(waiting)
    torch.set_num_threads(before)  # what the last thread set is also the start value of threads to come
    return pool


# The threads of a pool do not survive a fork; the child makes its own.
os.register_at_fork(after_in_child=workers.cache_clear)


def together(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run one job a thread and return their results; after an interrupt, too, none is left at work.

    One job, and jobs started from inside a job, run in the calling thread: a pool that waits for itself never ends.
    Inside ``torch.inference_mode`` the jobs are in it too: they may write to tensors made there.
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
    """Give every piece to whichever job is free next; each job runs in a thread of its own.

    The first error stops the handing out and is raised.
    """
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


INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end."""


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, for what is worth nothing by halves; SIGTERM and SIGHUP too.

    Only in the main thread, and only signals that Python handles: others end the process without asking.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))}
    holding, came = [True], []

    def later(number: int, frame: FrameType | None) -> None:
        if holding:
            came.append((number, frame))
        else:  # a signal came between the last two lines below
            before[signal.Signals(number)](number, frame)

    try:
        for number in before:
            signal.signal(number, later)
        yield
    finally:
        holding.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
        for signalled in came:  # though the block failed: who caught that would not know of them
            before[signal.Signals(signalled[0])](*signalled)
