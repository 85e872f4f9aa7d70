"""Networks of one structure as one: their parameters side by side in one tensor each, for as long as a fit lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Stack:
    """The parameters of B networks of one structure as tensors (B, *shape); the networks' own are views of them.

    One network needs no copy: its stacked tensors are views of its own. Several get their own memory back by
    :meth:`release`.

    Attributes
    ----------
    nets
        The networks, in the order of the first axis.
    parameters
        Stacked parameters by their qualified name; a shared one stands once.
    trainable
        Names of those that are trained.
    grads
        Stacked gradients of the trainable ones.
    state
        Everything that a fit changes: parameters and, of a single network, its buffers.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self.nets = list(nets)
        first = dict(self.nets[0].named_parameters())
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in first.items()}
        self.trainable = [name for name, parameter in first.items() if parameter.requires_grad]
        self.parameters = {name: self._side_by_side(name) for name in first}
        self.grads = {name: torch.zeros_like(self.parameters[name]) for name in self.trainable}
        buffers = self.nets[0].buffers() if len(self.nets) == 1 else ()
        self.state = [*self.parameters.values(), *(buffer.detach().unsqueeze(0) for buffer in buffers)]

    def __len__(self) -> int:
        return len(self.nets)

    @torch.no_grad()
    def _side_by_side(self, name: str) -> Tensor:
        own = [net.get_parameter(name) for net in self.nets]
        if len(own) == 1:
            return own[0].detach().unsqueeze(0)
        stacked = torch.stack([parameter.detach() for parameter in own])
        for parameter, view in zip(own, stacked, strict=True):
            parameter.data = view
        return stacked

    def of(self, parameter: Tensor) -> Tensor:
        """Return the stacked tensor of a parameter of the first network."""
        return self.parameters[self.names[parameter]]

    @torch.no_grad()
    def keep(self, index: Sequence[int]) -> Stack:
        """Return the stack of some of the networks, with their gradients; the others have their own memory again."""
        self.release()
        kept = Stack([self.nets[i] for i in index])
        for name, grad in kept.grads.items():
            grad.copy_(self.grads[name][list(index)])
        return kept

    @torch.no_grad()
    def release(self) -> None:
        """Give every network memory of its own again."""
        if len(self.nets) == 1:
            return
        for net in self.nets:
            for name in self.parameters:
                parameter = net.get_parameter(name)
                parameter.data = parameter.data.clone()


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Give every module its own train or eval mode back at the end."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
