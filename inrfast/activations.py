"""The activation table: value and derivative of every activation, written once for models, factors and fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.errors import check_choice


@dataclass(frozen=True)
class Activation:
    """One elementwise activation.

    Attributes
    ----------
    name
        Its name in ``INR(activation=...)``.
    value, derivative
        Functions of the pre-activation ``u`` (any shape, floating dtype) and the frequency ``omega``;
        ``derivative`` is with respect to ``u``. Activations without a frequency ignore ``omega``.
    kernel_id
        Its number in the Triton kernels: its place in this table. The native step in ``csrc/`` has numbers of its own.
    """

    name: str
    value: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    kernel_id: int


def _gaussian_derivative(u: Tensor, omega: float) -> Tensor:
    return -2 * omega**2 * u * torch.exp(-((omega * u) ** 2))


def _finer_derivative(u: Tensor, omega: float) -> Tensor:
    # d/du of (|u| + 1) u is 2 |u| + 1 (Liu et al., FINER, CVPR 2024).
    return omega * (2 * u.abs() + 1) * torch.cos(omega * (u.abs() + 1) * u)


def _gelu_derivative(u: Tensor, omega: float) -> Tensor:
    density = torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(u / math.sqrt(2))) + u * density


_TABLE = (
    ("identity", lambda u, omega: u, lambda u, omega: torch.ones_like(u)),
    # The derivative at 0 is 0, as in torch.
    ("relu", lambda u, omega: F.relu(u), lambda u, omega: (u > 0).to(u.dtype)),
    ("sine", lambda u, omega: torch.sin(omega * u), lambda u, omega: omega * torch.cos(omega * u)),
    ("gaussian", lambda u, omega: torch.exp(-((omega * u) ** 2)), _gaussian_derivative),
    ("finer", lambda u, omega: torch.sin(omega * (u.abs() + 1) * u), _finer_derivative),
    ("tanh", lambda u, omega: torch.tanh(u), lambda u, omega: 1 - torch.tanh(u) ** 2),
    ("gelu", lambda u, omega: F.gelu(u), _gelu_derivative),
    # Beyond its threshold torch takes u itself; at its default, 20, that is not yet exact in fp64.
    ("softplus", lambda u, omega: F.softplus(u, threshold=40.0), lambda u, omega: torch.sigmoid(u)),
)

ACTIVATIONS: dict[str, Activation] = {
    name: Activation(name, value, derivative, kernel_id) for kernel_id, (name, value, derivative) in enumerate(_TABLE)
}


def activation(name: str) -> Activation:
    """Return the activation called ``name``; an unknown name raises ``ValueError`` with the nearest match."""
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]
