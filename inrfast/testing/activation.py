"""The check of an activation: that it does what networks, kernels, fits and files rely on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import Activation, BoundActivation, bind

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Of difference quotients: a slope is right if one of them confirms it, whatever the frequencies."""

AGREES = 1e-5
"""Difference, relative to the largest slope, up to which a difference quotient confirms a slope."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2}
"""Difference, relative to the largest number, up to which an in-place pass has a value or slope; in fp32 an angle of
thousands is itself off by so much."""


def check_activation(activation: str | Activation | BoundActivation) -> None:
    """Check that an activation keeps the contract of :class:`inrfast.activations.Activation`, on the CPU.

    Shapes and dtypes; the slope against automatic differentiation and difference quotients in fp64; that every entry is
    treated alone, and the same way each time; in-place passes against value and slope; the bound; that NaN stays NaN;
    that ``torch.vmap`` and pickle take it. Device functions and native steps are not checked.

    Parameters
    ----------
    activation
        A name or an activation, checked with its default numbers; or one with its numbers, from
        :func:`inrfast.activations.bind`.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        No activation, or an unknown name.

    Examples
    --------
    >>> from inrfast.activations import bind
    >>> check_activation("tanh")
    >>> check_activation(bind({"name": "sine", "omega": 5.0}))
    """
    own = activation.bind() if isinstance(activation, Activation) else bind(activation)
    checks = Checks(own)
    checks.form()
    checks.alone()
    checks.slope()
    checks.in_place()
    checks.kept()
    checks.bound()
    checks.nan()
    checks.transforms()


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return pre-activations (41, 7) of sizes from 1e-3 to 10, both zeros among them."""
    rng = torch.Generator().manual_seed(1)
    u = torch.randn(41, 7, generator=rng, dtype=torch.float64)
    u *= torch.logspace(-3, 0.6, 41, dtype=torch.float64).unsqueeze(1)
    u[0, 0], u[0, 1] = 0.0, -0.0
    return u.to(dtype)


