"""What a layout of weights is, the registry of all, and the chain of linear layers that most of them are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from torch import Tensor

from inrfast.encodings import Encoding
from inrfast.errors import nearest
from inrfast.registry import Registry
from inrfast.words import one_line

State = Mapping[str, Tensor]

LEAVES = {"w": "weight", "b": "bias", "weight": "weight", "bias": "bias"}


@dataclass(frozen=True)
class Parts:
    """What a layout finds in a state.

    Attributes
    ----------
    weights, biases
        Of the linear layers, the head last: (out, in) and (out,). Without biases the second is empty.
    encoding
        What stands before them, for ``in_features`` coordinates; None: nothing.
    in_features
        Number of coordinates.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    in_features: int
    encoding: Encoding | None = None


@dataclass(frozen=True)
class Layout:
    """How the state of one kind of network is laid out.

    Attributes
    ----------
    name
        Its name in ``import_network(layout=...)``.
    about
        Whose networks these are, and how their keys look.
    fits
        ``fits(keys)``: whether a state with these keys could be of this layout. It need not be right in all: ``read``
        says what is wrong.
    read
        ``read(state, options)`` returns the parts; what is missing, unknown or of another shape raises ``ValueError``.
    activation, omega
        Of the hidden layers, as :class:`inrfast.INR` takes them, where the user does not say.
    options
        What else ``import_network`` takes for it, with its defaults.
    unsaid
        Those of activation, omega and options that no file can tell: where they are not given, a warning names the
        default that was taken.
    """

    name: str
    about: str
    fits: Callable[[Collection[str]], bool]
    read: Callable[[State, Mapping[str, Any]], Parts]
    activation: str = "sine"
    omega: float | Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, those given among them; an unknown one raises ``TypeError`` with the nearest match."""
        for name in given:
            if name not in self.options:
                known = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
                raise TypeError(f"layout {self.name!r} has no option {name!r}; {known}.{nearest(name, self.options)}")
        return {**self.options, **given}


LAYOUTS: Registry[Layout] = Registry("layout", "inrfast.importing.layouts", Layout, called="name")
"""All layouts by name."""


def register(layout: Layout) -> Layout:
    """Add a layout to the registry and return it."""
    return LAYOUTS.add(layout.name, layout)


def prefix_of(keys: Collection[str], first: str) -> str | None:
    """Return what stands before the first layer's key (a pattern) in a state; None: it has no such key, or several."""
    found = [match[1] for key in keys if (match := re.fullmatch(rf"((?:.+\.)??){first}", key))]
    return found[0] if len(found) == 1 else None


def linear_layers(state: State, pattern: str, *, gaps: bool = False, turned: bool = False) -> Parts:
    """Return the linear layers of a state all of whose keys name one.

    Parameters
    ----------
    state
        Tensors by key.
    pattern
        A pattern of keys with two groups: the number of the layer (empty: 0; ``last``: the last), and ``weight`` or
        ``bias`` (or ``w`` and ``b``).
    gaps
        Whether numbers may be left out, as those of activations in a ``Sequential``: equally many between all layers.
    turned
        Whether weights are kept as (in, out).

    Raises
    ------
    ValueError
        An unknown key, a missing layer, numbers at uneven distances, shapes that do not follow on each other, hidden
        layers of several widths, biases in some layers only.
    """
    layers: dict[float, dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in state.items():
        found = re.fullmatch(pattern, key)
        if not found:
            raise ValueError(f"it holds {one_line(key)!r}, which is no weight or bias of a linear layer of this layout")
        number = float("inf") if found[1] == "last" else int(found[1] or 0)
        layers.setdefault(number, {})[LEAVES[found[2]]] = (key, tensor)
    order = sorted(layers)
    for key, weight in (layers[number]["weight"] for number in order if "weight" in layers[number]):
        if weight.ndim != 2:
            raise ValueError(
                f"{one_line(key)} must have two axes, got shape {tuple(weight.shape)} (that of a norm, or of PReLU?)"
            )
    numbers = [number for number in order if number != float("inf")]
    if len(order) < 2:
        raise ValueError(f"it holds {', '.join(state) or 'nothing'}, and not the weights of two layers or more")
    if not gaps and numbers != list(range(len(numbers))):
        lost = next(k for k in range(len(numbers) + 1) if k not in numbers)
        raise ValueError(f"it lacks the layer {lost}: it has {', '.join(str(int(number)) for number in numbers)}")
    steps = {above - below for below, above in pairwise(numbers)}
    if len(steps) > 1:
        raise ValueError(
            f"its linear layers are {', '.join(str(int(number)) for number in numbers)}, not evenly spaced: the "
            "keys do not say where activations stand"
        )
    bare = [next(iter(layers[number].values()))[0] for number in order if "weight" not in layers[number]]
    if bare:
        raise ValueError(f"it has {one_line(bare[0])!r} without the weight of that layer")
    with_bias = ["bias" in layers[number] for number in order]
    if any(with_bias) and not all(with_bias):
        key = layers[order[with_bias.index(False)]]["weight"][0]
        raise ValueError(f"it has no bias beside {one_line(key)!r}; an INR has biases in all of its layers, or in none")
    weights = [layers[number]["weight"] for number in order]
    oriented = [(key, weight.mT if turned else weight) for key, weight in weights]
    biases = [layers[number]["bias"] for number in order] if all(with_bias) else []
    _check_chain(oriented, biases)
    return Parts([weight for _, weight in oriented], [bias for _, bias in biases], oriented[0][1].shape[1])


def _check_chain(weights: Sequence[tuple[str, Tensor]], biases: Sequence[tuple[str, Tensor]]) -> None:
    """Compare the shapes of layers that follow on each other."""
    for (below, first), (above, second) in pairwise(weights):
        if second.shape[1] != len(first):
            raise ValueError(
                f"{one_line(above)} of shape {tuple(second.shape)} (out, in) takes {second.shape[1]} features of the "
                f"{len(first)} that {one_line(below)} gives"
            )
    for (key, bias), (_, weight) in zip(biases, weights, strict=False):
        if tuple(bias.shape) != (len(weight),):
            raise ValueError(f"{one_line(key)} must have shape ({len(weight)},), got {tuple(bias.shape)}")
    widths = {len(weight) for _, weight in weights[:-1]}
    if len(widths) > 1:
        raise ValueError(f"its hidden layers have {', '.join(map(str, sorted(widths)))} units; an INR has one width")
