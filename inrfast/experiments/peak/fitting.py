"""Cells of the inpainting experiments: the time of a step of each method, and one fit of one image with a mask."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.experiments.paper import Cell, Found, Request, Work, uninterrupted
from inrfast.experiments.peak.images import Named
from inrfast.experiments.peak.masks import Mask
from inrfast.experiments.peak.methods import Method
from inrfast.grids import grid
from inrfast.metrics import mse_to_psnr
from inrfast.signals.image import MID_GREY
from inrfast.threads import one_core
from inrfast.training.callbacks import FitState
from inrfast.training.fit import fit

SCHEDULE = "exponential"
"""Of the rate of all fits: it falls tenfold."""

TIMED = (4, 44)
"""Steps of the two fits whose times are compared; the difference leaves out what a fit does once."""

REPEATS = 4
"""Of either; of each the shortest counts: other work on the machine only adds."""

LEAST = 1e-5
"""Seconds of a step at least: below it a measurement went wrong."""

HELD_OUT = 0.1
"""Share of the observed pixels that choose the step of early stopping."""


@dataclass(frozen=True)
class Sizes:
    """Of a preset.

    Attributes
    ----------
    side
        Pixels along an axis.
    seconds
        Of one core, per fit; the number of steps follows from the time of a step.
    runs
        Seeds where a figure shows mean and range.
    """

    side: int
    seconds: float
    runs: int


SIZES = {"quick": Sizes(128, 4.0, 1), "paper": Sizes(256, 20.0, 3)}


def sizes(request: Request) -> Sizes:
    """Return those of a request's preset."""
    return SIZES[request.preset]


def processor_seconds(device: torch.device) -> float:
    """Return a clock: of the process's work on a CPU, of the wall behind the last operation on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


# ---- time of a step --------------------------------------------------------------------------------------------------


def speed_cell(name: str, methods: Sequence[Method], side: int, shared: bool = False) -> Cell:
    """Return the cell that takes the seconds of one step of every method, all on half of the pixels at random.

    One core; the methods take turns, so that other work on the machine meets all of them.
    """

    methods = [method.at(side) for method in methods]

    def run(work: Work) -> Found:
        best = {(method.name, steps): float("inf") for method in methods for steps in TIMED}
        for _ in range(REPEATS):
            for method in methods:
                for steps in TIMED:
                    taken = _timed(method, side, steps, work.device)
                    best[method.name, steps] = min(best[method.name, steps], taken)
        few, many = TIMED
        seconds = {
            method.name: max((best[method.name, many] - best[method.name, few]) / (many - few), LEAST)
            for method in methods
        }
        return Found({"seconds": seconds})

    settings = {"side": side, "methods": [method.settings for method in methods], "timed": list(TIMED)}
    return Cell(name, settings, run, cost=1.0 * len(methods), shared=shared)


def _timed(method: Method, side: int, steps: int, device: torch.device) -> float:
    coords = grid((side, side), "center", device=device)
    half = coords[::2]
    net, regularizers = method.made(coords, len(half), 0, device)
    with one_core():
        began = processor_seconds(device)
        fit(net, half, half[:, :1].sin(), steps, method.lr, SCHEDULE, batch_size=min(method.batch, len(half)),
            eval_every=steps, data_range=1.0, progress=False, regularizers=regularizers, seed=0)  # fmt: skip
        return processor_seconds(device) - began


def steps_of(method: Method, speed: Found, seconds: float) -> int:
    """Return the steps that a method takes in so many seconds, by two digits: a repeated measurement often agrees."""
    steps = seconds / speed.numbers["seconds"][method.name]
    digits = max(len(str(int(steps))) - 2, 0)
    return max(int(round(steps, -digits)), 2)


# ---- one fit ---------------------------------------------------------------------------------------------------------


@dataclass
class Scores:
    """A callback that scores the whole picture at every evaluation, values clamped to [0, 1].

    PSNRs (dB, peak 1) over all pixels, over the missing ones, over the observed ones; where pixels are held out, over
    these.
    """

    coords: Tensor
    target: Tensor
    observed: Tensor
    held_out: Tensor | None = None
    steps: list[int] = field(default_factory=list)
    found: dict[str, list[float]] = field(default_factory=dict)
    picture: Tensor | None = None

    def on_eval(self, state: FitState) -> None:
        """Score the network as it is."""
        self.picture = values(state.net, self.coords)
        errors = (self.picture - self.target).double().square()
        masks = {"whole": torch.ones_like(self.observed), "missing": ~self.observed, "observed": self.observed}
        if self.held_out is not None:
            masks["held_out"] = self.held_out
        self.steps.append(state.step)
        for name, mask in masks.items():
            self.found.setdefault(name, []).append(mse_to_psnr(max(float(errors[mask].mean()), 1e-12)))


@torch.no_grad()
def values(net: nn.Module, coords: Tensor) -> Tensor:
    """Return a network's picture (N,) in [0, 1]; networks learn values minus mid-grey."""
    return (net(coords)[:, 0] + MID_GREY).clamp(0, 1)


