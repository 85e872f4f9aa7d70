"""Side effects: what a forward pass changes or draws, which would make its Jacobian that of another function."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError

TRIES = 8
"""Passes of which each must have moved a generator: other threads draw from the same ones now and then."""


def numbers_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers of a module by their names."""
    return {name: tensor.detach().clone() for name, tensor in _named(module).items()}


def changed(module: nn.Module, before: Mapping[str, Tensor], parameters: bool) -> str | None:
    """Return the name of the first parameter, or buffer, whose numbers are not those ``before``; None: all are."""
    own = dict(module.named_parameters()) if parameters else dict(module.named_buffers())
    for name, tensor in own.items():
        known = before.get(name)
        if known is None or known.shape != tensor.shape or not torch.equal(known, tensor.detach()):
            return name
    return None


def outputs_without_side_effects(
    run: Callable[[], Tensor], module: nn.Module, before: Mapping[str, Tensor], device: torch.device
) -> Tensor:
    """Return what ``run`` returns, which runs the module.

    Raises
    ------
    UnsupportedModuleError
        A parameter is not what it was ``before``, or random numbers were drawn, be they used or not: a rare use would
        be seen by no comparison of two passes. A network that seeds a generator itself draws the same ones every time.
    """
    drawn: list[str] = []
    for _ in range(TRIES):
        states = _generators(device)
        values = run()
        name = changed(module, before, parameters=True)
        if name is not None:
            raise UnsupportedModuleError(
                f"net changes its parameter {name!r} in its forward pass, so that its output belongs to other numbers "
                "than it holds. Compute what is used from the parameter, without changing it, or change it outside "
                "the forward pass, as after optimizer.step()"
            )
        drawn = [source for source, state in _generators(device).items() if state != states[source]]
        if not drawn:
            return values
    raise UnsupportedModuleError(
        f"net is random: its forward pass draws numbers from {drawn[0]}. Call net.eval(); if it draws in eval mode "
        "too, draw only where self.training is true, or once at construction, into a buffer"
    )


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _generators(device: torch.device) -> dict[str, bytes]:
    """Return the states of the generators that everybody shares, by what they are called."""
    found = {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "NumPy's global generator": pickle.dumps(np.random.get_state(legacy=False)),
        "Python's random": pickle.dumps(random.getstate()),
    }
    if device.type == "cuda":
        found["torch's generator of the GPU"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return found
