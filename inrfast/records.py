"""Results as plain values, for JSON and tables, and in a line: one rule for all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

MOST = 200
"""Characters of a result in a line, at most."""

LISTED = 5
"""Entries of a tuple that are shown one by one, at most."""


class Record:
    """A result, a dataclass, that becomes plain values and whose ``repr`` is one short line.

    Attributes
    ----------
    left_out
        Fields that :meth:`to_dict` leaves out: networks, weights, points and eigenvectors, which have files of their
        own kind.
    """

    left_out: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # or @dataclass makes one that prints all arrays

    def __repr__(self) -> str:
        shown = [f"{own.name}={brief(getattr(self, own.name))}" for own in fields(self) if own.repr]  # type: ignore[arg-type]
        return in_a_line(type(self).__name__, shown)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, but for :attr:`left_out`, as dicts, lists, texts and numbers: what JSON takes.

        Tensors and arrays become nested lists, complex numbers pairs (real, imaginary). A number that is not finite,
        which JSON has not, becomes None.
        """
        return {own.name: plain(getattr(self, own.name)) for own in fields(self) if own.name not in self.left_out}  # type: ignore[arg-type]


def in_a_line(name: str, parts: Iterable[str]) -> str:
    """Return ``name(part, part, ...)``, without those parts that would make it longer than :data:`MOST`."""
    line, room = "", MOST - len(name) - len("(, ...)")
    for part in parts:
        if len(line) + len(part) > room:
            return f"{name}({line}{', ' if line else ''}...)"
        line += f"{', ' if line else ''}{part}"
    return f"{name}({line})"


def brief(value: Any) -> str:
    """Return a value in a few words: arrays, tables and other results by their kind and size."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, bool | None):
        return str(value)
    if isinstance(value, float | complex):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a large number"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    if isinstance(value, Collection):
        return _counted(value)
    return str(_other(value))[:40]


def _counted(value: Collection[Any]) -> str:
    """Return the entries of a short tuple, or their number."""
    if isinstance(value, tuple | list) and len(value) <= LISTED:
        if all(isinstance(own, int | float | str | None) for own in value):
            return f"({', '.join(map(brief, value))}{',' * (len(value) == 1)})"
        texts = [str(own) for own in value if isinstance(own, Record) and type(own).__str__ is not object.__str__]
        if len(texts) == len(value) and all(len(text) <= 20 for text in texts):
            return f"({', '.join(texts)}{',' * (len(value) == 1)})"
    kinds = {type(own).__name__ for own in ([] if isinstance(value, Mapping) else value)}
    return f"<{len(value):,} x {kinds.pop()}>" if len(kinds) == 1 else f"<{len(value):,} entries>"


def plain(value: Any) -> Any:
    """Return a value as :meth:`Record.to_dict` holds it; of functions and other objects their name."""
    if isinstance(value, Record):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {own.name: plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, np.floating | np.complexfloating):  # tolist of a long double would be itself
        return _number(complex(value) if np.iscomplexobj(value) else float(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    return _number(value) if isinstance(value, float | complex) else _other(value)


def _number(value: float | complex) -> Any:
    if isinstance(value, complex):
        return [_number(value.real), _number(value.imag)]
    return float(value) if math.isfinite(value) else None


def _other(value: Any) -> Any:
    if isinstance(value, Collection):
        return [plain(own) for own in value]
    if isinstance(value, torch.dtype | torch.device | PurePath | BaseException):
        return str(value).removeprefix("torch.")
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else type(value).__name__
