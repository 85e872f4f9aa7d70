"""The points of a regulariser in one step: all, or a random part that seed and step alone decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_int
from inrfast.training.batches import step_seed

Part = int | str
"""A number of points, or ``"all"``."""


def check_part(argument: str, got: Any, most: int | None = None, of: str = "", minimum: int = 1) -> Part | None:
    """Return how many points take part in a step: a number, ``"all"``, or None for a usual number.

    They stay plain values, which a checkpoint compares and its messages show.

    Raises
    ------
    ValueError, TypeError
        Neither of these; fewer than ``minimum``, more than the ``most`` that there are ``of`` a kind.
    """
    if got is None:
        return None
    if isinstance(got, str):
        if got != "all":
            raise ValueError(f"{argument} must be a number of points or 'all', got {got!r}")
        return got
    number = check_int(argument, got, minimum=minimum)
    if most is not None and number > most:
        raise ValueError(f"{argument} must be at most the number of {of} {most}, got {number}; 'all' takes them all")
    return number


def own_copy(points: Tensor) -> Tensor:
    """Return points that no later change of the caller's array reaches, and that may be differentiated by."""
    with torch.inference_mode(False):
        return points.detach().clone()


def generator_of(seed: int, step: int | None) -> torch.Generator:
    """Return a generator for one step; without a step it is seeded by the next number of PyTorch's own."""
    own = int(torch.randint(2**62, (), device="cpu")) if step is None else step
    return torch.Generator().manual_seed(step_seed(seed, own))


def drawn(argument: str, points: Tensor, part: Part | None, usual: int, generator: torch.Generator) -> Tensor:
    """Return some of the points (N, d), each at most once, or themselves where all take part.

    A part of None is the ``usual`` number, or all where there are fewer. Their numbers are drawn on the CPU, so that
    they are the same on every device.

    Raises
    ------
    ValueError
        There are fewer than were asked for.
    """
    total = len(points)
    number = total if part == "all" else usual if part is None else int(part)
    if part is not None and number > total:
        raise ValueError(f"{argument} must be at most the {total} training points of a step, got {number}")
    if number >= total:
        return points
    return points[torch.randperm(total, generator=generator)[:number].to(points.device)]


def same_points(rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs (row number, key number) of points (R, d) and (K, d) that are equal, by ascending row."""
    ids = torch.zeros(len(rows) + len(keys), dtype=torch.int64, device=rows.device)
    for axis in torch.cat([rows, keys]).unbind(1):  # unique(dim=0) takes ten times as long
        _, values = torch.unique(axis, return_inverse=True)
        _, ids = torch.unique(ids * len(ids) + values, return_inverse=True)
    of_rows, of_keys = ids[: len(rows)], ids[len(rows) :]
    ordered, order = of_keys.sort(stable=True)
    first = torch.searchsorted(ordered, of_rows)
    counts = torch.searchsorted(ordered, of_rows, right=True) - first
    found = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    within = torch.arange(len(found), device=rows.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return found, order[first[found] + within]