def fit_cell(
    name: str,
    method: Method,
    image: Named,
    mask: Mask,
    steps: int,
    seed: int,
    *,
    scores: int = 1,
    stopping: bool = False,
    shared: bool = False,
) -> Cell:
    """Return the cell of one fit, scored so many times; with ``stopping`` a tenth of the observed pixels is held out.

    Numbers: ``seconds`` of one core, evaluations included; ``steps``; lists ``whole``, ``missing``, ``observed`` (dB),
    and at ``steps_scored`` which; ``stopped``, the index of the best score of the pixels that were held out. Array:
    ``picture`` (side, side), uint8, of the last weights.
    """

    method = method.at(image.side)

    def run(work: Work) -> Found:
        coords = grid((image.side, image.side), "center", device=work.device)
        target, observed = (own.flatten().to(work.device) for own in (image.values, mask.observed))
        taught, held_out = observed, None
        if stopping:
            draw = torch.rand(len(observed), generator=torch.Generator().manual_seed(seed)).to(work.device)
            held_out = observed & (draw < HELD_OUT)
            taught = observed & ~held_out
        net, regularizers = method.made(coords, int(taught.sum()), seed, work.device)
        watch = Scores(coords, target, observed, held_out)
        every = max(steps // scores, 1)
        with one_core():
            began = processor_seconds(work.device)
            uninterrupted([
                fit(net, coords[taught], target[taught, None] - MID_GREY, steps, method.lr, SCHEDULE,
                    batch_size=min(method.batch, int(taught.sum())), eval_every=every, data_range=1.0, seed=seed,
                    callbacks=[watch], progress=work.progress, regularizers=regularizers)
            ])  # fmt: skip
            taken = processor_seconds(work.device) - began
        assert watch.picture is not None
        numbers: dict[str, Any] = {"seconds": taken, "steps": steps, "steps_scored": watch.steps, **watch.found}
        if held_out is not None:
            numbers["stopped"] = int(np.argmax(watch.found["held_out"]))
        picture = (255 * watch.picture).round().to(torch.uint8).reshape(image.side, image.side)
        return Found(numbers, {"picture": picture.cpu().numpy()})

    settings = {
        **image.settings, **mask.settings, "method": method.settings, "steps": steps, "seed": seed, "scores": scores,
        "stopping": stopping, "schedule": SCHEDULE,
    }  # fmt: skip
    return Cell(name, settings, run, cost=4.0, shared=shared)


def last(found: Found, over: str = "whole") -> float:
    """Return the PSNR of a fit's end."""
    return float(found.numbers[over][-1])


def stopped(found: Found, over: str = "whole") -> float:
    """Return the PSNR at the step that the held-out pixels choose."""
    return float(found.numbers[over][found.numbers["stopped"]])


def by_image(
    cells: Callable[[str, str], str], found: Mapping[str, Found], images: Sequence[str], kinds: Sequence[str], over: str
) -> dict[tuple[str, str], float]:
    """Return the PSNRs of fits by image and kind of mask; ``cells`` names a cell."""
    return {(image, kind): last(found[cells(image, kind)], over) for image in images for kind in kinds}
