"""Activations without allocation: value and derivative written into buffers that a training step reuses.

A step that allocates its temporaries anew spends much of its time in page faults, on some machines most of it.
The mathematics is that of :mod:`inrfast.activations`; the tests hold the two tables together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

InPlace = Callable[[Tensor, float, Tensor, Tensor], None]
"""``f(u, omega, value, scratch)`` for four tensors of one shape, the frequency a number: afterwards ``value`` holds
``act(u)`` and ``u`` holds ``act'(u)``; what ``scratch`` holds does not matter."""


def _operator(name: str, overload: str) -> Callable[..., Tensor] | None:
    """Return one of torch's own operators, which are no public names, or None where this torch has none such."""
    return getattr(getattr(torch.ops.aten, name, None), overload, None)


RELU_BACKWARD = _operator("threshold_backward", "grad_input")
TANH_BACKWARD = _operator("tanh_backward", "grad_input")
GELU = _operator("gelu_", "default")


def times_relu_slope(gradient: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """Write ``gradient`` where ReLU's ``value`` is above 0, else 0, into ``out``, which may be the gradient itself."""
    if RELU_BACKWARD is None:
        return torch.where(value <= 0, gradient.new_zeros(()), gradient, out=out)
    return RELU_BACKWARD(gradient, value, 0, grad_input=out)


def times_tanh_slope(gradient: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """Write ``gradient (1 - value^2)`` into ``out``, another tensor."""
    if TANH_BACKWARD is None:
        wide = torch.promote_types(value.dtype, torch.float32)
        return out.copy_(value.to(wide).square().neg_().add_(1).mul_(gradient))
    return TANH_BACKWARD(gradient, value, grad_input=out)


def _gelu_value(u: Tensor, omega: float, scratch: Tensor) -> Tensor:
    return u.copy_(F.gelu(u)) if GELU is None else GELU(u)


def _identity(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    value.copy_(u)
    u.fill_(1)


def _relu(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    torch.clamp_min(u, 0, out=value)
    torch.gt(u, 0, out=u)


def _sine(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    u.mul_(omega)
    torch.sin(u, out=value)
    u.cos_().mul_(omega)


def _gaussian(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    torch.mul(u, omega, out=value)
    value.square_().neg_().exp_()
    u.mul_(value).mul_(-2 * omega**2)


def _finer(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    torch.abs(u, out=scratch).add_(1).mul_(u).mul_(omega)
    torch.sin(scratch, out=value)
    u.abs_().mul_(2).add_(1).mul_(scratch.cos_()).mul_(omega)


def _tanh(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    torch.tanh(u, out=value)
    torch.mul(value, value, out=u).neg_().add_(1)


def _gelu(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    # value = u Phi(u), derivative = Phi(u) + u phi(u), with the normal distribution Phi and its density phi.
    torch.mul(u, u, out=scratch).mul_(-0.5).exp_().mul_(u).mul_(1 / math.sqrt(2 * math.pi))
    torch.mul(u, 1 / math.sqrt(2), out=value).erf_().add_(1).mul_(0.5)
    scratch.add_(value)
    value.mul_(u)
    u.copy_(scratch)


def _softplus(u: Tensor, omega: float, value: Tensor, scratch: Tensor) -> None:
    torch.logaddexp(u, u.new_zeros(()), out=value)
    u.sigmoid_()


IN_PLACE: dict[str, InPlace] = {
    "identity": _identity,
    "relu": _relu,
    "sine": _sine,
    "gaussian": _gaussian,
    "finer": _finer,
    "tanh": _tanh,
    "gelu": _gelu,
    "softplus": _softplus,
}


# ---- the value alone ---------------------------------------------------------------------------------------------

ValueInPlace = Callable[[Tensor, float, Tensor], object]
"""``f(u, omega, scratch)``: afterwards ``u`` holds ``act(u)``; what ``scratch`` holds does not matter."""


def _finer_value(u: Tensor, omega: float, scratch: Tensor) -> Tensor:
    return u.mul_(torch.abs(u, out=scratch).add_(1)).mul_(omega).sin_()


VALUE_IN_PLACE: dict[str, ValueInPlace] = {
    "identity": lambda u, omega, scratch: u,
    "relu": lambda u, omega, scratch: u.clamp_min_(0),
    "sine": lambda u, omega, scratch: u.mul_(omega).sin_(),
    "gaussian": lambda u, omega, scratch: u.mul_(omega).square_().neg_().exp_(),
    "finer": _finer_value,
    "tanh": lambda u, omega, scratch: u.tanh_(),
    "gelu": _gelu_value,
    "softplus": lambda u, omega, scratch: torch.logaddexp(u, u.new_zeros(()), out=u),
}
