"""Runs of a figure that repeats its work with other seeds: the seeds, and numbers over them in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inrfast.experiments.paper import Request


def seeds(request: Request, runs: int) -> range:
    """Return the seeds of the runs."""
    return range(request.seed, request.seed + (request.runs or runs))


def runs_told(count: int) -> str:
    """Return a number of runs in words."""
    return "one run" if count == 1 else f"{count} runs"


def curves_told(count: int) -> str:
    """Return in words what a curve over runs is."""
    return (
        "of one random network" if count == 1 else f"mean over {count} random networks, shaded the standard deviation"
    )


def spread(values: Sequence[float], digits: str) -> str:
    """Return the mean of numbers and, of several, their standard deviation; means of whole numbers have a decimal."""
    digits = digits if len(values) == 1 else digits.replace(".0f", ".1f")
    mean = f"{np.mean(values):{digits}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{digits}}"
