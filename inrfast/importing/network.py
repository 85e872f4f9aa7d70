"""The import of other people's weights: the :class:`inrfast.INR` that computes what their network does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_choice, warn
from inrfast.importing.base import LAYOUTS, Layout, Parts, State
from inrfast.importing.states import state_of
from inrfast.memory import tells_refusals
from inrfast.nn import INR
from inrfast.words import one_line

MOST_KEYS = 6
"""Keys of a state that a message names."""


@tells_refusals
def import_network(
    source: str | os.PathLike[str] | Mapping[str, Any],
    layout: str = "auto",
    *,
    activation: Any = None,
    omega: float | Sequence[float] | Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> INR:
    """Return the INR that computes what somebody else's network does, from its weights.

    The layers, their shapes and the encoding are those of the weights; activations and frequencies are in no file, and
    where they are not given, those of the layout's authors are taken and a warning says which. Outputs are equal up to
    rounding. What a file does not hold and an INR does not have is left out: a sigmoid or tanh after the last layer,
    dropout.

    Parameters
    ----------
    source
        A state dict, or a file: ``.pt`` or ``.pth`` of torch, ``.safetensors``, ``.npz``; what it is is told by its
        content. Nothing is unpickled. A state inside a checkpoint, prefixes of ``DataParallel`` and ``torch.compile``,
        and weight norms are taken off.
    layout
        A name of :data:`inrfast.importing.LAYOUTS`, whose ``about`` says whose keys these are: ``"siren"``,
        ``"finer"``, ``"gauss"``, ``"siren_bvp"``, ``"siren_pytorch"``, ``"fourier"``, ``"sequential"`` or
        ``"meta_siren"``. ``"auto"`` finds it by the keys where one alone fits them.
    activation, omega
        Of the hidden layers, as :class:`inrfast.INR` takes them. None: the layout's.
    dtype
        To convert the weights to before anything is computed from them; None: theirs. What is computed, from weight
        norms and shifts, is rounded to it, so that fp64 gives the function of fp32 weights to 1e-15.
    options
        Of the layout: ``last_linear`` (siren, finer, gauss), ``order``, ``two_pi`` and ``transposed`` (fourier),
        ``shift`` (meta_siren).

    Returns
    -------
    INR
        On the device of the weights, with parameters of its own.

    Raises
    ------
    ValueError, TypeError
        No file of tensors; a layout that does not fit, or several that do; unknown keys, missing layers, shapes that do
        not follow on each other, hidden layers of several widths; NaN, Inf, complex numbers; unknown options.
    FileNotFoundError, OSError
        There is no such file, or it cannot be read.
    MemoryBudgetError
        The network would take more than half of what is free.

    Examples
    --------
    >>> from torch import nn
    >>> field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    >>> net = import_network(field.state_dict(), activation="tanh")
    >>> torch.equal(net(torch.ones(3, 2)), field(torch.ones(3, 2)))
    True
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    state = state_of(source, dtype)
    chosen = _layout(layout, state)
    settings = chosen.checked(options)
    try:
        parts = chosen.read(state, settings)
    except ValueError as error:
        raise ValueError(f"source is not of the layout {chosen.name!r}, or lacks something: {error}") from error
    net = _built(chosen, parts, activation, omega)
    given = {"activation": activation is not None, "omega": omega is not None} | dict.fromkeys(options, True)
    taken = {"activation": chosen.activation, "omega": chosen.omega, **settings}
    assumed = [f"{name}={taken[name]!r}" for name in chosen.unsaid if not given.get(name) and _matters(name, net)]
    if assumed:
        warn(
            f"the weights do not tell {', '.join(assumed)}, which layout {chosen.name!r} has where nothing is given",
            UserWarning,
        )
    return net


def _layout(name: str, state: State) -> Layout:
    """Return the layout that was named, or the one that the keys fit."""
    if name != "auto":
        return LAYOUTS[check_choice("layout", name, ("auto", *LAYOUTS))]
    found = [own for own in LAYOUTS.values() if own.fits(state)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(repr(own.name) for own in found)
        raise ValueError(f"the keys fit several layouts, whose networks differ: give layout= as one of {names}")
    keys = [one_line(key) for key in list(state)[:MOST_KEYS]]
    more = f" and {len(state) - MOST_KEYS} more" if len(state) > MOST_KEYS else ""
    raise ValueError(
        f"no layout has these keys: {', '.join(keys) or 'none'}{more}. The layouts are "
        + "; ".join(f"{own.name} ({own.about.rpartition('keys ')[2]})" for own in LAYOUTS.values())
    )


def _built(layout: Layout, parts: Parts, activation: Any, omega: Any) -> INR:
    """Return the network with these weights."""
    first, head = parts.weights[0], parts.weights[-1]
    hidden = len(parts.weights) - 1
    kinds = {f"{str(own.dtype).removeprefix('torch.')} on {own.device}" for own in (*parts.weights, *parts.biases)}
    if len(kinds) > 1:
        raise ValueError(f"source must have weights of one dtype on one device, got {', '.join(sorted(kinds))}")
    frequencies = layout.omega if omega is None else omega
    if isinstance(frequencies, Mapping) and set(frequencies) == {"first", "hidden"} and hidden == 1:
        frequencies = frequencies["first"]
    net = INR(
        parts.in_features,
        len(head),
        width=len(first),
        hidden_layers=hidden,
        activation=layout.activation if activation is None else activation,
        omega=frequencies,
        encoding=parts.encoding,
        bias=bool(parts.biases),
        seed=0,
        device=first.device,
        dtype=first.dtype,
    )
    with torch.no_grad():
        for number, linear in enumerate(net.layers):
            assert isinstance(linear.weight, Tensor)
            linear.weight.copy_(parts.weights[number])
            if parts.biases:
                assert isinstance(linear.bias, Tensor)
                linear.bias.copy_(parts.biases[number])
    return net


def _matters(name: str, net: INR) -> bool:
    """Return whether what was not given changes the network: ``omega`` only where an activation has such a number."""
    return name != "omega" or any("omega" in own.named for own in net.bound_activations)
