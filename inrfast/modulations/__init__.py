"""Filters of the coordinates that hidden layers are multiplied by: to add one is to add a file with its module here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inrfast.errors import check_float
from inrfast.mlp import undrawn
from inrfast.registry import Registry, check_number_known, name_and_numbers


class Modulation(nn.Module, ABC):
    """A filter ``h`` of raw coordinates (n, d) to (n, m), which a hidden layer's m features are multiplied by.

    A subclass added to :data:`MODULATIONS` is a filter that ``INR(modulation=...)`` takes, and that fits, kernels,
    files and the command line know. :func:`inrfast.testing.check_modulation` checks it. Each point must be
    filtered alone.

    Parameters
    ----------
    in_features, width
        Number of coordinates d and of units m.
    count
        Filters of the network, which share the scale among them.
    generator
        Of the CPU, for all that is drawn.
    device, dtype
        Of the parameters.
    **numbers
        All of :attr:`numbers`.
    """

    numbers: ClassVar[Mapping[str, float]] = {}
    """Its numbers, positive, with their defaults, in the order of the command line: ``fourier:16``."""

    native: ClassVar[str | None] = None
    """Its name in ``csrc/mlp_step_filters.h``, whose parameters are those of :meth:`state`; None, and for a
    subclass that does not say so itself: the native step does not have it."""

    @abstractmethod
    def __init__(
        self,
        in_features: int,
        width: int,
        count: int,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        **numbers: float,
    ) -> None:
        super().__init__()

    @classmethod
    @abstractmethod
    def state(cls, in_features: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the module's parameters and buffers by name, allocating nothing."""

    @abstractmethod
    def forward(self, coords: Tensor) -> Tensor:
        """Return ``h`` (..., m) of coordinates (..., d)."""

    def derivative(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``h`` (n, m) of coordinates (n, d), and its derivative in the output of the child ``linear``.

        For kernels in closed form; those of a subclass without this method of its own are made by running the network.
        Other parameters need a handler in :mod:`inrfast.layers` whose features are made of the coordinates.
        """
        raise NotImplementedError

    def rounding(self, coords: Tensor) -> Tensor | None:
        """Return bounds (n, m) of what rounding does to ``h`` at coordinates (n, d), to first order, in their dtype.

        For certified ranks. Default None: it is measured on disturbed passes.
        """
        return None


MODULATIONS: Registry[type[Modulation]] = Registry("modulation", "inrfast.modulations", Modulation, classes=True)
"""The filters that ``INR(modulation=...)`` takes."""


def modulation_config(given: Any, argument: str = "modulation") -> dict[str, Any]:
    """Return a filter as configs have it: ``{"name": ..., **numbers}`` with all of its numbers.

    Parameters
    ----------
    given
        A name, or ``{"name": ..., **numbers}`` with some or all of its numbers.
    argument
        What an error calls ``given``.

    Raises
    ------
    ValueError, TypeError
        Unknown names of filters or numbers, with the nearest match; numbers that are not positive.
    """
    given, numbers = name_and_numbers(argument, given)
    usual = dict(MODULATIONS.find(argument, given).numbers)
    for number, value in numbers.items():
        check_number_known(f"the modulation {given!r}", number, usual)
        what = f"{number} of the modulation {given!r}"
        usual[number] = check_float(what, value)
        if not usual[number] > 0:
            raise ValueError(f"{what} must be positive, got {value!r}")
    return {"name": given, **usual}


def made_modulations(
    configs: Sequence[dict[str, Any] | None],
    in_features: int,
    width: int,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.ModuleList | None:
    """Return the filters of all hidden layers, ``nn.Identity`` where there is none; None if no layer has one."""
    count = sum(own is not None for own in configs)
    if not count:
        return None
    found: list[nn.Module] = []
    for own in configs:
        if own is None:
            found.append(nn.Identity())
            continue
        numbers = {key: value for key, value in own.items() if key != "name"}
        found.append(MODULATIONS[own["name"]](in_features, width, count, generator, device, dtype, **numbers))
    return nn.ModuleList(found)


def filter_numbers(configs: Sequence[Mapping[str, Any] | None], in_features: int, width: int) -> int:
    """Return how many numbers the filters of these configs hold."""
    kinds = [MODULATIONS[own["name"]] for own in configs if own is not None]
    held = {kind: sum(map(math.prod, kind.state(in_features, width).values())) for kind in set(kinds)}
    return sum(held[kind] for kind in kinds)


def filter_of(
    modulations: Sequence[nn.Module] | nn.ModuleList | None, configs: Sequence[Mapping[str, Any] | None]
) -> list[nn.Module | None] | str:
    """Return the filter of each layer, None where there is none, or what was changed since they were made."""
    given = [] if modulations is None else list(modulations)
    if len(given) != len(configs):
        return f"it has {len(given)} filters for {len(configs)} hidden layers"
    for index, (own, module) in enumerate(zip(configs, given, strict=True)):
        wanted = nn.Identity if own is None else MODULATIONS[own["name"]]
        if type(module) is not wanted:
            return f"modulations.{index} is a {type(module).__name__}, no {wanted.__name__}"
    return [None if own is None else module for own, module in zip(configs, given, strict=True)]


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Return fp64 numbers (on the CPU) uniform in ``[-bound, bound]``."""
    return bound * (2 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") - 1)


def phase_errors(linear: nn.Linear, coords: Tensor) -> Tensor:
    """Return bounds (n, m) of the rounding errors of ``W x + b`` at coordinates (n, d), in their dtype."""
    terms = (coords.shape[1] + 1) * torch.finfo(coords.dtype).eps / 2
    bias = None if linear.bias is None else terms * linear.bias.abs()
    return nn.functional.linear(terms * coords.abs(), linear.weight.abs(), bias)


def phases(weight: Tensor, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """Return the linear layer with this weight (m, d) and a bias uniform in ``[-pi, pi]``."""
    width, inputs = weight.shape
    linear = undrawn(inputs, width, True, device, dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(uniform((width,), math.pi, generator))
    return linear
