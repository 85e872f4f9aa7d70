"""Files of factorisations: changed bytes, changed descriptions and states, with wrong and with right checksums."""

from __future__ import annotations

import contextlib
import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from fuzz.laws import Case, LawBroken
from fuzz.mutations import dump_json, mutate_bytes, mutate_json
from inrfast.errors import InrfastError
from inrfast.linalg import factor_file, stored_ldl
from inrfast.linalg.ldl_factor import BlockLDL
from inrfast.linalg.operators import DenseOperator

ORDER, SHIFT = 24, 1.0

SIZES: dict[str, Any] = {"window": 4, "panel": 8, "progress": False}


class Stopped(BaseException):
    """A killed process."""


def _operator() -> DenseOperator:
    index = torch.arange(ORDER, dtype=torch.float64)
    return DenseOperator(torch.exp(-(index.unsqueeze(1) - index).square() / 8))


def _factor(path: Path, dtype: torch.dtype) -> BlockLDL:
    """Factor into a file, go on with it, or read it."""
    return stored_ldl.stored_ldl(_operator(), SHIFT, dtype, path, **SIZES)


@cache
def factor_files() -> list[tuple[bytes, torch.dtype, BlockLDL]]:
    """Return files that are finished, and stopped after one panel and after two, with what they are to give."""
    found = []
    with TemporaryDirectory() as folder, mock.patch.object(stored_ldl, "SAVING", float("inf")):
        for dtype in (torch.float32, torch.float64):
            path = Path(folder, str(dtype))
            whole = _factor(path, dtype)
            found.append((path.read_bytes(), dtype, whole))
            for panels in (1, 2):
                path.unlink()
                states = iter(range(panels))

                def write(*given: Any, real: Any = factor_file.FactorFile.write, left: Any = states) -> None:
                    if next(left, None) is None:
                        raise Stopped
                    real(*given)

                with mock.patch.object(factor_file.FactorFile, "write", write), contextlib.suppress(Stopped):
                    _factor(path, dtype)
                found.append((path.read_bytes(), dtype, whole))
    return found


def make_factor(rng: random.Random, folder: Path) -> Case:
    """Return the case of one changed file."""
    files = factor_files()
    (data, dtype, whole), (other, _, _) = rng.choice(files), rng.choice(files)
    how = rng.choice(("bytes", "bytes", "header", "state", "record"))
    if how == "bytes":
        data = mutate_bytes(data, other, rng)
    else:
        data = {"header": _changed_header, "state": _changed_state, "record": _changed_record}[how](data, dtype, rng)
    path = folder / "case.factor"
    path.write_bytes(data)

    def check(found: BlockLDL) -> None:
        if how == "bytes" and not _same(found, whole):
            raise LawBroken("a changed file is read, with other contents")

    return Case(
        lambda: _factor(path, dtype),
        (path,),
        named=str(path),
        refusals=(ValueError, OSError, InrfastError),
        check=check,
        folder=folder,
        words=how,
    )


def _same(one: BlockLDL, other: BlockLDL) -> bool:
    vectors = torch.eye(ORDER, dtype=torch.float64)
    return torch.equal(one.pivots, other.pivots) and torch.equal(one.product(vectors), other.product(vectors))


# ---- changes with right checksums ----------------------------------------------------------------------------------


def _head(data: bytes) -> tuple[bytes, bytes]:
    """Return the text of a header, and all from the next page on."""
    length = factor_file.HEAD.unpack(data[: factor_file.HEAD.size])[2]
    end = factor_file.HEAD.size + length
    return data[factor_file.HEAD.size : end], data[-(-end // factor_file.PAGE) * factor_file.PAGE :]


def _changed_header(data: bytes, dtype: torch.dtype, rng: random.Random) -> bytes:
    text, rest = _head(data)
    about = json.loads(text)
    part = rng.choice((None, "machine", "libraries", "operator"))
    if part is None:
        about = mutate_json(about, rng)
    else:
        about[part] = mutate_json(about[part], rng)
    changed = dump_json(about).encode("utf-8", "surrogatepass")
    begun = (factor_file.MAGIC, factor_file.VERSION, len(changed))
    sum_ = factor_file._sum(factor_file.HEAD.pack(*begun, bytes(factor_file.SUM)), changed)
    head = factor_file.HEAD.pack(*begun, sum_) + changed
    return head + bytes(-len(head) % factor_file.PAGE) + rest


def _layout(data: bytes, dtype: torch.dtype) -> factor_file.Layout:
    asked = stored_ldl._InFile(Path(), _operator(), SHIFT, dtype, None, 4, 8, None, False)
    return asked._layout(SIZES, factor_file.HEAD.size + len(_head(data)[0]))


def _other(number: int, rng: random.Random) -> int:
    return rng.choice((0, 1, number + 1, max(number - 1, 0), number + 4, ORDER, ORDER + 1, 2**31, 2**63, 2**64 - 1))


def _changed_state(data: bytes, dtype: torch.dtype, rng: random.Random) -> bytes:
    """Change one of a state's numbers; what was passed on fits it where it can be read at all."""
    layout, slot = _layout(data, dtype), rng.randrange(2)
    place = layout.state(slot)
    numbers = list(factor_file.STATE.unpack(data[place : place + factor_file.STATE.size])[:-1])
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(numbers))
        numbers[at] = _other(numbers[at], rng)
    row, passed = numbers[2], numbers[4]
    begun = place + factor_file.PAGE
    values = data[begun : begun + 8 * min(passed, ORDER)]
    size = max(ORDER - row, 0) * min(passed, ORDER) * dtype.itemsize
    columns = data[begun + len(values) : begun + len(values) + size]
    bare = factor_file.STATE.pack(*numbers, bytes(factor_file.SUM))[: -factor_file.SUM]
    packed = factor_file.STATE.pack(*numbers, factor_file._sum(bare + bytes(factor_file.SUM), values, columns))
    return data[:place] + packed + data[place + len(packed) :]


def _changed_record(data: bytes, dtype: torch.dtype, rng: random.Random) -> bytes:
    """Change one of an elimination's numbers, or its basis."""
    layout, step = _layout(data, dtype), rng.randrange(6)
    place = layout.records + step * factor_file.RECORD.size
    numbers = list(factor_file.RECORD.unpack(data[place : place + factor_file.RECORD.size])[:-1])
    at = rng.randrange(7)
    numbers[at] = rng.choice((0.0, 1e300, float("nan"), -1.0)) if at > 4 else _other(numbers[at], rng)
    first, last, carried, start, kept = numbers[:5]
    count = min(max(carried + last - first, 0), 2 * ORDER)
    basis = data[layout.basis(step) : layout.basis(step) + 8 * count**2]
    own = slice(8 * min(start, ORDER), 8 * min(start + kept, 2 * ORDER))
    pivots, sums = (data[layout.pivots + 8 * ORDER * k :][: 8 * ORDER][own] for k in range(2))
    bare = factor_file.RECORD.pack(*numbers, bytes(factor_file.SUM))[: -factor_file.SUM]
    packed = factor_file.RECORD.pack(*numbers, factor_file._sum(bare, basis, pivots, sums))
    return data[:place] + packed + data[place + len(packed) :]
