"""The networks that are considered: those of the search's families, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inrfast.encodings import PositionalEncoding, RandomFourier, from_config
from inrfast.errors import check_entries
from inrfast.nn import INR

Maker = Callable[[int], INR]
"""Returns a network for a seed."""


def usual(width: int) -> list[dict[str, Any]]:
    """Return the starting list: arguments of networks for signals of any kind."""
    fourier = [{"encoding": RandomFourier(width // 2, float(s))} for s in (1, 4, 16)]
    octaves = [{"encoding": PositionalEncoding(k)} for k in (3, 6, 9)]
    sines: list[dict[str, Any]] = [{"activation": "sine", "omega": w, "init": "siren"} for w in (5.0, 30.0, 100.0)]
    return [*sines, *fourier, *octaves, {}, {"init": "rank_expanding"}, {"activation": "gaussian"}]


def maker(given: Any, sizes: Mapping[str, int], index: int) -> Maker:
    """Return a maker from the user's arguments or factory; errors name the candidate."""
    argument = f"candidates[{index}]"
    if isinstance(given, Mapping):
        check_entries(argument, {**sizes, **given}, INR)
        arguments = dict(given)
        if isinstance(arguments.get("encoding"), Mapping):
            arguments["encoding"] = from_config(arguments["encoding"])
        return lambda seed: INR(**{**sizes, **arguments, "seed": seed})
    if callable(given):
        return lambda seed: given(seed)
    raise TypeError(f"{argument} must be a dict of arguments of INR or a function of a seed, got {given!r:.80}")


def makers(given: Sequence[Any] | None, sizes: Mapping[str, int]) -> list[Maker]:
    """Return the makers of all candidates."""
    return [maker(one, sizes, index) for index, one in enumerate(usual(sizes["width"]) if given is None else given)]
