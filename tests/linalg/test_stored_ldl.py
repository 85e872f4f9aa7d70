"""A factorisation in a file is that in memory, bit by bit, whatever stops it; no other file is taken for one."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
from contextlib import ExitStack, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import inrfast as inr
from inrfast.errors import MemoryBudgetError, NotAvailableError, RangeError
from inrfast.linalg import block_ldl as elimination
from inrfast.linalg import factor_file, stored_ldl
from inrfast.linalg.block_ldl import block_ldl
from inrfast.linalg.ldl_factor import BlockLDL
from inrfast.linalg.operators import DenseOperator
from inrfast.ops import gemm
from inrfast.tangent.kernel_operator import KernelOperator

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


OPERATOR = DenseOperator(matrix(70))


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


def header_length(data: bytes) -> int:
    return factor_file.HEAD.size + factor_file.HEAD.unpack(data[: factor_file.HEAD.size])[2]


@cache
def expected_one() -> BlockLDL:
    """Return what every file of :data:`OPERATOR` holds, with this process's matrix libraries and threads."""
    found = in_memory()
    assert found.delayed > 0
    return found


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
    path, rng = tmp_path_factory.mktemp("files") / "factor", random.Random(n)
    operator, given = DenseOperator(matrix(n)), {"window": window, "panel": window * panels, "progress": False}
    expected = block_ldl(operator, shift, dtype, **given)
    for _ in range(2):  # computed, then read
        assert same(stored(path, operator, shift, dtype, **given), expected)
    assert same(stored(path, operator, shift, dtype, window=None, panel=None), expected)  # those of the file
    numbers = np.empty(n * n + 40 * n + 40, dtype=str(dtype)[6:])[rng.randrange(20) :]
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
    assert count > 40
    faults.how = how
    for at in [1, 2, 3, *rng.sample(range(4, count - 6), 8), *range(count - 6, count + 1)]:
        faults.path = tmp_path / str(at)
        for then in (at, rng.randrange(1, 40)):  # and killed a second time
            faults.calls, faults.at = 0, then
            with suppress(Stopped):
                stored(faults.path)
        faults.at = -1
        assert same(stored(faults.path), expected_one())
        assert same(stored(faults.path), expected_one())
        faults.path.unlink()


def test_a_factorisation_goes_on_after_the_machine_lost_what_was_not_on_the_disk(tmp_path, monkeypatch):
    """At any time each page of the file is as it was at the last wait for the disk, or as it is."""
    faults, rng = Faults(monkeypatch, tmp_path / "0"), random.Random(0)
    stored(faults.path)
    count = faults.calls
    for case in range(16):
        faults.path, faults.durable = tmp_path / f"case{case}", b""
        faults.calls, faults.at = 0, rng.randrange(1, count + 1)
        with suppress(Stopped):
            stored(faults.path)
        now = faults.path.read_bytes()
        before = faults.durable or now[: header_length(now)].ljust(len(now), b"\0")  # the file is made on the disk
        pages = [(now, before)[rng.random() < 0.5][at : at + 4096] for at in range(0, len(now), 4096)]
        faults.path.write_bytes(b"".join(pages))
        faults.at = -1
        assert same(stored(faults.path), expected_one())
        faults.path.unlink()


KILLED = """
import os, random, signal, sys, time, torch
from inrfast.linalg import stored_ldl
from inrfast.linalg.operators import DenseOperator
torch.set_num_threads(1)
stored_ldl.SAVING = float("inf")
rng, kills, last, path = random.Random(0), 0, 0.3, sys.argv[2]
operator = DenseOperator(torch.load(sys.argv[1]))
while True:
    child = os.fork()
    if child == 0:
        found = stored_ldl.stored_ldl(operator, 0.5, torch.float32, path, window=16, panel=32)
        torch.save(found.pivots, path + ".pivots")
        os._exit(0)
    if kills == 4:
        assert os.waitpid(child, 0)[1] == 0
        break
    time.sleep(rng.uniform(0, last))
    if os.waitpid(child, os.WNOHANG)[0]:  # it was through
        last *= 0.7
        os.remove(path)
        continue
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
print(kills)
"""
"""Factors a matrix in children that are killed at random times, again and again; then lets one finish."""


