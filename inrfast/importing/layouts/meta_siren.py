"""Meta-learned sine networks, ``siren.siren_layer_1.linear.w``: arrays of the code of INR dictionaries."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from inrfast.errors import check_float
from inrfast.importing.base import Layout, Parts, State, linear_layers, register

FIRST = "siren.siren_layer.linear.w"

KEY = r"siren\.siren_layer(?:_([1-9]\d?))?\.linear\.([wb])"
"""Names of the authors' arrays: the layer, of which the first has no number, and weight or bias."""


def _fits(keys: Collection[str]) -> bool:
    return FIRST in keys


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    shift = check_float("shift", options["shift"])
    parts = linear_layers(state, KEY, turned=True)
    if not parts.biases:
        raise ValueError("it has no biases: w and b of every layer are needed")
    return Parts(parts.weights, [*parts.biases[:-1], parts.biases[-1] + shift], parts.in_features)


register(
    Layout(
        "meta_siren",
        "Yuce et al., A structured dictionary perspective on implicit neural representations, CVPR 2022, in JAX: w is "
        "(in, out), omega 30 in every layer, and 0.5 is added to the output, here to the last bias (shift=0 leaves it "
        "out); keys siren.siren_layer.linear.w, siren.siren_layer_1.linear.w",
        _fits,
        _read,
        activation="sine",
        omega=30.0,
        options={"shift": 0.5},
    )
)
