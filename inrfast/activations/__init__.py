"""Activations: what one is, the registry of all of them, and one with its numbers as a layer has it.

To add one is to add a file to this package (or, from anywhere, to call :func:`register`): a value and a slope are
enough. In-place passes and device functions make it fast; without them it takes the general paths.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import NotAvailableError, check_float, nearest
from inrfast.registry import (
    Registry,
    check_fields,
    check_function,
    check_like,
    check_number_known,
    name_and_numbers,
)

BESIDE_ZERO = 2.0**-500
"""Where the slopes on both sides of 0 are taken."""

KEEPS = ("slope", "result", "mask", "nothing")

Numbers = Sequence[float]

NATIVE = {"relu": 0, "sine": 1, "gaussian": 1, "finer": 1, "wire": 2, "identity": 0}
"""The activations of ``csrc/mlp_step_activations.h``, with how many numbers each takes."""

DEVICE = NATIVE | {"tanh": 0, "gelu": 0, "softplus": 0}
"""Those of :mod:`inrfast.kernels.activations`."""


@dataclass(frozen=True, eq=False)
class Activation:
    """One elementwise activation.

    It is pickled and copied as its name, so it must be registered before one that was pickled is read.

    Attributes
    ----------
    name
        Its name in ``INR(activation=...)``.
    value, slope
        Functions of the pre-activation ``u`` (any shape, floating dtype) and then of the numbers, in the order of
        ``numbers``; ``slope`` is the derivative in ``u``. Both return a tensor of the shape, dtype and device of ``u``,
        and must be differentiable by torch. NaN stays NaN.
    numbers
        Its named numbers with their defaults, such as ``{"omega": 30.0}``.
    signed
        Those numbers that may be zero or negative; others must be positive.
    in_place
        ``in_place(u, numbers, value, scratch)`` for three tensors of one shape: afterwards ``value`` holds ``act(u)``
        and ``u`` holds ``act'(u)``; what ``scratch`` holds does not matter. A training step that allocates its
        temporaries anew spends much of its time in page faults. None: made of ``value`` and ``slope``.
    value_in_place
        ``value_in_place(u, numbers, scratch)``: afterwards ``u`` holds ``act(u)``. None: made of ``value``.
    keeps
        What a backward pass needs of a layer: ``"slope"``; ``"result"`` where the slope is a function of ``act(u)``;
        ``"mask"`` where it is also 1 for positive results and else 0; ``"nothing"`` where it is 1.
    times_slope
        ``times_slope(gradient, result, out)`` for those that keep result or mask: write ``gradient * act'(u)`` into
        ``out``, another tensor (for a mask it may be the gradient itself), and return it.
    bound
        The largest ``|value|``; None: unbounded.
    device
        Its name in :func:`inrfast.kernels.activations.activate` (Triton), one of :data:`DEVICE`, of as many numbers;
        None: it has no device function.
    native
        Its name in ``csrc/mlp_step_activations.h``, one of :data:`NATIVE`; None: the native step does not have it.

    Raises
    ------
    ValueError, TypeError
        A name, a function, a number or a bound is no such thing; ``device`` or ``native`` is unknown (with the nearest
        match), or is a function of another count of numbers.
    """

    name: str
    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)
    signed: tuple[str, ...] = ()
    in_place: Callable[[Tensor, Numbers, Tensor, Tensor], object] | None = None
    value_in_place: Callable[[Tensor, Numbers, Tensor], object] | None = None
    keeps: str = "slope"
    times_slope: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    bound: float | None = None
    device: str | None = None
    native: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, functions=("value", "slope"), optional=("in_place", "value_in_place", "times_slope"))
        if not isinstance(self.signed, tuple) or not set(self.signed) <= set(self.numbers):
            raise ValueError(
                f"signed of {self.name} must be a tuple of names out of its numbers, {sorted(self.numbers)}, "
                f"got {self.signed!r}"
            )
        if self.keeps not in KEEPS:
            raise ValueError(f"keeps of {self.name} must be one of {KEEPS}, got {self.keeps!r}")
        if (self.keeps in ("result", "mask")) != (self.times_slope is not None):
            raise ValueError(f"times_slope of {self.name} belongs to keeps='result' or 'mask', got {self.keeps!r}")
        check_function(self, "device", DEVICE)
        check_function(self, "native", NATIVE)
        if self.bound is not None and not check_float(f"bound of {self.name}", self.bound) >= 0:
            raise ValueError(f"bound of {self.name} must be at least 0, or None, got {self.bound}")
        defaults = {number: self.check_number(number, value) for number, value in self.numbers.items()}
        object.__setattr__(self, "numbers", MappingProxyType(defaults))

    @property
    def device_name(self) -> str:
        """``device`` of one that has a device function; another raises ``NotAvailableError``."""
        if self.device is None:
            raise NotAvailableError(f"the activation {self.name!r} has no device function; use backend='torch'")
        return self.device

    def check_number(self, number: str, value: Any) -> float:
        """Return a value for one of its numbers; a bad one raises ``ValueError`` or ``TypeError``."""
        minimum = None if number in self.signed else 0.0
        return check_float(number, value, minimum=minimum, exclusive=True)

    def bind(self, **numbers: Any) -> BoundActivation:
        """Return it with these numbers, the others at their defaults.

        Raises
        ------
        ValueError, TypeError
            An unknown number (with the nearest match), or a value that is not finite, or not positive where it must be.
        """
        for number in numbers:
            check_number_known(self.name, number, self.numbers)
        chosen = {**self.numbers, **numbers}
        return BoundActivation(self, tuple(self.check_number(number, value) for number, value in chosen.items()))

    def __reduce__(self) -> Any:
        if ACTIVATIONS.get(self.name) is not self:
            raise TypeError(f"only a registered activation can be pickled or copied; register {self.name!r} first")
        return activation, (self.name,)

    def __deepcopy__(self, memo: Any) -> Activation:
        return self


@dataclass(frozen=True)
class BoundActivation:
    """An activation with its numbers, as one layer has it.

    Attributes
    ----------
    kind
        The activation.
    numbers
        One value per number, in the order of ``kind.numbers``.
    """

    kind: Activation
    numbers: tuple[float, ...] = ()

    def __reduce__(self) -> Any:
        return _rebound, (self.kind, self.named)

    def __deepcopy__(self, memo: Any) -> BoundActivation:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a version kept that did not keep the names of the numbers."""
        _check_names(state["kind"], dict(zip(state["kind"].numbers, state["numbers"], strict=False)))
        if len(state["numbers"]) > len(state["kind"].numbers):
            raise ValueError(_other(state["kind"], f"{len(state['numbers'])} numbers"))
        self.__dict__.update(state)

    @property
    def name(self) -> str:
        """The activation's name."""
        return self.kind.name

    @property
    def bound(self) -> float | None:
        """The largest ``|value|``; None: unbounded."""
        return self.kind.bound

    @functools.cached_property
    def sides(self) -> tuple[float, float] | None:
        """The slopes just below and just above 0 where they differ, else None. A jump anywhere else is not found."""
        if self.kind.keeps == "mask":
            return 0.0, 1.0
        at = torch.tensor([-BESIDE_ZERO, BESIDE_ZERO, -0.5, 0.5], dtype=torch.float64, device="cpu")
        with torch.no_grad():
            below, above, *others = self.slope(at).tolist()
        usual = max(map(abs, (below, above, *others)))
        return (below, above) if 1e-6 * usual < abs(below - above) < math.inf else None

    @property
    def named(self) -> dict[str, float]:
        """Its numbers by name."""
        return dict(zip(self.kind.numbers, self.numbers, strict=True))

    def value(self, u: Tensor) -> Tensor:
        """Return ``act(u)``; another shape than that of ``u`` raises ``ValueError``."""
        found = self.kind.value(u, *self.numbers)
        return found if isinstance(found, Tensor) and found.shape == u.shape else self._like("value", found, u)

    def slope(self, u: Tensor) -> Tensor:
        """Return ``act'(u)``; another shape than that of ``u`` raises ``ValueError``."""
        found = self.kind.slope(u, *self.numbers)
        return found if isinstance(found, Tensor) and found.shape == u.shape else self._like("slope", found, u)

    def _like(self, what: str, found: Any, u: Tensor) -> Tensor:
        return check_like(f"{what} of the activation {self.name!r}", found, u, dtype=True)

    def in_place(self, u: Tensor, value: Tensor, scratch: Tensor) -> None:
        """Write ``act(u)`` into ``value`` and ``act'(u)`` into ``u``; ``scratch`` is lost. Autograd must be off."""
        if self.kind.in_place is not None:
            self.kind.in_place(u, self.numbers, value, scratch)
        else:
            value.copy_(self._like("value", self.value(u), u))
            u.copy_(self._like("slope", self.slope(u), u))

    def value_in_place(self, u: Tensor, scratch: Tensor) -> None:
        """Write ``act(u)`` into ``u``; ``scratch`` is lost. Autograd must be off."""
        if self.kind.value_in_place is not None:
            self.kind.value_in_place(u, self.numbers, scratch)
        else:
            u.copy_(self._like("value", self.value(u), u))

    def config(self) -> str | dict[str, Any]:
        """Return what :func:`bind` reads: the name where it has no numbers but ``omega``, which configs list apart."""
        if set(self.kind.numbers) <= {"omega"}:
            return self.name
        return {"name": self.name, **self.named}


