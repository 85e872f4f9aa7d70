"""How values are written on the command line: numbers, sizes, paths, and a name with its numbers (``fourier:256:10``).

Every function takes the text of one word and is a ``type`` for argparse: it raises ``argparse.ArgumentTypeError`` with
what is accepted and what came.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from inrfast.errors import check_choice

Item = TypeVar("Item")

MOST_WHOLE = 2**63 - 1
"""The largest whole number: what 64 bits hold."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def whole(least: int = 1, most: int = MOST_WHOLE) -> Callable[[str], int]:
    """Return a type for whole numbers in a range."""
    upper = f" and at most {most}" if most < MOST_WHOLE else ""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if least <= (found := int(text)) <= most:
                return found
        raise argparse.ArgumentTypeError(f"takes a whole number, at least {least}{upper}, got {text!r}")

    return parse


def number(text: str) -> float:
    """Return a finite number."""
    with suppress(ValueError):
        if math.isfinite(found := float(text)):
            return found
    raise argparse.ArgumentTypeError(f"takes a finite number, got {text!r}")


def share(text: str) -> float:
    """Return a number above 0 and below 1."""
    with suppress(ValueError):
        if 0 < (found := float(text)) < 1:
            return found
    raise argparse.ArgumentTypeError(f"takes numbers above 0 and below 1, such as 1e-4, got {text!r}")


def level(text: str) -> float:
    """Return a finite number above 0."""
    if (found := number(text)) > 0:
        return found
    raise argparse.ArgumentTypeError(f"takes numbers above 0, got {text!r}")


def path(text: str) -> Path:
    """Return a path. An empty word would be the current folder; it is usually a shell variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("takes a path, got ''")
    return Path(text)


def shape(text: str) -> tuple[int, ...]:
    """Return the sizes in ``256x256``; a single size stands for a one-dimensional grid or a square image."""
    sizes: tuple[int, ...] = ()
    with suppress(ValueError):
        sizes = tuple(int(size) for size in text.lower().split("x"))
    if not sizes or not 1 <= min(sizes) <= max(sizes) <= MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"takes sizes of at least 1 joined by x, such as 256x256, got {text!r}")
    return sizes


def size_in_bytes(text: str) -> int:
    """Return the bytes in ``512M`` or ``2G`` (powers of 1024), or in a bare number."""
    count, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = int(float(count) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        found = 0
    if not 1 <= found <= MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"takes bytes above 0, such as 512M or 2G, got {text!r}")
    return found


def named(
    what: str, kinds: Mapping[str, Item], numbers: Callable[[Item], Mapping[str, int | float]]
) -> Callable[[str], tuple[str, dict[str, int | float]]]:
    """Return a type for ``name:number:...``: a thing of a registry, and the numbers that it is made with.

    A number stands in its place, or anywhere with its name: ``wire:20:10`` or ``wire:sigma=10``.

    Parameters
    ----------
    what
        What the name stands for, as an error calls it: ``"encoding"``.
    kinds
        The registry, which is read when the word is parsed.
    numbers
        The numbers that a thing takes and their defaults, in the order of the command line. A whole default takes
        whole numbers.

    Returns
    -------
    The name, and its numbers by their names; those left out have their defaults.
    """

    def parse(text: str) -> tuple[str, dict[str, int | float]]:
        name, given = _given(text, what, kinds, numbers)
        return name, {**numbers(kinds[name]), **given}

    return parse


def _given(
    text: str, what: str, kinds: Mapping[str, Item], numbers: Callable[[Item], Mapping[str, int | float]]
) -> tuple[str, dict[str, int | float]]:
    """Return the name in ``name:number:...``, and those numbers that stand there."""
    name, *words = text.split(":")
    found: dict[str, int | float] = {}
    try:
        usual = numbers(kinds[check_choice(f"the {what}'s name", name, kinds)])
        for index, word in enumerate(words):
            key, equals, value = word.partition("=")
            if not equals and index >= len(usual):
                example = ":".join(map(str, (name, *usual.values())))
                raise ValueError(f"{name} takes {len(usual)} number(s), as in {example}")
            key, value = (key, value) if equals else (tuple(usual)[index], word)
            check_choice(f"a number of {name}", key, usual)
            if key in found:
                raise ValueError(f"{key} is given twice")
            found[key] = _like(f"{key} of {name}", usual[key], value)
    except ValueError as error:
        raise unread(text, error) from None
    return name, found


def unread(text: str, error: Exception) -> argparse.ArgumentTypeError:
    """Return what argparse is told of a word that cannot be read."""
    return argparse.ArgumentTypeError(str(error) if f"got {text!r}" in str(error) else f"in {text!r}, {error}")


def spec(
    what: str,
    kinds: Mapping[str, Item],
    numbers: Callable[[Item], Mapping[str, int | float]],
    check: Callable[[str | dict[str, Any]], object] | None = None,
) -> Callable[[str], str | dict[str, Any]]:
    """Return a type as :func:`named`, for arguments that take a name or a mapping of a name and its numbers.

    ``huber`` alone stays a name, and numbers left out stay so, whose defaults are those of the argument; ``huber:0.1``
    becomes ``{"name": "huber", "delta": 0.1}``. ``check`` raises ``ValueError`` for numbers out of their range.
    """

    def parse(text: str) -> str | dict[str, Any]:
        name, given = _given(text, what, kinds, numbers)
        found: str | dict[str, Any] = {"name": name, **given} if given else name
        try:
            if check is not None:
                check(found)
        except ValueError as error:
            raise unread(text, error) from None
        return found

    return parse


def choice(what: str, kinds: Collection[str]) -> Callable[[str], str]:
    """Return a type for the names of a registry, which is read when the word is parsed."""

    def parse(text: str) -> str:
        try:
            return check_choice(what if what.startswith("-") else f"the {what}'s name", text, kinds)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{what} ")) from None  # argparse names an option

    return parse


def spellings(kinds: Mapping[str, Item], numbers: Callable[[Item], Mapping[str, int | float]]) -> str:
    """Return all things of a registry as they are written, with their defaults, for the help of a command."""
    return ", ".join(":".join([name, *(f"{n:g}" for n in numbers(kind).values())]) for name, kind in kinds.items())


def _like(called: str, default: int | float, text: str) -> int | float:
    """Return the number of a text: a whole one if the default is whole."""
    try:
        return type(default)(text)
    except ValueError:
        what = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{called} takes {what} in place of {text!r}") from None
