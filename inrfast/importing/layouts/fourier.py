"""Fourier features, frequencies in a buffer ``B`` before numbered linear layers (Tancik et al., NeurIPS 2020)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from inrfast.encodings import RandomFourier
from inrfast.errors import check_choice, check_flag
from inrfast.importing.base import Layout, Parts, State, register
from inrfast.importing.layouts.sequential import read_numbered

NAMES = ("B", "b", "_B")
"""What the frequencies are called: ``b`` in jmclong/random-fourier-features-pytorch."""

ORDERS = ("sin_cos", "cos_sin")


def _frequencies(keys: Collection[str]) -> list[str]:
    return [key for key in keys if key.rpartition(".")[2] in NAMES]


def _fits(keys: Collection[str]) -> bool:
    return len(_frequencies(keys)) == 1


def _read(state: State, options: Mapping[str, Any]) -> Parts:
    order = check_choice("order", options["order"], ORDERS)
    two_pi = check_flag("two_pi", options["two_pi"])
    found = _frequencies(state)
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} tensors called B (or b), and this layout has one")
    frequencies = state[found[0]]
    parts = read_numbered({key: tensor for key, tensor in state.items() if key != found[0]})
    first = parts.weights[0]
    n, odd = divmod(first.shape[1], 2)
    if frequencies.ndim != 2 or odd or n not in frequencies.shape:
        raise ValueError(
            f"{found[0]} of shape {tuple(frequencies.shape)} does not make the {first.shape[1]} columns that the first "
            "layer takes, a sine and a cosine of every frequency"
        )
    transposed = options["transposed"]
    if transposed is None and frequencies.shape == (n, n):
        raise ValueError(
            f"{found[0]} is {n} x {n}, as many frequencies as coordinates: give transposed=False if its rows are the "
            "frequencies (x @ B.T), True if its columns are (x @ B)"
        )
    turned = frequencies.shape[0] != n if transposed is None else check_flag("transposed", transposed)
    rows = frequencies.mT if turned else frequencies
    if len(rows) != n:
        raise ValueError(f"transposed={turned} does not fit {found[0]} of shape {tuple(frequencies.shape)}, n = {n}")
    if order == "sin_cos":  # those of RandomFourier are cosines, then sines
        first = torch.cat([first[:, n:], first[:, :n]], dim=1)
    rows = rows.double() if two_pi else rows.double() / (2 * math.pi)
    return Parts([first, *parts.weights[1:]], parts.biases, rows.shape[1], RandomFourier(frequencies=rows))


register(
    Layout(
        "fourier",
        "frequencies B, (n, d) or (d, n), in a buffer and an MLP of 2 n columns; keys B and net.0.weight, with any "
        "prefixes. order: 'sin_cos' as in tancik/fourier-feature-networks, or 'cos_sin' as in "
        "jmclong/random-fourier-features-pytorch; two_pi: whether B counts cycles, sin(2 pi B x), or not, sin(B x)",
        _fits,
        _read,
        activation="relu",
        options={"order": "sin_cos", "two_pi": True, "transposed": None},
        unsaid=("activation", "omega", "order", "two_pi"),
    )
)
