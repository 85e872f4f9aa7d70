"""The check of a loss: that its slope is that of its value, entry by entry, in every form that a fit may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import bind
from inrfast.losses import LOSSES, BoundLoss, Loss, loss_of
from inrfast.ops import mlp_step
from inrfast.testing.entrywise import Entrywise, drawn, points

SPAN = 4.0
"""Width of the targets of a loss that takes any from some value on, or any at all."""


def check_loss(loss: str | Mapping[str, Any] | Loss | BoundLoss) -> None:
    """Check that a loss keeps the contract of :class:`inrfast.losses.Loss`, on the CPU.

    Tried are the numbers that it has, and others drawn around them: each between a third and three times its size. With
    all of them, for targets over the whole range that it takes: shapes and dtypes; that neither predictions nor targets
    are written; that every entry is treated alone, and the same way each time, among 287, 5,000 and 20,000; the slope
    against automatic differentiation and difference quotients in fp64; fp32 values, slopes and gradients against fp64,
    for predictions up to 1000; that an entry of no error has a finite slope, and that NaN stays NaN; the cost; the
    native step, where this machine runs it, against value and slope. Triton functions are not run; it is compared with
    the library's loss that has the same one.

    Parameters
    ----------
    loss
        A name, a mapping of its name and numbers, or a loss, which need not be registered.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        No loss, or an unknown name.

    Examples
    --------
    >>> check_loss("huber")
    >>> check_loss({"name": "huber", "delta": 0.1})
    """
    own = loss if isinstance(loss, BoundLoss) else None
    if own is None:
        own = BoundLoss(loss, tuple(loss.numbers.values())) if isinstance(loss, Loss) else loss_of(loss)
    numbers = dict(zip(own.kind.numbers, own.numbers, strict=True))
    for some in (numbers, *drawn(numbers)):
        checks = Checks(BoundLoss(own.kind, tuple(some.values())), some)
        checks.form()
        checks.targets()
        checks.alone()
        checks.derivative()
        checks.fp32()
        checks.special()
        checks.cost()
        checks.named()
        checks.native_step()


class Checks(Entrywise):
    """The parts of :func:`check_loss`, of one loss with its numbers, as a function of the prediction."""

    argument = "prediction"

    def __init__(self, own: BoundLoss, numbers: Mapping[str, float]) -> None:
        kind = own.kind
        super().__init__(
            f"the loss {kind.name!r}",
            numbers,
            lambda u, *numbers: kind.value(u, self.target(u), *numbers),
            lambda u, *numbers: kind.slope(u, self.target(u), *numbers),
        )
        self.own = own

    def target(self, prediction: Tensor) -> Tensor:
        """Return targets over the range that the loss takes, ends included, each by its place alone."""
        low, high = self.own.kind.targets or (-math.inf, math.inf)
        low = low if math.isfinite(low) else (high if math.isfinite(high) else SPAN / 2) - SPAN
        high = high if math.isfinite(high) else low + SPAN
        place = torch.arange(prediction.numel(), dtype=torch.float64)
        share = ((place * 0.6180339887498949) % 1.0).float().double()
        share[2:4] = torch.tensor([0.0, 1.0])[: len(share[2:4])]
        return (low + (high - low) * share).float().to(prediction.dtype).view(prediction.shape)

    def targets(self) -> None:
        """Targets are not written, and an entry does not depend on those of others."""
        u = points()
        for name, function in (("value", self.own.kind.value), ("slope", self.own.kind.slope)):
            target = self.target(u)
            before = target.clone()
            found = self.tried(name, lambda: function(u, target, *self.own.numbers))  # noqa: B023
            self.holds(torch.equal(target, before), f"{name} must not write into its targets")
            moves = torch.rand(u.shape, generator=torch.Generator().manual_seed(6)) < 0.5
            other = torch.where(moves, target.flatten().roll(7).view(u.shape), target)
            again = function(u, other, *self.own.numbers)
            same = torch.equal(torch.where(moves, 0.0, found), torch.where(moves, 0.0, again))
            self.holds(
                same or bool(found.isnan().any()), f"{name} couples entries: one changed when others' targets did"
            )

    def special(self) -> None:
        """Entries of no error have a finite value, slope and gradient; what is no number stays so."""
        u = points()
        target = self.target(u)
        at = target.clone().requires_grad_()
        value = self.own.value(at, target)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        for name, found in (
            ("value", value.detach()),
            ("slope", self.own.slope(target, target)),
            ("gradient of value", gradient),
        ):
            self.holds(bool(found.isfinite().all()), f"the {name} must be finite where the prediction is the target")
        broken = self.own.value(u.index_fill(1, torch.tensor([3]), float("nan")), target).isnan()
        right = bool(broken[:, 3].all()) and int(broken.sum()) == len(broken)
        self.holds(right, "value must leave NaN where NaN was, only there")

    def cost(self) -> None:
        """The cost of an error is a number that is not below 0."""
        for error in (1e-3, 1.0, 10.0):
            found = self.tried("cost", lambda: float(self.own.cost(error)))  # noqa: B023
            self.holds(0 <= found < math.inf, f"cost of {error:g} must be a number of at least 0, got {found:g}")

    def named(self) -> None:
        """Native step and Triton function are those of a loss with the same value and slope."""
        u = points()
        for field in ("native", "triton"):
            name = getattr(self.own.kind, field)
            if name is not None:
                same, target = BoundLoss(LOSSES[name], self.own.numbers), self.target(u)
                self.close(self.value(u), same.value(u, target), f"{field}={name!r} must have the same value")
                self.close(self.slope(u), same.slope(u, target), f"{field}={name!r} must have the same slope")

    def native_step(self) -> None:
        """The native step that it names has its value and slope, where this machine has that step."""
        if self.own.kind.native is None or not mlp_step.instructions():
            return
        u = points(torch.float32).flatten()
        target, none = self.target(u), u.new_zeros(len(u), 1, 1)
        slope = torch.zeros(len(u), 1)
        layers = [  # a network per entry, whose prediction is the bias of its head
            mlp_step.Layer(bind("relu"), none, None, torch.zeros_like(none)),
            mlp_step.Layer(None, none, u.view(-1, 1).contiguous(), torch.zeros_like(none), slope),
        ]
        at = mlp_step.Points(none, target.view(-1, 1, 1), None, range(1))
        chunk = mlp_step.chunk_rows(1, 1)
        memory = torch.empty(mlp_step.workspace(layers, chunk))
        how = mlp_step.instructions()
        value = mlp_step.steps(layers, at, torch.ones(len(u)), len(u), chunk, memory, how, self.own)
        told = f"the native step {self.own.kind.native!r} must have the same"
        self.close(value.float(), self.value(u), f"{told} value")
        self.close(slope.flatten(), self.slope(u), f"{told} slope")
