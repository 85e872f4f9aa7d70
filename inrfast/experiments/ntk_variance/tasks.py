"""What networks are fitted to: images, sounds and shapes, with the number that scores each kind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.experiments.inlet_rank_collapse.protocol import scoring, tuning
from inrfast.experiments.inlet_rank_collapse.shapes import GYROID, Shape, on_grid, points, shapes
from inrfast.experiments.inlet_rank_collapse.shapes import Sizes as Points
from inrfast.experiments.ntk_variance.variants import ready
from inrfast.experiments.paper import Cell, Found, Request, Work, uninterrupted
from inrfast.experiments.pictures import Pictures, pictures
from inrfast.grids import grid
from inrfast.memory import chunks
from inrfast.metrics import iou, psnr
from inrfast.nn import INR
from inrfast.signals.image import MID_GREY
from inrfast.training.fit import fit_many
from inrfast.training.result import FitResult

ROWS = 2**16
"""Points that a network is evaluated at in one go."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value."""


@dataclass(frozen=True)
class Sizes:
    """Of a preset.

    Attributes
    ----------
    images, side
        How many images, of ``side`` x ``side`` pixels, of which every second one along either axis is fitted.
    samples
        Of a sound, of which every second one is fitted.
    shape
        Points of a shape.
    width, hidden_layers, steps, runs
        Of the networks and fits.
    """

    images: int
    side: int
    samples: int
    shape: Points
    width: int
    hidden_layers: int
    steps: int
    runs: int


SIZES = {
    "quick": Sizes(4, 64, 2048, Points((1024, 4096, 1024, 4096), 32), 64, 3, 300, 3),
    "paper": Sizes(16, 256, 16384, Points((16384, 16384, 16384, 16384), 128), 256, 3, 2000, 3),
}

RATES = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
"""Of Adam, tried for every variant; the rate falls tenfold over a fit."""


@dataclass(frozen=True)
class Task:
    """A kind of signal.

    Attributes
    ----------
    name, label, score
        As files and tables spell it, and the number by which fits are compared, larger being better.
    inputs
        Coordinates of a point.
    loss
        Of the fits.
    octaves, frequencies
        Tried for the positional encoding, and for the filters.
    """

    name: str
    label: str
    score: str
    inputs: int
    loss: str
    octaves: tuple[int, ...]
    frequencies: tuple[float, ...]


IMAGE = Task("image", "images", "PSNR (dB)", 2, "mse", (3, 5, 7), (4.0, 16.0, 64.0))
AUDIO = Task("audio", "audio", "SNR (dB)", 1, "mse", (6, 8, 10), (16.0, 128.0, 1024.0))
SHAPE = Task("occupancy", "occupancy", "IoU", 3, "bce", (2, 3, 5), (2.0, 8.0, 32.0))

TASKS = {one.name: one for one in (IMAGE, SHAPE, AUDIO)}


Score = Callable[[INR], float]


@dataclass(frozen=True)
class Signal:
    """A signal to fit.

    Attributes
    ----------
    coords, target
        The points that are fitted, (N, d), and their values, (N, 1).
    unseen, seen
        The score of a network on points that it was not fitted to, and on those that it was.
    everywhere
        All points of an image or sound, in order; of a shape those fitted.
    """

    coords: Tensor
    target: Tensor
    unseen: Score
    seen: Score
    everywhere: Tensor


@dataclass(frozen=True)
class Source:
    """A signal before it is made.

    Attributes
    ----------
    name
        Unique within its task.
    settings
        What a result depends on.
    signal
        Makes it on a device; None: the cell of its points is not done.
    scored
        Whether it scores the variants, or chooses their settings.
    needs
        Cells that come first.
    truth
        Of an image its grey values, (side, side).
    """

    task: Task
    name: str
    settings: Mapping[str, Any]
    signal: Callable[[torch.device], Signal] | None
    scored: bool
    needs: tuple[Cell, ...] = ()
    truth: Tensor | None = None


def sources(request: Request, found: Mapping[str, Found]) -> list[Source]:
    """Return the signals of all tasks, those that choose settings first within each task."""
    sizes = SIZES[request.preset]
    given = pictures(request, sizes.images, sizes.side)
    return [*_images(given), *_shapes(request, sizes, found), *_sounds(sizes)]


@torch.no_grad()
def values(net: INR, coords: Tensor) -> Tensor:
    """Return a network's values (N,) on the CPU."""
    return torch.cat([net(coords[rows])[:, 0].cpu() for rows in chunks(len(coords), ROWS)])


