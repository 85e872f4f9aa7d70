"""Budgets: a refusal comes before anything is allocated and says what is needed."""

from types import SimpleNamespace

import pytest
import torch

from inrfast import memory
from inrfast.errors import MemoryBudgetError
from inrfast.memory import HUGE, available_bytes, budget_bytes, chunks, empty, format_bytes, require


def test_budget_is_what_is_asked_or_half_of_what_is_free():
    assert budget_bytes(123) == 123
    free = available_bytes("cpu")
    assert free > 2**20
    assert budget_bytes(None, torch.device("cpu")) == pytest.approx(free / 2, rel=0.3)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "1GB", True])
def test_bad_budgets_are_refused(bad):
    with pytest.raises((ValueError, TypeError), match="memory_budget"):
        budget_bytes(bad)


def test_chunks_cover_the_range_once():
    for n in (0, 1, 7, 12):
        for size in (1, 3, 20):
            assert [i for part in chunks(n, size) for i in range(part.start, part.stop)] == list(range(n))


def test_refusal_names_bytes_and_the_way_out():
    require(10, 10, "it", "never said")
    with pytest.raises(MemoryBudgetError, match=r"the kernel needs 2 KiB \(2048 bytes\).*use less") as caught:
        require(2048, 1024, "the kernel", "use less")
    assert isinstance(caught.value, MemoryError)
    assert format_bytes(3 * 2**40) == "3 TiB"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 3, HUGE // 4 // 5 + 1])
def test_empty_is_an_ordinary_contiguous_tensor_of_its_own(rows, dtype):
    one, other = empty((rows, 5), dtype), empty((rows, 5), dtype, torch.device("cpu"))
    assert one.shape == (rows, 5) and one.dtype == dtype and one.is_contiguous()
    assert one.data_ptr() % 64 == 0
    one.fill_(1)
    other.fill_(2)
    assert (one == 1).all() and (other == 2).all()


def test_freed_memory_is_given_back_where_the_c_library_can(monkeypatch):
    memory.trim()
    asked: list[int] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    memory.trim()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())  # of another system
    memory.trim()
    assert asked == ([0] if memory.os.name == "posix" else [])
