"""The search over families of networks, from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inrfast.choosing.candidates import SINGLE, Family, Make, from_arguments

ROUNDS = 3
"""Refinements of a family."""

WORTH = 2.0
"""Families whose best prediction is further (dB) behind the best of all are not refined."""

Try = Callable[[Make], float]
"""Predicts a network: its PSNR (dB), minus infinity for one that cannot be predicted."""


def searched(kinds: Sequence[Family], sizes: dict[str, int], attempt: Try) -> None:
    """Try networks of all families at their coarse numbers, then of the promising ones around their best number.

    The predicted PSNR of a family rises to its best frequency and falls behind it, up to what chance does: each round
    halves, on a scale of ratios, the distance of the best number to its neighbours.
    """
    for arguments in SINGLE:
        attempt(from_arguments(arguments, sizes))
    found: list[dict[float, float]] = [{} for _ in kinds]
    for place in range(max(len(kind.numbers) for kind in kinds)):
        for kind, known in zip(kinds, found, strict=True):
            if place < len(kind.numbers):
                number = kind.numbers[place]
                known[number] = attempt(from_arguments(kind.make(number), sizes))
    for _ in range(ROUNDS):
        best = max(max(known.values()) for known in found)
        for kind, known in zip(kinds, found, strict=True):
            if max(known.values()) >= best - WORTH:
                for number in beside(kind, known):
                    known[number] = attempt(from_arguments(kind.make(number), sizes))


def beside(kind: Family, known: dict[float, float]) -> list[float]:
    """Return the numbers halfway between the best one and its neighbours."""
    numbers = sorted(known)
    place = numbers.index(max(known, key=lambda number: known[number]))
    pairs = [(numbers[k], numbers[k + 1]) for k in (place - 1, place) if 0 <= k < len(numbers) - 1]
    between = [kind.between(low, high) for low, high in pairs]
    return [number for number in between if number is not None and number not in known]


def most_tried(kinds: Sequence[Family]) -> int:
    """Return about how many networks are tried, for the time left."""
    return len(SINGLE) + sum(len(kind.numbers) for kind in kinds) + 2 * ROUNDS * 2