def _rebound(kind: Activation, named: dict[str, float]) -> BoundActivation:
    """Return an activation with the numbers that were pickled; other names than its own raise ``ValueError``."""
    _check_names(kind, named)
    return kind.bind(**named)


def _check_names(kind: Activation, named: Mapping[str, float]) -> None:
    if set(named) != set(kind.numbers):
        raise ValueError(_other(kind, ", ".join(named) or "no numbers"))


def _other(kind: Activation, got: str) -> str:
    now = ", ".join(kind.numbers) or "no numbers"
    return f"the activation {kind.name!r} was pickled with {got}, but the one registered here has {now}"


ACTIVATIONS: Registry[Activation] = Registry("activation", "inrfast.activations", Activation, called="name")
"""All activations by name."""


def register(kind: Activation, replace: bool = False) -> Activation:
    """Add an activation to the registry and return it; a name that another one has raises ``ValueError``.

    With ``replace`` it takes the place of another of your own; networks that have that one keep it.
    :func:`inrfast.testing.check_activation` tells whether it keeps its word.
    """
    return ACTIVATIONS.add(getattr(kind, "name", ""), kind, replace)


def activation(name: str) -> Activation:
    """Return the activation called ``name``; an unknown name raises ``ValueError`` with the nearest match."""
    return ACTIVATIONS.find("activation", name)


