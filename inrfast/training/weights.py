"""Weights that a fit may go back to: the last that gave finite numbers, and the best of each network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.snapshot import twin
from inrfast.training.stack import Stack

PROBE_ROWS = 16
"""Points of the forward pass that shows which buffers change in train mode."""


class Weights:
    """Copies of what a stack holds.

    Parameters
    ----------
    stack
        The networks; their weights as they are now are the first good and the first best ones.
    coords
        Points (..., N, d) of the first network, with the axes that it is called with.
    """

    def __init__(self, stack: Stack, coords: Tensor) -> None:
        self.good = [tensor.clone() for tensor in stack.state]
        self.best = [tensor.clone() for tensor in stack.state]
        self._take(stack, coords)

    def _take(self, stack: Stack, coords: Tensor) -> None:
        self.stack = stack
        self.buffers = _changing_buffers(stack, coords) if len(stack) == 1 else stack.buffers
        self._buffers_before: list[Tensor] | None = None
        # What a step changes; tables of constants and frozen layers would cost a copy each step.
        self.moving = [i for i, name in enumerate(stack.parameters) if name in stack.grads]
        changing = {id(buffer) for buffer in self.buffers}
        every = stack.buffers
        self.moving += [len(stack.parameters) + i for i, buffer in enumerate(every) if id(buffer) in changing]

    def keep(self, stack: Stack, index: Sequence[int], coords: Tensor) -> None:
        """Go on with ``stack``, which holds the networks ``index`` of the one before."""
        # A single network's state has all of its buffers; those that are added here are constants.
        before, names, own = self._buffers_before, self._names(), self.stack.state_names
        for tensors in (self.good, self.best):
            kept = {name: tensor[list(index)] for name, tensor in zip(own, tensors, strict=True)}
            tensors[:] = [
                kept[name] if name in kept else tensor.clone()
                for name, tensor in zip(stack.state_names, stack.state, strict=True)
            ]
        self._take(stack, coords)
        if before is not None:
            kept, rows = dict(zip(names, before, strict=True)), index[0] if len(stack) == 1 else list(index)
            self._buffers_before = [
                kept[name][rows] if name in kept else buffer.clone()
                for name, buffer in zip(self._names(), self.buffers, strict=True)
            ]

    def _names(self) -> list[str]:
        """Return the names of the buffers that steps change."""
        every = {id(buffer): name for name, buffer in zip(self.stack.buffer_names, self.stack.buffers, strict=True)}
        return [every[id(buffer)] for buffer in self.buffers]

    # ---- steps ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a step: its forward pass may change buffers."""
        self._buffers_before = [buffer.clone() for buffer in self.buffers]

    def end(self) -> None:
        """End a step that was taken to its end."""
        self._buffers_before = None

    def undo(self) -> None:
        """Undo what a step that has begun, and not ended, has done to buffers; without one do nothing."""
        if self._buffers_before is not None:
            copy_(self._buffers_before, self.buffers)
        self._buffers_before = None

    @torch.no_grad()
    def mark(self) -> None:
        """Remember what a step changes as the last that gave finite numbers."""
        for i in self.moving:
            self.good[i].copy_(self.stack.state[i])

    @torch.no_grad()
    def go_back(self) -> None:
        """Set all networks to what was last marked."""
        for i in self.moving:
            self.stack.state[i].copy_(self.good[i])

    @torch.no_grad()
    def set_back(self, place: int) -> None:
        """Set one network to what was last marked."""
        for i in self.moving:
            self.stack.state[i][place].copy_(self.good[i][place])

    # ---- the best ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def improve(self, places: Sequence[int]) -> None:
        """Remember the weights of these networks as their best."""
        if len(places) == len(self.stack):
            copy_(self.stack.state, self.best)
        elif places:
            for best, now in zip(self.best, self.stack.state, strict=True):
                best[list(places)] = now[list(places)]

    def best_state(self, place: int) -> dict[str, Tensor]:
        """Return a copy of the best ``state_dict`` of one network."""
        best = {id(tensor): kept[place] for tensor, kept in zip(self.stack.owners(place), self.best, strict=True)}
        own = self.stack.nets[place].state_dict(keep_vars=True)
        return {name: best.get(id(tensor), tensor).detach().clone() for name, tensor in own.items()}


def _changing_buffers(stack: Stack, coords: Tensor) -> list[Tensor]:
    """Return the buffers that a forward pass in train mode changes, or all where that can't be tried on a copy.

    Those of modules are all taken: nobody knows how they are called.
    """
    net = stack.nets[0]
    beside = stack.buffers[len(list(net.buffers())) :]
    own = dict(net.named_buffers())
    probe = twin(net) if own else net
    if probe is net:
        return [*own.values(), *beside]
    try:
        devices = [coords.device] if coords.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            probe.train()(coords[..., :PROBE_ROWS, :].clone())
    except Exception:  # a network may take nothing but its full grid
        return [*own.values(), *beside]
    tried = dict(probe.named_buffers())
    some = [buffer for name, buffer in own.items() if name not in tried or not torch.equal(buffer, tried[name])]
    return [*some, *beside]


@torch.no_grad()
def copy_(source: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Copy tensors into others, one by one."""
    for old, new in zip(into, source, strict=True):
        old.copy_(new)
