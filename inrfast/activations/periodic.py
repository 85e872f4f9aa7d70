"""Periodic activations: SIREN's sine (Sitzmann et al., NeurIPS 2020) and FINER's (Liu et al., CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.activations import Activation, Numbers, register

# ---- sine --------------------------------------------------------------------------------------------------------


def _sine_in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    (omega,) = numbers
    u.mul_(omega)
    torch.sin(u, out=value)
    u.cos_().mul_(omega)


SINE = register(
    Activation(
        "sine",
        value=lambda u, omega: torch.sin(omega * u),
        slope=lambda u, omega: omega * torch.cos(omega * u),
        numbers={"omega": 30.0},
        in_place=_sine_in_place,
        value_in_place=lambda u, numbers, scratch: u.mul_(numbers[0]).sin_(),
        bound=1.0,
        device="sine",
        native="sine",
    )
)


# ---- FINER -------------------------------------------------------------------------------------------------------


def _finer_slope(u: Tensor, omega: float) -> Tensor:
    # d/du of (|u| + 1) u is 2 |u| + 1.
    return omega * (2 * u.abs() + 1) * torch.cos(omega * (u.abs() + 1) * u)


def _finer_in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    (omega,) = numbers
    torch.abs(u, out=scratch).add_(1).mul_(u).mul_(omega)
    torch.sin(scratch, out=value)
    u.abs_().mul_(2).add_(1).mul_(scratch.cos_()).mul_(omega)


def _finer_value_in_place(u: Tensor, numbers: Numbers, scratch: Tensor) -> Tensor:
    return u.mul_(torch.abs(u, out=scratch).add_(1)).mul_(numbers[0]).sin_()


FINER = register(
    Activation(
        "finer",
        value=lambda u, omega: torch.sin(omega * (u.abs() + 1) * u),
        slope=_finer_slope,
        numbers={"omega": 30.0},
        in_place=_finer_in_place,
        value_in_place=_finer_value_in_place,
        bound=1.0,
        device="finer",
        native="finer",
    )
)
