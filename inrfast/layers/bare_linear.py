"""Bare weights of linear maps, ``F.linear(x, W, b)``, ``x @ W`` or ``torch.addmm(b, x, W)``: two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.layers.base import LAYERS, points_first
from inrfast.layers.calls import Call, CallLayer, Put, same_entries
from inrfast.layers.linear import Linear


def linear_and_sum(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``F.linear(input, weight, bias)`` for a bias of any shape that the output can be added to."""
    return F.linear(input, weight) + bias


def product_and_sum(input: Tensor, other: Tensor, bias: Tensor) -> Tensor:
    """Return ``input @ other + bias``."""
    return input @ other + bias


LINEAR: dict[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("x", "rows", "bias"),
    linear_and_sum: ("x", "rows", "bias"),
    product_and_sum: ("x", "columns", "bias"),
    torch.matmul: ("x", "columns"),
    Tensor.matmul: ("x", "columns"),
    Tensor.__matmul__: ("x", "columns"),
    torch.mm: ("x", "columns"),
    Tensor.mm: ("x", "columns"),
    torch.addmm: ("bias", "x", "columns"),
    Tensor.addmm: ("bias", "x", "columns"),
}
"""Arguments of functions that multiply by a matrix, whose rows or columns belong to the outputs."""

KEYWORDS = {"input": "x", "weight": "rows", "other": "columns", "mat2": "columns"}
KEYWORDS_OF_SUMS = {"input": "bias", "mat1": "x", "mat2": "columns"}


