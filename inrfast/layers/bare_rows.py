"""Bare parameters in elementwise functions, ``omega * x``, ``x + b``, ``latent.expand(n, -1)``, and in mixed use: rows.

A function that broadcasts takes every entry apart, so that a copy of the parameter for every point may stand in its
place: the derivatives by these copies are the rows of the Jacobian, whatever the function is. Rows of several calls, of
linear maps and of reads among them, add up. Where what enters a call was computed of parameters alone, its rows go back
to them through that computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrfast.layers.bare_linear import linear_and_sum, linear_call, product_and_sum
from inrfast.layers.bare_table import by_points
from inrfast.layers.base import LAYERS, Factors, points_first
from inrfast.layers.calls import EXPANDS, REPEATS, Call, CallLayer, Put, entries, is_view_of, points_axes, tensors_in
from inrfast.memory import is_refusal

NAMES = [
    "add",
    "sub",
    "subtract",
    "rsub",
    "mul",
    "multiply",
    "div",
    "divide",
    "true_divide",
    "pow",
    "float_power",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "where",
    "addcmul",
    "addcdiv",
    "lerp",
    "atan2",
    "arctan2",
    "hypot",
    "copysign",
    "logaddexp",
    "clamp",
    "clip",
    "remainder",
    "fmod",
    "xlogy",
]
OPERATORS = ("add", "sub", "mul", "div", "truediv", "pow", "mod")


def _elementwise() -> frozenset[Callable[..., Any]]:
    dunders = [f"__{before}{name}__" for name in OPERATORS for before in ("", "r", "i")]
    names = [*NAMES, *(f"{name}_" for name in NAMES), *dunders]
    return frozenset(found for owner in (torch, Tensor) for name in names if (found := getattr(owner, name, None)))


ELEMENTWISE = _elementwise()
"""Functions whose result has the shape that their arguments broadcast to, each entry made of theirs there."""


class BareRows(CallLayer):
    """A parameter of which every call is known, but which has no form of two factors or of sparse rows."""

    kind: ClassVar[str] = "bare_rows"
    order: ClassVar[int] = 3
    adds: ClassVar[bool] = True

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return every parameter all of whose calls are known."""
        return [([name], {}) for name, calls in uses.items() if not cls.reasons_against(name, calls)]

    @classmethod
    def reasons_against(cls, name: str, calls: Sequence[Call]) -> list[str]:
        """Return why this kind of layer does not know the calls of a parameter."""
        found = [put_in(call, name) for call in calls]
        against = [put for put, call in zip(found, calls, strict=True) if isinstance(put, str) and not call.idle]
        if not against and not any(isinstance(put, Put) for put in found):
            return ["no function that takes it is seen"]
        return against

    def put(self, call: Call) -> Put | str:
        """Return the call with a copy for every point in place of the parameter, or a linear map or a read itself."""
        return put_in(call, next(iter(self.parameters)))


def put_in(call: Call, name: str, onward: Callable[[Tensor, Tensor], Factors] | None = None) -> Put | str:
    """Return what is made of a call to get the rows (n, M, entries) of a parameter, or the reason against the call.

    ``onward(rows, view)`` makes factors of the rows (n, M, entries) of the argument that holds the parameter; None:
    these go back to the parameter itself.
    """
    views, parameter = call.views[name], call.parameters[name]

    def back(rows: Tensor, view: Tensor) -> Factors:
        rows = rows.reshape(*rows.shape[:2], -1)
        return Factors(None, _pulled_back(rows, view, parameter)) if onward is None else onward(rows, view)

    if len(views) != 1:
        both = _of_both(call, views, back) if len(views) == 2 else ""
        return both or f"it enters {call.name} {'more than once' if views else 'inside of torch.func'}"
    return _put_in(call, views[0], partial(back, view=views[0]))


def _put_in(call: Call, view: Tensor, back: Callable[[Tensor], Factors]) -> Put | str:
    swapped = call.swapped.get(id(view))
    if swapped is not None:
        return Put(call, swapped, back)
    if call.function in EXPANDS or call.function in REPEATS or call.function in ELEMENTWISE:
        return _copied(call, view, back)
    if call.function in (torch.addmm, torch.Tensor.addmm) or call.function is torch.nn.functional.linear:
        found = _of_linear(call, view, back)
    else:
        found = _of_product(call, view, back)
    return _of_reads(call, view, back) if isinstance(found, str) else found


def _pulled_back(rows: Tensor, view: Tensor, parameter: Tensor) -> Tensor:
    """Return rows (n, M, P) of a parameter from those of what was made of it, (n, M, entries)."""
    if not is_view_of(view, parameter) or view.dtype != parameter.dtype:
        return through(view, parameter, rows.reshape(-1, *view.shape)).reshape(*rows.shape[:2], -1)
    if view.shape == parameter.shape and view.stride() == parameter.stride():
        return rows
    out = rows.new_zeros(*rows.shape[:2], parameter.numel())
    return out.index_add_(2, entries(view, parameter).flatten(), rows)


def through(made: Tensor, source: Tensor, cotangents: Tensor) -> Tensor:
    """Return the gradients (k, ...) of a tensor for k cotangents of what was made of it."""
    try:
        return torch.autograd.grad(made, source, cotangents, retain_graph=True, is_grads_batched=True)[0]
    except RuntimeError as error:  # a function that cannot be run for many at once
        if is_refusal(error):
            raise
    return torch.stack([torch.autograd.grad(made, source, one, retain_graph=True)[0] for one in cotangents])