def bind(given: Any, omega: float | None = None, argument: str = "activation") -> BoundActivation:
    """Return an activation with its numbers from its name or ``{"name": ..., **numbers}``.

    Parameters
    ----------
    given
        Also a :class:`BoundActivation`, which is returned as it is.
    omega
        The number ``omega`` of one that has such a number and is not given it otherwise; None: its default.
    argument
        What an error calls ``given``.

    Raises
    ------
    ValueError, TypeError
        Unknown names of activations or numbers, with the nearest match; bad numbers.
    """
    if isinstance(given, BoundActivation):
        return given
    given, numbers = name_and_numbers(argument, given)
    if isinstance(given, str) and given not in ACTIVATIONS:
        raise ValueError(
            f"{argument} must be one of {sorted(ACTIVATIONS)}, got {given[:80]!r}.{nearest(given[:80], ACTIVATIONS)}"
            " One of your own is known after inrfast.activations.register(YourActivation)"
        )
    kind = ACTIVATIONS.find(argument, given)
    if omega is not None:
        omega = check_float("omega", omega, minimum=0.0, exclusive=True)
        if "omega" in kind.numbers:
            numbers.setdefault("omega", omega)
    return kind.bind(**numbers)


def shown(config: str | Mapping[str, Any]) -> str:
    """Return what :meth:`BoundActivation.config` describes in a few words, such as ``"wire(omega=20, sigma=10)"``."""
    if isinstance(config, str):
        return config
    return f"{config['name']}({', '.join(f'{key}={value:g}' for key, value in config.items() if key != 'name')})"


def torch_operator(name: str, overload: str) -> Callable[..., Tensor] | None:
    """Return one of torch's own operators, which are no public names, or None where this torch has none such."""
    return getattr(getattr(torch.ops.aten, name, None), overload, None)
