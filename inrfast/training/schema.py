"""What files of networks and checkpoints hold: one schema each, by which a whole tree is checked at the door.

A schema is a function of a value and its place that raises ``ValueError`` in words where the value is another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import ACTIVATIONS
from inrfast.encodings import from_config
from inrfast.errors import MemoryBudgetError
from inrfast.modulations import MODULATIONS
from inrfast.nn import NORM_POSITIONS
from inrfast.norms import NORMS
from inrfast.ops.gemm import LIBRARIES

FIT_SCHEMA = "inrfast.checkpoint/1"
NETWORK_SCHEMA = "inrfast.network/2"
"""Files whose tensors have the names of the network's ``state_dict``."""

OLD_NETWORK_SCHEMA = "inrfast.network/1"
"""Files of versions that wrote ``net.`` before each of these names."""
META_SCHEMA = "inrfast.meta/1"

Schema = Callable[[Any, str], None]

MOST = 2**53
"""Largest whole number of a file: JSON's readers agree up to it."""

MOST_SEED = 2**64 - 1

DEEPEST = 32
"""Dicts and lists inside each other in plain values."""


# ---- what schemas are made of --------------------------------------------------------------------------------------


def check(place: str, fits: bool, wanted: str, got: Any) -> None:
    """Raise ``ValueError`` where a value does not fit."""
    if not fits:
        raise ValueError(f"{place} must be {wanted}, got {short(got)}")


def check_like(kept: Any, own: Any, place: str) -> None:
    """Check that a tree of a file is built as a fit's own is: the same entries, tensors of the same shape and dtype.

    Raises
    ------
    ValueError
        The first place that is not.
    """
    if isinstance(own, Tensor):
        fits = isinstance(kept, Tensor) and kept.shape == own.shape and kept.dtype == own.dtype
        check(place, fits, short(own), kept)
    elif isinstance(own, dict):
        fits = isinstance(kept, dict) and kept.keys() == own.keys()
        check(place, fits, f"a dict of {', '.join(map(str, own))}"[:200], kept)
        for key, inner in own.items():
            check_like(kept[key], inner, f"{place}.{key}")
    elif isinstance(own, (list, tuple)):
        check(place, isinstance(kept, list) and len(kept) == len(own), f"a list of {len(own)}", kept)
        for index, inner in enumerate(own):
            check_like(kept[index], inner, f"{place}[{index}]")
    else:
        number = isinstance(own, (int, float)) and isinstance(kept, (int, float))
        check(place, number or type(kept) is type(own), f"like {short(own)}", kept)


