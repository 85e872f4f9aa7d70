"""Initialisation of any module: its linear layers by a rule, the one on raw coordinates for the box they fill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.errors import check_float, check_seed, check_tensor, warn
from inrfast.grids import check_bounds
from inrfast.initialisers import (
    INITIALISERS,
    dead_units,
    default_,
    draw_,
    kaiming_,
    rank_expanding_,
    refused_place,
    siren_,
    split_rule,
    xavier_,
)
from inrfast.linear_calls import POINTS, Calls, LinearCall, Rescaled, linear_calls
from inrfast.memory import tells_refusals
from inrfast.modes import without_autocast
from inrfast.nn import DEAD_SHARE, INR, undrawn
from inrfast.records import Record
from inrfast.wrapped import refuse_pieces, unwrapped

__all__ = [
    "INITIALISERS",
    "Applied",
    "apply_",
    "dead_units",
    "default_",
    "kaiming_",
    "rank_expanding_",
    "siren_",
    "xavier_",
]

FREQUENCIES = ("omega_0", "omega0", "omega", "w0", "w_0")
"""Attributes by which modules call the frequency of a sine layer."""

RECTIFIERS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "clamp", "clamp_min", "maximum", "hardtanh"),
        *("elu", "celu", "selu", "gelu", "silu", "softplus", "mish"),
    }
)
"""Functions, as torch calls them, with a hinge: those that rank-expanding initialisation is for, and smooth ones."""

DEAD_BEHIND = ("relu", "clamp", "clamp_min")
"""Functions behind which a unit that is never positive is dead."""

BOX = (-1.0, 1.0)

MOST_POINTS = 2**18
"""Coordinates of a module that takes no other number of them than its own."""


@dataclass(frozen=True)
class Applied(Record):
    """What :func:`apply_` did to a module.

    Attributes
    ----------
    rules
        The rule of every layer that was changed, with its options, by the layer's name and in the order of their calls.
    inlets
        Those of them that get the coordinates.
    bounds
        The box of the coordinates, one pair (low, high) each; None: the rule needed none.
    left
        What was left as it was, parameters and layers by name, and why.
    dead_units
        Of inlets behind a ReLU where ``coords`` were given: how many units are zero at all of them.
    notes
        What else there is to know.
    """

    rules: dict[str, dict[str, Any]]
    inlets: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...] | None = None
    left: dict[str, str] = field(default_factory=dict)
    dead_units: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for name, rule in self.rules.items():
            options = ", ".join(f"{key}={_shown(value)}" for key, value in rule.items() if key != "name")
            place = " (gets the coordinates)" if name in self.inlets else ""
            dead = f", {self.dead_units[name]} dead units" if name in self.dead_units else ""
            lines.append(f"{name}{place}: {rule['name']}{f'({options})' if options else ''}{dead}")
        lines += [f"{name}: left alone, {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, *self.notes])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(f'({low:g}, {high:g})' for low, high in value)}]"
    return str(value)


@dataclass(frozen=True)
class _Draw:
    """A layer with the numbers that it is to have."""

    call: LinearCall
    rule: dict[str, Any]
    linear: nn.Linear


@without_autocast()
@tells_refusals
def apply_(
    module: nn.Module,
    rule: Any,
    *,
    coords: ArrayLike | None = None,
    bounds: Any = None,
    omega: float | Mapping[str, float] | None = None,
    seed: int = 0,
) -> Applied:
    """Initialise the linear layers of any module in place and return what was changed.

    A copy of the module is run once, in eval mode, at 64 points of the box (or as many as ``coords`` has, if it takes
    no other number), to see its layers: the products of a parameter with what the layer gets (``nn.Linear``,
    ``F.linear``, ``x @ W.T + b``), in the order of their calls. The inlets are those that get the coordinates
    themselves, or each of them rescaled. Everything is checked, and all numbers are made, before the first one is
    written.

    Parameters
    ----------
    module
        Any module that is called as ``module(coords)``; of one inside ``torch.compile`` or DDP, that one.
    rule
        As ``init`` of :class:`inrfast.INR`: ``"rank_expanding"`` (the inlets; other layers stay as they are),
        ``"siren"``, ``"kaiming"``, ``"xavier"``, ``"default"`` (torch's), or ``{"name": ..., **options}`` for all
        linear layers, or ``{"first": ..., "hidden": ...}``, of which either may be left out: those layers stay.
        The first layers are the inlets; behind an encoding, where nothing gets the coordinates, the one called first.
    coords
        The coordinates that the module is for, (N, d) or with more axes before the last: their box is that of the
        hinges, and units of a ReLU inlet that are dead at them are counted and warned of.
    bounds
        The box instead: ``(low, high)`` or one pair per coordinate. With neither it is ``(-1, 1)``.
    omega
        Of ``"siren"``: the frequency of the sine layers, or ``{"first": ..., "hidden": ...}``. None: the factor in
        each layer's ``torch.sin`` or, where there is none, the attribute ``omega_0``, ``omega`` or ``w0`` of its
        module, of what stands in it or after it, or of a module around it.
    seed
        Below 2^32; the numbers are those that ``INR(init=rule, seed=seed)`` draws for a network without an encoding.

    Returns
    -------
    Applied
        ``print`` it.

    Raises
    ------
    ValueError, TypeError
        A bad argument; no frequency is known; rank-expanding initialisation where no layer gets the coordinates (behind
        an encoding), or the layer has no bias; nothing to initialise. The module is as it was.
    UnsupportedModuleError
        The module cannot be copied, or is spread over processes.

    Examples
    --------
    >>> import inrfast as inr
    >>> field = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    >>> print(inr.init.apply_(field, "rank_expanding", coords=inr.grid((32, 32), bounds=(0, 1))))
    0 (gets the coordinates): rank_expanding(bounds=[(0, 1), (0, 1)]), 0 dead units
    2: left alone, rank_expanding is of the first layer alone
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    refuse_pieces(module, "module")
    module = unwrapped(module)
    seed = check_seed("seed", seed)
    points = None if coords is None else check_tensor("coords", coords)
    first, hidden = _both(rule)
    box, said = _box(module, points, bounds, first)
    calls = linear_calls(module, box, _shapes(points), seed)
    inlets = {call.name: how for call in calls.layers if (how := calls.rescaled(call)) is not None}
    firsts = set(inlets) or {call.name for call in calls.layers[:1]}
    if first is not None and first[0] == "rank_expanding":
        _check_inlets(calls, inlets)
    omegas = _Omegas(module, omega)
    generator = torch.Generator().manual_seed(seed)
    parameters, draws = dict(module.named_parameters()), []
    left: dict[str, str] = {}
    for number, call in enumerate(calls.layers):
        own = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        chosen, is_first = (first, True) if call.name in firsts else (hidden, False)
        frequency = omegas.of(call, number, is_first) if chosen is not None and chosen[0] == "siren" else None
        if chosen is None:
            left[call.name] = _why_left(first, is_first)
            continue
        options = _options(chosen, frequency, is_first, inlets.get(call.name), box)
        draws.append(_drawn(call, chosen[0], options, own, parameters))
    if not draws:
        raise ValueError(f"module has nothing that init {rule!r} could initialise: {_nothing(calls)}")
    left |= _untouched(module, calls)
    dead = _dead_units(draws, inlets, points)
    with torch.no_grad():
        for draw in draws:
            _write(draw, parameters)
    if isinstance(module, INR):
        module.init = _as_init(module.init, first, hidden, draws)
    applied = Applied(
        {draw.call.name: draw.rule for draw in draws},
        tuple(inlets),
        tuple(box) if said or any("bounds" in draw.rule for draw in draws) else None,
        left,
        dead,
        _notes(calls, inlets, firsts, omegas, any(draw.rule["name"] == "siren" for draw in draws)),
    )
    _warn(applied, calls)
    return applied


# ---- the arguments -----------------------------------------------------------------------------------------------

Rule = tuple[str, dict[str, Any]]


def _both(rule: Any) -> tuple[Rule | None, Rule | None]:
    """Return the rules of the first layers and of the others; None: they stay."""
    if isinstance(rule, Mapping) and "name" not in rule:
        unknown = set(rule) - {"first", "hidden"}
        if unknown or not rule:
            raise ValueError(f"rule takes the keys 'first' and 'hidden' (or 'name'), got {sorted(map(str, rule))}")
        first, hidden = (
            split_rule(f"rule[{key!r}]", rule[key]) if key in rule else None for key in ("first", "hidden")
        )
    else:
        first = hidden = split_rule("rule", rule)
        if first[0] == "rank_expanding":
            hidden = None
    if hidden is not None and hidden[0] == "rank_expanding":
        raise ValueError(refused_place("on a hidden layer"))
    return first, hidden


def _box(
    module: nn.Module, coords: Tensor | None, bounds: Any, first: Rule | None
) -> tuple[list[tuple[float, float]], bool]:
    """Return the box of the coordinates, and whether it was given."""
    own = first[1].pop("bounds", None) if first is not None and first[0] == "rank_expanding" else None
    if sum(given is not None for given in (coords, bounds, own)) > 1:
        raise ValueError("give one of coords=, bounds= and the rule's own bounds: they are the same box")
    bounds = own if bounds is None else bounds
    if coords is not None:
        if coords.ndim < 2:
            raise ValueError(f"coords must have shape (N, d), or more axes before the last, got {tuple(coords.shape)}")
        low, high = torch.aminmax(coords.detach().reshape(-1, coords.shape[-1]), dim=0)
        box = list(zip(low.double().tolist(), high.double().tolist(), strict=True))
        if first is not None and first[0] == "rank_expanding" and any(a == b for a, b in box):
            flat = next(axis for axis, (a, b) in enumerate(box) if a == b)
            raise ValueError(
                f"coords must fill a box, and column {flat} is {box[flat][0]:g} at all points; give bounds= instead"
            )
        return box, True
    pair = BOX if bounds is None else bounds
    try:
        several = isinstance(pair[0], Sequence)
    except (TypeError, IndexError, KeyError):
        several = False
    return check_bounds(pair, len(pair) if several else _coordinates(module)), bounds is not None


def _shapes(coords: Tensor | None) -> list[tuple[int, ...]]:
    """Return the shapes of points, without their last axis, in which a module is asked: of a few, then as many."""
    if coords is None:
        return [(POINTS,)]
    own = tuple(coords.shape[:-1])
    return [(*[1] * (len(own) - 1), POINTS), *([own] if math.prod(own) <= MOST_POINTS else [])]


def _coordinates(module: nn.Module) -> int:
    """Return how many coordinates a module seems to take: its own word, or the columns of its first weight."""
    stated = getattr(module, "in_features", None)
    if isinstance(stated, int) and stated > 0:
        return stated
    weight = next((own for own in module.parameters() if own.ndim == 2), None)
    if weight is None:
        raise ValueError("module has no linear layer that tells the number of coordinates; give coords=")
    return int(weight.shape[1])


class _Omegas:
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


# ---- what is drawn -----------------------------------------------------------------------------------------------


def _check_inlets(calls: Calls, inlets: Mapping[str, Rescaled]) -> None:
    """Refuse rank-expanding initialisation of a module in which it has no place."""
    if not inlets:
        raise ValueError(f"{refused_place('where no linear layer gets them')}; {_nothing(calls)}")
    for call in calls.layers:
        if call.name in inlets and call.bias is None:
            raise ValueError(
                f"init 'rank_expanding' needs a bias, which places the hinges: the layer {call.name!r} has none"
            )


def _nothing(calls: Calls) -> str:
    """Return why no layer gets the coordinates, from what the first one gets."""
    if calls.computed:
        return "a layer's weight is computed (weight norm, a parametrisation, a hypernetwork); bake it in first"
    if not calls.layers:
        return "its forward pass has no product with a two-dimensional parameter (a scripted module shows none)"
    call = calls.layers[0]
    return f"its first one, {call.name!r}, gets {call.inputs[0].shape[-1]} columns that are made from them"


def _why_left(first: Rule | None, is_first: bool) -> str:
    if is_first:
        return "the rule has no 'first'"
    if first is not None and first[0] == "rank_expanding":
        return "rank_expanding is of the first layer alone"
    return "the rule has no 'hidden'"


def _options(
    rule: Rule, omega: float | None, is_first: bool, how: Rescaled | None, box: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return the options of one layer."""
    name, options = rule
    if name == "siren":
        return {"omega": omega, "first": is_first, **options}
    if name == "rank_expanding":
        assert how is not None
        return {**options, "bounds": how.box(box)}
    return dict(options)


def _drawn(
    call: LinearCall, name: str, options: dict[str, Any], seed: int, parameters: Mapping[str, nn.Parameter]
) -> _Draw:
    """Return a layer's new numbers, beside those that it has."""
    weight = parameters[call.weight]
    if not weight.is_floating_point() or weight.is_meta:
        raise ValueError(f"{call.weight} must be a tensor of real numbers to be initialised, got {weight.dtype}")
    for own in (parameters[key] for key in (call.weight, call.bias) if key is not None):
        if any(step == 0 and size > 1 for step, size in zip(own.stride(), own.shape, strict=True)):
            raise ValueError(f"the layer {call.name!r} has an expanded parameter, entries of which are one; clone() it")
    outputs, inputs = weight.shape[::-1] if call.turned else weight.shape
    linear = undrawn(inputs, outputs, call.bias is not None, weight.device, weight.dtype)
    draw_(linear, name, options, seed)
    for own in linear.parameters():
        if not math.isfinite(float(own.detach().abs().max())):
            raise ValueError(f"init {name!r} leaves the range of {weight.dtype} in the layer {call.name!r}")
    return _Draw(call, {"name": name, **options}, linear)


def _write(draw: _Draw, parameters: Mapping[str, nn.Parameter]) -> None:
    weight = draw.linear.weight
    parameters[draw.call.weight].copy_(weight.mT if draw.call.turned else weight)
    if draw.call.bias is not None:
        bias = parameters[draw.call.bias]
        bias.copy_(draw.linear.bias.reshape(bias.shape))


def _as_init(old: Any, first: Rule | None, hidden: Rule | None, draws: Sequence[_Draw]) -> Any:
    """Return what an INR says of its initialisation after this one."""
    if first == hidden and first is not None:
        return {"name": first[0], **first[1]} if first[1] else first[0]
    parts = dict(old) if isinstance(old, Mapping) and "name" not in old else {"first": old, "hidden": old}
    if parts.get("hidden") is old and split_rule("init", old)[0] == "rank_expanding":
        parts["hidden"] = "default"
    if first is not None:
        options = {k: [list(pair) for pair in v] if k == "bounds" else v for k, v in draws[0].rule.items()}
        parts["first"] = options if first[1] or first[0] == "rank_expanding" else first[0]
    if hidden is not None:
        parts["hidden"] = {"name": hidden[0], **hidden[1]} if hidden[1] else hidden[0]
    return parts


# ---- what is said ------------------------------------------------------------------------------------------------


def _untouched(module: nn.Module, calls: Calls) -> dict[str, str]:
    """Return the parameters of no layer, and the linear layers that the forward pass does not call."""
    known = {name for call in calls.layers for name in (call.weight, call.bias)}
    left: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        if name in known:
            continue
        owner, _, leaf = name.rpartition(".")
        if isinstance(module.get_submodule(owner), nn.Linear):
            left[owner] = "its weight is computed, or the forward pass does not use it"
        elif parameter.ndim == 2 and leaf == "weight" and calls.computed:
            left[name] = "no weight that the forward pass multiplies with as it is"
        else:
            left[name] = "not a linear layer's"
    return left


def _dead_units(draws: Sequence[_Draw], inlets: Mapping[str, Rescaled], coords: Tensor | None) -> dict[str, int]:
    """Return how many units of each new ReLU inlet are dead at the coordinates."""
    if coords is None:
        return {}
    points = coords.detach().reshape(-1, coords.shape[-1])
    return {
        draw.call.name: dead_units(draw.linear, inlets[draw.call.name].of(points.to(draw.linear.weight.device)))
        for draw in draws
        if draw.call.name in inlets and _behind(draw.call) in DEAD_BEHIND
    }


def _behind(call: LinearCall) -> str:
    """Return the function that takes a layer's output; empty where it is not one, or not torch's."""
    names = {name for name, _ in call.follows}
    return names.pop() if len(names) == 1 else ""


def _notes(
    calls: Calls, inlets: Mapping[str, Rescaled], firsts: set[str], omegas: _Omegas, siren: bool
) -> tuple[str, ...]:
    notes = []
    if not inlets and calls.layers:
        notes.append(f"No layer gets the coordinates themselves: {_nothing(calls)}; it counts as the first.")
    for call in calls.layers:
        how = inlets.get(call.name)
        if how is not None and any(factor != 1 or shift for factor, shift in zip(how.factors, how.shifts, strict=True)):
            notes.append(f"{call.name} gets the coordinates rescaled; its bounds are those of what it gets.")
        elif how is None and call.name not in firsts and calls.gets_coordinates_beside_others(call):
            notes.append(f"{call.name} gets the coordinates beside features: it counts as a hidden layer.")
    if siren:
        places = dict.fromkeys(omegas.found.values())
        notes.append(f"omega is from {', '.join(places)}.")
    return tuple(notes)


def _warn(applied: Applied, calls: Calls) -> None:
    """Warn of dead units, and of hinges that no rectifier follows."""
    units = {call.name: call for call in calls.layers}
    for name in applied.inlets:
        rule = applied.rules.get(name, {"name": ""})
        behind = _behind(units[name])
        if rule["name"] == "rank_expanding" and behind and behind not in RECTIFIERS:
            warn(
                f"the layer {name!r} is followed by {behind}, and init 'rank_expanding' is for ReLU: its hinges mean "
                "nothing there",
                UserWarning,
            )
    for name, dead in applied.dead_units.items():
        outputs = units[name].outputs
        if dead >= max(DEAD_SHARE * outputs, 1):
            warn(
                f"{dead} of the {outputs} units of {name!r} are dead at these coordinates: they are zero behind the "
                "ReLU and get no gradient",
                UserWarning,
            )
