"""``inr.choose``: which network will reconstruct a signal best between its samples, before any is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inrfast.arrays import ArrayLike
from inrfast.boxes import made_for_anywhere
from inrfast.choosing.candidates import Make, families, growth_of, makers, rate_of, speed_of
from inrfast.choosing.check import checked
from inrfast.choosing.choice import SIZES, Candidate, Choice, arguments_of, name_of
from inrfast.choosing.prediction import Fit, predicted
from inrfast.choosing.samples import LEAST, Samples, means_of, samples_of
from inrfast.choosing.scales import Scale, bytes_of, scales_of
from inrfast.choosing.search import most_tried, searched
from inrfast.choosing.text import offset_told
from inrfast.errors import MemoryBudgetError, check_float, check_int, check_seed, warn
from inrfast.memory import budget_bytes, require
from inrfast.metrics import mse_to_psnr
from inrfast.modes import in_own_modes
from inrfast.progress import Bar, progress_bar
from inrfast.signals.kinds import Signal

STEPS, BATCH = 500, 4096
"""Of the fit that is predicted, which is a short one: Adam, the rate falling to a tenth."""


@in_own_modes
def choose(
    signal: str | os.PathLike[str] | Signal | ArrayLike,
    coords: ArrayLike | None = None,
    candidates: Sequence[Any] | None = None,
    *,
    width: int = 256,
    hidden_layers: int = 3,
    points: int = 2400,
    check: int = 0,
    seconds: float | None = None,
    data_range: float | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Choice:
    """Return which network will reconstruct a signal best between its samples, as kernels at initialisation predict.

    A sample of the signal is halved. The linearised network, fitted to one half as Adam would in 500 steps, predicts
    the other (:mod:`inrfast.choosing.prediction`): no network is trained. One output's kernel serves all outputs, whose
    cross terms vanish with growing width. Without ``candidates`` a search goes from coarse to fine over the
    frequencies of SIREN, Fourier features, positional encodings and others.

    Parameters
    ----------
    signal
        A file (image, sound, volume or mesh), a :class:`inrfast.signals.kinds.Signal`, or a floating tensor: values
        (*grid, M) on ``inrfast.grid(grid)``, M at most 16, or (H, W) of one channel, W above 16; or (N,), (N, M),
        (*grid) or (*grid, M) at ``coords``. At least 64 samples, not constant. Pixels of 8 or 16 bits and Pillow's
        images are taken as by :func:`inrfast.fit`.
        What is predicted is a fit of the signal without the mean of each output, which a network finds soon where it is
        small: a mean larger than ``data_range`` warns, take it off before a fit.
    coords
        Points (N, d) of the values, at least 64 different ones, as the network is to see them; None: ``inrfast.grid``
        of the signal's shape.
    candidates
        Your own, in place of the search: dicts of arguments of :class:`inrfast.INR` (``in_features``,
        ``out_features``, ``width`` and ``hidden_layers`` are filled in where they are left out), or functions of a seed
        that return an INR. Without norms, and without ``bounds``: the points are those of ``coords``.
    width, hidden_layers
        Of the networks.
    points
        Points whose kernel is taken: patches at the signal's own spacing, half of them held out, drawn by the energy of
        their details, and means over cells that cover the signal. Signals of no more samples are taken whole.
    check
        So many of the best are fitted for a short time and put in the order of what they reach; 0: none.
    seconds
        Time, from the first candidate on, after which no further one is begun; None: no limit.
    data_range
        Of the PSNRs; None: :func:`inrfast.metrics.data_range_of` the signal, 1 of pixels.
    seed
        Below 2^32. Of the networks, and of what is sampled.
    memory_budget
        Bytes for kernels, for reading the file and for taking the signal apart; None: half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Returns
    -------
    Choice
        The candidates in their order, each with its prediction, standard error, learning rate and a ready line. Ctrl-C
        returns those that are known, with ``stopped="interrupted"``; before the first it raises KeyboardInterrupt.

    Raises
    ------
    ValueError, TypeError
        A signal that is constant, has too few samples or NaN; shapes that do not match; candidates that cannot be
        built, with their number; none that can be predicted (others are in ``refused``, with the reason).
    MemoryBudgetError
        The signal, or the kernel of the sample for every candidate, does not fit.

    Notes
    -----
    Measured against real fits (width 128, 500 steps, 19 networks) on twelve signals that no constant was tuned on: the
    rank correlation of predicted and fitted PSNR is 0.94 on the median, 0.93 to 0.97 on eight photographs of 256x256,
    0.87 on a volume, 0.88 on the occupancy of a surface, 0.82 and 0.92 on two sounds, which were scored a second time
    after the constants for one axis had been tuned again on others; docs/inr-dictionaries.md has all numbers. The
    predicted PSNR itself is off by 0.5 to 2 dB on the median over the networks, of the surface by 3.5 dB.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> x = inr.grid(256)
    >>> sines = [{"activation": "sine", "omega": omega, "init": "siren"} for omega in (5.0, 200.0)]
    >>> inr.choose(torch.sin(20 * x), candidates=sines, width=64).line
    "inr.INR(1, 1, width=64, hidden_layers=3, activation='sine', omega=5.0, init='siren')"
    """
    start = time.perf_counter()
    points, check = check_int("points", points, minimum=LEAST), check_int("check", check, minimum=0)
    limit = None if seconds is None else check_float("seconds", seconds, minimum=0.0, exclusive=True)
    seed = check_seed("seed", seed)
    samples = samples_of(signal, coords, data_range, memory_budget, progress)
    what = f"taking a signal of {samples.count:,} samples apart"
    require(bytes_of(samples, points), budget_bytes(memory_budget), what, "give fewer samples, or raise memory_budget")
    means, mse = means_of(samples)
    offset = max(means, key=abs) if max(map(abs, means)) > samples.data_range else 0.0
    if offset:
        warn(offset_told(offset))
    sizes = {
        "in_features": samples.coords.shape[1],
        "out_features": samples.values.shape[1],
        "width": check_int("width", width, minimum=1),
        "hidden_layers": check_int("hidden_layers", hidden_layers, minimum=1),
    }
    own = None if candidates is None else makers(candidates, sizes)
    kinds = families(samples, width) if own is None else []
    scales = scales_of(samples, points, seed)
    fit = Fit(STEPS, min(BATCH, samples.count // 2), samples.count // 2)
    total = most_tried(kinds) if own is None else len(own)
    stopped = "done"
    with progress_bar(total=total, desc="choose", progress=progress, leave=False) as bar:
        tries = _Tries(
            samples, scales, fit, seed, memory_budget, None if limit is None else time.perf_counter() + limit, bar
        )
        try:
            if own is None:
                searched(kinds, sizes, tries.attempt)
            else:
                for make in own:
                    tries.attempt(make)
        except (KeyboardInterrupt, _OverTime) as error:
            if not tries.found:
                raise
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "time"
    ranked = tries.ranked()
    if check and stopped == "done":
        try:
            ranked = checked(ranked[:check], samples, fit, seed, memory_budget, progress) + ranked[check:]
        except KeyboardInterrupt:
            stopped = "interrupted"
    if stopped == "interrupted":
        warn(f"interrupted after {len(ranked)} candidates: the choice is among these")
    return Choice(
        candidates=tuple(ranked),
        data_range=samples.data_range,
        sample=_told(samples, scales),
        seconds=time.perf_counter() - start,
        stopped=stopped,
        refused=tries.told(),
        mean_psnr=mse_to_psnr(mse, samples.data_range),
        offset=offset,
    )


class _OverTime(Exception):
    """The time is over, and some candidates are predicted."""


class _Tries:
    """The predictions of one call."""

    def __init__(
        self,
        samples: Samples,
        scales: Sequence[Scale],
        fit: Fit,
        seed: int,
        memory_budget: int | None,
        end: float | None,
        bar: Bar,
    ) -> None:
        self.samples, self.scales, self.fit, self.seed = samples, scales, fit, seed
        self.memory_budget, self.end, self.bar = memory_budget, end, bar
        self.found: dict[str, Candidate] = {}
        self.refused: list[tuple[dict[str, Any], str]] = []
        self.memory = False

    def attempt(self, make: Make) -> float:
        """Predict one candidate and return its PSNR, minus infinity where that is not possible."""
        start = time.perf_counter()
        if self.end is not None and start > self.end and self.found:
            raise _OverTime
        net = make(self.seed)
        made_for_anywhere(net)  # a scale's points lie at the spacing of the signal's, wherever that leads
        arguments = arguments_of(net)
        try:
            rate = rate_of(net) * speed_of(net)
            reached = predicted(net, self.scales, self.fit, rate, growth_of(net), self.memory_budget)
            psnr = mse_to_psnr(reached.mse, self.samples.data_range)
            if math.isnan(psnr):
                raise ArithmeticError("its prediction is not a number")
        # Of memory, of numbers beyond the range, of eigenvalues of NaN, and of kernels that fp64 does not determine.
        except (MemoryBudgetError, ArithmeticError, RuntimeError, ValueError) as error:
            self.refused.append((arguments, _reason(error)))
            self.memory = self.memory or isinstance(error, MemoryBudgetError)
            psnr = -math.inf
        else:
            taken = time.perf_counter() - start
            lr = float(f"{rate_of(net, psnr):.2g}")
            one = Candidate("", arguments, psnr, reached.error, lr, reached.steps, taken)
            self.found[one.line] = one
        self.bar.total = max(self.bar.total, self.bar.n + 1)
        self.bar.update()
        return psnr

    def names(self, every: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return names of some candidates, with the sizes in which candidates of this call differ."""
        known = [*(one.arguments for one in self.found.values()), *(arguments for arguments, _ in self.refused)]
        differ = [size for size in SIZES[2:] if len({arguments[size] for arguments in known}) > 1]
        return [
            ", ".join([name_of(arguments), *(f"{size}={arguments[size]}" for size in differ)]) for arguments in every
        ]

    def told(self) -> tuple[tuple[str, str], ...]:
        """Return the names of those that were refused, and why."""
        names = self.names([arguments for arguments, _ in self.refused])
        return tuple(zip(names, (reason for _, reason in self.refused), strict=True))

    def ranked(self) -> list[Candidate]:
        """Return the candidates by what is predicted of them, best first."""
        if not self.found:
            shown = list(dict.fromkeys(f"{name}: {reason}" for name, reason in self.told()))
            more = f"; and {len(shown) - 3} more" if len(shown) > 3 else ""
            kind = MemoryBudgetError if self.memory else ValueError
            raise kind(f"candidates: none can be predicted at these coords: {'; '.join(shown[:3])}{more}")
        found = sorted(self.found.values(), key=lambda candidate: -candidate.psnr)
        names = self.names([one.arguments for one in found])
        return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _reason(error: Exception) -> str:
    """Return why a candidate is not predicted, with what helps here."""
    if isinstance(error, MemoryBudgetError) and error.instead:
        return f"{str(error).removesuffix(error.instead)}lower points, or raise memory_budget"
    return str(error)


def _told(samples: Samples, scales: Sequence[Scale]) -> dict[str, Any]:
    """Return how the signal was sampled, for a reader."""
    fine, coarser = scales[0], scales[1:]
    held_out = 0 if fine.held_out is None else len(fine.held_out)
    return {
        "signal": samples.count,
        "points": sum(len(scale.train) for scale in scales) + held_out,
        "train": len(fine.train),
        "held_out": held_out,
        "patches": 0 if fine.patch is None else len(fine.weight),
        "patch": None if fine.patch is None else list(fine.patch),
        "cells": [len(scale.train) for scale in coarser],
        "channels": samples.values.shape[1],
    }