def short(value: Any) -> str:
    """Return a value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > MOST:
        return "a larger number" if value > 0 else "a smaller number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def whole(least: int = 0, most: int | None = MOST) -> Schema:
    """Accept whole numbers of a range."""
    wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"

    def checked(value: Any, place: str) -> None:
        known = isinstance(value, int) and not isinstance(value, bool)
        check(place, known and least <= value and (most is None or value <= most), wanted, value)

    return checked


def number(least: float = -math.inf, exclusive: bool = False) -> Schema:
    """Accept finite numbers, at least (or, if ``exclusive``, above) a bound."""
    wanted = "a finite number" if least == -math.inf else f"a finite number {'above' if exclusive else 'from'} {least}"

    def checked(value: Any, place: str) -> None:
        fits = _is_finite(value) and (value > least if exclusive else value >= least)
        check(place, fits, wanted, value)

    return checked


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def text(value: Any, place: str) -> None:
    """Accept strings."""
    check(place, isinstance(value, str), "a text", value)


def _digits(value: Any, place: str) -> None:
    check(place, isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 6, "digits", value)


def flag(value: Any, place: str) -> None:
    """Accept True and False."""
    check(place, isinstance(value, bool), "true or false", value)


def word(choices: Collection[str | None], more: str = "") -> Schema:
    """Accept one of some texts; ``more`` says how there come to be more of them."""

    def checked(value: Any, place: str) -> None:
        known = [choice or "nothing" for choice in choices]  # a registry grows
        fits = (value is None or isinstance(value, str)) and value in choices
        check(place, fits, f"one of {', '.join(sorted(known))}{f' ({more})' if more else ''}", value)

    return checked


def maybe(schema: Schema) -> Schema:
    """Accept null too."""
    return lambda value, place: None if value is None else schema(value, place)


def listed(schema: Schema, least: int = 0) -> Schema:
    """Accept lists of what a schema accepts, with so many entries at least."""

    def checked(value: Any, place: str) -> None:
        check(place, isinstance(value, list) and len(value) >= least, f"a list of at least {least}", value)
        for index, inner in enumerate(value):
            schema(inner, f"{place}[{index}]")

    return checked


def one_or_listed(schema: Schema) -> Schema:
    """Accept a value or a list of them."""
    many = listed(schema)
    return lambda value, place: (many if isinstance(value, list) else schema)(value, place)


def named(schema: Schema, keys: Schema | None = None) -> Schema:
    """Accept dicts from texts (those that ``keys`` accepts) to what a schema accepts."""

    def checked(value: Any, place: str) -> None:
        check(place, isinstance(value, dict), "a dict", value)
        for key, inner in value.items():
            (keys or text)(key, f"the key {short(key)} of {place}")
            schema(inner, f"{place}.{key}"[:80])

    return checked


def fields(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, open_: bool = False) -> Schema:
    """Accept dicts of these entries, and no others unless ``open_``, as for what later versions may add."""
    known = {**required, **(optional or {})}

    def checked(value: Any, place: str) -> None:
        check(place, isinstance(value, dict), "a dict", value)
        for key in required:
            if key not in value:
                raise ValueError(f"{place} misses the entry {key!r}")
        for key, inner in value.items():
            if key in known:
                known[key](inner, f"{place}.{key}")
            else:
                check(f"{place}'s entries", open_, f"among {', '.join(known)}", key)

    return checked


def tensor(dtype: torch.dtype | None = None, ndim: int | None = None) -> Schema:
    """Accept tensors of a dtype and number of dimensions."""
    wanted = "a tensor" + (f" of {str(dtype).removeprefix('torch.')}" if dtype else "")
    wanted += "" if ndim is None else f" with {ndim} dimension(s)"

    def checked(value: Any, place: str) -> None:
        fits = isinstance(value, Tensor) and dtype in (None, value.dtype) and ndim in (None, value.ndim)
        check(place, fits, wanted, value)

    return checked


def anything(value: Any, place: str) -> None:
    """Accept all that a tree can hold."""


def plain(value: Any, place: str) -> None:
    """Accept what JSON gives back as it was: finite numbers, texts, true, false, null, lists and dicts of them.

    Raises
    ------
    TypeError
        A value of another type; for values to be written, which those that were read have not.
    """
    _plain(value, place, 0)


def _plain(value: Any, place: str, depth: int) -> None:
    check(place, depth <= DEEPEST, f"at most {DEEPEST} lists and dicts inside each other", value)
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, (int, float)):
        check(place, _is_finite(value), "a finite number", value)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _plain(inner, f"{place}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place} must have texts as keys, got {type(key).__name__}")
            _plain(inner, f"{place}.{key}"[:80], depth + 1)
    else:
        raise TypeError(f"{place} must be a number, a text, a list or a dict, got {type(value).__name__}")


# ---- networks ----------------------------------------------------------------------------------------------------

_COUNT = whole(1)

_ACTIVATION = word(ACTIVATIONS, "one of your own is known after inrfast.activations.register(YourActivation)")

_NORM = word(NORMS, "one of your own is known after inrfast.norms.NORMS.add")

NETWORK: Schema = fields(
    {
        "in_features": _COUNT,
        "out_features": _COUNT,
        "width": _COUNT,
        "hidden_layers": _COUNT,
        "activation": one_or_listed(lambda value, place: activation(value, place)),
        "omega": one_or_listed(number(0.0, exclusive=True)),
        "encoding": maybe(lambda value, place: encoding(value, place)),
        "norm": one_or_listed(maybe(lambda value, place: norm(value, place))),
        "norm_position": word(NORM_POSITIONS),
        "init": plain,
        "bias": flag,
        "seed": whole(0, MOST_SEED),
    },
    {
        "modulation": one_or_listed(maybe(lambda value, place: modulation(value, place))),
        "bounds": listed(listed(number(), 2), 1),
    },
)
"""What :meth:`inrfast.INR.config` describes."""


def activation(value: Any, place: str) -> None:
    """Accept what ``BoundActivation.config`` describes: a name, or a dict of a name and numbers."""
    if not isinstance(value, dict):
        _ACTIVATION(value, place)
        return
    fields({"name": _ACTIVATION}, open_=True)(value, place)
    kind = ACTIVATIONS[value["name"]]
    numbers = {key: number() if key in kind.signed else number(0.0, exclusive=True) for key in kind.numbers}
    fields({"name": text}, numbers)(value, place)


def norm(value: Any, place: str) -> None:
    """Accept what :func:`inrfast.norms.norm_config` gives: a name, or a dict of a name and numbers.

    Of numbers the type alone is looked at: which are in range, depends on the width.
    """
    if not isinstance(value, dict):
        _NORM(value, place)
        return
    fields({"name": _NORM}, open_=True)(value, place)
    usual = NORMS[value["name"]].numbers(1)
    numbers = {key: whole(-MOST) if isinstance(default, int) else number() for key, default in usual.items()}
    fields({"name": text}, numbers)(value, place)


def modulation(value: Any, place: str) -> None:
    """Accept what :func:`inrfast.modulations.modulation_config` gives: a dict of a name and numbers."""
    named = word(MODULATIONS, "one of your own is known after inrfast.modulations.MODULATIONS.add")
    fields({"name": named}, open_=True)(value, place)
    numbers = {key: number(0.0, exclusive=True) for key in MODULATIONS[value["name"]].numbers}
    fields({"name": text, **numbers})(value, place)


def encoding(value: Any, place: str) -> None:
    """Accept what ``Encoding.config`` describes: what its class makes an encoding of."""
    plain(value, place)
    try:
        from_config(value)
    except (ValueError, TypeError, OverflowError, MemoryBudgetError) as error:
        raise ValueError(f"{place} describes no encoding: {error}") from error


STATE: Schema = named(tensor())
"""What ``state_dict`` gives."""

NETWORK_TREE: Schema = fields({"net": STATE})
NETWORK_ABOUT: Schema = fields({"net": NETWORK, "signal": named(anything)}, open_=True)


# ---- meta-learning -----------------------------------------------------------------------------------------------

META_TREE: Schema = fields(
    {
        "net": STATE,
        "done": whole(),
        "before": tensor(torch.float64, 1),
        "after": tensor(torch.float64, 1),
        "optimizer": named(anything),
    }
)

META_ABOUT: Schema = fields(
    {
        "config": named(plain),
        "net": lambda value, place: None if isinstance(value, str) else named(anything)(value, place),
        "data": named(text),
        "trainable": listed(text),
        "identity": named(text),
        "gemm": named(word(LIBRARIES)),
        "machine": named(anything),
        "layout": named(plain),
    },
    open_=True,
)


# ---- checkpoints -------------------------------------------------------------------------------------------------

STOPS = ("", "steps", "target_psnr", "patience", "callback", "diverged", "interrupted")

FIT_TREE: Schema = fields(
    {
        "networks": listed(
            fields(
                {
                    "net": named(anything),
                    "done": whole(),
                    "losses": tensor(torch.float64, 1),
                    "eval_steps": tensor(torch.int64, 1),
                    "psnrs": tensor(torch.float64, 1),
                    "best_state": named(anything),
                    "stopped": word(STOPS),
                    "error": maybe(text),
                },
                {"buffers": STATE, "modules": listed(STATE)},
            ),
            1,
        ),
        "groups": listed(
            fields(
                {
                    "members": listed(whole(), 1),
                    "done": whole(),
                    "best": listed(tensor()),
                    "optimizer": named(anything),
                },
                {"gradient": tensor()},
            )
        ),
        "callbacks": listed(anything),
    }
)

FIT_ABOUT: Schema = fields(
    {
        "config": fields({"steps": whole(1), "schedule": text}, open_=True),
        # Compared as they are, since anybody's modules and encodings are trained.
        "nets": listed(lambda value, place: None if isinstance(value, str) else named(anything)(value, place), 1),
        "data": listed(text, 1),
        "own": listed(
            fields(
                {"lr": number(0.0, exclusive=True), "seed": whole(0, None)}, {"data_range": number(0.0, exclusive=True)}
            ),
            1,
        ),
        "gemm": named(named(word(LIBRARIES), _digits)),
        "machine": named(anything),
        "layout": listed(named(anything)),
    },
    {
        "trainable": listed(listed(text), 1),
        "evaluation": listed(maybe(text), 1),
        "parts": listed(named(text), 1),
        "identities": named(named(text)),
        "optimizer": listed(fields({"parameters": listed(text), "settings": named(anything)})),
    },
    open_=True,
)


def check_fit(tree: Any, about: Any) -> None:
    """Check what a checkpoint holds, and that its parts belong together.

    Raises
    ------
    ValueError
        The first thing that does not.
    """
    FIT_TREE(tree, "tree")
    FIT_ABOUT(about, "about")
    count = len(tree["networks"])
    for key in ("nets", "data", "parts", "own", "trainable", "evaluation"):
        if key in about:
            check(f"about.{key}", len(about[key]) == count, f"a list of {count}, one per network", about[key])
    for index, kept in enumerate(tree["networks"]):
        _check_history(kept, f"tree.networks[{index}]")
    going: list[int] = []
    for index, group in enumerate(tree["groups"]):
        place = f"tree.groups[{index}]"
        check(f"{place}.members", max(group["members"]) < count, f"below {count}", max(group["members"]))
        going += group["members"]
        for member in group["members"]:
            done = tree["networks"][member]["done"]
            check(f"{place}.done", group["done"] == done, f"{done}, as of its networks", group["done"])
    check("tree.groups", len(set(going)) == len(going), "of different networks", going)
    for index, kept in enumerate(tree["networks"]):
        if index not in going:
            check(f"tree.networks[{index}].stopped", kept["stopped"] != "", "said of a network of no group", "")


def _check_history(kept: Mapping[str, Any], place: str) -> None:
    """Check that the numbers of one network's history fit each other."""
    check(f"{place}.losses", len(kept["losses"]) == kept["done"], f"of {kept['done']} steps", kept["losses"])
    evaluated = kept["eval_steps"].tolist()
    check(f"{place}.eval_steps", rising(evaluated, kept["done"]), "rising, and up to those done", kept["eval_steps"])
    check(f"{place}.psnrs", len(kept["psnrs"]) == len(evaluated), f"of {len(evaluated)} evaluations", kept["psnrs"])
    check(
        f"{place}.error",
        (kept["error"] is None) == (kept["stopped"] != "diverged"),
        "there if it diverged",
        kept["error"],
    )


def rising(steps: Iterable[int], last: int) -> bool:
    """Return whether numbers rise, from 0 at least to ``last`` at most."""
    before = -1
    for step in steps:
        if step <= before or step > last:
            return False
        before = step
    return True
