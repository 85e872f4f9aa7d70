"""Bare weights, ``layers.0.weight`` and ``last_layer.weight``: ``SirenNet`` of lucidrains/siren-pytorch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from inrfast.importing.base import Layout, Parts, State, linear_layers, prefix_of, register

FIRST = r"layers\.0\.weight"


def _fits(keys: Collection[str]) -> bool:
    return any(re.fullmatch(r"(?:.+\.)?last_layer\.weight", key) for key in keys)


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    modulated = next((key for key in state if key.startswith("modulator.")), None)
    if modulated is not None:
        raise ValueError(f"it is modulated by a latent code ({modulated}); give the state of its SirenNet alone")
    prefix = prefix_of(state, FIRST)
    if prefix is None:
        raise ValueError("it has no 'layers.0.weight' of a first layer, with any one prefix")
    last = f"{prefix}last_layer."
    named = {key.replace(last, f"{prefix}layers.last.") if key.startswith(last) else key: state[key] for key in state}
    if f"{prefix}layers.last.weight" not in named:
        raise ValueError(f"it lacks {last}weight")
    return linear_layers(named, rf"{re.escape(prefix)}layers\.(\d+|last)\.(weight|bias)")


register(
    Layout(
        "siren_pytorch",
        "lucidrains/siren-pytorch: SirenNet without final activation, also inside SirenWrapper; omega first 30 "
        "(w0_initial), then 1 (w0); keys layers.0.weight and last_layer.weight",
        _fits,
        _read,
        activation="sine",
        omega={"first": 30.0, "hidden": 1.0},
        unsaid=("omega",),
    )
)
