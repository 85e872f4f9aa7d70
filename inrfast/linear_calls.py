"""The linear maps that a module computes with its own weights, what they get, and the frequency of the sine behind."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrfast.errors import check_float
from inrfast.modulations import Modulation
from inrfast.nn import INR
from inrfast.snapshot import own_dtype, snapshot

FREQUENCIES = ("omega_0", "omega0", "omega", "w0", "w_0")
"""Attributes by which modules call the frequency of a sine layer."""

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
    again
        Whether other features are multiplied with the weight the other way round, as a tied decoder does.
    """

    name: str
    weight: str
    bias: str | None
    turned: bool
    outputs: int
    linear: bool
    inputs: list[Tensor] = field(default_factory=list)
    follows: list[tuple[str, float]] = field(default_factory=list)
    again: bool = False


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
        self.bare: set[str] = set()
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
            left = self._parameter(given)
            if left is not None:
                self.bare.add(left[0])
            elif weight.requires_grad:
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
        if call.turned != turned:
            call.again = True
            return True
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
                factor *= float(torch.as_tensor(others[0]).detach()) if others else 1.0
            self._outputs[id(found)] = (call, -factor if name == "neg" else factor, found)
            return
        call.follows.append((name, factor))

    def layers(self) -> list[LinearCall]:
        """Return the calls of layers: bare products with something that is no weight (centres, codes) are none."""
        found = [call for call in self.calls.values() if call.bias or call.linear or call.weight.endswith("weight")]
        self.bare |= set(self.calls) - {call.weight for call in found}
        return found

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
    bare
        Parameters that are multiplied with, and are no layer's: without a bias or a layer's name, or from the left.
    parameters
        The parameters of the copy that was run, by their ``id``.
    coupled
        Layers that get rescaled coordinates, at a point others if other points change, by name.
    """

    layers: list[LinearCall]
    points: Tensor
    computed: list[Tensor]
    bare: frozenset[str]
    parameters: frozenset[int]
    coupled: frozenset[str] = frozenset()

    def rescaled(self, call: LinearCall) -> Rescaled | None:
        """Return in which way a layer gets the coordinates, or some, each once; None: it gets something else."""
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
    """Return how columns (n, k) come from k of the coordinates (n, d), each by a factor and a shift; None: they do not.

    The coordinates must be in general position; columns that are bit for bit those of the coordinates have the factor 1
    and the shift 0.
    """
    n, d = points.shape
    if len(given) != n or not 0 < given.shape[1] <= d:
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
    return Rescaled(tuple(columns), tuple(factors), tuple(shifts)) if len(set(columns)) == len(columns) else None


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
    copied = snapshot(module)
    modes = [own.training for own in copied.modules()]
    copied.eval()
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
        try:
            seen = _run(copied, points, parameter.device)
        except Exception as error:
            refusal = refusal or error
            continue
        parameters = frozenset(map(id, copied.parameters()))
        layers = [call for call in seen.layers() if not in_filter(module, call.weight)]
        flat = points.reshape(-1, len(bounds)).double()
        found = Calls(layers, flat, seen.computed, frozenset(seen.bare), parameters)
        inlets = [call.weight for call in layers if found.rescaled(call) is not None]
        coupled = _coupled(copied, points, (low, high), parameter.device, inlets)
        if any(modes):
            for part, training in zip(copied.modules(), modes, strict=True):
                part.training = training
            coupled |= _coupled(copied, points, (low, high), parameter.device, inlets)
        return replace(found, coupled=frozenset(call.name for call in layers if call.weight in coupled))
    sizes = " or ".join(str((*shape, len(bounds))) for shape in shapes)
    raise ValueError(
        f"module must take coordinates {sizes} of {own_dtype(copied)}, as module(coords): {type(refusal).__name__}: "
        f"{refusal}. Give coords= of the shape that it takes, or wrap it in a module that does"
    ) from refusal


def in_filter(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is of a filter that layers are multiplied by, which is initialised in its own way."""
    owners = name.split(".")[:-1]
    return any(isinstance(module.get_submodule(".".join(owners[:k])), Modulation) for k in range(len(owners) + 1))


def _run(module: nn.Module, points: Tensor, device: torch.device) -> _Seen:
    """Return what is seen of a module at copies of these points; random generators stay as they are."""
    seen = _Seen(module)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad(), seen:
            module(points.to(device, copy=True))
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    return seen


