"""What the checks of activations and of losses have in common: functions of each entry alone, and their slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

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


def drawn(numbers: Mapping[str, float], signed: Sequence[str] = ()) -> list[dict[str, float]]:
    """Return further choices of some numbers: each between a third and three times its size, some of either sign."""
    if not numbers:
        return []
    rng = torch.Generator().manual_seed(3)
    factors = 3.0 ** (2 * torch.rand(DRAWS, len(numbers), generator=rng, dtype=torch.float64) - 1)
    signs = 1 - 2 * torch.randint(0, 2, factors.shape, generator=rng)
    signs[0] = -1
    found = []
    for row, sign in zip(factors.tolist(), signs.tolist(), strict=True):
        own = {name: factor * (value or 1.0) for (name, value), factor in zip(numbers.items(), row, strict=True)}
        found.append(own | {name: own[name] * s for name, s in zip(own, sign, strict=True) if name in signed})
    return found


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return pre-activations (41, 7) of sizes from 1e-3 to 10, both zeros among them."""
    rng = torch.Generator().manual_seed(1)
    u = torch.randn(41, 7, generator=rng, dtype=torch.float64)
    u *= torch.logspace(-3, 0.6, 41, dtype=torch.float64).unsqueeze(1)
    u[0, 0], u[0, 1] = 0.0, -0.0
    return u.to(dtype)


class Entrywise:
    """A function of every entry with some numbers, and its slope: ``value(u, *numbers)``, ``slope(u, *numbers)``."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64, torch.float32)
    argument: ClassVar[str] = "u"
    """What an error calls an entry."""

    def __init__(
        self,
        what: str,
        numbers: Mapping[str, float],
        value: Callable[..., Tensor],
        slope: Callable[..., Tensor],
    ) -> None:
        self.what, self.numbers, self._value, self._slope = what, numbers, value, slope

    def value(self, u: Tensor) -> Tensor:
        """Return the values at ``u``."""
        return self._value(u, *self.numbers.values())

    def slope(self, u: Tensor) -> Tensor:
        """Return the slopes at ``u``."""
        return self._slope(u, *self.numbers.values())

    def function(self, name: str, numbers: Sequence[float] | None = None) -> Callable[[Tensor], Tensor]:
        """Return value, slope, or the gradient of value as automatic differentiation gives it."""
        own = list(self.numbers.values()) if numbers is None else numbers
        if name == "slope":
            return lambda u: self._slope(u, *own)
        return (lambda u: self._value(u, *own)) if name == "value" else partial(_gradient, self._value, own)

    def told(self, what: str) -> str:
        """Return an error's words, with the numbers where there are any."""
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self.numbers.items())
        return f"{self.what} breaks its contract: {what}{f' (with {numbers})' if numbers else ''}"

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
        for name, function in (("value", self.value), ("slope", self.slope)):
            for dtype in self.dtypes:
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
        for name, function in (("value", self.value), ("slope", self.slope)):
            few = points()
            found = function(few)
            if bool(found.isnan().any()):
                at = float(few[found.isnan()][0])
                self.holds(False, f"{name} is NaN at {self.argument} = {at:.4g}")
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

    def derivative(self) -> None:
        """The slope is the derivative of the value, by automatic differentiation and by difference quotients."""
        u = points()
        at = u.clone().requires_grad_()
        value = self.tried("value of a tensor that requires a gradient", lambda: self.value(at))
        self.holds(value.requires_grad, "value must be differentiable by torch, but detaches its argument")
        (derivative,) = self.tried("the gradient of value", lambda: torch.autograd.grad(value.sum(), at))
        slope = self.slope(u)
        self.close(slope, derivative, "slope must be the derivative of value as automatic differentiation gives it")
        size = float(slope.abs().max().clamp_min(1e-30))
        quotients = [(self.value(u + h) - self.value(u - h)) / (2 * h) for h in STEPS]
        off = torch.stack([(quotient - slope).abs() for quotient in quotients]).amin(0).flatten()
        off[:2] = 0  # there may be a kink
        worst = int(off.argmax())
        at_worst, by = float(u.flatten()[worst]), float(off[worst])
        told = f"at {self.argument} = {at_worst:.4g} difference quotients differ from it by {by:.1e}"
        self.holds(by <= AGREES * size, f"slope must be the derivative of value; {told}")

    def fp32(self) -> None:
        """Values, slopes and gradients in fp32 are those of fp64, but for the rounding of u and of the numbers."""
        sizes = torch.logspace(-3, 3, 49, dtype=torch.float64).unsqueeze(1)
        u = torch.randn(49, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        u = (u.clamp(-1, 1) * sizes).float().double()
        u[-1, :2] = torch.tensor([LARGEST, -LARGEST])
        near = [[n * (1 + e) for n in self.numbers.values()] for e in (-1e-6, 1e-6)]
        for name in ("value", "slope", "gradient of value"):
            narrow = self.tried(f"{name} in fp32", lambda: self.function(name)(u.float())).double()  # noqa: B023
            wide = self.function(name)(u)
            if bool(wide.isnan().any()):
                self.holds(False, f"the {name} is NaN at {self.argument} = {float(u[wide.isnan()][0]):.4g}")
            moved = [self.function(name, own)(u * (1 + e)) - wide for own in near for e in (-5e-7, 0.0, 5e-7)]
            fits = (wide.abs() <= 1e30) & torch.stack(moved).isfinite().all(0)  # of fp32, whose largest is 3e38
            wide, narrow = (torch.where(fits, tensor, 0.0) for tensor in (wide, narrow))
            largest = wide.abs().amax(1, keepdim=True)
            ordinary = largest[(sizes <= 1).flatten()].amax()
            size = largest.cummax(0).values.maximum(ordinary).clamp_min(1e-30)
            loose = torch.where(fits, torch.stack(moved).abs().amax(0), 0.0).amax(1, keepdim=True)
            off = torch.where(narrow.isnan(), torch.inf, (narrow - wide).abs()) - (ROUNDED * size + 2 * loose)
            worst = int(off.argmax())
            got = f"{float(narrow.flatten()[worst]):.6g} in fp32 and {float(wide.flatten()[worst]):.6g} in fp64"
            self.holds(
                bool(off.max() <= 0), f"the {name} at {self.argument} = {float(u.flatten()[worst]):.4g} is {got}"
            )


def _gradient(function: Callable[..., Tensor], numbers: Sequence[float], u: Tensor) -> Tensor:
    at = u.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at, *numbers).sum(), at)
    return found
