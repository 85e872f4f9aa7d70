"""Calls of torch functions that take a parameter: how layers look at parameters that no known module holds.

A parameter enters a call as itself, as a view of it (``W.t()``, ``tables[level]``), or as what was computed of
parameters alone (``scale.exp()``, ``W * gain``). A :class:`CallLayer` says whether it knows the call, what it puts into
it, and what the rows of the Jacobian are then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from inrfast.layers.base import Factors, Layer

EXPANDS = frozenset({Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to})
REPEATS = frozenset({Tensor.repeat, torch.tile, Tensor.tile})
"""Functions that may give every point a copy of their one tensor."""


@dataclass(frozen=True)
class Call:
    """One call of a torch function.

    Attributes
    ----------
    function, args, kwargs
        What is called with what.
    points
        Number of points n that the network runs on.
    views
        The arguments that hold a watched parameter, by the parameter's name; none where a transform of ``torch.func``
        hides points in its tensors.
    parameters
        The watched parameters.
    swapped
        What stands in the arguments for a view of :attr:`views`, by the view's ``id``.
    idle
        Whether it gives a view of the parameter, or no tensor: then it makes no use of the parameter itself.
    repeated
        Whether activation checkpointing makes it once more in the backward pass, and then as it was written.
    made
        What calls that take parameters alone have made so far of a watched parameter itself, by its name.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    points: int
    views: Mapping[str, tuple[Tensor, ...]]
    parameters: Mapping[str, Tensor]
    swapped: Mapping[int, Tensor] = field(default_factory=dict)
    idle: bool = False
    repeated: bool = False
    made: Mapping[str, Sequence[Made]] = field(default_factory=dict)

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    @property
    def name(self) -> str:
        """What reports call the function."""
        return str(getattr(self.function, "__name__", self.function))

    def bound(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by name, those that are given by position in the order of ``names``."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def holds(self, value: object) -> bool:
        """Return whether an argument is one of the views."""
        return any(value is view for views in self.views.values() for view in views)

    def own_view(self, name: str) -> Tensor | None:
        """Return the one argument that lies in a parameter's memory; None if there is none, or another one too."""
        views = self.views.get(name, ())
        own = len(views) == 1 and is_view_of(views[0], self.parameters[name])
        return views[0] if own and views[0].dtype == self.parameters[name].dtype else None

    def with_(self, view: Tensor, other: Tensor) -> Call:
        """Return the call with another tensor in the place of a view."""
        args = tuple(_exchanged(argument, view, other) for argument in self.args)
        kwargs = {name: _exchanged(argument, view, other) for name, argument in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs, swapped={**self.swapped, id(view): other})


class Made(NamedTuple):
    """A call that takes parameters alone, and the tensor that it made; None for one that may be changed in place."""

    call: Call
    result: Tensor | None


class Put(NamedTuple):
    """What a layer makes of a call.

    Attributes
    ----------
    call
        The call that is made in its place, of the same result.
    kept
        The tensor whose sensitivities are wanted; None: the result.
    factors
        The layer's factors from these sensitivities, (n, M, ...) with the points along the first axis.
    """

    call: Call
    kept: Tensor | None
    factors: Callable[[Tensor], Factors]


class CallLayer(Layer):
    """Parameters that are known by the calls of torch functions that take them."""

    order: ClassVar[int] = 2

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return nothing: no module says how it uses its parameters."""
        return ()

    @classmethod
    def claims(cls, uses: Mapping[str, Sequence[Call]]) -> list[tuple[list[str], dict[str, Any]]]:
        """Return the parameters that make up each layer, and further numbers of that layer.

        ``uses`` are the calls of one forward pass, by the name of the parameter.
        """
        raise NotImplementedError

    def put(self, call: Call) -> Put | str:
        """Return what is made of a call, or in words why this kind of layer does not know it."""
        raise NotImplementedError


# ---- tensors and where they lie ----------------------------------------------------------------------------------


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument: itself, or those in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _exchanged(value: Any, view: Tensor, other: Tensor) -> Any:
    if value is view:
        return other
    if isinstance(value, (list, tuple)) and any(one is view for one in tensors_in(value)):
        return type(value)(_exchanged(item, view, other) for item in value)
    return value


def points_axes(shape: Sequence[int], points: int) -> int | None:
    """Return how many leading axes make up the points; None if no number of them does."""
    for axes, count in enumerate(accumulate(shape, mul), start=1):
        if count == points:
            return axes
    return None


def is_view_of(view: Tensor, parameter: Tensor) -> bool:
    """Return whether a tensor lies in a parameter's memory."""
    return view.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


def same_entries(view: Tensor, other: Tensor) -> bool:
    """Return whether two views of one parameter are the same entries in the same order."""
    if view.shape != other.shape or view.storage_offset() != other.storage_offset():
        return False
    return all(size == 1 or a == b for size, a, b in zip(view.shape, view.stride(), other.stride(), strict=True))


def entries(view: Tensor, parameter: Tensor) -> Tensor:
    """Return the place of every entry of a view in the flattened parameter, int64 in the view's shape."""
    start = int(view.storage_offset()) - int(parameter.storage_offset())
    if parameter.is_contiguous() and view.is_contiguous():
        return torch.arange(start, start + view.numel(), device=view.device).view(view.shape)
    places = torch.empty_strided(parameter.shape, parameter.stride(), dtype=torch.int64, device=view.device)
    places.copy_(torch.arange(parameter.numel(), device=view.device).view(parameter.shape))
    return places.as_strided(view.shape, view.stride(), start)
