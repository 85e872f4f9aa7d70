"""A factorisation in a file is that in memory, bit by bit, whatever stops it; no other file is taken for one."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inrfast.errors import MemoryBudgetError, NotAvailableError
from inrfast.linalg import block_ldl as elimination
from inrfast.linalg import factor_file, stored_ldl
from inrfast.linalg.block_ldl import BlockLDL, block_ldl
from inrfast.linalg.operators import DenseOperator
from inrfast.ops import gemm

SIZES: dict[str, Any] = {"window": 8, "panel": 16, "progress": False}
SHIFT = 0.5


class Stopped(BaseException):
    """A process that is killed, or a machine."""


def matrix(n: int, seed: int = 0) -> Tensor:
    """Return a symmetric matrix (n, n) with many eigenvalues at the shift, so that directions are passed on."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    values = SHIFT + torch.randn(n, generator=generator, dtype=torch.float64) ** 5
    return (basis * values) @ basis.T


OPERATOR = DenseOperator(matrix(100))


def stored(out: Any, operator: Any = OPERATOR, shift: float = SHIFT, dtype: torch.dtype = torch.float32, **given: Any):
    return stored_ldl.stored_ldl(operator, shift, dtype, out, **{**SIZES, **given})


def in_memory(operator: Any = OPERATOR, shift: float = SHIFT, dtype: torch.dtype = torch.float32) -> BlockLDL:
    return block_ldl(operator, shift, dtype, **SIZES)


def same(one: BlockLDL, other: BlockLDL) -> bool:
    """Return whether two factorisations have the same bits: pivots, and products, which everything else enters."""
    vectors = torch.eye(one.size, dtype=torch.float64)[:, ::7].contiguous()
    return (
        torch.equal(one.pivots, other.pivots)
        and torch.equal(one.product(vectors), other.product(vectors))
        and torch.equal(one.inverse(vectors), other.inverse(vectors))
        and (one.shift, one.delayed, one.rounding()) == (other.shift, other.delayed, other.rounding())
    )


EXPECTED = in_memory()
assert EXPECTED.delayed > 0


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every panel is written, and no disk is waited for."""
    monkeypatch.setattr(stored_ldl, "SAVING", float("inf"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


@given(
    n=st.integers(1, 70),
    window=st.integers(1, 20),
    panels=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shift=st.sampled_from([0.0, SHIFT, -1.0]),
)
def test_files_and_arrays_hold_what_memory_does(n, window, panels, dtype, shift, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "factor"
    operator, given = DenseOperator(matrix(n)), {"window": window, "panel": window * panels, "progress": False}
    expected = block_ldl(operator, shift, dtype, **given)
    for _ in range(2):  # computed, then read
        assert same(stored(path, operator, shift, dtype, **given), expected)
    assert same(stored(path, operator, shift, dtype, window=None, panel=None), expected)  # those of the file
    numbers = np.empty(2 * n * n + 3, dtype=str(dtype)[6:])
    assert same(stored(numbers, operator, shift, dtype, **given), expected)


# ---- what stops a factorisation ----------------------------------------------------------------------------------


class Faults:
    """Stops at one of the calls that write: before it, within it or after it; keeps what was on the disk last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.path, self.calls, self.at, self.how = path, 0, -1, "before"
        self.durable = b""
        self._pwrite = os.pwrite
        monkeypatch.setattr(factor_file.os, "pwrite", self.pwrite)
        monkeypatch.setattr(factor_file.os, "fdatasync", self.sync)

    def _stops(self, how: str) -> bool:
        return self.calls == self.at and self.how == how

    def pwrite(self, descriptor: int, data: Any, place: int) -> int:
        self.calls += 1
        if self._stops("before"):
            raise Stopped
        if self._stops("within"):
            self._pwrite(descriptor, bytes(data)[: len(data) // 2], place)
            raise Stopped
        return self._pwrite(descriptor, data, place)

    def sync(self, descriptor: int) -> None:
        self.calls += 1
        if self._stops("before") or self._stops("within"):
            raise Stopped
        self.durable = self.path.read_bytes()


@pytest.mark.parametrize("how", ["before", "within"])
def test_a_killed_factorisation_goes_on_with_the_same_bits(how, tmp_path, monkeypatch):
    faults = Faults(monkeypatch, tmp_path / "0")
    stored(faults.path)
    count, rng = faults.calls, random.Random(0)
    assert count > 50
    faults.how = how
    for at in [1, 2, 3, *rng.sample(range(4, count - 6), 25), *range(count - 6, count + 1)]:
        faults.path = tmp_path / str(at)
        for then in (at, rng.randrange(1, 40)):  # and killed a second time
            faults.calls, faults.at = 0, then
            with suppress(Stopped):
                stored(faults.path)
        faults.at = -1
        assert same(stored(faults.path), EXPECTED)
        assert same(stored(faults.path), EXPECTED)
        faults.path.unlink()


def test_a_factorisation_goes_on_after_the_machine_lost_what_was_not_on_the_disk(tmp_path, monkeypatch):
    """At any time each page of the file is as it was at the last wait for the disk, or as it is."""
    faults, rng = Faults(monkeypatch, tmp_path / "0"), random.Random(0)
    stored(faults.path)
    count = faults.calls
    for case in range(30):
        faults.path, faults.durable = tmp_path / f"case{case}", b""
        faults.calls, faults.at = 0, rng.randrange(1, count + 1)
        with suppress(Stopped):
            stored(faults.path)
        now = faults.path.read_bytes()
        before = faults.durable or now
        for start in range(0, len(now), 4096):
            page = slice(start, start + 4096)
            if start >= 4096 * 3 and rng.random() < 0.5:
                now = now[:start] + before[page] + now[start + 4096 :]
        faults.path.write_bytes(now)
        faults.at = -1
        assert same(stored(faults.path), EXPECTED)
        faults.path.unlink()