def fits(
    nets: Sequence[INR], signal: Signal, task: Task, rates: Sequence[float], steps: int, work: Work
) -> list[tuple[dict[str, float], FitResult]]:  # fmt: skip
    """Fit networks to a signal in place, full batches; return scores, ``unseen`` and ``seen``, and results."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of losses that grow
        results = uninterrupted(
            fit_many(
                list(nets), signal.coords, signal.target, steps, list(rates), "exponential", loss=task.loss,
                eval_every=steps, data_range=1.0, checkpoint=work.checkpoint, resume=True, progress=work.progress,
                seed=0,
            )
        )  # fmt: skip
    made = []
    for net, result in zip(nets, results, strict=True):
        if result.error is not None:
            net.load_state_dict(result.best_state)
            net.eval()
        else:
            ready(net, signal.coords)
        made.append(({"unseen": signal.unseen(net), "seen": signal.seen(net)}, result))
    return made


# ---- images ------------------------------------------------------------------------------------------------------


def _images(given: Pictures) -> list[Source]:
    chooses, scores = tuning(given), scoring(given)
    grey = given.values @ torch.tensor(LUMA)
    made = []
    for number in dict.fromkeys((*chooses, *scores)):
        settings = {"images": [given.names[number]], "side": grey.shape[1], "sampling": given.notes[number]}
        made.append(
            Source(IMAGE, given.names[number], settings, _image(grey[number]), number in scores, truth=grey[number])
        )
    return made


def _image(grey: Tensor) -> Callable[[torch.device], Signal]:
    def make(device: torch.device) -> Signal:
        everywhere = grid(tuple(grey.shape), "center", device=device)
        taught = torch.zeros(grey.shape, dtype=torch.bool)
        taught[::2, ::2] = True
        return _halved(everywhere, grey.reshape(-1, 1) - MID_GREY, taught.flatten(), psnr, device)

    return make


def _halved(
    everywhere: Tensor, target: Tensor, taught: Tensor, score: Callable[[Tensor, Tensor], float], device: torch.device
) -> Signal:  # fmt: skip
    """Return a signal of which some points are fitted, and the others score."""

    def on(places: Tensor) -> Score:
        coords, truth = everywhere[places.to(device)], target[places, 0]
        return lambda net: score(values(net, coords), truth)

    coords, own = everywhere[taught.to(device)], target[taught].float().to(device)
    return Signal(coords, own, on(~taught), on(taught), everywhere)


# ---- shapes ------------------------------------------------------------------------------------------------------


def _shapes(request: Request, sizes: Sizes, found: Mapping[str, Found]) -> list[Source]:
    """Return the shape by formula, whose trial points choose, and the shapes that score: meshes, or itself."""
    formula = Shape(GYROID, GYROID, None, "")
    made = []
    for one, scored in ((formula, False), *((one, True) for one in shapes(request))):
        cell = one.cell(sizes.shape, request.seed)
        name = f"{one.name}-trial" if not scored else one.name
        settings = {**dict(cell.settings), "trial": not scored}
        maker = _shape(found[cell.name], scored, sizes.shape.side) if cell.name in found else None
        made.append(Source(SHAPE, name, settings, maker, scored, (cell,)))
    return made


def _shape(drawn: Found, scored: bool, side: int) -> Callable[[torch.device], Signal]:
    def make(device: torch.device) -> Signal:
        coords, inside = points(drawn, "train" if scored else "trial", device)

        def seen(net: INR) -> float:
            return iou(values(net, coords) > 0, inside[:, 0].cpu() > 0)

        def unseen(net: INR) -> float:
            if not scored:
                judged, truth = points(drawn, "judge", device)
                return iou(values(net, judged) > 0, truth[:, 0].cpu() > 0)
            dense = grid((side,) * 3, endpoint="center", device=device)
            return iou(values(net, dense) > 0, torch.from_numpy(on_grid(drawn, side)).flatten())

        return Signal(coords, inside, unseen, seen, coords)

    return make


# ---- sounds ------------------------------------------------------------------------------------------------------

SOUNDS = ("pluck", "chord", "sweep")
"""Made by formula, this project's own; the first chooses, the others score."""


def _sounds(sizes: Sizes) -> list[Source]:
    return [
        Source(AUDIO, name, {"sound": name, "samples": sizes.samples}, _sound(name, sizes.samples), name != SOUNDS[0])
        for name in SOUNDS
    ]


def sound(name: str, coords: Tensor) -> Tensor:
    """Return a sound at times (N, 1) of [-1, 1], largest value 1, fp64 (N, 1).

    ``pluck``: twelve harmonics of a tone of 20 periods, the higher ones weaker and sooner gone; ``chord``: tones of 22,
    28 and 33 periods with three harmonics each, swelling and fading; ``sweep``: a tone that rises from 5 to 80
    periods.
    """
    time = (coords.double() + 1) / 2
    turn = 2 * math.pi * time
    if name == "pluck":
        made = sum(((20 * k * turn).sin() * (-3 * k**0.5 * time).exp() / k for k in range(1, 13)), 0 * time)
    elif name == "chord":
        tones = ((pitch * k * turn).sin() / k for pitch in (22.0, 28, 33.0) for k in (1, 2, 3))
        made = sum(tones, 0 * time) * (math.pi * time).sin()
    else:
        made = ((5 + 37.5 * time) * turn).sin() * (1 - 0.5 * time)
    return made / made.abs().max()


def _sound(name: str, samples: int) -> Callable[[torch.device], Signal]:
    def make(device: torch.device) -> Signal:
        everywhere = grid(samples, "center", device=device)
        taught = torch.arange(samples) % 2 == 0
        return _halved(everywhere, sound(name, everywhere).cpu(), taught, snr, device)

    return make


def snr(found: Tensor, truth: Tensor) -> float:
    """Return ``10 log10(sum t^2 / sum (t - p)^2)`` in dB."""
    truth = truth.double()
    noise = float((found.double() - truth).square().sum())
    return float(10 * np.log10(float(truth.square().sum()) / max(noise, 1e-300)))
