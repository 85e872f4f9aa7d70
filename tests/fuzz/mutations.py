"""Changes to bytes, texts and JSON values, all drawn from one generator: what damage, malice and other writers make."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

EXTREMES = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
"""Numbers at which sizes, counts and offsets go wrong."""

TOKENS = ("", "0", "-1", "1", "nan", "inf", "-inf", "1e400", "1e-400", "0x10", "1_0", "1,5", "2147483648", "4294967295")
TOKENS += (
    "9223372036854775808",
    "9" * 5000,
    "1/2/3",
    "1//",
    "-0",
    "é",
    "\ufeff",
    "#",
    "\\",
    "\x00",
    "٣",
    "f",
    "v",
    "end",
)
"""Words that a text format may not expect where they come."""

NESTED = "nested beyond all measure"
"""Stands for lists within lists, which Python's own functions on trees could not go through."""

HEADER = 96
"""Bytes at the start of a file, most of which are numbers that the rest depends on."""

Mutation = Callable[[bytes, bytes, random.Random], bytes]
"""From the bytes of a file, those of another one of its format, and a generator to the bytes of a mutated file."""


# ---- bytes -------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return ``data`` after one to three changes of bytes or blocks."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(BYTE_CHANGES)(data, other, rng) if data else other
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """Return a place in the file, in half of the cases in its header, in some at its very end."""
    reach = rng.choice((HEADER, HEADER, len(data), len(data), len(data), -HEADER))
    if reach < 0:
        return rng.randrange(max(0, len(data) + reach), len(data))
    return rng.randrange(min(reach, len(data)))


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, max(1, len(data) // 3))))


def _flip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _set(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def _cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = rng.choice((_place(data, rng), len(data)))
    new = rng.choice((b"\0", b"\n", b" ", b"0", rng.randbytes(rng.randrange(1, 40)), b"\0" * 512, b"\xef\xbb\xbf"))
    return data[:at] + new + data[at:]


def _delete(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start, stop = _block(data, rng)
    return data[:start] + data[stop:]


def _duplicate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start, stop = _block(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 50)) + data[stop:]


def _swap(data: bytes, other: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_block(data, rng), _block(data, rng)))
    b = min(b, c)
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    if not other:
        return data
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _number(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, width, order = _place(data, rng), rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice(EXTREMES) % 2 ** (8 * width)
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def _step(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Add a little to a number: sizes and counts that are nearly right."""
    at, width, order = _place(data, rng), rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    value = int.from_bytes(data[at : at + width], order) + rng.choice((-2, -1, 1, 2, 16))
    return data[:at] + (value % 2 ** (8 * width)).to_bytes(width, order) + data[at + width :]


def _float(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, value = _place(data, rng), rng.choice((float("nan"), float("inf"), -1e38, 1e-45))
    new = struct.pack(rng.choice(("<f", ">f", "<d", ">d")), value)
    return data[:at] + new + data[at + len(new) :]


BYTE_CHANGES = (_flip, _set, _cut, _insert, _delete, _duplicate, _swap, _splice, _number, _number, _step, _float)


# ---- texts -------------------------------------------------------------------------------------------------------


def mutate_text(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return the text of a file after one to three changes of its words, lines or line ends."""
    text = data.decode("latin-1")
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = rng.choice(TEXT_CHANGES)(text, rng)
    return text.encode("utf-8" if any(ord(sign) > 255 for sign in text) else "latin-1")


def _words(text: str, rng: random.Random) -> str:
    """Change, drop, double or swap words."""
    parts = re.split(r"(\s+)", text)
    at, to = rng.randrange(len(parts)), rng.randrange(len(parts))
    change = rng.randrange(5)
    if change == 0:
        parts[at] = rng.choice(TOKENS)
    elif change == 1:
        parts[at] = ""
    elif change == 2:
        parts[at] = f"{parts[at]} {parts[at]}"
    elif change == 3:
        parts[at], parts[to] = parts[to], parts[at]
    else:
        parts[at] = rng.choice((parts[at].upper(), parts[at].lower(), parts[at] + "x", "-" + parts[at], parts[at][:-1]))
    return "".join(parts)


def _lines(text: str, rng: random.Random) -> str:
    """Drop, double, swap, cut or add lines."""
    lines = text.split("\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.randrange(6)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(to, lines[at])
    elif change == 2:
        lines[at], lines[to] = lines[to], lines[at]
    elif change == 3:
        lines = lines[: at + 1]
    elif change == 4:
        lines.insert(at, rng.choice(("", "# a comment", " ", "\t", "comment", "é", " ".join(rng.choices(TOKENS, k=4)))))
    else:
        lines[at] = rng.choice(("  ", "\t")) + lines[at] + rng.choice(("  # why", " ", "\\", " 0"))
    return "\n".join(lines)


def _line_ends(text: str, rng: random.Random) -> str:
    return text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", " \n", "\x0b\n", "\x85")))


def _spaces(text: str, rng: random.Random) -> str:
    return text.replace(" ", rng.choice(("\t", "  ", "\xa0", " \t")))


def _mark(text: str, rng: random.Random) -> str:
    return rng.choice(("\ufeff", "ï»¿", "\n", "# ")) + text


def _end(text: str, rng: random.Random) -> str:
    """End early, in the middle of a word too."""
    return text[: rng.randrange(len(text))] if text else text


TEXT_CHANGES = (_words, _words, _words, _lines, _lines, _lines, _end, _line_ends, _spaces, _mark)


# ---- JSON --------------------------------------------------------------------------------------------------------


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return a copy of a tree of dicts, lists and plain values after one to three changes of its nodes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        value = _changed(copy.deepcopy(value), rng.choice(places), rng)
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


def _changed(tree: Any, path: tuple[Any, ...], rng: random.Random) -> Any:
    if not path:
        return odd_value(tree, rng)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    last, change = path[-1], rng.randrange(6)
    if change == 0:
        del holder[last]
    elif change == 1 and isinstance(holder, list):
        holder.insert(last, copy.deepcopy(rng.choice(holder)))
    elif change == 1:
        holder[rng.choice(("", "new", "__class__", last.upper() if isinstance(last, str) else "1"))] = holder[last]
    elif change == 2:
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[last], holder[other] = holder[other], holder[last]
    else:
        holder[last] = odd_value(holder[last], rng)
    return tree


def odd_value(value: Any, rng: random.Random) -> Any:
    """Return something else in the place of a value: near it, of its type, or of another one."""
    near: list[Any] = [None, True, False, "", {}, [], 0, -1, 1.5, float("nan"), float("inf"), 1e308, *EXTREMES[8:]]
    if isinstance(value, (int, float)):
        near += 2 * [
            value + 1,
            -value,
            value * 10**6,
            str(value),
            [value],
            value / 2 if abs(value) < 2**63 else 0,
            10**400,
        ]
    elif isinstance(value, str):
        near += 2 * [value + "x", value.upper(), value[:-1], "x" * 3000, "\ud800", "a\nb", "../../etc/passwd", [value]]
    elif isinstance(value, list):
        near += 3 * [value[:-1], value + value[-1:], {"0": value}, NESTED, [value]]
    elif isinstance(value, dict):
        near += 3 * [list(value.items()), [value], {**value, "more": 1}, NESTED]
    return rng.choice(near)


def dump_json(value: Any) -> str:
    """Return the JSON of a mutated tree; :data:`NESTED` in it becomes lists deeper than a parser's stack."""
    return json.dumps(value).replace(f'"{NESTED}"', "[" * 3000 + "]" * 3000)
