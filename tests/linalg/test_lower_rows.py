"""Blocks of rows lie where they were told to, and arrays that cannot hold them are refused."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from inrfast.linalg.lower_rows import LowerRows, array_length, in_array

SHAPES = [(3, 3), (3, 6), (2, 8)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_share_an_array_and_nothing_overlaps(dtype, tmp_path):
    length = array_length(SHAPES, dtype)
    name = str(dtype)[6:]
    mapped = np.memmap(tmp_path / "array", name, "w+", shape=(length + 10,))
    for array in (np.zeros(length, name), np.zeros(length + 1, name)[1:], mapped[10:]):
        rows = in_array(array, SHAPES, dtype, CPU)
        for number in range(len(rows)):
            rows[number].fill_(number + 1)
        assert [rows[number].shape for number in range(3)] == SHAPES
        assert all(bool((rows[number] == number + 1).all()) for number in range(3))
        assert [int((array == number + 1).sum()) for number in range(3)] == [9, 18, 16]
        assert rows.nbytes == 43 * dtype.itemsize == LowerRows(SHAPES, dtype, CPU).nbytes
    mapped.flush()
    assert (tmp_path / "array").stat().st_blocks * 512 >= mapped.nbytes  # no holes


def test_arrays_that_cannot_hold_the_blocks():
    good = np.zeros(array_length(SHAPES, torch.float32), np.float32)
    frozen = good.copy()
    frozen.flags.writeable = False
    crooked = np.zeros(good.nbytes + 1, np.uint8)[1:].view(np.float32)
    for array, error, words in (
        (good[:-1], ValueError, rf"one dimension and {len(good)} entries or more, got shape \({len(good) - 1},\)"),
        (good.astype(np.float64), ValueError, "must have dtype float32, got float64"),
        (good.astype(">f4"), ValueError, "must have dtype float32, got >f4"),
        (good.reshape(1, -1), ValueError, "one dimension"),
        (np.zeros(2 * len(good), np.float32)[::2], ValueError, "contiguous"),
        (frozen, ValueError, "writable"),
        (crooked, ValueError, "aligned"),
        (torch.zeros(len(good)), TypeError, "a path or a one-dimensional NumPy array, got Tensor"),
        (3, TypeError, "got int"),
    ):
        with pytest.raises(error, match=words):
            in_array(array, SHAPES, torch.float32, CPU)


def test_the_map_of_a_file_that_is_gone_is_an_array_like_any_other(tmp_path):
    mapped = np.memmap(tmp_path / "array", np.float32, "w+", shape=(array_length(SHAPES, torch.float32),))
    (tmp_path / "array").unlink()
    in_array(mapped, SHAPES, torch.float32, CPU)[0].fill_(1.0)
    assert mapped.sum() == 9


def test_blocks_whose_memory_others_took_are_refused():
    length = array_length(SHAPES, torch.float64)
    array = np.zeros(2 * length)
    one, other = (in_array(part, SHAPES, torch.float64, CPU) for part in (array[:length], array[length:]))
    both = in_array(array[5 : 5 + length], SHAPES, torch.float64, CPU)
    for rows, taken in ((one, True), (other, True), (both, False)):
        with pytest.raises(ValueError, match="its own array") if taken else nullcontext():
            rows[0].sum()
    for _ in range(3):  # of one that is gone nothing is left
        del both
        both = in_array(array[5 : 5 + length], SHAPES, torch.float64, CPU)
        both[0].sum()
