"""The hyperbolic tangent."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.activations import Activation, Numbers, register, torch_operator

TANH_BACKWARD = torch_operator("tanh_backward", "grad_input")


def _in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    torch.tanh(u, out=value)
    torch.mul(value, value, out=u).neg_().add_(1)


def times_tanh_slope(gradient: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """Write ``gradient (1 - value^2)`` into ``out``, another tensor."""
    if TANH_BACKWARD is None:
        wide = torch.promote_types(value.dtype, torch.float32)
        return out.copy_(value.to(wide).square().neg_().add_(1).mul_(gradient))
    return TANH_BACKWARD(gradient, value, grad_input=out)


TANH = register(
    Activation(
        "tanh",
        value=torch.tanh,
        slope=lambda u: 1 - torch.tanh(u) ** 2,
        in_place=_in_place,
        value_in_place=lambda u, numbers, scratch: u.tanh_(),
        keeps="result",
        times_slope=times_tanh_slope,
        bound=1.0,
        device="tanh",
    )
)
