"""Messages are one printable line that keeps its beginning and its end."""

from hypothesis import given
from hypothesis import strategies as st

from inrfast.words import MOST, MOST_WORD, one_line


@given(st.text(st.characters(), max_size=800), st.integers(20, 400))
def test_a_message_is_one_printable_line_of_bounded_length(text, most):
    line = one_line(text, most)
    assert len(line) <= most and line.isprintable()
    if text.isprintable() and len(text) <= min(most, MOST_WORD):
        assert line == text.strip()


@given(st.text(st.characters(categories=("L", "N")), min_size=MOST_WORD + 1, max_size=5000))
def test_what_was_typed_at_length_leaves_room_for_what_is_accepted(typed):
    line = one_line(f"--width takes a number, got {typed!r} (see inrfast ntk --help)")
    assert line.startswith("--width takes a number, got ") and line.endswith("(see inrfast ntk --help)")
    assert len(line) <= MOST
