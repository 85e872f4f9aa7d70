"""The Gaussian ``exp(-(omega u)^2)`` (Ramasinghe and Lucey, Beyond periodicity, ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.activations import Activation, Numbers, register


def _slope(u: Tensor, omega: float) -> Tensor:
    return -2 * omega**2 * u * torch.exp(-((omega * u) ** 2))


def _in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    (omega,) = numbers
    torch.mul(u, omega, out=value)
    value.square_().neg_().exp_()
    u.mul_(value).mul_(-2 * omega**2)


GAUSSIAN = register(
    Activation(
        "gaussian",
        value=lambda u, omega: torch.exp(-((omega * u) ** 2)),
        slope=_slope,
        numbers={"omega": 30.0},
        in_place=_in_place,
        value_in_place=lambda u, numbers, scratch: u.mul_(numbers[0]).square_().neg_().exp_(),
        bound=1.0,
        device="gaussian",
        native="gaussian",
    )
)
