"""The native rank-expanding initialisation against its Python reference, after comparing their results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inrfast.ops.grid_init import rank_expanding, rank_expanding_reference


@pytest.mark.parametrize("function", [rank_expanding, rank_expanding_reference])
@pytest.mark.benchmark(group="rank_expanding, 256 units, d = 2")
def test_rank_expanding(benchmark: Callable, function: Callable) -> None:
    w, b = benchmark(function, 256, 2)
    expected_w, expected_b = rank_expanding_reference(256, 2)
    assert torch.equal(w, expected_w)
    assert torch.equal(b, expected_b)
