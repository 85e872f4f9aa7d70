"""Batch norms as the normed engine sees them: where they stand, what they do in a step, and why some are not taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.mlp import MLP, describe
from inrfast.training.stack import names_of


@dataclass(frozen=True)
class Position:
    """A norm: the index of its hidden layer, whether it stands behind the activation, and its names and numbers."""

    layer: int
    after: bool
    name: str
    eps: float
    momentum: float | None
    weight: str | None
    bias: str | None


@dataclass
class Normed:
    """What one norm does in a step to k networks; all tensors (k, 1, D) in their dtype.

    ``(u - mean) slope + shift`` forward; backward ``factor g + curve (u - mean) + constant``.
    """

    mean: Tensor
    slope: Tensor
    shift: Tensor | None
    inverse_std: Tensor
    curve: Tensor | None = None
    constant: Tensor | None = None


def normalised_(u: Tensor, normed: Normed, out: Tensor) -> Tensor:
    """Write a norm's output at ``u`` into ``out``, which may be the same tensor, and return it."""
    torch.sub(u, normed.mean, out=out)
    return out.mul_(normed.slope) if normed.shift is None else torch.addcmul(normed.shift, out, normed.slope, out=out)


def against_norms(net: nn.Module) -> str | None:
    """Return why batch norms of a network are not taken as they are; None if they are."""
    tensors = [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return "its parameters and statistics have several dtypes or devices"
    if tensors[0].dtype not in (torch.float32, torch.float64):
        return f"batch norms are taken in fp32 and fp64, not {str(tensors[0].dtype).removeprefix('torch.')}"
    modules = [module for _, module in net.named_modules(remove_duplicate=False)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm1d)]
    if not all(norm.training for norm in norms):
        return "some of its batch norms are in eval mode"
    return "one batch norm stands in several layers" if len(set(norms)) < len(norms) else None


def norms_of(net: nn.Module) -> list[Position]:
    """Return the batch norms of a network whose formula is known, the lowest first."""
    mlp, found = describe(net), []
    assert isinstance(mlp, MLP)
    names = names_of(net, [])
    for index, layer in enumerate(mlp.hidden):
        if layer.norm is None:
            continue
        module = net.get_submodule(layer.norm_name)
        assert isinstance(module, nn.BatchNorm1d)
        weight, bias = (None if own is None else names[own] for own in (module.weight, module.bias))
        found.append(Position(index, layer.norm_after, layer.norm_name, module.eps, module.momentum, weight, bias))
    return found
