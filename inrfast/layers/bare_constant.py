"""Linear maps of what is the same for all points, as modulators and hypernetworks make of a latent code: two factors.

A map ``u = W h + b`` of one row h, where h and u are made of parameters alone, meets the points in what is made of u.
The derivative of output m at point n by W is then ``s[n, m] h^T``, with s its derivative by u: features ``[h, 1]`` that
are the same at all points, and sensitivities that go back to u through the computation of parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from inrfast.errors import UnsupportedModuleError
from inrfast.layers.bare_linear import BareLinear, LinearCall, is_transposed, linear_call
from inrfast.layers.bare_rows import BareRows, put_in, through
from inrfast.layers.base import LAYERS, Factors
from inrfast.layers.calls import Call, Made, Put, is_view_of

PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mv, Tensor.mv})
"""Functions that also take the matrix first, ``W @ h``."""

SEVERAL = "other functions of parameters alone take it too"


class ConstantMap(NamedTuple):
    """A linear map of one row as it was called, its parts, and its result u."""

    call: Call
    parts: LinearCall
    result: Tensor


def constant_map(made: Sequence[Made], name: str) -> ConstantMap | str:
    """Return the one linear map that takes a parameter as its matrix, or why there is none.

    ``made`` is all that was made of the parameter itself and of other parameters.
    """
    if len(made) != 1:
        return SEVERAL if made else "no function of parameters alone takes it"
    call, result = made[0]
    view = call.own_view(name)
    alone = replace(call, views={name: call.views[name]})  # its input is made of parameters too
    parts = _matrix_first(call, view) or linear_call(alone)
    if isinstance(parts, str):
        return parts
    if view is None or parts.given is not view or result is None or result.is_complex():
        return f"it enters {call.name} not as its matrix"
    if parts.x.numel() != parts.weight.shape[1]:
        return f"it acts on {call.name} inputs of the shape {tuple(parts.x.shape)}, not on one row"
    return ConstantMap(call, parts, result)


def _matrix_first(call: Call, view: Tensor | None) -> LinearCall | None:
    if call.function not in PRODUCTS or call.kwargs or view is None or view.ndim != 2 or call.args[0] is not view:
        return None
    x = call.args[1]
    return LinearCall(x, view, None, view) if x.ndim == 1 else None


def _takes_all(call: Call, made: Sequence[Made]) -> bool:
    return len(made) == 1 and made[0].call is call


def _enter(call: Call, names: Sequence[str]) -> bool:
    """Return whether parameters enter a call by what is made of all of them, real, and not themselves."""
    views = call.views.get(names[0], ())
    return all(
        [*map(id, views)] == [*map(id, call.views.get(name, ()))]
        and not any(view.is_complex() or is_view_of(view, call.parameters[name]) for view in views)
        for name in names
    )


@dataclass(frozen=True)
class BareConstant(BareLinear):
    """The weight of one linear map of a row that is the same for all points, with its bias where both enter one call.

    Nothing else may take either of them. Its sensitivities are those of what the points meet, in any number of calls.
    """

    kind: ClassVar[str] = "bare_constant"
    adds: ClassVar[bool] = True

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return every weight of one such map, with its bias if nothing else takes that."""
        claimed = []
        for name, calls in uses.items():
            found = constant_map(calls[0].made.get(name, ()), name) if calls else "no points meet it"
            if isinstance(found, str) or not all(_enter(call, (name,)) for call in calls):
                continue
            if BareRows.reasons_against(name, calls):
                continue
            transposed = is_transposed(found.parts.weight, found.call.parameters[name])
            if transposed is None:
                continue
            biases = [
                other
                for other in uses
                if _takes_all(found.call, calls[0].made.get(other, ()))
                if [*map(id, calls)] == [*map(id, uses[other])] and all(_enter(call, (name, other)) for call in calls)
                if found.parts.bias is not None and found.parts.bias is found.call.own_view(other)
                if found.parts.bias.shape == found.parts.weight.shape[:1] == (found.call.parameters[other].numel(),)
            ]
            claimed.append(([name, *biases], {"outputs": len(found.parts.weight), "transposed": transposed}))
        return claimed

    def put(self, call: Call) -> Put | str:
        """Return the call as rows of what is made of u want it: they go back to u."""
        name, *biases = self.parameters
        found = constant_map(call.made.get(name, ()), name)
        if isinstance(found, str):
            return found
        if is_transposed(found.parts.weight, call.parameters[name]) is not self.transposed:
            return f"it enters {found.call.name} in part or in several ways"
        if not all(_takes_all(found.call, call.made.get(own, ())) for own in biases):
            return SEVERAL
        if not _enter(call, (name, *biases)):
            return f"it enters {call.name} too, or what is made of it is complex there"
        x = found.parts.x.detach().reshape(1, -1)
        row = torch.cat([x, x.new_ones(1, 1)], dim=1)

        def back(rows: Tensor, view: Tensor) -> Factors:
            if any(len(call.made[own]) != 1 for own in self.parameters):
                raise UnsupportedModuleError(
                    f"layer {self.name!r} is used otherwise than at the first points: {SEVERAL}"
                )
            s = through(view, found.result, rows.reshape(-1, *view.shape)).reshape(*rows.shape[:2], -1)
            return self.factors(row.expand(len(rows), -1).contiguous(), s)

        return put_in(call, name, back)

    def added(self, calls: Sequence[Factors]) -> Factors:
        """Return the factors of all calls: their features are the same, their sensitivities add up."""
        rows = [factors.sensitivities for factors in calls if factors.sensitivities is not None]
        return Factors(calls[0].features, torch.stack(rows).sum(0))

    def representation(self, factors: Any) -> Tensor | None:
        """Return None: its input is the same at all points."""
        return None


LAYERS.add(BareConstant.kind, BareConstant)
