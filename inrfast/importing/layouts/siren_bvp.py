"""Blocks of a linear layer and an activation, ``net.net.0.0.weight``: ``SingleBVPNet`` of vsitzmann/siren."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from inrfast.importing.base import Layout, Parts, State, linear_layers, prefix_of, register

FIRST = r"0\.0\.weight"


def _fits(keys: Collection[str]) -> bool:
    prefix = prefix_of(keys, FIRST)
    return prefix is not None and all(re.fullmatch(rf"{re.escape(prefix)}\d+\.0\.(weight|bias)", key) for key in keys)


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    prefix = prefix_of(state, FIRST)
    if prefix is None:
        raise ValueError("it has no '0.0.weight' of a first block, with any one prefix")
    return linear_layers(state, rf"{re.escape(prefix)}(\d+)\.0\.(weight|bias)")


register(
    Layout(
        "siren_bvp",
        "vsitzmann/siren, modules.py: SingleBVPNet and FCBlock with mode='mlp' and a linear last layer; keys "
        "net.net.0.0.weight",
        _fits,
        _read,
        activation="sine",
        omega=30.0,
        unsaid=("activation", "omega"),
    )
)
