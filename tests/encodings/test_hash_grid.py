"""The hash grid against its definition, written out point by point."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_coords

import inrfast as inr
from inrfast.encodings import HashGrid, hash_grid
from inrfast.errors import MemoryBudgetError
from inrfast.testing import check_encoding

PRIMES = (1, 2654435761, 805459861, 3674653429)


def built(grid: HashGrid, d: int, dtype: torch.dtype = torch.float64) -> HashGrid:
    return grid.build(d, torch.Generator().manual_seed(0), torch.device("cpu"), dtype)


def defined(grid: HashGrid, point: list[float], low: float, high: float) -> torch.Tensor:
    """The columns of one point by equations 2 to 4 of the source, in Python's own integers."""
    columns, start = [], 0
    growth = math.exp((math.log(grid.finest) - math.log(grid.coarsest)) / max(grid.levels - 1, 1))
    for level in range(grid.levels):
        cells = math.floor(grid.coarsest * growth**level + 1e-6)
        size = min((cells + 1) ** len(point), grid.table_size)
        places = [min(max((x - low) / (high - low), 0.0), 1.0) * cells for x in point]
        corner = [min(math.floor(place), cells - 1) for place in places]
        total = torch.zeros(grid.features, dtype=torch.float64)
        for sides in itertools.product((0, 1), repeat=len(point)):
            vertex = [a + b for a, b in zip(corner, sides, strict=True)]
            if size == (cells + 1) ** len(point):
                row = 0
                for index in vertex:
                    row = row * (cells + 1) + index
            else:
                row = 0
                for index, prime in zip(vertex, PRIMES, strict=False):
                    row ^= index * prime
                row %= grid.table_size
            weight = math.prod(1 - abs(place - index) for place, index in zip(places, vertex, strict=True))
            total += weight * grid.table[start + row].detach().double()
        columns.append(total)
        start += size
    assert start == len(grid.table)
    return torch.cat(columns)


GRIDS = st.builds(
    HashGrid,
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([2**3, 2**6, 2**24]),
    st.integers(1, 4),
    st.integers(4, 40),
    st.sampled_from([(-1, 1), (-0.5, 0.25)]),
).filter(lambda grid: sum(grid.rows(3)) < 10**6)


@given(GRIDS, st.integers(1, 3), st.integers(0, 1000))
def test_columns_are_those_of_the_definition(grid: HashGrid, d: int, seed: int) -> None:
    """Also outside of the bounds, at corners, on their faces; and ``reads`` says where they come from."""
    own = built(grid, d)
    low, high = grid.bounds
    points = torch.cat([random_coords(5, d, seed).double(), torch.tensor([[low], [high], [0.0]]).expand(3, d)])
    expected = torch.stack([defined(own, point, low, high) for point in points.tolist()])
    torch.testing.assert_close(own(points), expected, rtol=1e-9, atol=1e-13)
    rows, weights = own.reads(points)
    read = (weights.unsqueeze(-1) * own.table[rows]).sum(2).flatten(1)
    torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-13)


@settings(max_examples=8)
@given(st.sampled_from([2**4, 2**10]), st.integers(1, 4))
def test_it_keeps_the_contract(table_size: int, d: int) -> None:
    check_encoding(HashGrid(3, 2, table_size, 2, 7), d)


def test_tables_start_as_in_the_source() -> None:
    grid = built(HashGrid(), 2, torch.float32)
    assert grid.cells[0] == 16
    assert grid.cells[-1] == 512
    assert 0.99e-4 < float(grid.table.detach().abs().max()) <= 1e-4
    assert abs(float(grid.table.detach().mean())) < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HashGrid(0), ValueError, "levels must be at least 1"),
        (lambda: HashGrid(table_size=1000), ValueError, "power of two, got 1000"),
        (lambda: HashGrid(table_size=2**40), ValueError, "table_size must be at most"),
        (lambda: HashGrid(coarsest=16, finest=8), ValueError, "finest must be at least coarsest = 16, got 8"),
        (lambda: HashGrid(bounds=(1, -1)), ValueError, "bounds must have low < high"),
        (lambda: HashGrid(features=2.5), TypeError, "features must be an integer"),
        (lambda: inr.INR(5, 1, encoding=HashGrid()), ValueError, "at most 4 coordinates, got 5"),
        (lambda: inr.INR(3, 1, encoding=HashGrid(64, 64, 2**24, 512, 1024)), MemoryBudgetError, "smaller table_size"),
        (lambda: inr.INR(3, 1, encoding=HashGrid(bounds=[(0, 1), (0, 1)])), ValueError, "3 of them"),
    ],
)
def test_bad_input_is_refused_by_name(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_tables_that_do_not_fit_are_refused_before_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes of all levels: the table, and its draw in fp64."""
    asked: list[int] = []
    monkeypatch.setattr(hash_grid, "require_free", lambda needed, *_: asked.append(needed))
    grid = built(HashGrid(4, 2, 2**10, 4, 64), 3, torch.float32)
    assert asked[0] == grid.table.numel() * (8 + 4)
