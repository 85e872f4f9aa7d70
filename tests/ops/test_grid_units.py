"""Rank-expanding initialisation without the native extension: every bit is that of the native code."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inrfast.errors import NotAvailableError
from inrfast.extension import load_extension
from inrfast.ops import grid_units
from inrfast.ops.grid_init import rank_expanding, rank_expanding_reference


def made(native: str, **request: object) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INRFAST_NATIVE", native)
        return rank_expanding(**request)  # type: ignore[arg-type]


def bits(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Zeros of both signs are different bits, which ``torch.equal`` takes for the same number."""
    return [t.view(torch.int32 if t.dtype == torch.float32 else torch.int64).flatten().tolist() for t in tensors]


def has_extension() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INRFAST_NATIVE", raising=False)
        try:
            load_extension()
        except NotAvailableError:
            return False
        return True


@st.composite
def requests(draw: st.DrawFn) -> dict[str, object]:
    """Arguments over all layouts: a line, grids, sequences; symmetric and other boxes; zeros of both signs."""
    d = draw(st.integers(1, 12) | st.integers(13, 70))
    width = draw(st.integers(1, 12) | st.integers(1, 400) | st.integers(2 ** min(d, 9), 2 ** min(d, 9) + 9))
    low = draw(st.lists(st.sampled_from([-1.0, 0.0, -0.3]) | st.floats(-1e3, 1e3), min_size=d, max_size=d))
    span = draw(st.sampled_from([2.0, 1.0]) | st.floats(1e-3, 1e3))
    eps = draw(st.floats(1e-9, 2 / 600)) if d == 1 else draw(st.sampled_from([0.0, -0.0, 1e-3]) | st.floats(0, 2))
    coords = None
    bounds = [(a, a + span) for a in low]
    if d == 1 and draw(st.booleans()):
        steps = draw(st.lists(st.floats(0.01, 3), min_size=width, max_size=width))
        coords, bounds = torch.tensor(steps, dtype=torch.float64).cumsum(0) - 7, [(-1.0, 1.0)]
    gain = draw(st.sampled_from([1.0, 30.0]) | st.floats(1e-3, 1e3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    found = {"width": width, "in_features": d, "eps": eps, "gain": gain, "bounds": bounds, "coords": coords}
    return found | {"dtype": dtype}


@given(requests())
def test_every_bit_is_that_of_the_native_code_and_of_plain_python(request: dict) -> None:
    ours = bits(made("absent", **request))
    assert ours == bits(rank_expanding_reference(**request))
    if has_extension():
        assert ours == bits(made("auto", **request))


@given(st.integers(1, 40), st.integers(1, 3000), st.integers(2, 20))
def test_blocks_of_any_size_make_the_same_units(d: int, width: int, blocks: int) -> None:
    request = {"width": width, "in_features": d, "bounds": (-0.5, 2), "gain": 1.7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_units, "BLOCK", 1)
        patch.setattr(grid_units, "LEAST", width + 1)
        whole = made("absent", **request)
        patch.setattr(grid_units, "LEAST", width // blocks + 1)
        assert bits(whole) == bits(made("absent", **request))


@pytest.mark.parametrize(("width", "d"), [(2**31 - 1, 30), (10**9 + 7, 5), (2**31 - 1, 2)])
def test_the_last_units_of_the_widest_layers_have_exact_indices(width: int, d: int) -> None:
    """Products of 64 bits at their edge; a whole layer of this width would be too large for a test."""
    p = next(p for p in range(1, width) if p**d >= width)
    k = np.array([0, 1, width // 3, width - 2, width - 1])
    index = [int(i) * p**d // width for i in k]
    expected = [[2 * (i // p**axis % p) + 1 - p for i in index] for axis in reversed(range(d))]
    np.testing.assert_array_equal(grid_units._on_grid(k, width, d, p), expected)


def test_the_steps_are_the_fractions_of_the_roots_of_all_primes() -> None:
    """The largest number of axes that a layer may have, and every smaller one."""
    primes = [n for n in range(2, 200) if all(n % factor for factor in range(2, math.isqrt(n) + 1))]
    roots = [int(math.modf(math.sqrt(prime))[0] * 2**64) for prime in primes]
    most = grid_units._steps(2**14)
    assert most[: len(roots)].tolist() == roots
    for axes in (1, 2, 5, 6, 7, 100, 5000):
        assert grid_units._steps(axes).tolist() == most[:axes].tolist()


def test_a_wide_layer_takes_little_beside_itself() -> None:
    tracemalloc.start()
    try:
        made("absent", width=200_000, in_features=3)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
