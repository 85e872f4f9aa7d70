"""The networks of the paper as its code builds them: sine networks and ReLU networks behind a Fourier mapping."""

from __future__ import annotations

import torch

from inrfast.encodings import Encoding
from inrfast.nn import INR

HIDDEN_OMEGA = 30.0
"""Of all sine layers behind the first: the paper varies the first layer's omega alone."""


def siren(
    inputs: int, outputs: int, width: int, hidden_layers: int, omega: float, seed: int,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> INR:  # fmt: skip
    """Return a sine network with ``omega`` in its first layer, biases drawn as the weights are."""
    return INR(
        inputs, outputs, width=width, hidden_layers=hidden_layers, activation="sine",
        omega=[omega] + [HIDDEN_OMEGA] * (hidden_layers - 1), init={"name": "siren", "bias": "uniform"}, seed=seed,
        device=device, dtype=dtype,
    )  # fmt: skip


def ffn(
    inputs: int, outputs: int, width: int, hidden_layers: int, mapping: Encoding, seed: int,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> INR:  # fmt: skip
    """Return a ReLU network behind a mapping, weights from ``N(0, 1/in)``, biases zero."""
    net = INR(inputs, outputs, width=width, hidden_layers=hidden_layers, encoding=mapping, init="kaiming", seed=seed,
              device=device, dtype=dtype)  # fmt: skip
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(0.5**0.5)  # type: ignore[operator]  # He's have the variance 2 / in
    return net
