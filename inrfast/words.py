"""Messages: one printable line of bounded length, whatever was typed, named or found in a file."""

from __future__ import annotations

import re

MOST, MOST_WORD = 300, 150
"""Characters of a message on one line, and of one word in it: a path, or what was typed."""


def one_line(what: object, most: int = MOST) -> str:
    """Return a message as one printable line of at most ``most`` characters; what is cut is cut in the middle."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(what).strip())
    line = re.sub(rf"\S{{{MOST_WORD + 1},}}", lambda word: shortened(word[0], MOST_WORD), line)
    return shortened(line, most)


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, cut in the middle."""
    if len(text) <= most:
        return text
    tail = (most - 3) // 2
    return f"{text[: most - 3 - tail]}...{text[-tail:]}"
