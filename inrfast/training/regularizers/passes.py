"""Passes of a network over the points of a regulariser: many points in pieces, of which autograd keeps nothing.

A network has the mode that the fit gave it: batch norms in train mode take the statistics of the pass's own points.
Running statistics lag behind the weights, and a gradient that takes them for constants is wrong where a norm undoes
what the weights before it do: 0.003 of a total variation then cost a noisy picture 10 dB, in place of gaining 1 dB.
The pass leaves no trace in them: they are those of the points of the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inrfast.calling import Called, Calling
from inrfast.memory import chunks
from inrfast.mlp import describe
from inrfast.snapshot import twin
from inrfast.training.engines.autograd import kept_bytes

PIECE = 2**14
"""Points of one pass: beyond these, a pass is taken in pieces whose activations are made anew for the gradient."""

NOT_TAKEN = ("shapes cannot be multiplied", "must have the same dtype")
"""Of the words of torch where a matrix meets points that it is not made for."""

FEW = 16
"""Points on which it is measured what autograd keeps of one."""


@contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Run passes that leave the buffers of a network as they were: running statistics, counts, power iterations.

    Copies take their places meanwhile: autograd may keep what a pass has changed.
    """
    own = [(place, name, there) for place in net.modules() for name, there in place._buffers.items()]
    copies = {id(there): there.clone() for _, _, there in own if there is not None}
    try:
        for place, name, there in own:
            place._buffers[name] = there if there is None else copies[id(there)]
        yield
    finally:
        for place, name, there in own:
            place._buffers[name] = there


@contextmanager
def points_taken(otherwise: str) -> Iterator[None]:
    """Say ``otherwise`` where anybody's module does not take the shape or dtype of its points; other errors stay."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in NOT_TAKEN):
            raise
        raise ValueError(f"{otherwise}: {error}") from error


def evaluated(net: nn.Module, calling: Calling, points: Tensor, kept: bool = True) -> Tensor:
    """Return the outputs (n, M) of a network; many points are taken in pieces where each is known to stand alone.

    ``kept`` leaves its buffers as they were.
    """

    def outputs(some: Tensor) -> Tensor:
        with buffers_kept(net) if kept else nullcontext():
            return calling.predicted(net, some)

    if not in_pieces(net, len(points)):
        return outputs(points)
    found = [checkpoint(outputs, points[part], use_reentrant=False) for part in chunks(len(points), PIECE)]
    return torch.cat(found)


def in_pieces(net: nn.Module, count: int) -> bool:
    """Return whether so many points are taken in pieces."""
    mlp = describe(net)
    return count > PIECE and not isinstance(mlp, str) and mlp.pointwise


def evaluated_bytes(net: nn.Module, calling: Calling, points: Tensor) -> int:
    """Return the bytes, about, that autograd keeps of :func:`evaluated`, with the gradients of the largest tensors."""
    few = min(FEW, len(points))
    with buffers_kept(net):  # which may have no twin
        kept = kept_bytes(Called(twin(net), calling), points[:few])
    known = {own.untyped_storage().data_ptr() for own in (*net.parameters(), *net.buffers())}
    sizes = [size for place, size in kept.items() if place not in known]
    row = (sum(sizes) + 2 * max(sizes, default=0)) / few
    at_once = PIECE if in_pieces(net, len(points)) else len(points)
    copies = sum(own.nbytes for own in net.buffers())
    return int(row * at_once) + 2 * len(points) * points.element_size() + copies
