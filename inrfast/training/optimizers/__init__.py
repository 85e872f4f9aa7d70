"""Optimisers of a fit by name: a new one is a file here, or a class that is added from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from inrfast.ops.fused_mlp import Update
from inrfast.registry import Registry
from inrfast.training.schema import check, check_like

if TYPE_CHECKING:
    from inrfast.training.stack import Stack


NUMBERS = "numbers"
"""The entry of a state that holds plain numbers; nothing in :attr:`Optimizer.keeps` is called so."""


class Optimizer:
    """Base of optimisers: updates of one or several networks from their gradients, and a state that can be kept.

    One of its own names what it keeps in the shape of each gradient (:attr:`keeps`) and defines :meth:`step`; that is
    enough for :func:`inrfast.fit`, :func:`inrfast.fit_many` and checkpoints::

        class Momentum(Optimizer):
            keeps = ("velocities",)

            @torch.no_grad()
            def step(self, rates, again):
                for name, grad in self.stack.grads.items():
                    velocity = self.kept["velocities"][name].mul_(0.9).add_(self.decayed(name, grad))
                    self.move(name, velocity, rates)

        OPTIMIZERS.add("momentum", Momentum)

    A checkpoint keeps :attr:`kept` and the ints and floats among its attributes, such as a count, and a resumed fit
    gives them back. Other tensors, lists or flags it does not keep: what a step depends on must be one of these, or
    follow from :attr:`done`.

    Parameters
    ----------
    stack
        What is updated: parameters and gradients (B, *shape) by name.
    weight_decay
        As :func:`inrfast.fit` got it.

    Attributes
    ----------
    kept
        Zeros in the shape of each gradient, by the names of :attr:`keeps` and of the parameters.
    done
        Steps that the fit has taken before this one, also after a resumed start.
    """

    keeps: ClassVar[tuple[str, ...]] = ()
    kernel: ClassVar[Update | None] = None
    """The form that runs within fused steps on a GPU; None: steps are taken one by one."""
    done: int = 0

    def __init__(self, stack: Stack, weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self.kept: dict[str, dict[str, Tensor]] = {
            key: {name: torch.zeros_like(grad) for name, grad in stack.grads.items()} for key in self.keeps
        }
        self.take(stack)

    def take(self, stack: Stack) -> None:
        """Go on with the parameters and gradients of ``stack``."""
        self.stack = stack

    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """Update the parameters in place, with one learning rate per network.

        The gradients stay as they are. ``again`` takes them anew at the parameters as they are then, and returns the
        loss, for optimisers that search.
        """
        raise NotImplementedError

    def decayed(self, name: str, grad: Tensor) -> Tensor:
        """Return the gradient of a parameter with that of ``weight_decay / 2 |p|^2``."""
        return grad.add(self.stack.parameters[name], alpha=self.weight_decay) if self.weight_decay else grad

    def move(self, name: str, direction: Tensor, rates: Sequence[float]) -> None:
        """Move a parameter against a direction (B, *shape), by each network's rate.

        Raises
        ------
        ValueError
            A direction of another shape.
        """
        parameter = self.stack.parameters[name]
        if not isinstance(direction, Tensor) or direction.shape != parameter.shape:
            got = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
            raise ValueError(f"the direction of {name} must be a tensor of shape {tuple(parameter.shape)}, got {got}")
        parameter.addcmul_(direction, per_network(rates, parameter), value=-1)

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """Go on with ``stack``, which holds the networks ``index`` of the one before."""
        for tensors in self.kept.values():
            for name, grad in stack.grads.items():
                tensors[name] = torch.empty_like(grad).copy_(tensors[name][list(index)])
        self.take(stack)

    def numbers(self) -> dict[str, Tensor]:
        """Return the ints and floats among the attributes, but for those that the fit gives."""
        own = {name: value for name, value in vars(self).items() if type(value) in (int, float)}
        return {name: _number(value) for name, value in own.items() if name not in ("done", "weight_decay")}

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, beside weights and gradients."""
        numbers = self.numbers()
        return {**self.kept, NUMBERS: numbers} if numbers else dict(self.kept)

    def check(self, state: Any, place: str, settings: bool = True) -> None:
        """Check that a kept state is one of this optimiser; ``place`` names it.

        Raises
        ------
        ValueError
            It is not.
        """
        own = self.state()
        known = own.pop(NUMBERS, {})
        numbers = state.get(NUMBERS, {}) if isinstance(state, dict) else {}
        rest = {key: value for key, value in state.items() if key != NUMBERS} if isinstance(state, dict) else state
        check_like(rest, own, place)
        # An attribute may be the class's until the first step, and a count may become a fraction.
        fits = isinstance(numbers, dict) and known.keys() <= numbers.keys()
        check(f"{place}.{NUMBERS}", fits, f"a dict of {', '.join(known)}"[:200], numbers)
        for name, value in numbers.items():
            fits = isinstance(value, Tensor) and value.dtype in (torch.int64, torch.float64) and value.ndim == 0
            fits = fits and type(getattr(self, name, None)) in (int, float)
            check(f"{place}.{NUMBERS}.{name}", fits, "a number that the optimiser has", value)

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state, of tensors in dicts."""
        for name, value in state.get(NUMBERS, {}).items():
            setattr(self, name, value.item())
        for key, own in self.state().items():
            for name, tensor in own.items():
                tensor.copy_(state[key][name])

    def release(self) -> None:
        """Leave nothing of the fit in what is the user's."""


OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer", "inrfast.training.optimizers", Optimizer, classes=True)
"""Optimisers known by name; they update several networks at once."""


def per_network(rates: Sequence[float], parameter: Tensor) -> Tensor:
    """Return the rates (B, 1, ...) for a stacked parameter."""
    return torch.tensor(rates, dtype=parameter.dtype, device=parameter.device).view(-1, *[1] * (parameter.ndim - 1))


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
