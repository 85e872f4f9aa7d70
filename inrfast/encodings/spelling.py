"""How encodings are written on the command line: ``fourier:256:10``, ``fourier:64:trainable+identity``."""

from __future__ import annotations

import argparse
import inspect
import re
from operator import attrgetter

from inrfast import spelling
from inrfast.encodings.base import ENCODINGS, Encoding
from inrfast.encodings.composed import Compose, Concatenate
from inrfast.errors import nearest

TRAINABLE = ":trainable"

BESIDE, THEN = re.compile(r"\+(?=\D)"), re.compile(",")
"""What joins encodings; a plus before a digit belongs to a number, as in ``1e+3``."""


def spelled(text: str) -> Encoding:
    """Return the encoding that a word of the command line stands for.

    ``name:number:...``, where numbers left out have their defaults, and ``:trainable`` at the end, where the encoding
    has something to train. ``+`` puts encodings side by side, a comma one after the other, which binds
    more tightly.

    Raises
    ------
    argparse.ArgumentTypeError
        An unknown name (with the nearest match), wrong numbers, nothing to train.
    """
    try:
        beside = [_chain(part) for part in BESIDE.split(text)]
        return beside[0] if len(beside) == 1 else Concatenate(*beside)
    except (ValueError, TypeError) as error:
        raise spelling.unread(text, error) from None


def written(encoding: Encoding) -> str | None:
    """Return the word that :func:`spelled` reads as this encoding, or None where no word says all that it is."""
    config = encoding.config()
    text = _written(encoding)
    try:
        return text if text is not None and spelled(text).config() == config else None
    except argparse.ArgumentTypeError:
        return None


def _written(encoding: Encoding) -> str | None:
    """Return the word of what words can say about an encoding."""
    if isinstance(encoding, (Concatenate, Compose)):
        parts = [_written(part) for part in encoding.encodings]  # type: ignore[arg-type]
        known = [part for part in parts if part is not None]
        joint = "+" if isinstance(encoding, Concatenate) else ","
        return joint.join(known) if len(known) == len(parts) else None
    config = encoding.config()
    # Of the entries those that a word has a place for; the comparison in `written` tells of any others.
    numbers = [f"{config.get(name, usual)}" for name, usual in encoding.numbers.items()]
    trainable = [TRAINABLE.removeprefix(":")] if config.get("trainable") else []
    return ":".join([encoding.spelling, *numbers, *trainable]) if encoding.spelling else None


def names() -> tuple[str, ...]:
    """Return the names of all encodings that have one on the command line."""
    return tuple(_known())


def spellings() -> str:
    """Return all encodings as they are written, for the help of a command."""
    return spelling.spellings(_known(), attrgetter("numbers"))


def _known() -> dict[str, type[Encoding]]:
    return {kind.spelling: kind for kind in ENCODINGS.values() if kind.spelling}


def _chain(text: str) -> Encoding:
    parts = [_one(part) for part in THEN.split(text)]
    return parts[0] if len(parts) == 1 else Compose(*parts)


def _one(text: str) -> Encoding:
    trainable = text.endswith(TRAINABLE)
    try:
        name, numbers = spelling.named("encoding", _known(), lambda kind: kind.numbers)(text.removesuffix(TRAINABLE))
    except argparse.ArgumentTypeError as error:
        hint = nearest(text.rpartition(":")[2], [TRAINABLE.removeprefix(":")]) if ":" in text else ""
        raise argparse.ArgumentTypeError(f"{error}{hint and '.'}{hint}") from None
    kind = _known()[name]
    if not trainable:
        return kind(**numbers)
    if "trainable" not in inspect.signature(kind).parameters:
        raise ValueError(f"{name} has nothing to choose whether it is trained")
    return kind(**numbers, trainable=True)
