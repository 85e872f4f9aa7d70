"""The points of a regulariser in one step: all, or a random part that seed and step alone decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_int
from inrfast.training.batches import step_seed

Part = int | str
"""A number of points, or ``"all"``."""


def check_part(argument: str, got: Any, minimum: int = 1) -> int | None:
    """Return a number of points per step; None stands for ``"all"``.

    Raises
    ------
    ValueError, TypeError
        Neither ``"all"`` nor a whole number of at least ``minimum``.
    """
    if got == "all":
        return None
    if isinstance(got, str) or got is None:
        raise ValueError(f"{argument} must be a number of points or 'all', got {got!r}")
    return check_int(argument, got, minimum=minimum)


def generator_of(seed: int, step: int | None) -> torch.Generator:
    """Return a generator for one step; without a step it is seeded by the next number of PyTorch's own."""
    own = int(torch.randint(2**62, (), device="cpu")) if step is None else step
    return torch.Generator().manual_seed(step_seed(seed, own))


def drawn(total: int, part: int | None, generator: torch.Generator) -> Tensor | None:
    """Return numbers (part,) of some of ``total`` points, each at most once; None: all of them.

    Drawn on the CPU, so that they are the same on every device.
    """
    if part is None or part >= total:
        return None
    return torch.randperm(total, generator=generator)[:part]


def same_points(rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs (row number, key number) of points (R, d) and (K, d) that are equal, by ascending row."""
    _, ids = torch.unique(torch.cat([rows, keys]), dim=0, return_inverse=True)
    of_rows, of_keys = ids[: len(rows)], ids[len(rows) :]
    ordered, order = of_keys.sort(stable=True)
    first = torch.searchsorted(ordered, of_rows)
    counts = torch.searchsorted(ordered, of_rows, right=True) - first
    found = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    within = torch.arange(len(found), device=rows.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return found, order[first[found] + within]
