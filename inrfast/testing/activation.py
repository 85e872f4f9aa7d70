"""The check of an activation: that it does what networks, kernels, fits and files rely on."""

from __future__ import annotations

import pickle
from functools import partial

import torch

from inrfast.activations import ACTIVATIONS, Activation, BoundActivation, bind
from inrfast.ops import mlp_step
from inrfast.testing.entrywise import TOLERANCE, Entrywise, drawn, points


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
    others = [own.kind.bind(**numbers) for numbers in drawn(own.named, own.kind.signed)]
    for number, one in enumerate([own, *others]):
        checks = Checks(one)
        checks.form()
        checks.alone()
        checks.derivative()
        checks.fp32()
        checks.in_place()
        checks.named()
        checks.native_step()
        checks.kept()
        checks.bound(reached=number == 0)
        checks.nan()
        checks.transforms()


class Checks(Entrywise):
    """The parts of :func:`check_activation`, of one activation with its numbers."""

    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

    def __init__(self, own: BoundActivation) -> None:
        super().__init__(f"the activation {own.name!r}", own.named, own.kind.value, own.kind.slope)
        self.own = own

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
            self.close(value[:, :-1], self.value(u), f"in_place must leave the value in its third argument {told}")
            self.close(slope, self.slope(u), f"in_place must leave the slope in its first argument {told}")
            self.close(alone, self.value(u), f"value_in_place must leave the value in its first argument {told}")

    def named(self) -> None:
        """Device function and native step are those of an activation with the same value and slope."""
        u = points()
        for field in ("device", "native"):
            name = getattr(self.own.kind, field)
            if name is not None:
                same = BoundActivation(ACTIVATIONS[name], self.own.numbers)
                self.close(self.value(u), same.value(u), f"{field}={name!r} must have the same value")
                self.close(self.slope(u), same.slope(u), f"{field}={name!r} must have the same slope")

    def native_step(self) -> None:
        """The native step that it names has its value and slope, where this machine has that step."""
        if self.own.kind.native is None or not mlp_step.instructions():
            return
        u = points(torch.float32)[:, :4].flatten()
        one, none = torch.ones(len(u), 1, 1), u.new_zeros(len(u), 1)
        value = self.value(u)
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
        self.close(hidden.flatten() / head.flatten(), self.slope(u), f"{told} slope")

    def kept(self) -> None:
        """The slope follows from what ``keeps`` says is enough."""
        kind, u = self.own.kind, points()
        value, slope = self.value(u), self.slope(u)
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
        largest = float(self.value(u).abs().max())
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
        for name, found in (("value", self.value(u)), ("in_place", value), ("value_in_place", alone)):
            self.holds(found.isnan().tolist() == [[True, False]], f"{name} must leave NaN where NaN was, only there")

    def transforms(self) -> None:
        """``torch.vmap`` takes it, and pickle, once it is registered."""
        u = points()
        for name, function in (("value", self.value), ("slope", self.slope)):
            mapped = self.tried(f"torch.vmap of {name}", partial(torch.vmap(function), u))
            self.close(mapped, function(u), f"{name} under torch.vmap must be {name}")
        if ACTIVATIONS.get(self.own.name) is not self.own.kind:
            return
        again = self.tried("pickle", lambda: pickle.loads(pickle.dumps(self.own)))
        self.holds(again == self.own, "pickle must give back the same activation")
