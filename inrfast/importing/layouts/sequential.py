"""Numbered linear layers, ``0.weight``, ``2.weight``: a plain ``nn.Sequential`` or ``ModuleList``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from inrfast.importing.base import Layout, Parts, State, linear_layers, register

KEY = r"(|.+\.)(\d+)\.(weight|bias)"


def _fits(keys: Collection[str]) -> bool:
    found = [re.fullmatch(KEY, key) for key in keys]
    nested = [match[1] for match in found if match is not None and re.search(r"(^|\.)\d+\.$", match[1])]
    return bool(found) and all(found) and not nested and len({match[1] for match in found if match}) == 1


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    return read_numbered(state)


def read_numbered(state: State) -> Parts:
    """Return the linear layers of a state all of whose keys are numbers behind one prefix."""
    prefixes = sorted({match[1] for key in state if (match := re.fullmatch(KEY, key))})
    if len(prefixes) > 1:
        raise ValueError(f"it has numbered layers behind several prefixes: {', '.join(map(repr, prefixes))}")
    return linear_layers(state, rf"{re.escape(prefixes[0] if prefixes else '')}(\d+)\.(weight|bias)", gaps=True)


register(
    Layout(
        "sequential",
        "a plain torch.nn.Sequential (or ModuleList) of linear layers with one activation between them; keys 0.weight, "
        "2.weight, with any prefix",
        _fits,
        _read,
        activation="relu",
        unsaid=("activation", "omega"),
    )
)
