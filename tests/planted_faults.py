"""Readers with one fault each, for the tests of the fuzzer: it has to find every one of them."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.formats import Format
from fuzz.laws import Case, LawBroken, Target
from fuzz.mutations import mutate_text

MIB = 2**20


def target(name: str, read: Callable[[Path], Any], **options: Any) -> Target:
    """Return a target whose cases are a file of some bytes, given to ``read``."""

    def make(rng: random.Random, folder: Path) -> Case:
        path = folder / "case.txt"
        path.write_bytes(rng.randbytes(20))
        return Case(lambda: read(path), (path,), named=str(path), **options)

    return Target(name, make)


def refuse(path: Path) -> None:
    raise ValueError(f"{path} is no file that this reads")


def grow(path: Path) -> None:
    block = bytearray(64 * MIB)
    block[::4096] = b"1" * len(block[::4096])  # touched, since the system gives memory only then
    refuse(path)


def reserve(path: Path) -> None:
    bytearray(2**45)


def raise_(error: BaseException) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        raise error

    return read


class Foreign:
    """Unpickling one calls a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (abs, (1,))


def sums(data: bytes) -> list[int]:
    """Return the numbers of a text that ends with their sum."""
    *numbers, total = map(int, data.split())
    if sum(numbers) != total:
        raise ValueError("another sum")
    return numbers


SUMS = (b"1 2 3 6", b"10 20 30")


def lax(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_bytes().split()][:-1]
    except ValueError:
        raise ValueError(f"{path} is not a list of numbers") from None


def wrong_numbers(path: Path) -> list[int]:
    try:
        return [2 * number for number in sums(path.read_bytes())]
    except ValueError:
        raise ValueError(f"{path} is not a list of numbers") from None


def differ(found: list[int], other: list[int]) -> str | None:
    return None if found == other else "other numbers"


def unmakeable(rng: random.Random, folder: Path) -> Case:
    raise RuntimeError("a fault of the fuzzer itself")


def wrong(result: Any) -> None:
    raise LawBroken("it returned something wrong")


LAX = Format("lax", ".txt", lambda: SUMS, lax, {"sums": sums}, mutations=(mutate_text,))
WRONG = Format("wrong numbers", ".txt", lambda: SUMS, wrong_numbers, {"sums": sums}, differ, (lambda data, *_: data,))

EXPECTED = {
    "refuses": None,
    "reads": None,
    "writes where it may": None,
    "lax": "accepted",
    "wrong numbers": "accepted",
    "wrong result": "accepted",
    "hangs": "time",
    "grows": "memory",
    "memory error": "memory",
    "reserves": "memory",
    "key error": "exception",
    "recursion": "exception",
    "exits": "exception",
    "names nothing": "message",
    "two lines": "message",
    "endless words": "message",
    "only a number": "message",
    "program": "starts a program",
    "shell": "starts a program",
    "pickle": "runs foreign code",
    "writes": "writes a file",
    "removes": "writes a file",
    "dies": "crash",
    "leaves": "crash",
    "unmakeable": "fuzzer",
}
"""The law that each target breaks, None if it breaks none."""


def recurse(path: Path) -> None:
    recurse(path)


def write_beside(path: Path) -> None:
    path.with_suffix(".more").write_text("1")


TARGETS = {
    planted.name: planted
    for planted in (
        target("refuses", refuse),
        target("reads", lambda path: path.read_bytes()),
        Target(
            "writes where it may",
            lambda rng, folder: Case(lambda: (folder / "new").write_text("1"), folder=folder),
        ),
        Target("lax", LAX.make, 40),
        Target("wrong numbers", WRONG.make),
        target("wrong result", lambda path: None, check=wrong),
        target("hangs", lambda path: time.sleep(60)),
        target("grows", grow, growth=32 * MIB),
        target("memory error", raise_(MemoryError())),
        target("reserves", reserve),
        target("key error", raise_(KeyError("a"))),
        target("recursion", recurse),
        target("exits", raise_(SystemExit(3))),
        target("names nothing", raise_(ValueError("this file is not right"))),
        target("two lines", lambda path: raise_(ValueError(f"{path} is damaged:\nindeed"))(path)),
        target("endless words", lambda path: raise_(ValueError(f"{path} is {'very ' * 500} damaged"))(path)),
        target("only a number", lambda path: raise_(ValueError(f"{path} (80, 3, 1)"))(path)),
        target("program", lambda path: subprocess.run(["true"], check=True)),
        target("shell", lambda path: os.system("true")),
        target("pickle", lambda path: pickle.loads(pickle.dumps(Foreign()))),
        target("writes", write_beside),
        target("removes", lambda path: path.unlink()),
        target("dies", lambda path: os.abort()),
        target("leaves", lambda path: os._exit(0)),
        Target("unmakeable", unmakeable),
    )
}
