"""Results as plain values, for JSON and tables: one rule for all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


class Record:
    """A result, a dataclass, that becomes plain values.

    Attributes
    ----------
    left_out
        Fields that :meth:`to_dict` leaves out: networks, weights, points and eigenvectors, which have files of their
        own kind.
    """

    left_out: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, but for :attr:`left_out`, as dicts, lists, texts and numbers: what JSON takes.

        Tensors and arrays become nested lists, complex numbers pairs (real, imaginary). A number that is not finite,
        which JSON has not, becomes None.
        """
        return {own.name: plain(getattr(self, own.name)) for own in fields(self) if own.name not in self.left_out}  # type: ignore[arg-type]


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
