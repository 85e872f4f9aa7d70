"""``inr.choose``: which network will reconstruct a signal best between its samples, before any is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.choosing.candidates import makers
from inrfast.choosing.choice import Candidate, Choice, arguments_of, name_of
from inrfast.choosing.prediction import Halves, predicted
from inrfast.choosing.samples import Samples, samples_of
from inrfast.metrics import mse_to_psnr
from inrfast.modes import in_own_modes
from inrfast.signals.kinds import Signal


@in_own_modes
def choose(
    signal: str | os.PathLike[str] | Signal | Tensor,
    coords: Tensor | None = None,
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

    A sample of the signal is halved. Gradient descent of the linearised network on one half, stopped at its best step,
    predicts the other: no network is trained. Without ``candidates`` a search goes from coarse to fine over the
    frequencies of SIREN, Fourier features, positional encodings and others.

    Parameters
    ----------
    signal
        A file (image, sound, volume or mesh), a :class:`inrfast.signals.kinds.Signal`, or a floating tensor: values
        (*grid, M) on ``inrfast.grid(grid)``, or (N, M) at ``coords``. At least 64 samples, not constant.
    coords
        Points (N, d) of the values, as the network is to see them; None: ``inrfast.grid`` of the signal's shape.
    candidates
        Your own, in place of the search: dicts of arguments of :class:`inrfast.INR` (``in_features``,
        ``out_features``, ``width`` and ``hidden_layers`` are filled in where they are left out), or functions of a seed
        that return an INR.
    width, hidden_layers
        Of the networks.
    points
        Points of the sample, both halves together: patches at the signal's own spacing, and points at random.
    check
        So many of the best are fitted for a short time and put in the order of what they reach; 0: none.
    seconds
        Time after which no further candidate is begun; None: no limit.
    data_range
        Of the PSNRs; None: :func:`inrfast.metrics.data_range_of` the signal.
    seed
        Below 2^32. Of the networks, and of what is sampled.
    memory_budget
        Bytes for kernels and for reading the file; None: half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal only.

    Returns
    -------
    Choice
        The candidates in their order, each with its prediction, standard error, learning rate and a ready line. Ctrl-C
        returns those that are known, with ``stopped="interrupted"``; before the first it raises KeyboardInterrupt.

    Raises
    ------
    ValueError, TypeError
        A signal that is constant, has too few samples or NaN; shapes that do not match; candidates that cannot be
        built, with their number.
    MemoryBudgetError
        The kernel of the sample does not fit.

    Examples
    --------
    >>> import inrfast as inr
    >>> x = inr.grid(256)
    >>> sines = [{"activation": "sine", "omega": omega, "init": "siren"} for omega in (1.0, 20.0)]
    >>> inr.choose(torch.sin(20 * x), candidates=sines, width=64).line
    "inr.INR(1, 1, width=64, hidden_layers=3, activation='sine', omega=20.0, init='siren')"
    """
    start = time.perf_counter()
    samples = samples_of(signal, coords, data_range, memory_budget, progress)
    sizes = {
        "in_features": samples.coords.shape[1],
        "out_features": samples.values.shape[1],
        "width": width,
        "hidden_layers": hidden_layers,
    }
    halves = _halves(samples, points, seed)
    found: list[Candidate] = []
    stopped = "done"
    try:
        for make in tqdm(makers(candidates, sizes), desc="choose", disable=None if progress is None else not progress):
            begun = time.perf_counter()
            net = make(seed)
            steps, errors = predicted(net, halves, memory_budget)
            best = int(errors.mean(1).argmin())
            mse = float(errors[best].mean())
            error = 10 / math.log(10) * float(errors[best].std()) / math.sqrt(errors.shape[1]) / mse
            arguments = arguments_of(net)
            psnr = mse_to_psnr(mse, samples.data_range)
            taken = time.perf_counter() - begun
            found.append(Candidate(name_of(arguments), arguments, psnr, error, 1e-3, float(steps[best]), taken))
    except KeyboardInterrupt:
        if not found:
            raise
        stopped = "interrupted"
    ranked = tuple(sorted(found, key=lambda candidate: -candidate.psnr))
    sample = {
        "signal": samples.count,
        "points": len(halves.train) + len(halves.held),
        "train": len(halves.train),
        "held_out": len(halves.held),
        "patches": 0,
        "patch": None,
        "random": len(halves.train) + len(halves.held),
        "channels": samples.values.shape[1],
    }
    return Choice(ranked, samples.data_range, sample, time.perf_counter() - start, stopped)


def _halves(samples: Samples, points: int, seed: int) -> Halves:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples.values), generator=generator)
    if samples.known is not None:
        order = order[samples.known[order]]
    order = order[:points]
    x, y = samples.coords[order].double(), samples.values[order].double()
    half = len(order) // 2
    return Halves(x[:half], y[:half], x[half:], y[half:], torch.zeros(len(order) - half))