def test_processes_killed_at_any_time_leave_a_file_that_goes_on(tmp_path):
    operator = DenseOperator(matrix(400))
    torch.save(operator.matrix, tmp_path / "matrix")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "matrix"), str(tmp_path / "factor")]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.split() == ["4"]
    again = stored(tmp_path / "factor", operator, window=None, panel=None)
    with ExitStack() as stack, (tmp_path / "factor").open("rb") as file:  # those processes may have measured otherwise
        for name, libraries in factor_file.read_header(file.fileno())[0]["libraries"].items():
            stack.enter_context(gemm.forced(getattr(torch, name), libraries))
        expected = block_ldl(operator, SHIFT, torch.float32, window=16, panel=32, progress=False)
    assert same(again, expected)
    assert torch.equal(torch.load(tmp_path / "factor.pivots"), expected.pivots)
    assert sorted(os.listdir(tmp_path)) == ["factor", "factor.pivots", "matrix"]


def test_an_interrupt_or_a_fault_of_the_disk_loses_nothing(tmp_path, monkeypatch):
    path, calls = tmp_path / "factor", []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) in (4, 9):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if len(calls) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdatasync", failing)
    for error in (OSError, KeyboardInterrupt, OSError):
        with pytest.raises(error) as caught:
            stored(path)
        assert error is not OSError or str(caught.value) == f"cannot write {path}: Input/output error"
    assert same(stored(path), expected_one())


def test_waiting_for_the_disk_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_ldl, "SAVING", 0.03)
    clock, waits = [0.0], []

    class Slow(DenseOperator):
        def blocks_(self, *arguments: Any) -> None:
            clock[0] += 10.0
            super().blocks_(*arguments)

    def wait(descriptor: int) -> None:
        waits.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(stored_ldl.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "fdatasync", wait)
    stored(tmp_path / "factor", Slow(matrix(160)), window=2, panel=2)
    assert 10 < len(waits) / 2 <= 0.03 * clock[0] + 2


# ---- files that are not what they should be ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a finished file and one that was stopped in the middle."""
    path, found = tmp_path_factory.mktemp("files") / "factor", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_ldl, "SAVING", float("inf"))
        stored(path)
        found["finished"] = path.read_bytes()
        path.unlink()
        faults = Faults(patch, path)
        faults.at = 30
        with suppress(Stopped):
            stored(path)
        found["stopped"] = path.read_bytes()
    return found


