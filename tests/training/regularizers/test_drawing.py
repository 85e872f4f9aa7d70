"""Parts of the points per step: drawn from seed and step alone, each point equally often; pairs of equal points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.training.regularizers.drawing import check_part, drawn, generator_of, same_points


def test_parts_hang_on_seed_and_step_alone():
    points = torch.arange(40.0).unsqueeze(1)
    part = check_part("rows", 10, 40, "points")

    def rows(seed, step):
        return drawn("rows", points, part, 4, generator_of(seed, step)).squeeze(1).tolist()

    assert rows(1, 5) == rows(1, 5)
    assert rows(1, 5) != rows(1, 6) and rows(1, 5) != rows(2, 5)
    assert len(set(rows(1, 5))) == 10
    torch.manual_seed(3)
    loose = rows(1, None)
    assert rows(1, None) != loose
    torch.manual_seed(3)
    assert rows(1, None) == loose


def test_every_point_is_drawn_equally_often():
    points, part = torch.arange(20.0).unsqueeze(1), 5
    counts = sum(
        torch.bincount(drawn("rows", points, part, 4, generator_of(0, step)).long().squeeze(1), minlength=20)
        for step in range(2000)
    )
    # 2000 draws of 5 of 20: 500 each, standard deviation 19.4; five of them
    assert int((counts - 500).abs().max()) < 97


def test_all_and_defaults():
    points = torch.arange(6.0).unsqueeze(1)
    generator = generator_of(0, 0)
    assert drawn("rows", points, check_part("rows", "all"), 4, generator) is points
    assert drawn("rows", points, check_part("rows", None), 8, generator) is points  # a default takes what there is
    assert len(drawn("rows", points, check_part("rows", None), 4, generator)) == 4
    with pytest.raises(ValueError, match="keys must be at most the 6 training points of a step, got 7"):
        drawn("keys", points, check_part("keys", 7), 4, generator)


@pytest.mark.parametrize(
    ("given_", "error", "match"),
    [
        (0, ValueError, "rows must be at least 1"),
        (41, ValueError, "rows must be at most the number of points 40, got 41"),
        ("some", ValueError, "rows must be a number of points or 'all', got 'some'"),
        (1.5, TypeError, "rows must be"),
        (True, TypeError, "rows must be"),
    ],
)
def test_bad_parts(given_, error, match):
    with pytest.raises(error, match=match):
        check_part("rows", given_, 40, "points")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=12),
)
def test_same_points_are_all_pairs_of_equal_points(rows, keys):
    found = same_points(torch.tensor(rows, dtype=torch.float32), torch.tensor(keys, dtype=torch.float32))
    pairs = list(zip(*(own.tolist() for own in found), strict=True))
    assert sorted(pairs) == [(i, j) for i, a in enumerate(rows) for j, b in enumerate(keys) if a == b]
    assert [i for i, _ in pairs] == sorted(i for i, _ in pairs)
