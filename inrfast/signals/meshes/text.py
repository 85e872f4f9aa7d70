"""Text of mesh files: lines, words and numbers, read as bytes, so that the encoding of names does not matter."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

BLOCK = 2**15
"""Bytes of text that are in words at once: words take several times the memory of the numbers that they become."""


_COMMENT = re.compile(rb"#(?<!\S#)[^\n]*")
"""Behind white space or nothing: within a word, a # is more likely damage than a comment."""


class Rows(NamedTuple):
    """Lines that hold words, in order."""

    numbers: Sequence[int]
    """Of the lines, from 1."""

    words: list[list[bytes]]


def plain_text(content: bytes) -> bytes:
    """Return the text with line ends of one kind and without a byte-order mark.

    Raises
    ------
    ValueError
        It is UTF-16 or UTF-32, or holds zero bytes, vertical tabs or form feeds.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16 or UTF-32; what is read is ASCII, UTF-8 or Latin-1")
    text = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for byte, name in ((b"\0", "zero byte"), (b"\v", "vertical tab"), (b"\f", "form feed")):
        if (place := text.find(byte)) >= 0:
            raise ValueError(f"line {line_at(text, place)} holds a {name}, which no text of meshes does")
    return text


def line_at(content: bytes, offset: int) -> int:
    """Return the number, from 1, of the line at an offset."""
    return content.count(b"\n", 0, offset) + 1


def blocks(content: bytes, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield consecutive pieces of about :data:`BLOCK` bytes that end between lines."""
    stop = len(content) if stop is None else stop
    while start < stop:
        end = content.find(b"\n", min(start + BLOCK, stop), stop) + 1 or stop
        yield content[start:end]
        start = end


def rows_of(content: bytes, comments: bool, number: int = 1) -> Iterator[Rows]:
    """Yield the lines that hold words, a block at a time; with ``comments``, words end at a ``#`` before a word.

    ``number`` is that of the first line.
    """
    for block in blocks(content):
        lines = (without_comments(block) if comments else block).split(b"\n")
        words = list(map(bytes.split, lines))
        if block.endswith(b"\n"):
            words.pop()
        if all(words):
            yield Rows(range(number, number + len(words)), words)
        else:
            yield Rows([i for i, row in enumerate(words, number) if row], [row for row in words if row])
        number += len(words)


def without_comments(text: bytes) -> bytes:
    """Return the text with its comments left out."""
    return _COMMENT.sub(b"", text)


class RowReader:
    """Takes a stated number of lines after the other, those without words left out."""

    def __init__(self, content: bytes, comments: bool, number: int = 1) -> None:
        self._blocks = rows_of(content, comments, number)
        self._rows = Rows([], [])
        self._taken = 0  # of these

    def take(self, count: int, what: str) -> Iterator[Rows]:
        """Yield ``count`` lines, a block at a time; ``what`` they hold is for the message."""
        missing = count
        while missing:
            if self._taken == len(self._rows.words):
                rows = next(self._blocks, None)
                if rows is None:
                    raise ValueError(f"it states {count} {what} and ends after {count - missing}")
                self._rows, self._taken = rows, 0
                continue
            numbers, words = self._rows
            some = slice(self._taken, min(self._taken + missing, len(words)))
            self._taken = some.stop
            missing -= some.stop - some.start
            yield Rows(numbers[some], words[some])

    def finish(self) -> None:
        """Refuse words that are left."""
        rest = Rows(self._rows.numbers[self._taken :], self._rows.words[self._taken :])
        for numbers, words in chain([rest], self._blocks):
            if words:
                raise ValueError(f"line {numbers[0]} comes after the end that its sizes state: {shown(words[0])}")


def shown(row: Sequence[bytes]) -> str:
    """Return the words of a line for a message, shortened."""
    text = b" ".join(row)
    return repr(text[:40].decode("latin-1")) + ("..." if len(text) > 40 else "")


def open_word(text: bytes, comments: bool) -> bytes | None:
    """Return the last word if the text ends with it, so that it may have been longer, else None."""
    last = text[text.rfind(b"\n") + 1 :]
    if not last[-1:].strip() or (comments and _COMMENT.search(last)):
        return None
    return last.split()[-1]


def check_open_index(text: bytes, comments: bool, largest: int) -> None:
    """Refuse a text that ends with the number of a vertex that may have had more digits."""
    word = open_word(text, comments)
    if word is not None and 0 < 10 * abs(int(word)) <= largest:
        raise ValueError(
            f"its last line has no line end and may have gone on after {shown([word])}, as in a file cut short; end it "
            "with a line end if it is whole"
        )


def check_line_count(text: bytes, stated: int) -> None:
    """Refuse a text that has fewer lines than the elements that it states."""
    if stated > (lines := text.count(b"\n") + 1):
        raise ValueError(f"it states {stated} vertices, faces and others, a line each, and has {lines} lines")


# ---- numbers -----------------------------------------------------------------------------------------------------


def floats(rows: Rows, columns: Sequence[int]) -> np.ndarray:
    """Return columns as numbers, fp64 (rows, columns); all lines must have equally many words."""
    flat, width = list(chain.from_iterable(rows.words)), len(rows.words[0])
    ones = np.ones(len(rows.words), dtype=np.int64)
    return np.stack([_numbers(rows, flat[column::width], ones, to_floats) for column in columns], axis=1)


def check_floats(rows: Rows) -> None:
    """Refuse words that are no numbers."""
    _numbers(rows, list(chain.from_iterable(rows.words)), np.array(list(map(len, rows.words))), to_floats)


def integers(rows: Rows, words: list[bytes], counts: np.ndarray) -> np.ndarray:
    """Return words, that many from each line, as integers, int64."""
    return _numbers(rows, words, counts, _to_integers)


def to_floats(words: list[bytes]) -> np.ndarray:
    """Return words as numbers, fp64; ValueError if they are none."""
    _check_digits(words)
    return np.array(list(map(float, words)), dtype=np.float64)


def is_float(word: bytes) -> bool:
    """Return whether a word is a number."""
    return _converts(word, to_floats)


def _to_integers(words: list[bytes]) -> np.ndarray:
    _check_digits(words)
    return np.array(list(map(int, words)), dtype=np.int64)


def _check_digits(words: list[bytes]) -> None:
    if b"_" in b"".join(words):
        raise ValueError("only Python's numbers have underscores")


def _numbers(
    rows: Rows, words: list[bytes], counts: np.ndarray, convert: Callable[[list[bytes]], np.ndarray]
) -> np.ndarray:
    try:
        return convert(words)
    except (ValueError, OverflowError):
        kind = "number" if convert is to_floats else "whole number"
        place = next(place for place, word in enumerate(words) if not _converts(word, convert))
        line = rows.numbers[int(np.searchsorted(counts.cumsum(), place, side="right"))]
        raise ValueError(f"line {line} has {shown([words[place]])} in place of a {kind}") from None


def _converts(word: bytes, convert: Callable[[list[bytes]], np.ndarray]) -> bool:
    try:
        convert([word])
    except (ValueError, OverflowError):
        return False
    return True
