"""Rectifiers: ReLU, and its smooth relatives GELU and softplus."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.activations import Activation, Numbers, register, torch_operator

RELU_BACKWARD = torch_operator("threshold_backward", "grad_input")
GELU_IN_PLACE = torch_operator("gelu_", "default")


# ---- ReLU --------------------------------------------------------------------------------------------------------


def _relu_in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    torch.clamp_min(u, 0, out=value)
    torch.gt(u, 0, out=u)


def times_relu_slope(gradient: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """Write ``gradient`` where ReLU's ``value`` is above 0, else 0, into ``out``, which may be the gradient itself."""
    if RELU_BACKWARD is None:
        return torch.where(value <= 0, gradient.new_zeros(()), gradient, out=out)
    return RELU_BACKWARD(gradient, value, 0, grad_input=out)


RELU = register(
    Activation(
        "relu",
        value=F.relu,
        slope=lambda u: (u > 0).to(u.dtype),  # 0 at 0, as in torch
        in_place=_relu_in_place,
        value_in_place=lambda u, numbers, scratch: u.clamp_min_(0),
        keeps="mask",
        times_slope=times_relu_slope,
        device="relu",
        native="relu",
    )
)


# ---- GELU, exact -------------------------------------------------------------------------------------------------


def _gelu_slope(u: Tensor) -> Tensor:
    density = torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(u / math.sqrt(2))) + u * density


def _gelu_in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    # value = u Phi(u), slope = Phi(u) + u phi(u), with the normal distribution Phi and its density phi.
    torch.mul(u, u, out=scratch).mul_(-0.5).exp_().mul_(u).mul_(1 / math.sqrt(2 * math.pi))
    torch.mul(u, 1 / math.sqrt(2), out=value).erf_().add_(1).mul_(0.5)
    scratch.add_(value)
    value.mul_(u)
    u.copy_(scratch)


def _gelu_value_in_place(u: Tensor, numbers: Numbers, scratch: Tensor) -> Tensor:
    return u.copy_(F.gelu(u)) if GELU_IN_PLACE is None else GELU_IN_PLACE(u)


GELU = register(
    Activation(
        "gelu",
        value=F.gelu,
        slope=_gelu_slope,
        in_place=_gelu_in_place,
        value_in_place=_gelu_value_in_place,
        device="gelu",
    )
)


# ---- softplus ----------------------------------------------------------------------------------------------------


def _softplus_in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    torch.logaddexp(u, u.new_zeros(()), out=value)
    u.sigmoid_()


def times_softplus_slope(gradient: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """Write ``gradient (1 - e^-value)`` into ``out``, another tensor."""
    return torch.neg(value, out=out).expm1_().neg_().mul_(gradient)


SOFTPLUS = register(
    Activation(
        "softplus",
        # Beyond its threshold torch takes u itself; at its default, 20, that is not yet exact in fp64.
        value=lambda u: F.softplus(u, threshold=40.0),
        slope=torch.sigmoid,
        in_place=_softplus_in_place,
        value_in_place=lambda u, numbers, scratch: torch.logaddexp(u, u.new_zeros(()), out=u),
        keeps="result",
        times_slope=times_softplus_slope,
        device="softplus",
    )
)
