"""The check of an activation: that it does what networks, kernels, fits and files rely on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import ACTIVATIONS, Activation, BoundActivation, bind
from inrfast.ops import mlp_step

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Of difference quotients: a slope is right if one of them confirms it, whatever the frequencies."""

AGREES = 1e-5
"""Difference, relative to the largest slope, up to which a difference quotient confirms a slope."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2}
"""Difference, relative to the largest number, up to which an in-place pass has a value or slope; in fp32 an angle of
thousands is itself off by so much."""

LARGEST = 1e3
"""Of the pre-activations at which fp32 is compared with fp64."""

ROUNDED = 1e-3
"""Difference from fp64, relative to the largest value among pre-activations of one size or smaller ones, that fp32 is
allowed beside what the rounding of its arguments makes."""

MANY = (5_000, 20_000)
"""Entries of the tensors in which one is looked for that depends on the others."""

DRAWS = 4
"""Further choices of the numbers."""


def check_activation(activation: str | Activation | BoundActivation) -> None:
    """Check that an activation keeps the contract of :class:`inrfast.activations.Activation`, on the CPU.

    Tried are the numbers that it has, and others drawn around them: each between a third and three times its size, of
    either sign where it is ``signed``. With all of them: shapes and dtypes; that every entry is treated alone, and the
    same way each time, among 287, 5,000 and 20,000; the slope against automatic differentiation and difference
    quotients in fp64; fp32 values, slopes and gradients against fp64, up to ``|u| = 1000``; in-place passes, and the
    native step where this machine runs it, against value and slope; what ``keeps`` says; the bound; that NaN stays NaN;
    that ``torch.vmap`` takes it, and pickle one that is registered. Device functions are not run; it is compared with
    the library's activation that has the same one.

    Parameters
    ----------
    activation
        A name or an activation, with its default numbers; or one with its numbers, from
        :func:`inrfast.activations.bind`. It need not be registered.

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
    for number, drawn in enumerate([own, *_drawn(own)]):
        checks = Checks(drawn)
        checks.form()
        checks.alone()
        checks.slope()
        checks.fp32()
        checks.in_place()
        checks.named()
        checks.native_step()
        checks.kept()
        checks.bound(reached=number == 0)
        checks.nan()
        checks.transforms()


