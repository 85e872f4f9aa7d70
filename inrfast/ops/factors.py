"""The factor pass: features Z and sensitivities S of every layer of a coordinate MLP, in closed form.

For parameter layer ``l`` with pre-activation ``u_l = Z_{l-1} W_l^T + b_l`` the tangent kernel needs
``Z_{l-1}`` (N x D_in) and ``S_l[n, m, :] = d f_m(x_n) / d u_l(x_n)`` (N x M x D_out), nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.ops.in_place import IN_PLACE


@dataclass(frozen=True)
class BatchStatistics:
    """A batch norm with frozen statistics: ``scale * (u - mean) * inverse_std + shift``, each of shape (D,)."""

    mean: Tensor
    inverse_std: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer: ``weight`` (D_out, D_in), ``bias`` (D_out,) or None, activation and norm.

    ``norm`` is None, ``"sphere"`` or the statistics of a batch norm; it stands before the activation unless
    ``norm_after``.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str
    omega: float
    norm: BatchStatistics | str | None = None
    norm_after: bool = False


@dataclass(frozen=True)
class MLP:
    """A coordinate MLP as plain tensors: hidden layers and the linear head (M, D)."""

    hidden: tuple[HiddenLayer, ...]
    head_weight: Tensor
    head_bias: Tensor | None


@dataclass(frozen=True)
class NormFactors:
    """Factors of a batch norm's own parameters: normalised input (n, D) and sensitivities of its output (n, M, D)."""

    normalised: Tensor
    sensitivities: Tensor


@dataclass(frozen=True)
class MLPFactors:
    """What :func:`mlp_factors` returns, each a tuple over the hidden layers unless said otherwise.

    Attributes
    ----------
    features
        The input of every linear layer with a column of ones, the head's last: ``hidden + 1`` tensors (n, D_in + 1).
    sensitivities
        ``d f / d u_l`` of every hidden layer, (n, M, D_out); the head's is the identity and not stored.
    norms
        Factors of the batch norms, None for layers without one.
    outputs
        The network's values (n, M).
    """

    features: tuple[Tensor, ...]
    sensitivities: tuple[Tensor, ...]
    norms: tuple[NormFactors | None, ...]
    outputs: Tensor


def _sphere(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the projection of the rows on the sphere of radius sqrt(m), and ``sqrt(m) / |z|`` (0 at z = 0)."""
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    zero = norm < torch.finfo(z.dtype).tiny
    factor = (z.shape[-1] ** 0.5 / norm.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)
    return z * factor, factor


def _sphere_backward(gradient: Tensor, projected: Tensor, factor: Tensor) -> Tensor:
    """Apply the (symmetric, not diagonal) Jacobian of the projection: ``factor (g - y (y . g) / m)``."""
    y = projected.unsqueeze(1)
    along = (gradient * y).sum(-1, keepdim=True) / projected.shape[-1]
    return factor.unsqueeze(1) * (gradient - y * along)


class Room:
    """Memory of a pass, used again by the next one: fresh pages cost as much as the pass itself.

    What a pass returns lies in its room and lasts until the next pass in the same room.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uninitialised memory of this shape, and of the dtype and device of ``like``."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            memory = self._memory[name] = like.new_empty(size)
        return memory[:size].view(*shape)


def linear(z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return ``z weight^T + bias`` through one library call."""
    return torch.mm(z, weight.t(), out=out) if bias is None else torch.addmm(bias, z, weight.t(), out=out)


def mlp_factors(mlp: MLP, inputs: Tensor, room: Room | None = None) -> MLPFactors:
    """Return features, sensitivities and norm factors of an MLP at ``inputs`` (n, D_in), in the dtype of the weights.

    One forward and one backward pass, the backward for all M outputs at once: ``4 n P`` FLOP for M = 1. Autograd must
    be off. The result lies in ``room``; None: in memory of its own.
    """
    room = Room() if room is None else room
    n, outputs = len(inputs), len(mlp.head_weight)
    features, gates, norm_states = [_with_ones(inputs, room, "inputs")], [], []
    for index, layer in enumerate(mlp.hidden):
        z, gate, state = _hidden_forward(layer, features[-1][:, :-1], room, index)
        features.append(z)
        gates.append(gate)
        norm_states.append(state)
    values = linear(features[-1][:, :-1], mlp.head_weight, mlp.head_bias)

    sensitivities: list[Tensor] = []
    norms: list[NormFactors | None] = []
    for index in reversed(range(len(mlp.hidden))):
        width = len(mlp.hidden[index].weight)
        gradient = room.take(f"sensitivities {index}", (n, outputs, width), inputs)
        if sensitivities:
            above = sensitivities[-1].reshape(n * outputs, -1)
            torch.mm(above, mlp.hidden[index + 1].weight, out=gradient.view(n * outputs, width))
        else:
            gradient.copy_(mlp.head_weight)
        s, norm = _hidden_backward(mlp.hidden[index], gradient, gates[index], norm_states[index])
        sensitivities.append(s)
        norms.append(norm)
    return MLPFactors(tuple(features), tuple(reversed(sensitivities)), tuple(reversed(norms)), values)


def _with_ones(z: Tensor, room: Room, name: str) -> Tensor:
    """Return ``[z, 1]``."""
    out = room.take(name, (len(z), z.shape[1] + 1), z)
    out[:, :-1] = z
    out[:, -1] = 1
    return out


def _hidden_forward(
    layer: HiddenLayer, z: Tensor, room: Room, index: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Return the layer's output with a column of ones, its activation's derivative, what the norm's backward needs."""
    n, width = len(z), len(layer.weight)
    u = linear(z, layer.weight, layer.bias, out=room.take(f"slope {index}", (n, width), z))
    state = None
    if layer.norm is not None and not layer.norm_after:
        u, state = _norm_forward(layer.norm, u)
        if state[0] is u:  # the norm's backward needs the values that the activation overwrites with its slope
            u = u.clone()
    features = room.take(f"features {index}", (n, width + 1), z)
    features[:, -1] = 1
    values = features[:, :-1]
    IN_PLACE[layer.activation](u, layer.omega, values, room.take("scratch", (n, width), z))
    if layer.norm is not None and layer.norm_after:
        normalised, state = _norm_forward(layer.norm, values)
        values.copy_(normalised)
    return features, u, state


def _norm_forward(norm: BatchStatistics | str, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if isinstance(norm, BatchStatistics):
        normalised = (u - norm.mean) * norm.inverse_std
        return normalised * norm.scale + norm.shift, (normalised, norm.scale * norm.inverse_std)
    projected, factor = _sphere(u)
    return projected, (projected, factor)


def _hidden_backward(
    layer: HiddenLayer, gradient: Tensor, gate: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, NormFactors | None]:
    """Return ``d f / d u`` from ``d f / d z`` (n, M, D) of one hidden layer, and the factors of its batch norm.

    ``gradient`` is overwritten.
    """
    gate = gate.unsqueeze(1)
    if state is None:
        return gradient.mul_(gate), None
    if layer.norm_after:
        gradient, norm = _norm_backward(layer, gradient, state)
        return gradient.mul_(gate), norm
    return _norm_backward(layer, gradient.mul_(gate), state)


def _norm_backward(
    layer: HiddenLayer, gradient: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, NormFactors | None]:
    if isinstance(layer.norm, BatchStatistics):
        normalised, slope = state
        return gradient * slope, NormFactors(normalised, gradient.contiguous())
    return _sphere_backward(gradient, *state), None