def _copied(call: Call, view: Tensor, back: Callable[[Tensor], Factors]) -> Put | str:
    """Return a call of a function that broadcasts, with copies of a parameter for every point."""
    given = [*tensors_in(call.args), *tensors_in(dict(call.kwargs))]
    if call.kwargs.get("out") is not None or (
        (call.name.endswith("_") or call.name.startswith("__i")) and given[0] is view
    ):
        return f"{call.name} writes into it or into a given tensor"
    if call.function in ELEMENTWISE:
        shape: Sequence[int] = torch.broadcast_shapes(*(tensor.shape for tensor in given))
    elif call.args[0] is not view:
        return f"it enters {call.name} for its shape"
    else:
        shape = call().shape
    copies = _copies(call, view, shape)
    if isinstance(copies, str):
        return copies
    made = call.with_(view, copies)
    if call.function in EXPANDS:
        made = replace(made, function=Tensor.expand, args=(copies, *shape), kwargs={})
    elif call.function in REPEATS:
        times = [now // before for now, before in zip(shape, copies.shape, strict=True)]
        made = replace(made, function=Tensor.repeat, args=(copies, *times), kwargs={})
    return Put(made, copies, back)


def _of_linear(call: Call, view: Tensor, back: Callable[[Tensor], Factors]) -> Put | str:
    """Return a linear map whose bias or matrix is a parameter."""
    own = linear_call(call)
    if isinstance(own, str) or own.bias is not view:
        return _of_product(call, view, back)
    function = linear_and_sum if own.given is own.weight else product_and_sum
    made = replace(call, function=function, args=(own.x, own.given, own.bias), kwargs={})
    shape = (*own.x.shape[:-1], len(own.weight))
    copies = _copies(call, view, shape)
    return copies if isinstance(copies, str) else Put(made.with_(view, copies), copies, back)


def _copies(call: Call, view: Tensor, shape: Sequence[int]) -> Tensor | str:
    """Return a view's copies for every point of a result of some shape, or why they cannot stand in a call."""
    axes, padded = points_axes(shape, call.points), (1,) * (len(shape) - view.ndim) + tuple(view.shape)
    if axes is None or any(size != 1 for size in padded[:axes]):
        return f"{call.name} gives of it the shape {tuple(shape)}, where points along the first axis must share it"
    if call.repeated:
        return f"it enters {call.name} in an activation checkpoint, whose second run is not observed"
    return view.detach().reshape(padded).clone().expand(*shape[:axes], *padded[axes:]).requires_grad_()


def _of_product(call: Call, view: Tensor, back: Callable[[Tensor], Factors]) -> Put | str:
    """Return a linear map of one or several positions of every point, whose matrix is a parameter."""
    own = linear_call(call)
    if isinstance(own, str):
        return own
    if own.given is not view:
        return f"it enters {call.name} not as its matrix"
    axes = points_axes(own.x.shape[:-1], call.points)
    if axes is None:
        return f"it acts on inputs of the shape {tuple(own.x.shape)}, where the points must come first"
    x, transposed = points_first(own.x.detach(), call.points).conj().clone(), own.given is not own.weight
    x = x.view(len(x), -1, x.shape[-1])

    def factors(sensitivities: Tensor) -> Factors:
        s = sensitivities.view(*sensitivities.shape[:2], x.shape[1], -1)
        return back(torch.einsum("nmpb,npa->nmab" if transposed else "nmpb,npa->nmba", s, x))

    return Put(call, None, factors)


def _of_both(call: Call, views: Sequence[Tensor], back: Callable[..., Factors]) -> Put | None:
    """Return a linear map whose matrix and bias are both made of one parameter."""
    own = linear_call(call)
    if isinstance(own, str) or own.bias is None or not any(own.given is view for view in views):
        return None
    (bias,) = [view for view in views if view is not own.given]
    added = own.bias is bias or own.bias is call.swapped.get(id(bias))
    product = _of_product(call, own.given, partial(back, view=own.given))
    if not added or bias.numel() != len(own.weight) or isinstance(product, str):
        return None

    def factors(sensitivities: Tensor) -> Factors:
        of_bias = sensitivities.reshape(*sensitivities.shape[:2], -1, bias.numel()).sum(2)
        features, of_matrix = product.factors(sensitivities)
        both = [rows for rows in (of_matrix, back(of_bias, view=bias).sensitivities) if rows is not None]
        return Factors(features, torch.stack(both).sum(0))

    return Put(call, None, factors)


def _of_reads(call: Call, view: Tensor, back: Callable[[Tensor], Factors]) -> Put | str:
    """Return a read of entries of what is made of a parameter."""
    found = by_points(call, view, view)
    if isinstance(found, str):
        return found
    columns, mask = found

    def factors(sensitivities: Tensor) -> Factors:
        own = sensitivities.reshape(*sensitivities.shape[:2], -1)
        out = own.new_zeros(*own.shape[:2], view.numel())
        own = own if mask is None else own * mask.unsqueeze(1)
        return back(out.scatter_add_(2, columns.unsqueeze(1).expand_as(own), own))

    return Put(call, None, factors)


LAYERS.add(BareRows.kind, BareRows)
