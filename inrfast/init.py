"""Initialisation of any module: its linear layers by a rule, the one on raw coordinates for the box they fill."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.boxes import DEAD_SHARE
from inrfast.errors import check_module, check_tensor, warn
from inrfast.grids import check_bounds
from inrfast.initialisers import (
    INITIALISERS,
    dead_units,
    deal_rank_expanding_,
    default_,
    draw_,
    kaiming_,
    rank_expanding_,
    refused_place,
    siren_,
    split_rule,
    write_,
    xavier_,
)
from inrfast.linear_calls import POINTS, Calls, LinearCall, Omegas, Rescaled, in_filter, linear_calls
from inrfast.memory import tells_refusals
from inrfast.modes import without_autocast
from inrfast.nn import INR, undrawn
from inrfast.records import Record
from inrfast.seeds import seed_of
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
    seed: int | None = None,
) -> Applied:
    """Initialise the linear layers of any module in place and return what was changed.

    A copy of the module is run once, in eval mode, at 64 points of the box (or as many as ``coords`` has, if it takes
    no other number), to see its layers: the products of a parameter with what the layer gets (``nn.Linear``,
    ``F.linear``, ``x @ W.T + b``), in the order of their calls. The inlets are those that get coordinates
    themselves, or rescaled ones, all or some, each once. Everything is checked, and all numbers are made, before the
    first one is written; if a write fails, those before it are undone. Frozen parameters are written, and named.

    Parameters
    ----------
    module
        Any module that is called as ``module(coords)``; of one inside ``torch.compile`` or DDP, that one.
    rule
        As ``init`` of :class:`inrfast.INR`: ``"rank_expanding"`` (the inlets; other layers stay as they are),
        ``"siren"``, ``"kaiming"``, ``"xavier"``, ``"default"`` (torch's), or ``{"name": ..., **options}`` for all
        linear layers, or ``{"first": ..., "hidden": ...}``, of which either may be left out: those layers stay.
        Rank-expanding inlets that get the same coordinates share the points of one grid.
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
        Below 2^32; None draws one from torch's global generator. The numbers are those that ``INR(init=rule,
        seed=seed)`` draws for a network without an encoding.

    Returns
    -------
    Applied
        ``print`` it.

    Raises
    ------
    ValueError, TypeError
        A bad argument; no frequency is known; rank-expanding initialisation where no layer gets the coordinates (behind
        an encoding), or normalised by their batch, or the layer has no bias of its own; parameters that share memory or
        were made in inference mode; nothing to initialise. The module is as it was.
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
    check_module("module", module)
    refuse_pieces(module, "module")
    module = unwrapped(module)
    seed = seed_of("seed", seed)
    points = None if coords is None else check_tensor("coords", coords)
    first, hidden = _both(rule)
    box, said = _box(module, points, bounds, first)
    calls = linear_calls(module, box, _shapes(points), seed)
    inlets = {call.name: how for call in calls.layers if (how := calls.rescaled(call)) is not None}
    firsts = set(inlets) or {call.name for call in calls.layers[:1]}
    if first is not None and first[0] == "rank_expanding":
        _check_inlets(calls, inlets)
    omegas = Omegas(module, omega)
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
    told = [*_deal(draws, inlets), *_keep_shared(draws)]
    if not draws:
        raise ValueError(f"module has nothing that init {rule!r} could initialise: {_nothing(calls)}")
    left |= _untouched(module, calls)
    alone = {name: how for name, how in inlets.items() if name not in calls.coupled}
    dead = _dead_units(draws, alone, points)
    write_([pair for draw in draws for pair in _pairs(draw, parameters)], parameters)
    if isinstance(module, INR):
        module.init = _as_init(module.init, first, hidden, draws)
    applied = Applied(
        {draw.call.name: draw.rule for draw in draws},
        tuple(inlets),
        tuple(box) if said or any("bounds" in draw.rule for draw in draws) else None,
        left,
        dead,
        (*_notes(calls, inlets, firsts, omegas, draws), *told, *_frozen(draws, parameters)),
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


# ---- what is drawn -----------------------------------------------------------------------------------------------


def _check_inlets(calls: Calls, inlets: Mapping[str, Rescaled]) -> None:
    """Refuse rank-expanding initialisation of a module in which it has no place."""
    if not inlets:
        raise ValueError(f"{refused_place('where no linear layer gets them')}; {_nothing(calls)}")
    for call in (own for own in calls.layers if own.name in inlets):
        if call.bias is None:
            raise ValueError(
                f"init 'rank_expanding' needs a bias, which places the hinges: the layer {call.name!r} has none"
            )
        sharing = [own.name for own in calls.layers if own.bias == call.bias and own is not call]
        if sharing:
            raise ValueError(
                f"init 'rank_expanding' needs a bias that is the layer's own: that of {call.name!r} is also that of "
                f"{sharing[0]!r}"
            )
        if call.name in calls.coupled:
            raise ValueError(
                f"init 'rank_expanding' needs coordinates whose box is fixed: what the layer {call.name!r} gets at a "
                "point depends on the other points of its batch (on their mean or range, say). Normalise with fixed "
                "numbers, such as those of all coordinates in a buffer"
            )


def _nothing(calls: Calls) -> str:
    """Return why no layer gets the coordinates, from what the first one gets."""
    if calls.computed:
        return "a layer's weight is computed (weight norm, a parametrisation, a hypernetwork); bake it in first"
    if not calls.layers:
        bare = f"; {sorted(calls.bare)[0]!r} is multiplied without a bias, or from the left" if calls.bare else ""
        return (
            "its forward pass has no product x @ W with a two-dimensional parameter (a scripted module shows none, "
            f"einsum and convolutions are none){bare}"
        )
    call = calls.layers[0]
    columns, times = call.inputs[0].shape[-1], len(call.inputs)
    if times > 1:
        return f"its first one, {call.name!r}, is called {times} times, with several inputs"
    return f"its first one, {call.name!r}, gets {columns} columns that are not coordinates alone"


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


def _deal(draws: Sequence[_Draw], inlets: Mapping[str, Rescaled]) -> list[str]:
    """Give rank-expanding inlets that get the same coordinates the points of one grid in turn; return what to say."""
    groups: dict[tuple[int, ...], list[_Draw]] = {}
    for draw in draws:
        if draw.rule["name"] == "rank_expanding":
            groups.setdefault(tuple(sorted(inlets[draw.call.name].columns)), []).append(draw)
    told = []
    for columns, sharing in groups.items():
        if len(sharing) > 1:
            ways = [inlets[draw.call.name] for draw in sharing]
            options = {key: value for key, value in sharing[0].rule.items() if key not in ("name", "bounds")}
            deal_rank_expanding_(
                [draw.linear for draw in sharing],
                [[columns.index(column) for column in how.columns] for how in ways],
                [[factor < 0 for factor in how.factors] for how in ways],
                [draw.rule["bounds"] for draw in sharing],
                **options,
            )
            names = ", ".join(draw.call.name for draw in sharing)
            told.append(f"{names} get the same coordinates: the points of one grid were dealt out to them in turn.")
    return told


def _keep_shared(draws: Sequence[_Draw]) -> list[str]:
    """Let a bias of several layers be as the first of them has it; return what to say."""
    told: list[str] = []
    seen: dict[str | None, _Draw] = {}
    for draw in draws:
        first = seen.setdefault(draw.call.bias, draw)
        if draw.call.bias is not None and first is not draw:
            with torch.no_grad():
                draw.linear.bias.copy_(first.linear.bias)
            told.append(f"{draw.call.name} has the bias of {first.call.name}, as the rule of that one makes it.")
    return told


def _pairs(draw: _Draw, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the parameters of a layer, by name, and their new numbers."""
    weight = draw.linear.weight.detach()
    yield draw.call.weight, parameters[draw.call.weight], weight.mT if draw.call.turned else weight
    if draw.call.bias is not None:
        bias = parameters[draw.call.bias]
        yield draw.call.bias, bias, draw.linear.bias.detach().reshape(bias.shape)


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
    named = dict(module.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    left: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        weight = named.get(f"{owner}.weight".removeprefix("."))
        if name in known:
            continue
        if in_filter(module, name):
            left[name] = "of a filter of the coordinates, which is initialised in its own way"
        elif isinstance(module.get_submodule(owner), nn.Linear):
            other = first.get(id(weight), "")
            if leaf == "bias" and other in known and other != f"{owner}.weight":
                left[owner] = f"its weight is {other}, and its bias is its own"
            else:
                left[owner] = "its weight is computed, or the forward pass does not use it"
        elif name in calls.bare:
            left[name] = "multiplied without a bias or from the left: no linear layer, unless it is called weight"
        elif parameter.ndim == 2 and leaf == "weight" and calls.computed:
            left[name] = "no weight that the forward pass multiplies with as it is"
        else:
            left[name] = "not a linear layer's"
    return left


def _frozen(draws: Sequence[_Draw], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    names = [name for draw in draws for name in (draw.call.weight, draw.call.bias) if name is not None]
    frozen = [name for name in dict.fromkeys(names) if not parameters[name].requires_grad]
    return [f"Written although frozen (requires_grad=False): {', '.join(frozen)}."] if frozen else []


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
    calls: Calls, inlets: Mapping[str, Rescaled], firsts: set[str], omegas: Omegas, draws: Sequence[_Draw]
) -> tuple[str, ...]:
    notes = []
    if not inlets and calls.layers:
        notes.append(f"No layer gets the coordinates themselves: {_nothing(calls)}; it counts as the first.")
    for call in calls.layers:
        how = inlets.get(call.name)
        if call.again:
            notes.append(f"{call.weight} is also multiplied with the other way round, with the same numbers.")
        if how is not None and len(how.columns) < calls.points.shape[1]:
            notes.append(f"{call.name} gets the coordinates {', '.join(map(str, how.columns))} alone.")
        if call.name in calls.coupled:
            notes.append(f"{call.name} gets coordinates that depend on the other points: no dead units were counted.")
        elif how is not None and any(f != 1 or s for f, s in zip(how.factors, how.shifts, strict=True)):
            notes.append(f"{call.name} gets the coordinates rescaled; its bounds are those of what it gets.")
        elif how is None and call.name not in firsts and calls.gets_coordinates_beside_others(call):
            notes.append(f"{call.name} gets the coordinates beside features: it counts as a hidden layer.")
    if any(draw.rule["name"] == "siren" for draw in draws):
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
