"""Networks of one structure as one: their parameters side by side in one tensor each, for as long as a fit lasts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Every parameter of a flat stack begins at a multiple of so many numbers."""


class Stack:
    """The parameters of B networks of one structure as tensors (B, *shape); the networks' own are views of them.

    One network needs no copy: its stacked tensors are views of its own, with its own strides. Several, and one that is
    ``flat``, are moved to memory of the stack; :meth:`release` writes their numbers back to where they were.

    Parameters
    ----------
    nets
        The networks.
    flat
        Whether all numbers of a network lie next to each other, as native kernels take them.
    modules
        What is trained beside a single network that is not flat; module i's parameters are called ``modules.i.name``.

    Attributes
    ----------
    nets, modules
        The networks, in the order of the first axis; the modules.
    parameters
        Stacked parameters by their qualified name; a shared one stands once.
    trainable
        Names of those that are trained.
    grads
        Stacked gradients of the trainable ones: with a parameter's own strides, or contiguous if those leave gaps.
    statistics
        Stacked buffers (B, *shape) of plain batch norms by their qualified name: the running statistics.
    state
        Everything that a fit changes, by name in ``state_names``: the parameters, and buffers. Of several networks
        these are the running statistics, their others being constants; of a single one all, and those of the modules.
    flat, flat_grads
        Of a flat stack, (B, Q): all parameters, and gradients of all; each begins at one of the ``places``, a multiple
        of :data:`ALIGNMENT` numbers.
    """

    def __init__(self, nets: Sequence[nn.Module], flat: bool = False, modules: Sequence[nn.Module] = ()) -> None:
        assert not modules or (len(nets) == 1 and not flat)
        self.nets, self.modules = list(nets), list(modules)
        self.names = names_of(self.nets[0], self.modules)
        first = {name: parameter for parameter, name in self.names.items()}
        own = dict(self.nets[0].named_parameters())
        self.beside = {name: parameter for name, parameter in first.items() if name not in own}
        self.trainable = [name for name, parameter in first.items() if parameter.requires_grad]
        self.flat: Tensor | None = None
        self.places: dict[str, int] = {}
        self.lent: list[tuple[Tensor, Tensor]] = []  # tensors that were moved, and the memory that is theirs
        if flat:
            size = 0
            for name, parameter in first.items():
                self.places[name] = size
                size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self.flat = next(iter(first.values())).new_zeros(len(self.nets), size)
            self.flat_grads = torch.zeros_like(self.flat)
        self.parameters = {name: self._side_by_side(name) for name in first}
        self.grads = (
            {name: self.view_of(self.flat_grads, name) for name in self.trainable}
            if flat
            else {name: _gradient_of(self.parameters[name]) for name in self.trainable}
        )
        alone = len(self.nets) == 1
        self.statistics = {name: self._buffers_of(name) for name in statistics_of(self.nets[0])}
        buffers = [buffer.detach().unsqueeze(0) for buffer in self.buffers] if alone else self.buffers
        self.state = [*self.parameters.values(), *buffers]
        names = [name for name, _ in self.nets[0].named_buffers()] if alone else list(self.statistics)
        beside = [f"modules.{i}.{name}" for i, own in enumerate(self.modules) for name, _ in own.named_buffers()]
        self.state_names = [*self.parameters, *names, *beside]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers that a fit may change: all of a single network and of the modules, or the stacked statistics."""
        if len(self.nets) > 1:
            return list(self.statistics.values())
        return [buffer for module in (*self.nets, *self.modules) for buffer in module.buffers()]

    @property
    def buffer_names(self) -> list[str]:
        """Their names, in the same order."""
        return self.state_names[len(self.parameters) :]

    def owner(self, name: str, place: int = 0) -> Tensor:
        """Return the parameter of one network, or of the modules, that has this name."""
        return self.beside[name] if name in self.beside else self.nets[place].get_parameter(name)

    def owners(self, place: int) -> list[Tensor]:
        """Return the tensors of one network, and of the modules, in the order of ``state``."""
        own = self.nets[place]
        buffers = self.buffers if len(self.nets) == 1 else [own.get_buffer(name) for name in self.statistics]
        return [*(self.owner(name, place) for name in self.parameters), *buffers]

    def __len__(self) -> int:
        return len(self.nets)

    @torch.no_grad()
    def _side_by_side(self, name: str) -> Tensor:
        own = [self.owner(name, place) for place in range(len(self.nets))]
        if len(own) == 1 and self.flat is None:
            return own[0].detach().unsqueeze(0)
        stacked = torch.stack([parameter.detach() for parameter in own])
        if self.flat is not None:
            stacked = self.view_of(self.flat, name).copy_(stacked)
        return self._lend(own, stacked)

    @torch.no_grad()
    def _buffers_of(self, name: str) -> Tensor:
        own = [net.get_buffer(name) for net in self.nets]
        return own[0].detach().unsqueeze(0) if len(own) == 1 else self._lend(own, torch.stack(own))

    def _lend(self, own: Sequence[Tensor], stacked: Tensor) -> Tensor:
        """Make the networks' own tensors views of a stacked one, which is returned."""
        for tensor, view in zip(own, stacked, strict=True):
            self.lent.append((tensor, tensor.data))
            tensor.data = view
        return stacked

    def view_of(self, numbers: Tensor, name: str) -> Tensor:
        """Return the part (B, *shape) of numbers (B, Q), laid out as a flat stack is, that belongs to a parameter."""
        shape, place = self.nets[0].get_parameter(name).shape, self.places[name]
        return numbers[:, place : place + shape.numel()].unflatten(1, shape)

    def flat_finite(self) -> bool:
        """Return whether all parameters of a flat stack are finite."""
        assert self.flat is not None
        return bool(self.flat.sum().isfinite())

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Return the norm (B,) of each network's gradient over all its parameters, in fp64."""
        rows = [grad.reshape(len(grad), -1).double() for grad in self.grads.values()]
        return torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt()

    @torch.no_grad()
    def clip_gradients_(self, most: float) -> Tensor:
        """Shorten each network's gradient to this norm where it is longer; return the norms before."""
        norms = self.gradient_norms()
        factors = (most / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        for grad in self.grads.values():
            grad.mul_(factors.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)))
        return norms

    def of(self, parameter: Tensor) -> Tensor:
        """Return the stacked tensor of a parameter of the first network."""
        return self.parameters[self.names[parameter]]

    @torch.no_grad()
    def keep(self, index: Sequence[int]) -> Stack:
        """Return the stack of some of the networks, with their gradients; the others have their own memory again."""
        self.release()
        kept = Stack([self.nets[i] for i in index], self.flat is not None, self.modules)
        for name, grad in kept.grads.items():
            grad.copy_(self.grads[name][list(index)])
        return kept

    @torch.no_grad()
    def release(self) -> None:
        """Give every network its own memory back, with the numbers that it has now; others may be views of it."""
        for tensor, own in self.lent:
            tensor.data = own.copy_(tensor.data)
        self.lent.clear()


def names_of(net: nn.Module, modules: Sequence[nn.Module]) -> dict[Tensor, str]:
    """Return the names of a network's parameters, and of those of modules that are no part of it, each once."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}
    for index, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            names.setdefault(parameter, f"modules.{index}.{name}")
    return names


def statistics_of(net: nn.Module) -> list[str]:
    """Return the qualified names of the buffers of plain batch norms: running statistics, which steps change."""
    norms = [(place, module) for place, module in net.named_modules() if type(module) is nn.BatchNorm1d]
    return [f"{place}.{name}" if place else name for place, module in norms for name, _ in module.named_buffers()]


def _gradient_of(parameter: Tensor) -> Tensor:
    """Return zeros laid out as torch's autograd lays out a parameter's gradient."""
    layout = torch.contiguous_format if has_gaps(parameter) else torch.preserve_format
    return torch.zeros_like(parameter, memory_format=layout)


def has_gaps(tensor: Tensor) -> bool:
    """Return whether a tensor's entries are not one block of memory: then raw loops over it write beside it."""
    return not tensor.is_contiguous() and torch.empty_like(tensor).stride() != tensor.stride()