def accepted(path: Path) -> bool:
    """Return whether a file is taken, which then gives the right bits; what is refused is told in one sentence."""
    found, words = None, ""
    try:
        found = stored(path)
    except ValueError as error:
        words = str(error)
    if found is None:
        assert words.startswith(f"out: {path}")
        assert words.endswith("delete the file or name another one")
        return False
    assert same(found, expected_one())
    return True


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_a_file_with_a_changed_byte_is_refused_or_gives_the_same_bits(kind, files, tmp_path):
    data, rng, refused = files[kind], random.Random(0), 0
    length = header_length(data)
    layout_pages = range(-(-length // 4096) * 4096, len(data))
    places = [*range(factor_file.HEAD.size), *rng.sample(range(length), 40), *rng.sample(layout_pages, 50)]
    for at in places:
        path = tmp_path / str(at)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        taken = accepted(path)
        assert not taken or at >= length
        refused += not taken
        path.unlink()
    assert refused > 60


def test_no_byte_of_a_header_can_change(files, tmp_path):
    data, path = files["finished"], tmp_path / "factor"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for at in range(header_length(data)):
            os.pwrite(file.fileno(), bytes([data[at] ^ 1 << at % 8]), at)
            with pytest.raises(factor_file.DamagedError):
                factor_file.read_header(file.fileno())
            os.pwrite(file.fileno(), data[at : at + 1], at)
        assert factor_file.read_header(file.fileno())[0]["order"] == 70


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_entries_bases_and_pivots_are_all_summed(kind, files, tmp_path):
    """Every part of the file that is read has a sum: what is refused covers pivots, bases, and W up to what is done."""
    data, path = files[kind], tmp_path / "factor"
    path.write_bytes(data)
    with path.open("rb") as file:
        about, header = factor_file.read_header(file.fileno())
        asked = stored_ldl._InFile(path, OPERATOR, SHIFT, torch.float32, None, None, None, None, None)
        layout = asked._layout(about, header)
        found = factor_file.FactorFile(file.fileno(), layout)
        turn = found.turn()
        assert turn is not None
        assert turn.finished == (kind == "finished")
        steps = found.read(turn).steps
    rng = random.Random(0)
    rows, columns = layout.shapes[-1]
    entries = [
        (layout.block(len(layout.shapes) - 1), 4 * columns * r + 4 * rng.randrange(turn.start)) for r in range(rows)
    ]
    bases = [(layout.basis(k), rng.randrange(8 * len(step.basis) ** 2)) for k, step in enumerate(steps)]
    pivots = [(layout.pivots, rng.randrange(8 * turn.start)) for _ in range(5)]
    for begun, at in entries[:-1] + bases + pivots:
        place = begun + at
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not accepted(path)


def test_other_files_are_not_taken_and_stay_as_they_are(files, tmp_path):
    path, data = tmp_path / "factor", files["finished"]
    others = [b"x", b"x" * 5000, data[: len(data) // 2], data[:-1], data + b"x", data[:50], bytes(len(data))]
    for other in others:
        path.write_bytes(other)
        assert not accepted(path)
        assert path.read_bytes() == other
    path.write_bytes(b"")  # nothing is lost with it
    assert accepted(path)


def test_another_factorisation_is_refused_with_what_differs(files, tmp_path):
    other = OPERATOR.matrix.clone()
    other[3, 5] = other[5, 3] = other[3, 5] + 1e-14

    class Unnamed:
        """An operator without an identity, told from others by some entries."""

        def __init__(self, matrix: Tensor) -> None:
            self.own = DenseOperator(matrix)

        def __getattr__(self, name: str) -> Any:
            if name == "identity":
                raise AttributeError
            return getattr(self.own, name)

    for kind, data in files.items():
        path = tmp_path / kind
        path.write_bytes(data)
        for others, words in (
            ({"shift": 0.25}, "shift .now 0.25, in the file 0.5.. To"),
            ({"dtype": torch.float64}, "dtype .now 'float64', in the file 'float32'"),
            ({"operator": DenseOperator(matrix(69))}, "order .now 69, in the file 70"),
            ({"operator": DenseOperator(other)}, "matrix"),
            ({"operator": Unnamed(OPERATOR.matrix * 1.001)}, "matrix .now 'unknown'"),
            ({"delay": 0.01}, "delay"),
            ({"window": 7, "panel": 14}, "window .now 7, in the file 8.*panel"),
        ):
            with pytest.raises(ValueError, match=f"is of another factorisation, with other .*{words}"):
                stored(path, **others)
        assert path.read_bytes() == data
    named, again = tmp_path / "named", Unnamed(OPERATOR.matrix)
    stored(named, again)
    assert same(stored(named, Unnamed(OPERATOR.matrix * (1 + 1e-12))), expected_one())
    with pytest.raises(ValueError, match="other entries of the kernel"):
        stored(named, Unnamed(matrix(70, seed=1)))


# ---- disks, folders, other processes -------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_told_before_the_work_and_leaves_nothing(tmp_path, monkeypatch):
    operator = DenseOperator(matrix(70))
    monkeypatch.setattr(operator, "blocks_", None)
    path = tmp_path / "factor"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*: File too large: it takes .* 20,000 .ulimit -f"):
            stored(path, operator)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        stored(path, operator)
    assert os.listdir(tmp_path) == []
    mapped = np.memmap(tmp_path / "array", np.float32, "w+", shape=(10**5,))
    with pytest.raises(OSError, match=r"no space for all of .*array: No space left"):
        stored(mapped, operator)


def test_numbers_that_are_none_and_budgets_are_refused_before_there_is_a_file(tmp_path):
    broken = DenseOperator(OPERATOR.matrix)
    broken.matrix = broken.matrix / 0
    for others, error, words in (
        ({"operator": broken}, ValueError, "the operator must be finite"),
        ({"shift": float("inf")}, ValueError, "shift must be finite"),
        ({"shift": 1e38}, RangeError, "K - 1e.38 I would hold fp32 numbers near 1.0e.38"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"budget": 1000}, MemoryBudgetError, "the factor of order 70 in fp32"),
    ):
        with pytest.raises(error, match=words):
            stored(tmp_path / "factor", **others)
    assert os.listdir(tmp_path) == []
    with pytest.raises(MemoryBudgetError, match="the factor of order 70 in fp32"):
        stored(np.empty(10**5, np.float32), budget=1000)


def test_names_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, error, words in (
        (".", IsADirectoryError, "it is a folder"),
        ("missing/factor", FileNotFoundError, "the folder .*missing"),
        ("pipe", OSError, "it is a named pipe"),
    ):
        with pytest.raises(error, match=words):
            stored(tmp_path / name)
    with pytest.raises(ValueError, match="out is an empty path"):
        stored("")
    assert sorted(os.listdir(tmp_path)) == ["pipe"]
    assert same(stored(str(tmp_path / "factor")), expected_one())  # a path as text


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_folders_that_are_read_only(tmp_path):
    stored(tmp_path / "factor")
    tmp_path.chmod(0o500)
    assert same(stored(tmp_path / "factor"), expected_one())  # to read it nothing is written
    with pytest.raises(PermissionError, match="cannot write"):
        stored(tmp_path / "other")


def test_a_file_is_written_by_one_at_a_time_and_read_by_many(tmp_path):
    path, seen = tmp_path / "factor", []

    class Twice(DenseOperator):
        def blocks_(self, *arguments: Any) -> None:
            with pytest.raises(BlockingIOError) as caught:
                stored(path)
            seen.append(str(caught.value))
            super().blocks_(*arguments)

    stored(path, Twice(OPERATOR.matrix))
    words = f"cannot write {path}: another factorisation of this process is writing it; give each its own file"
    assert set(seen) == {words}
    one, other = stored(path), stored(path)
    assert same(one, other)
    path.unlink()  # what is open stays
    assert same(one, expected_one())


def test_more_open_factors_than_descriptors_are_told(tmp_path):
    path, kept = tmp_path / "factor", [stored(tmp_path / "factor")]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        with nullcontext() if sys.version_info >= (3, 13) else pytest.raises(OSError, match=r"cannot .*: Too many"):
            for _ in range(60):
                kept.append(stored(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(kept) > 10
    assert same(kept[-1], expected_one())


def test_a_factor_whose_array_holds_another_is_refused(tmp_path):
    array = np.empty(10**4, np.float32)
    one, other = stored(array), stored(array, shift=2 * SHIFT)
    vectors = torch.ones(70, 1, dtype=torch.float64)
    for use in (one.product, one.inverse):
        with pytest.raises(ValueError, match="another factorisation was written to the array"):
            use(vectors)
    assert same(other, in_memory(shift=2 * SHIFT))


def test_matrix_libraries_of_the_file_are_used_and_another_machine_is_told(tmp_path, monkeypatch):
    path, seen = tmp_path / "factor", set()

    class Watching(DenseOperator):
        def blocks_(self, *arguments: Any) -> None:
            seen.update(gemm.choices(torch.float32).values())
            super().blocks_(*arguments)

    library = "torch"
    monkeypatch.setattr(stored_ldl, "_libraries", lambda: {"float32": {"1": library}, "float64": {}})
    faults = Faults(monkeypatch, path)
    faults.at = 30
    with suppress(Stopped):
        stored(path, Watching(OPERATOR.matrix))
    monkeypatch.setattr(stored_ldl, "_machine", lambda: {"processor": "another", "threads": 3, "torch": "1.0"})
    faults.at = -1
    with pytest.warns(RuntimeWarning, match=r"goes on from .*, but not bit by bit: other processor \(now 'another'"):
        stored(path, Watching(OPERATOR.matrix))
    assert seen == {library}


def test_kernels_elsewhere_are_refused(tmp_path):
    class Elsewhere(DenseOperator):
        def __init__(self) -> None:
            super().__init__(OPERATOR.matrix)
            self.device = torch.device("meta")

    class Shared(DenseOperator):
        def __init__(self) -> None:
            super().__init__(OPERATOR.matrix)
            self.partition = type("Part", (), {"whole": False})()

    for operator, words in ((Elsewhere(), "the kernel is on meta"), (Shared(), "all in one process")):
        with pytest.raises(NotAvailableError, match=words):
            stored(tmp_path / "factor", operator)
    assert os.listdir(tmp_path) == []


def test_a_file_larger_than_memory_has_wider_panels_and_a_budget_is_kept(tmp_path, monkeypatch):
    def panel(path: Path) -> Any:
        with path.open("rb") as file:
            return factor_file.read_header(file.fileno())[0]["panel"]

    operator = DenseOperator(matrix(200))
    monkeypatch.setattr(elimination, "PANEL", 16)
    monkeypatch.setattr(elimination, "WINDOW", 8)
    _, rest = elimination.room(200, torch.float64, torch.device("cpu"))
    with pytest.raises(MemoryBudgetError, match=r"order [1-9]\d* fits; in fp32 .precision=.high.") as caught:
        stored(tmp_path / "factor", operator, dtype=torch.float64, window=None, panel=None, budget=rest - 1)
    assert caught.value.needed == rest
    assert "out=" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    for free, name, times in ((2**30, "small", 1), (1000, "large", stored_ldl.WIDER)):
        monkeypatch.setattr(stored_ldl, "available_bytes", lambda free=free: free)
        stored(tmp_path / name, operator, window=None, panel=None, budget=100 * rest)
        assert panel(tmp_path / name) == 16 * times


KERNEL = {"width": 8, "hidden_layers": 2, "activation": "sine", "seed": 0}


def operator_of(net: Any, points: int = 6, **given: Any) -> KernelOperator:
    return KernelOperator(inr.ntk(net, inr.grid((points, points)), precision="highest", **given))


def test_kernels_are_told_apart_by_network_points_outputs_and_parameters(tmp_path):
    path, net = tmp_path / "factor", inr.INR(2, 2, **KERNEL)
    expected = stored(path, operator_of(net))
    assert same(stored(path, operator_of(inr.INR(2, 2, **KERNEL))), expected)
    moved = inr.INR(2, 2, **KERNEL)
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1e-6
    for operator, words in (
        (operator_of(moved), "other parameters. To"),
        (operator_of(inr.INR(2, 2, **{**KERNEL, "activation": "gaussian"})), "activation .now .*gaussian.*sine"),
        (operator_of(inr.INR(2, 2, **KERNEL, omega=20.0)), r"omega .now \[20.0, 20.0\]"),
        (operator_of(inr.INR(2, 2, **KERNEL, encoding=inr.Polynomial(1))), "encoding .now .*in the file None"),
        (operator_of(net, output=0), "output .now 0, in the file 'trace'"),
        (operator_of(net, params=["layers.0"]), "other params. To"),
        (operator_of(net, points=5), "order .now 25, in the file 36"),
    ):
        with pytest.raises(ValueError, match=words):
            stored(path, operator)
    coords = inr.grid((6, 6))
    coords[7] += 1e-7
    other = KernelOperator(inr.ntk(net, coords, precision="highest"))
    with pytest.raises(ValueError, match="other coords"):
        stored(path, other)


class Scaled(torch.nn.Module):
    """A module with a number that is neither a parameter nor in its text."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = torch.nn.Linear(2, 1, dtype=torch.float64), scale
        with torch.no_grad():
            self.inner.weight.fill_(0.5)
            self.inner.bias.fill_(0.25)

    def forward(self, coords: Tensor) -> Tensor:
        return (self.scale * self.inner(coords.double())).sin()


def test_what_a_module_does_not_say_of_itself_is_seen_in_its_entries(tmp_path):
    path = tmp_path / "factor"
    expected = stored(path, operator_of(Scaled(2.0)))
    assert same(stored(path, operator_of(Scaled(2.0))), expected)
    with pytest.raises(ValueError, match="with other entries of the kernel"):
        stored(path, operator_of(Scaled(2.001)))
