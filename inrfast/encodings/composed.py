"""Encodings made of others: coordinates as they are, encodings side by side, and one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.encodings.base import Encoding, Shape, built, from_config, register
from inrfast.errors import check_entries
from inrfast.memory import counted

MOST_COLUMNS = 2**31
"""Columns that one encoding may hand to the next: of far more, even the number takes long to compute."""


@register
class Identity(Encoding):
    """The coordinates themselves, for a :class:`Concatenate` with encodings that leave them out."""

    spelling = "identity"

    def columns(self, in_features: int) -> int:
        """Return ``d``."""
        return in_features

    def shapes(self, in_features: int) -> dict[str, Shape]:
        """Return none: it holds no numbers."""
        return {}

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Identity:
        """Fix the number of coordinates."""
        found = Identity()
        found.in_features = found.out_features = in_features
        return found

    def forward(self, coords: Tensor) -> Tensor:
        return coords

    def config(self) -> dict[str, Any]:
        return {"name": "Identity"}


class _Composed(Encoding):
    """What both kinds share: a list of encodings, built in their order from one generator."""

    def __init__(self, *encodings: Encoding) -> None:
        super().__init__()
        if not encodings:
            raise ValueError(f"{type(self).__name__} takes at least one encoding, got none")
        for encoding in encodings:
            if not isinstance(encoding, Encoding):
                raise TypeError(f"{type(self).__name__} takes inrfast encodings, got {type(encoding).__name__}")
        self.encodings = nn.ModuleList(encodings)

    def _inlets(self, in_features: int) -> list[int]:
        """Return what enters each encoding, 0 where that is not known."""
        raise NotImplementedError

    @property
    def _parts(self) -> list[Encoding]:
        return list(self.encodings)  # type: ignore[arg-type]

    def shapes(self, in_features: int) -> dict[str, Shape] | None:
        """Return those of all encodings, or None where one does not know its own."""
        found: dict[str, Shape] = {}
        for index, (part, inlet) in enumerate(zip(self._parts, self._inlets(in_features), strict=True)):
            own = part.shapes(inlet) if inlet else None
            if own is None:
                return None
            found |= {f"encodings.{index}.{name}": shape for name, shape in own.items()}
        return found

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Check the numbers of every encoding."""
        for index, part in enumerate(self._parts):
            prefix = f"encodings.{index}."
            part.check_state({name.removeprefix(prefix): own for name, own in state.items() if name.startswith(prefix)})

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "encodings": [part.config() for part in self._parts]}

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Encoding:
        """Return the composition of the encodings that ``encodings`` describes."""
        check_entries("encoding", entries, _Entries)
        if not isinstance(entries["encodings"], list):
            raise TypeError(f"encodings must be a list, got {type(entries['encodings']).__name__}")
        return cls(*(from_config(part) for part in entries["encodings"]))


class _Entries:
    """The entries of a composition's description."""

    def __init__(self, encodings: Any) -> None: ...


@register
class Concatenate(_Composed):
    """Encodings of the same coordinates side by side: ``Concatenate(Identity(), RandomFourier(64, 3.0))``.

    Their columns follow each other in the order given. On the command line they are joined by ``+``:
    ``identity+fourier:64:3``.
    """

    def _inlets(self, in_features: int) -> list[int]:
        return [in_features] * len(self.encodings)

    def columns(self, in_features: int) -> int:
        """Return the columns of all encodings, or 0 where one does not know its own."""
        counts = [part.columns(in_features) for part in self._parts]
        return sum(counts) if all(counts) else 0

    def build(
        self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> Concatenate:
        """Build every encoding for the same coordinates."""
        found = Concatenate(*(built(part, in_features, generator, device, dtype) for part in self._parts))
        found.in_features, found.out_features = in_features, sum(part.out_features for part in found._parts)
        return found

    def forward(self, coords: Tensor) -> Tensor:
        return torch.cat([part(coords) for part in self.encodings], dim=-1)


@register
class Compose(_Composed):
    """Encodings one after the other: ``Compose(a, b)`` maps coordinates ``x`` to ``b(a(x))``.

    On the command line they are joined by a comma: ``fourier:4:1,polynomial:2``.
    """

    def _inlets(self, in_features: int) -> list[int]:
        inlets = [in_features]
        for part in self._parts[:-1]:
            inlets.append(part.columns(inlets[-1]) if inlets[-1] else 0)
            if inlets[-1] > MOST_COLUMNS:
                raise ValueError(f"{type(part).__name__} inside Compose has {counted(inlets[-1])} columns; take fewer")
        return inlets

    def columns(self, in_features: int) -> int:
        """Return the columns of the last encoding, or 0 where they are not known."""
        last = self._inlets(in_features)[-1]
        return self._parts[-1].columns(last) if last else 0

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Compose:
        """Build every encoding for the columns of the one before."""
        parts, inlet = [], in_features
        for part in self._parts:
            parts.append(built(part, inlet, generator, device, dtype))
            inlet = parts[-1].out_features
        found = Compose(*parts)
        found.in_features, found.out_features = in_features, inlet
        return found

    def forward(self, coords: Tensor) -> Tensor:
        columns = coords
        for part in self.encodings:
            columns = part(columns)
        return columns
