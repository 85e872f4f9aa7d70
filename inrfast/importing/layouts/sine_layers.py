"""Layers that hold a ``linear`` each, ``net.0.linear.weight``: SIREN, FINER and Gaussian networks of their authors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from inrfast.importing.base import Layout, Parts, State, linear_layers, prefix_of, register

FIRST = r"0\.linear\.weight"


def _fits(keys: Collection[str]) -> bool:
    return prefix_of(keys, FIRST) is not None


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    prefix = prefix_of(state, FIRST)
    if prefix is None:
        raise ValueError("it has no '0.linear.weight' of a first layer, with any one prefix")
    numbers = [int(found[1]) for key in state if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", key))]
    last = f"{prefix}{max(numbers)}.linear"
    if f"{last}.weight" in state and options["last_linear"] is not True:
        raise ValueError(
            f"its last layer, {last}, is of the kind of the others, and the file does not say whether its activation "
            "is left out: give last_linear=True if it is (an INR ends with a linear layer)"
        )
    return linear_layers(state, rf"{re.escape(prefix)}(\d+)\.(?:linear\.)?(weight|bias)")


for name, source, activation, omega in (
    ("siren", "vsitzmann/siren, explore_siren.ipynb: Siren (Sitzmann et al., NeurIPS 2020)", "sine", 30.0),
    ("finer", "liuzhen0212/FINER: Finer (Liu et al., CVPR 2024)", "finer", 30.0),
    ("gauss", "vishwa91/wire, modules/gauss.py: exp(-(omega u)^2), whose scale is 10 there", "gaussian", 10.0),
):
    register(
        Layout(
            name,
            f"{source}; keys net.0.linear.weight, ..., the last net.N.weight",
            _fits,
            _read,
            activation=activation,
            omega=omega,
            options={"last_linear": None},
            unsaid=("omega",),
        )
    )
