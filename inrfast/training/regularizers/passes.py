"""Passes of a network over the points of a regulariser: many points in pieces, of which autograd keeps nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from inrfast.calling import Called, Calling
from inrfast.memory import chunks
from inrfast.mlp import describe
from inrfast.snapshot import twin
from inrfast.training.engines.autograd import kept_bytes

PIECE = 2**14
"""Points of one pass: beyond these, a pass is taken in pieces whose activations are made anew for the gradient."""

FEW = 16
"""Points on which it is measured what autograd keeps of one."""


def evaluated(net: nn.Module, calling: Calling, points: Tensor) -> Tensor:
    """Return the outputs (n, M) of a network; many points are taken in pieces where each is known to stand alone."""
    if not in_pieces(net, len(points)):
        return predicted(net, calling, points)
    found = [
        checkpoint(calling.predicted, net, points[part], use_reentrant=False) for part in chunks(len(points), PIECE)
    ]
    return torch.cat(found)


def predicted(net: nn.Module, calling: Calling, points: Tensor) -> Tensor:
    """Return the outputs (n, M) of a network, whose buffers stay as they are.

    Running statistics are those of the points of the fit: points of a regulariser do not count in them.
    """
    buffers = {f"net.{name}": own for name, own in net.named_buffers()}
    if not buffers or (not isinstance(mlp := describe(net), str) and mlp.pointwise):
        return calling.predicted(net, points)
    kept = {name: own.clone() for name, own in buffers.items()}
    found: Tensor = functional_call(Called(net, calling), kept, (points,))
    return found


def in_pieces(net: nn.Module, count: int) -> bool:
    """Return whether so many points are taken in pieces."""
    mlp = describe(net)
    return count > PIECE and not isinstance(mlp, str) and mlp.pointwise


def evaluated_bytes(net: nn.Module, calling: Calling, points: Tensor) -> int:
    """Return the bytes, about, that autograd keeps of :func:`evaluated`, with the gradients of the largest tensors."""
    few = min(FEW, len(points))
    kept = kept_bytes(Called(twin(net), calling), points[:few])
    known = {own.untyped_storage().data_ptr() for own in (*net.parameters(), *net.buffers())}
    sizes = [size for place, size in kept.items() if place not in known]
    row = (sum(sizes) + 2 * max(sizes, default=0)) / few
    at_once = PIECE if in_pieces(net, len(points)) else len(points)
    return int(row * at_once) + 2 * len(points) * points.element_size()
