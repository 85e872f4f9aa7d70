"""Values of the command line: what is written is read back, and what cannot be meant is refused with advice."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrfast.spelling import (
    MOST_WHOLE,
    UNITS,
    choice,
    named,
    number,
    path,
    shape,
    share,
    size_in_bytes,
    spec,
    spellings,
    whole,
)

KINDS = {"plain": {}, "waves": {"count": 8, "sigma": 2.5}}
NAMED = named("thing", KINDS, lambda kind: kind)


@given(st.integers(1, MOST_WHOLE), st.lists(st.integers(1, MOST_WHOLE), min_size=1, max_size=5))
def test_whole_numbers_and_sizes_are_read_back(count, sizes):
    assert whole()(str(count)) == count
    assert shape("x".join(map(str, sizes))) == shape("X".join(map(str, sizes))) == tuple(sizes)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_numbers_are_read_back(value, part):
    assert number(repr(value)) == value
    assert share(repr(part)) == part


@given(st.integers(1, 2**20), st.sampled_from(sorted(UNITS)))
def test_bytes_are_powers_of_1024(count, unit):
    assert size_in_bytes(f"{count}{unit}") == size_in_bytes(f"{count}{unit.lower()}") == count * UNITS[unit]


@given(st.integers(), st.floats(allow_nan=False))
def test_a_name_has_its_numbers_or_their_defaults(count, sigma):
    assert NAMED("plain") == ("plain", {})
    assert NAMED("waves") == ("waves", {"count": 8, "sigma": 2.5})
    assert NAMED(f"waves:{count}") == ("waves", {"count": count, "sigma": 2.5})
    assert NAMED(f"waves:sigma={sigma!r}") == ("waves", {"count": 8, "sigma": sigma})
    assert NAMED(f"waves:{count}:sigma={sigma!r}") == NAMED(f"waves:sigma={sigma!r}:count={count}")
    assert NAMED(f"waves:{count}:{sigma!r}") == ("waves", {"count": count, "sigma": sigma})


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (NAMED, "wavse", "the thing's name .*Did you mean 'waves'"),
        (choice("thing", KINDS), "plan", "Did you mean .plain."),
        (NAMED, "waves:1.5", "a whole number in place of '1.5'"),
        (NAMED, "waves:1:x", "a number in place of 'x'"),
        (NAMED, "waves:1:2:3", "takes 2 number.*as in waves:8:2.5"),
        (NAMED, "plain:1", "takes 0 number"),
        (NAMED, "waves:1:count=2", "count is given twice"),
        (NAMED, "waves:sigma=1:2", "sigma is given twice"),
        (NAMED, "waves:sigma=1:sigma=1", "sigma is given twice"),
        (NAMED, "waves:sigm=1", "a number of waves .*Did you mean 'sigma'"),
        (whole(2, 5), "6", "at least 2 and at most 5"),
        (whole(), "1e3", "whole number"),
        (number, "nan", "finite"),
        (share, "1", "below 1"),
        (shape, "4x0", "at least 1"),
        (size_in_bytes, "1e400G", "512M"),
        (path, "", "path"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind, text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        kind(text)


@given(st.integers())
def test_a_name_alone_leaves_its_numbers_to_the_argument(count):
    assert spec("thing", KINDS, lambda kind: kind)("waves") == "waves"
    assert spec("thing", KINDS, lambda kind: kind)(f"waves:{count}") == {"name": "waves", "count": count}
    assert [NAMED(word)[0] for word in spellings(KINDS, lambda kind: kind).split(", ")] == list(KINDS)
    assert choice("thing", KINDS)("plain") == "plain"


def test_a_choice_is_called_by_its_option_where_it_has_one() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"^must be one of"):
        choice("--as", ["mesh", "sdf"])("sfd")
    with pytest.raises(argparse.ArgumentTypeError, match=r"^the schedule's name must be one of"):
        choice("schedule", ["cosine"])("sine")