def _drawn(own: BoundActivation) -> list[BoundActivation]:
    """Return the activation with other numbers."""
    if not own.numbers:
        return []
    rng = torch.Generator().manual_seed(3)
    factors = 3.0 ** (2 * torch.rand(DRAWS, len(own.numbers), generator=rng, dtype=torch.float64) - 1)
    signs = 1 - 2 * torch.randint(0, 2, factors.shape, generator=rng)
    signs[0] = -1
    found = []
    for row, sign in zip(factors.tolist(), signs.tolist(), strict=True):
        numbers = {name: factor * (value or 1.0) for (name, value), factor in zip(own.named.items(), row, strict=True)}
        numbers |= {name: numbers[name] * s for name, s in zip(numbers, sign, strict=True) if name in own.kind.signed}
        found.append(own.kind.bind(**numbers))
    return found


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

    def told(self, what: str) -> str:
        """Return an error's words, with the numbers where there are any."""
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self.own.named.items())
        return f"the activation {self.own.name!r} breaks its contract: {what}{f' (with {numbers})' if numbers else ''}"

    def holds(self, true: bool, told: str) -> None:
        """Raise ``AssertionError`` in words where something does not hold."""
        if not true:
            raise AssertionError(self.told(told))

    def tried(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what a call gives; whatever it raises becomes the error of this check."""
        try:
            return call()
        except Exception as error:
            raise AssertionError(self.told(f"{what} raises {type(error).__name__}: {error}")) from error

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
        """No entry depends on another one, on their number, or on chance; none of a number is NaN."""
        for name, function in (("value", self.own.value), ("slope", self.own.slope)):
            few = points()
            found = function(few)
            if bool(found.isnan().any()):
                at = float(few[found.isnan()][0])
                self.holds(False, f"{name} is NaN at u = {at:.4g}")
            self.holds(torch.equal(found, function(few)), f"{name} must give the same result each time")
            told = f"{name} couples entries: one changed when others did"
            for u in (few, *(few.flatten().repeat(many // few.numel() + 1)[:many].view(-1, 8) for many in MANY)):
                moves = torch.rand(u.shape, generator=torch.Generator().manual_seed(4)) < 0.5
                before, after = function(u), function(torch.where(moves, u * -3.1 + 0.7, u))
                self.holds(torch.equal(before[~moves], after[~moves]), told)
                alike = min(u.numel(), few.numel())
                self.close(
                    before.flatten()[:alike],
                    found.flatten()[:alike],
                    f"{name} must not depend on how many entries there are",
                )

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

    def fp32(self) -> None:
        """Values, slopes and gradients in fp32 are those of fp64, but for the rounding of u and of the numbers."""
        sizes = torch.logspace(-3, 3, 49, dtype=torch.float64).unsqueeze(1)
        u = torch.randn(49, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        u = (u.clamp(-1, 1) * sizes).float().double()
        u[-1, :2] = torch.tensor([LARGEST, -LARGEST])
        near = [BoundActivation(self.own.kind, tuple(n * (1 + e) for n in self.own.numbers)) for e in (-1e-6, 1e-6)]
        for name in ("value", "slope", "gradient of value"):
            narrow = self.tried(f"{name} in fp32", lambda: _function(self.own, name)(u.float())).double()  # noqa: B023
            wide = _function(self.own, name)(u)
            if bool(wide.isnan().any()):
                self.holds(False, f"the {name} is NaN at u = {float(u[wide.isnan()][0]):.4g}")
            moved = [_function(own, name)(u * (1 + e)) - wide for own in near for e in (-5e-7, 0.0, 5e-7)]
            fits = (wide.abs() <= 1e30) & torch.stack(moved).isfinite().all(0)  # of fp32, whose largest is 3e38
            wide, narrow = (torch.where(fits, tensor, 0.0) for tensor in (wide, narrow))
            largest = wide.abs().amax(1, keepdim=True)
            ordinary = largest[(sizes <= 1).flatten()].amax()
            size = largest.cummax(0).values.maximum(ordinary).clamp_min(1e-30)
            loose = torch.where(fits, torch.stack(moved).abs().amax(0), 0.0).amax(1, keepdim=True)
            off = torch.where(narrow.isnan(), torch.inf, (narrow - wide).abs()) - (ROUNDED * size + 2 * loose)
            worst = int(off.argmax())
            got = f"{float(narrow.flatten()[worst]):.6g} in fp32 and {float(wide.flatten()[worst]):.6g} in fp64"
            self.holds(bool(off.max() <= 0), f"the {name} at u = {float(u.flatten()[worst]):.4g} is {got}")

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

    def named(self) -> None:
        """Device function and native step are those of an activation with the same value and slope."""
        u = points()
        for field in ("device", "native"):
            name = getattr(self.own.kind, field)
            if name is not None:
                same = BoundActivation(ACTIVATIONS[name], self.own.numbers)
                self.close(self.own.value(u), same.value(u), f"{field}={name!r} must have the same value")
                self.close(self.own.slope(u), same.slope(u), f"{field}={name!r} must have the same slope")

    def native_step(self) -> None:
        """The native step that it names has its value and slope, where this machine has that step."""
        if self.own.kind.native is None or not mlp_step.instructions():
            return
        u = points(torch.float32)[:, :4].flatten()
        one, none = torch.ones(len(u), 1, 1), u.new_zeros(len(u), 1)
        value = self.own.value(u)
        head, hidden = none.clone(), none.clone()
        layers = [
            mlp_step.Layer(self.own, one, none, torch.zeros_like(one), hidden),
            mlp_step.Layer(None, one, none, torch.zeros_like(one), head),
        ]
        # The mean square of an error of 1/2 has the slope 1 in the prediction: the gradients are error and slope.
        at = mlp_step.Points(u.view(-1, 1, 1), (value - 0.5).view(-1, 1, 1), None, range(1))
        chunk = mlp_step.chunk_rows(1, 1)
        memory = torch.empty(mlp_step.workspace(layers, chunk))
        mlp_step.steps(layers, at, torch.ones(len(u)), len(u), chunk, memory, mlp_step.instructions())
        told = f"the native step {self.own.kind.native!r} must have the same"
        self.close((head.flatten() - 1) / 2 + value, value, f"{told} value")
        self.close(hidden.flatten() / head.flatten(), self.own.slope(u), f"{told} slope")

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

    def bound(self, reached: bool) -> None:
        """No value is larger than the bound, and (if asked) the bound is not far above all of them."""
        if self.own.bound is None:
            return
        rng = torch.Generator().manual_seed(2)
        u = torch.randn(60, 500, generator=rng, dtype=torch.float64)
        u *= torch.logspace(-4, 4, 60, dtype=torch.float64).unsqueeze(1)
        largest = float(self.own.value(u).abs().max())
        self.holds(largest <= self.own.bound * (1 + 1e-12), f"bound is {self.own.bound:g}, but a value is {largest:g}")
        told = f"bound is {self.own.bound:g}, but no value is above {largest:g}: it is to be the largest"
        self.holds(not reached or largest >= self.own.bound / 2, told)

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
        """``torch.vmap`` takes it, and pickle, once it is registered."""
        u = points()
        for name, function in (("value", self.own.value), ("slope", self.own.slope)):
            mapped = self.tried(f"torch.vmap of {name}", partial(torch.vmap(function), u))
            self.close(mapped, function(u), f"{name} under torch.vmap must be {name}")
        if ACTIVATIONS.get(self.own.name) is not self.own.kind:
            return
        again = self.tried("pickle", lambda: pickle.loads(pickle.dumps(self.own)))
        self.holds(again == self.own, "pickle must give back the same activation")


def _function(own: BoundActivation, name: str) -> Callable[[Tensor], Tensor]:
    """Return value, slope, or the gradient of value as automatic differentiation gives it."""
    return own.value if name == "value" else own.slope if name == "slope" else partial(_gradient, own.value)


def _gradient(function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    at = u.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at).sum(), at)
    return found
