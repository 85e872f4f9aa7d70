"""The linear maps that a module computes with its own weights, what they get, and which of them get the coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrfast.snapshot import own_dtype, snapshot

POINTS = 64
"""Points at which a module is looked at, unless it takes no such number."""

ROUNDING = 256
"""Allowed distance of a layer's input from a rescaled coordinate, in roundoffs of its size."""

WIDENED = 1e-3
"""Length of a side of the box that has none, for coordinates of size 1."""

PRODUCTS = {"matmul", "mm"}

PASSES = {"mul", "multiply", "neg", "view", "reshape", "squeeze", "unsqueeze", "flatten", "clone", "contiguous", "to"}
"""Functions, as torch calls them, after which an output is still the same up to a factor."""


@dataclass(eq=False)
class LinearCall:
    """A product of a parameter with what a layer gets, ``x W^T + b``.

    Attributes
    ----------
    name
        The module that has the weight, or the weight itself where it is not called ``weight``.
    weight, bias
        The names of the parameters; bias may be None.
    turned
        Whether the weight is kept as (in, out).
    outputs
        Number of units.
    linear
        Whether the product is a call of ``torch.nn.functional.linear``.
    inputs
        What it gets, one tensor per call.
    follows
        The functions that take the output, each with the factor between, ``[("sin", 30.0)]``.
    """

    name: str
    weight: str
    bias: str | None
    turned: bool
    outputs: int
    linear: bool
    inputs: list[Tensor] = field(default_factory=list)
    follows: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Rescaled:
    """What a layer gets of the coordinates: column j is ``factors[j] * coords[:, columns[j]] + shifts[j]``."""

    columns: tuple[int, ...]
    factors: tuple[float, ...]
    shifts: tuple[float, ...]

    def of(self, coords: Tensor) -> Tensor:
        """Return what the layer gets at coordinates (n, d)."""
        chosen = coords[:, list(self.columns)]
        return chosen * chosen.new_tensor(self.factors) + chosen.new_tensor(self.shifts)

    def box(self, bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Return the bounds of what it gets from those of the coordinates."""
        ends = zip(self.columns, self.factors, self.shifts, strict=True)
        pairs = [sorted(factor * end + shift for end in bounds[column]) for column, factor, shift in ends]
        return [(low, high) for low, high in pairs]


class _Seen(TorchFunctionMode):
    """A block in which the linear calls of a module are kept."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, LinearCall] = {}
        self.computed: list[Tensor] = []
        self._places = {_place(own): (name, own) for name, own in module.named_parameters() if own.numel()}
        self._outputs: dict[int, tuple[LinearCall, float, Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = [self._outputs[id(given)] for given in args if id(given) in self._outputs]
        found = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name.startswith("__") and name.endswith("__"):
            name = name.strip("_").removeprefix("r").removeprefix("i") if name[2] in "ri" else name.strip("_")
        name = name.rstrip("_")
        if isinstance(found, Tensor) and not self._linear(name, args, kwargs, found):
            for call, factor, output in sources:
                self._follow(name, args, found, call, factor, output)
        return found

    def _linear(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], found: Tensor) -> bool:
        """Keep a product with a weight; return whether it is one."""
        bias = None
        if name == "linear":
            given, weight, bias = [*args, *(kwargs[key] for key in ("input", "weight", "bias") if key in kwargs), None][
                :3
            ]
        elif name in PRODUCTS and len(args) == 2:
            given, weight = args[0], args[1].mT if isinstance(args[1], Tensor) and args[1].ndim > 1 else None
        elif name == "addmm" and len(args) == 3 and not kwargs:
            bias, given, weight = args[0], args[1], args[2].mT
        else:
            return False
        if not isinstance(given, Tensor) or not isinstance(weight, Tensor) or weight.ndim != 2:
            return False
        own = self._parameter(weight)
        if own is None or own[1].ndim != 2:
            if weight.requires_grad:
                self.computed.append(given)
            return False
        turned = weight.shape != own[1].shape or weight.stride() != own[1].stride()
        if turned and (weight.mT.shape != own[1].shape or weight.mT.stride() != own[1].stride()):
            return False
        if own[0] not in self.calls:
            prefix, _, leaf = own[0].rpartition(".")
            added = self._parameter(bias) if isinstance(bias, Tensor) else None
            place = prefix if leaf == "weight" and prefix else own[0]
            self.calls[own[0]] = LinearCall(
                place, own[0], None if added is None else added[0], turned, len(weight), name == "linear"
            )
        call = self.calls[own[0]]
        call.inputs.append(given)
        self._outputs[id(found)] = (call, 1.0, found)
        return True

    def _follow(
        self, name: str, args: tuple[Any, ...], found: Tensor, call: LinearCall, factor: float, output: Tensor
    ) -> None:
        """Keep what happens to a layer's output: a bias that is added, a factor, or any other function."""
        others = [given for given in args if given is not output]
        if name == "add" and len(others) == 1 and isinstance(others[0], Tensor) and call.bias is None and factor == 1:
            named = self._parameter(others[0])
            if named is not None and named[1].numel() == output.shape[-1]:
                call.bias = named[0]
                self._outputs[id(found)] = (call, factor, found)
                return
        if name in PASSES and not any(isinstance(given, Tensor) and given.ndim for given in others):
            if name in ("mul", "multiply"):
                factor *= float(others[0]) if others else 1.0
            self._outputs[id(found)] = (call, -factor if name == "neg" else factor, found)
            return
        call.follows.append((name, factor))

    def layers(self) -> list[LinearCall]:
        """Return the calls of layers: bare products with something that is no weight (centres, codes) are none."""
        return [call for call in self.calls.values() if call.bias or call.linear or call.weight.endswith("weight")]

    def _parameter(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return the parameter that a tensor is, or shows all of, with its name."""
        found = self._places.get(_place(tensor)) if tensor.numel() else None
        return found if found is not None and found[1].numel() == tensor.numel() else None


def _place(tensor: Tensor) -> tuple[int, int, torch.device]:
    return tensor.data_ptr(), tensor.numel(), tensor.device


@dataclass(frozen=True, eq=False)
class Calls:
    """The linear layers of a module in the order of their first calls, at known points.

    Attributes
    ----------
    layers
        The layers.
    points
        The coordinates (n, d) at which the module was run, fp64.
    computed
        Inputs of layers whose weight is computed from parameters.
    parameters
        The parameters of the copy that was run, by their ``id``.
    """

    layers: list[LinearCall]
    points: Tensor
    computed: list[Tensor]
    parameters: frozenset[int]

    def rescaled(self, call: LinearCall) -> Rescaled | None:
        """Return in which way a layer gets the coordinates, each once; None: it gets something else."""
        found = rescaled(torch.cat([_rows(given) for given in call.inputs]), self.points)
        return None if any(_depends(given, self.parameters) for given in call.inputs) else found

    def gets_coordinates_beside_others(self, call: LinearCall) -> bool:
        """Return whether a layer gets all coordinates as they are, and more."""
        given = torch.cat([_rows(given) for given in call.inputs])
        if given.shape[1] <= self.points.shape[1] or len(given) != len(self.points):
            return False
        columns = set(map(tuple, given.double().T.tolist()))
        return all(tuple(own) in columns for own in self.points.to(given.dtype).double().T.tolist())


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1])


def _depends(tensor: Tensor, parameters: frozenset[int]) -> bool:
    """Return whether a tensor was computed from parameters."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in parameters:
            return True
        waiting.extend(following for following, _ in node.next_functions)
    return id(tensor) in parameters


def rescaled(given: Tensor, points: Tensor) -> Rescaled | None:
    """Return how columns (n, k) come from coordinates (n, d), each from one by a factor and a shift; None: they do not.

    The coordinates must be in general position; columns that are bit for bit those of the coordinates have the factor 1
    and the shift 0.
    """
    n, d = points.shape
    if given.shape != (n, d):
        return None
    exact, given = points.to(given.dtype), given.to("cpu")
    columns, factors, shifts = [], [], []
    centred = points - points.mean(0)
    roundoff = ROUNDING * max(torch.finfo(given.dtype).eps, torch.finfo(exact.dtype).eps)
    for column in given.T:
        same = (column.unsqueeze(1) == exact).all(0).nonzero()[:, 0].tolist()
        if same:
            found, factor, shift = same[0], 1.0, 0.0
        else:
            values = column.double()
            slopes = ((values - values.mean()) @ centred) / centred.square().sum(0)
            intercepts = values.mean() - slopes * points.mean(0)
            apart = (values.unsqueeze(1) - slopes * points - intercepts).abs().amax(0)
            size = values.abs().max() + (slopes * points).abs().amax(0)
            found = int((apart / size.clamp_min(torch.finfo(size.dtype).tiny)).argmin())
            factor, shift = float(slopes[found]), float(intercepts[found])
            if not factor or not float(apart[found]) <= roundoff * float(size[found]):
                return None
        columns.append(found)
        factors.append(factor)
        shifts.append(shift)
    return Rescaled(tuple(columns), tuple(factors), tuple(shifts)) if sorted(columns) == list(range(d)) else None


def linear_calls(
    module: nn.Module, bounds: Sequence[tuple[float, float]], shapes: Sequence[tuple[int, ...]], seed: int = 0
) -> Calls:
    """Run a copy of a module, in eval mode, at random points of a box and return its linear layers.

    Parameters
    ----------
    module
        Any module that takes coordinates; neither it nor the global generator is changed.
    bounds
        The box, one pair (low, high) per coordinate; a side of length zero is widened a little.
    shapes
        Of the points, without their last axis; the first one that the module takes: ``[(64,)]``.
    seed
        Of the points.

    Raises
    ------
    UnsupportedModuleError
        The module cannot be copied.
    ValueError
        It does not take such coordinates.
    """
    copied = snapshot(module).eval()
    parameter = next((own for own in copied.parameters() if own.is_floating_point()), torch.empty(0))
    for own in copied.parameters():
        own.requires_grad_(own.is_floating_point() or own.is_complex())
    low, high = torch.tensor(bounds, dtype=torch.float64, device="cpu").T
    high = torch.where(high > low, high, low + WIDENED * low.abs().clamp_min(1))
    refusal: Exception | None = None
    for shape in shapes:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(*shape, len(bounds), generator=generator, dtype=torch.float64, device="cpu")
        points = (low + (high - low) * draws).to(own_dtype(copied))
        seen = _Seen(copied)
        devices = [parameter.device] if parameter.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), seen:
            try:
                copied(points.to(parameter.device, copy=True))
            except Exception as error:
                refusal = refusal or error
                continue
        parameters = frozenset(map(id, copied.parameters()))
        return Calls(seen.layers(), points.reshape(-1, len(bounds)).double(), seen.computed, parameters)
    sizes = " or ".join(str((*shape, len(bounds))) for shape in shapes)
    raise ValueError(
        f"module must take coordinates {sizes} of {own_dtype(copied)}, as module(coords): {type(refusal).__name__}: "
        f"{refusal}. Give coords= of the shape that it takes, or wrap it in a module that does"
    ) from refusal