def _coupled(
    module: nn.Module, points: Tensor, ends: tuple[Tensor, Tensor], device: torch.device, weights: Sequence[str]
) -> set[str]:
    """Return the weights of layers whose input at a point changes if other points move to the ends of the box.

    Or if there are fewer of them, where the module takes fewer.
    """
    coupled: set[str] = set()
    flat = points.reshape(-1, points.shape[-1])
    number = torch.arange(len(flat), device="cpu")
    corners = torch.where((number // 2 % 2 == 0).unsqueeze(1), *ends).to(flat)
    changed = []
    for kept in (number % 2 == 0, number % 2 == 1):
        changed.append((torch.where(kept.unsqueeze(1), flat, corners).reshape(points.shape), kept))
    if points.shape[-2] == len(flat) > 1:
        changed.append((points[..., : len(flat) // 2, :], number < len(flat) // 2))
    if not weights:
        return coupled
    try:
        before = _run(module, points, device).calls
    except Exception:  # in training mode a module may ask for more than points
        return coupled
    for moved, kept in changed:
        try:
            after = _run(module, moved, device).calls
        except Exception:  # a module that takes only its own number of points
            continue
        for weight in weights:
            if weight not in before or weight not in after:
                continue
            old, new = (torch.cat([_rows(given) for given in calls[weight].inputs]) for calls in (before, after))
            if len(old) != len(kept) or len(new) < int(kept.sum()):
                continue
            old, new = old[kept.to(device)], new[kept[: len(new)].to(device)]
            if bool(((old - new).abs() > ROUNDING * torch.finfo(old.dtype).eps * old.abs().max()).any()):
                coupled.add(weight)
    return coupled


class Omegas:
    """The frequency of the sine behind each layer, and where it was found."""

    def __init__(self, module: nn.Module, given: float | Mapping[str, float] | None) -> None:
        self.module, self.given = module, given
        self.found: dict[str, str] = {}
        self._last: float | None = None
        if isinstance(given, Mapping) and set(given) != {"first", "hidden"}:
            raise ValueError(f"omega as a mapping takes the keys 'first' and 'hidden', got {sorted(map(str, given))}")
        for value in given.values() if isinstance(given, Mapping) else () if given is None else (given,):
            check_float("omega", value, minimum=0.0, exclusive=True)

    def of(self, call: LinearCall, number: int, first: bool) -> float:
        """Return a layer's frequency; of one with no sine behind it that of the layer before, as SIREN's head."""
        value, place = self._look(call, number, first)
        if value is None and self._last is not None and not any(name in ("sin", "cos") for name, _ in call.follows):
            value, place = self._last, "the layer before"
        if value is None:
            raise ValueError(
                f"omega must be given: the layer {call.name!r} is followed by no torch.sin(number * x) and its module "
                f"has none of the attributes {', '.join(FREQUENCIES)}"
            )
        self._last, self.found[call.name] = value, place
        return value

    def _look(self, call: LinearCall, number: int, first: bool) -> tuple[float | None, str]:
        if isinstance(self.given, Mapping):
            return float(self.given["first" if first else "hidden"]), "omega="
        if self.given is not None:
            return float(self.given), "omega="
        if isinstance(self.module, INR):
            return self.module.omegas[min(number, self.module.hidden_layers - 1)], "the network's omegas"
        if len(call.follows) == 1 and call.follows[0][0] == "sin" and call.follows[0][1] > 0:
            return call.follows[0][1], "the factor in torch.sin"
        return self._attribute(call)

    def _attribute(self, call: LinearCall) -> tuple[float | None, str]:
        """Search the layer's module, what stands in it and after it, and the modules around it, from inside out."""
        path = call.weight.split(".")[:-1]
        for depth in range(len(path), -1, -1):
            owner = self.module.get_submodule(".".join(path[:depth]))
            near = [(".".join(path[:depth]), owner)]
            if depth == len(path):
                near += [(f"{near[0][0]}.{name}", child) for name, child in owner.named_children()]
            around = self.module.get_submodule(".".join(path[: depth - 1])) if depth else None
            if isinstance(around, nn.Sequential):
                names = list(around._modules)
                after = names[names.index(path[depth - 1]) + 1 :][:1]
                near += [(".".join([*path[: depth - 1], name]), around.get_submodule(name)) for name in after]
            for name, module in near:
                for attribute in FREQUENCIES:
                    value = _number(getattr(module, attribute, None))
                    if value is not None:
                        return value, f"{name}.{attribute}".removeprefix(".")
        return None, ""


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