class LinearCall(NamedTuple):
    """``Z W^T + b`` as it is called: what stands for ``W`` (D_out, D_in), and whether it was given transposed."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    given: Tensor


def linear_call(call: Call) -> LinearCall | str:
    """Return the parts of a linear map, or why a call is none."""
    if call.function is torch.einsum:
        return _of_einsum(call)
    names = LINEAR.get(call.function)
    if names is None:
        return f"it enters {call.name}"
    renamed = KEYWORDS_OF_SUMS if names[0] == "bias" else KEYWORDS
    kwargs = {renamed.get(key, key): value for key, value in call.kwargs.items()}
    found = {**dict(zip(names, call.args, strict=False)), **kwargs}
    if not found.keys() <= {"x", "rows", "columns", "bias"} or len(call.args) > len(names):
        return f"it enters {call.name} with other arguments than a matrix and a bias"
    x, given, bias = found["x"], found.get("rows", found.get("columns")), found.get("bias")
    if not isinstance(x, Tensor) or not isinstance(given, Tensor) or given.ndim != 2 or call.holds(x):
        return f"it enters {call.name} on the left, or as no matrix"
    return LinearCall(x, given if "rows" in found else given.t(), bias, given)


def _of_einsum(call: Call) -> LinearCall | str:
    """Return the parts of ``torch.einsum("...i,oi->...o", x, W)``, in any letters and with the two in any order."""
    told = f"it enters {call.name} otherwise than as the matrix of a linear map"
    equation, *operands = call.args
    if not isinstance(equation, str) or len(operands) != 2 or call.kwargs:
        return told
    inputs, _, result = equation.replace(" ", "").replace("...", ".").partition("->")
    parts = list(zip(inputs.split(","), operands, strict=False))
    for (of_x, x), (of_weight, given) in (parts, parts[::-1]) if len(parts) == 2 else ():
        inner, outer = of_x[-1:], result[-1:]
        apart = len(set(of_x + outer)) == len(of_x) + 1 and of_x[:-1] == result[:-1]
        if apart and of_weight in (outer + inner, inner + outer) and not call.holds(x):
            return LinearCall(x, given if of_weight[0] == outer else given.t(), None, given)
    return told


def is_transposed(weight: Tensor, parameter: Tensor) -> bool | None:
    """Return whether a weight (D_out, D_in) is the transposed parameter; None if it is neither that nor itself."""
    if same_entries(weight, parameter):
        return False
    if parameter.ndim == 2 and same_entries(weight, parameter.t()):
        return True
    if weight.numel() == parameter.numel() and parameter.is_contiguous():
        return False if weight.is_contiguous() else True if weight.t().is_contiguous() else None
    return None


@dataclass(frozen=True)
class BareLinear(CallLayer, Linear):
    """The weight of one linear map in a forward pass, with its bias where both enter one call.

    Attributes
    ----------
    outputs
        D_out.
    transposed
        Whether the parameter is ``W^T`` (D_in, D_out).
    """

    outputs: int = 0
    transposed: bool = False

    kind: ClassVar[str] = "bare_linear"
    order: ClassVar[int] = 2

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return every weight of one linear map, with its bias if that enters nothing else."""
        once = {name: found[0] for name, calls in uses.items() if len(found := [c for c in calls if not c.idle]) == 1}
        claimed = []
        for name, call in once.items():
            own = linear_call(call)
            if isinstance(own, str) or own.given is not call.own_view(name):
                continue
            transposed = is_transposed(own.weight, call.parameters[name])
            if transposed is None or points_first(own.x, call.points).shape != (call.points, own.weight.shape[1]):
                continue
            biases = [
                other
                for other, at in once.items()
                if at is call and own.bias is not None and own.bias is call.own_view(other)
                if own.bias.shape == own.weight.shape[:1] == (at.parameters[other].numel(),)
            ]
            claimed.append(([name, *biases], {"outputs": own.weight.shape[0], "transposed": transposed}))
        return claimed

    def put(self, call: Call) -> Put | str:
        """Return the call itself: the factors are its input and the sensitivities of its output."""
        own, name = linear_call(call), next(iter(self.parameters))
        if isinstance(own, str):
            return own
        if own.given is not call.own_view(name):
            return f"it enters {call.name} not as its matrix"
        if is_transposed(own.weight, call.parameters[name]) is not self.transposed:
            return f"it enters {call.name} in part or in several ways"
        x = points_first(own.x.detach(), call.points)
        if x.shape != (call.points, own.weight.shape[1]):
            return f"it acts on {call.name} inputs of the shape {tuple(own.x.shape)}, not (points, features)"
        features = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        return Put(call, None, lambda sensitivities: self.factors(features, sensitivities))

    # ---- its block of the Jacobian -----------------------------------------------------------------------------

    @property
    def _with_weight(self) -> bool:
        return True

    @property
    def _with_bias(self) -> bool:
        return len(self.parameters) == 2

    @property
    def block(self) -> tuple[int, int]:
        """Shape (D_out, D_in + 1), or without what is not differentiated."""
        return self.outputs, self.columns // self.outputs

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``[W, b]`` (k, D_out, D_in + 1)."""
        weight, *bias = parts
        if self.transposed:
            weight = weight.reshape(len(weight), -1, self.outputs).transpose(1, 2)
        return super().join([weight, *bias])

    def divide(self, block: Tensor) -> list[Tensor]:
        """Return W and b of ``[W, b]``."""
        weight, *bias = super().divide(block)
        if self.transposed:
            weight = weight.reshape(len(weight), self.outputs, -1).transpose(1, 2).flatten(1)
        return [weight, *bias]

    def shaped(self, entries: Tensor, b: int) -> Tensor:
        """View the columns of W or b as (n, M, D_out, a)."""
        return entries.unflatten(2, (-1, b)).transpose(2, 3) if self.transposed else super().shaped(entries, b)

    def representation(self, factors: Any) -> Tensor | None:
        """Return Z."""
        features: Tensor | None = factors.features
        return None if features is None else features[:, : self.sizes[0] // self.outputs]

    def matrix(self, module: nn.Module) -> Tensor | None:
        """Return W (D_out, D_in), if it has entries."""
        weight = module.get_parameter(next(iter(self.parameters)).rpartition(".")[2])
        shaped = weight.reshape(-1, self.outputs).t() if self.transposed else weight.reshape(self.outputs, -1)
        return shaped if weight.numel() > 0 else None


LAYERS.add(BareLinear.kind, BareLinear)
