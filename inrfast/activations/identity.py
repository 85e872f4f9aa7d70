"""The identity: a linear layer without an activation."""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.activations import Activation, Numbers, register


def _in_place(u: Tensor, numbers: Numbers, value: Tensor, scratch: Tensor) -> None:
    value.copy_(u)
    u.fill_(1)


IDENTITY = register(
    Activation(
        "identity",
        value=lambda u: u,
        slope=torch.ones_like,
        in_place=_in_place,
        value_in_place=lambda u, numbers, scratch: u,
        keeps="nothing",
        device="identity",
        native="identity",
    )
)
