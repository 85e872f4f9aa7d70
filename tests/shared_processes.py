"""Real processes of one gloo group that make the same calls: what a kernel shared by several needs to be tested."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE = 120
"""Seconds after which a process that waits for another gives up."""


class Processes:
    """A group of processes, each of which calls the function that is named to all."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes

    def call(self, module: str, function: str, *arguments: Any) -> list[Any]:
        """Return what ``module.function(*arguments)`` gives in every process.

        Raises
        ------
        AssertionError
            It raised in one of them; the message is the traceback.
        """
        for pipe in self.pipes:
            pipe.send((module, function, arguments))
        answers = [pipe.recv() for pipe in self.pipes]
        for rank, (failed, answer) in enumerate(answers):
            assert not failed, f"process {rank}:\n{answer}"
        return [answer for _, answer in answers]


@contextmanager
def processes(count: int, folder: Path) -> Iterator[Processes]:
    """Start so many processes; they meet in a file in ``folder``."""
    context = multiprocessing.get_context("spawn")
    pipes, running = [], []
    for rank in range(count):
        here, there = context.Pipe()
        running.append(context.Process(target=_serve, args=(there, str(folder), rank, count), daemon=True))
        running[-1].start()
        pipes.append(here)
    try:
        yield Processes(pipes)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in running:
            process.join(PATIENCE)


def _serve(pipe: Connection, folder: str, rank: int, count: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    wait = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count, timeout=wait)
    while (task := pipe.recv()) is not None:
        module, function, arguments = task
        try:
            answer = (False, getattr(importlib.import_module(module), function)(*arguments))
        except Exception:
            answer = (True, traceback.format_exc())
        pipe.send(answer)
    os._exit(0)  # gloo's own threads abort the process now and then while it is taken down