class Checks:
    """The parts of :func:`check_activation`, of one activation with its numbers."""

    def __init__(self, own: BoundActivation) -> None:
        self.own = own

    def holds(self, true: bool, told: str) -> None:
        """Raise ``AssertionError`` in words where something does not hold."""
        if not true:
            raise AssertionError(f"the activation {self.own.name!r} breaks its contract: {told}")

    def tried(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what a call gives; whatever it raises becomes the error of this check."""
        try:
            return call()
        except Exception as error:
            told = f"{what} raises {type(error).__name__}: {error}"
            raise AssertionError(f"the activation {self.own.name!r} breaks its contract: {told}") from error

    def close(self, found: Tensor, expected: Tensor, what: str) -> None:
        """Compare entry by entry, relative to the largest expected number."""
        size = float(expected.abs().max().clamp_min(1e-30))
        off = float((found - expected).abs().max())
        self.holds(
            off <= TOLERANCE[expected.dtype] * size, f"{what}, but is off by {off:.1e} where numbers are {size:.1e}"
        )

    def form(self) -> None:
        """Shapes and dtypes are kept, the argument is not written."""
        for name, function in (("value", self.own.value), ("slope", self.own.slope)):
            for dtype in DTYPES:
                for u in (points(dtype), points(dtype)[0, 2], points(dtype)[:0]):
                    before = u.clone()
                    found = self.tried(f"{name} of shape {tuple(u.shape)}, {dtype},", partial(function, u))
                    self.holds(isinstance(found, Tensor), f"{name} must return a tensor, not {type(found).__name__}")
                    same = found.shape == u.shape and found.dtype == u.dtype
                    got = f"shape {tuple(found.shape)}, {found.dtype}"
                    self.holds(same, f"{name} of shape {tuple(u.shape)}, {dtype} must keep both, got {got}")
                    self.holds(torch.equal(u, before), f"{name} must not write into its argument")

    def alone(self) -> None:
        """No entry depends on another one, or on chance."""
        u = points()
        moved = u.clone()
        moved[::2] = moved[::2] * -3.1 + 0.7
        for name, function in (("value", self.own.value), ("slope", self.own.slope)):
            found = function(u)
            self.holds(torch.equal(found, function(u)), f"{name} must give the same result each time")
            told = f"{name} couples entries: one changed when others did"
            self.holds(torch.equal(found[1::2], function(moved)[1::2]), told)

    def slope(self) -> None:
        """The slope is the derivative of the value, by automatic differentiation and by difference quotients."""
        u = points()
        at = u.clone().requires_grad_()
        value = self.tried("value of a tensor that requires a gradient", lambda: self.own.value(at))
        self.holds(value.requires_grad, "value must be differentiable by torch, but detaches its argument")
        (derivative,) = self.tried("the gradient of value", lambda: torch.autograd.grad(value.sum(), at))
        slope = self.own.slope(u)
        self.close(slope, derivative, "slope must be the derivative of value as automatic differentiation gives it")
        smooth = u.flatten()[2:]  # 0 may be a kink
        size = float(slope.abs().max().clamp_min(1e-30))
        quotients = [(self.own.value(smooth + h) - self.own.value(smooth - h)) / (2 * h) for h in STEPS]
        off = torch.stack([(quotient - slope.flatten()[2:]).abs() for quotient in quotients]).amin(0)
        worst = int(off.argmax())
        told = f"slope must be the derivative of value; at u = {float(smooth[worst]):.4g} difference quotients differ"
        self.holds(float(off[worst]) <= AGREES * size, f"{told} from it by {float(off[worst]):.1e}")

    def in_place(self) -> None:
        """The in-place passes give value and slope, whatever the buffers held and however rows lie."""
        for dtype in TOLERANCE:
            u = points(dtype)
            slope, scratch = u.clone(), torch.full_like(u, float("nan"))
            value = u.new_full((len(u), u.shape[1] + 1), float("nan"))  # rows of features lie beside a column of ones
            with torch.no_grad():
                self.tried("in_place", lambda: self.own.in_place(slope, value[:, :-1], scratch))  # noqa: B023
                alone = u.clone()
                self.tried("value_in_place", lambda: self.own.value_in_place(alone, scratch.fill_(float("nan"))))  # noqa: B023
            told = f"({str(dtype).removeprefix('torch.')})"
            self.close(value[:, :-1], self.own.value(u), f"in_place must leave the value in its third argument {told}")
            self.close(slope, self.own.slope(u), f"in_place must leave the slope in its first argument {told}")
            self.close(alone, self.own.value(u), f"value_in_place must leave the value in its first argument {told}")

    def kept(self) -> None:
        """The slope follows from what ``keeps`` says is enough."""
        kind, u = self.own.kind, points()
        value, slope = self.own.value(u), self.own.slope(u)
        if kind.keeps == "nothing":
            self.holds(bool((slope == 1).all()), "it keeps nothing, so its slope must be 1 everywhere")
        if kind.keeps == "mask":
            same = torch.equal(slope, (value > 0).to(slope))
            self.holds(same, "it keeps a mask, so its slope must be 1 where its value is positive, else 0")
        if kind.times_slope is not None:
            gradient, out = torch.randn_like(u), torch.full_like(u, float("nan"))
            found = self.tried("times_slope", lambda: kind.times_slope(gradient, value, out))  # type: ignore[misc]
            self.holds(found is out or found.data_ptr() == out.data_ptr(), "times_slope must return its third argument")
            self.close(out, gradient * slope, "times_slope must leave gradient times slope in its third argument")

    def bound(self) -> None:
        """No value is larger than the bound, and the bound is not far above all of them."""
        if self.own.bound is None:
            return
        rng = torch.Generator().manual_seed(2)
        u = torch.randn(60, 500, generator=rng, dtype=torch.float64)
        u *= torch.logspace(-4, 4, 60, dtype=torch.float64).unsqueeze(1)
        largest = float(self.own.value(u).abs().max())
        self.holds(largest <= self.own.bound * (1 + 1e-12), f"bound is {self.own.bound:g}, but a value is {largest:g}")
        told = f"bound is {self.own.bound:g}, but no value is above {largest:g}: it is to be the largest"
        self.holds(largest >= self.own.bound / 2, told)

    def nan(self) -> None:
        """What is no number stays so."""
        u = torch.tensor([[float("nan"), 0.5]], dtype=torch.float64)
        value, alone = torch.zeros_like(u), u.clone()
        with torch.no_grad():
            self.own.in_place(u.clone(), value, torch.zeros_like(u))
            self.own.value_in_place(alone, torch.zeros_like(u))
        for name, found in (("value", self.own.value(u)), ("in_place", value), ("value_in_place", alone)):
            self.holds(found.isnan().tolist() == [[True, False]], f"{name} must leave NaN where NaN was, only there")

    def transforms(self) -> None:
        """``torch.vmap`` and pickle take it."""
        u = points()
        for name, function in (("value", self.own.value), ("slope", self.own.slope)):
            mapped = self.tried(f"torch.vmap of {name}", partial(torch.vmap(function), u))
            self.close(mapped, function(u), f"{name} under torch.vmap must be {name}")
        again = self.tried("pickle", lambda: pickle.loads(pickle.dumps(self.own)))
        self.holds(again == self.own, "pickle must give back the same activation")
