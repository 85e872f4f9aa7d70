"""WIRE, the real Gabor wavelet ``cos(omega u) exp(-(sigma u)^2)`` (Saragadam et al., WIRE, CVPR 2023).

It is the real part of the paper's wavelet ``exp(i omega u - |sigma u|^2)`` for a real pre-activation ``u``. The
authors' networks differ from it: their main one has complex weights, and takes the real part at its very end; the real
layer of their code takes frequency and envelope from two linear maps of the input, ``cos(omega u_1)
exp(-(sigma u_2)^2)``, where here both see the same ``u``.

The first layer may have numbers of its own, as in ``omega={"first": 30.0, "hidden": 10.0}``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.activations import Activation, Numbers, register


def _value(u: Tensor, omega: float, sigma: float) -> Tensor:
    return torch.cos(omega * u) * torch.exp(-((sigma * u) ** 2))


def _slope(u: Tensor, omega: float, sigma: float) -> Tensor:
    inside = omega * torch.sin(omega * u) + 2 * sigma**2 * u * torch.cos(omega * u)
    return -inside * torch.exp(-((sigma * u) ** 2))


def _in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    omega, sigma = numbers
    torch.mul(u, omega, out=value)
    torch.cos(value, out=scratch)
    value.sin_().mul_(omega).addcmul_(u, scratch, value=2 * sigma**2)
    u.mul_(sigma).square_().neg_().exp_()
    scratch.mul_(u)
    u.mul_(value).neg_()
    value.copy_(scratch)


def _value_in_place(u: Tensor, numbers: Numbers, scratch: Tensor) -> Tensor:
    omega, sigma = numbers
    torch.mul(u, sigma, out=scratch).square_().neg_().exp_()
    return u.mul_(omega).cos_().mul_(scratch)


WIRE = register(
    Activation(
        "wire",
        value=_value,
        slope=_slope,
        numbers={"omega": 20.0, "sigma": 10.0},
        in_place=_in_place,
        value_in_place=_value_in_place,
        bound=1.0,
        device="wire",
        native="wire",
    )
)
