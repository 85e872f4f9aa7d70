"""A fit as a page for readers: how its quality grew, its network and settings, and what a reader should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inrfast import plots
from inrfast.activations import ACTIVATIONS
from inrfast.analysis.report_text import network_name
from inrfast.arrays import ArrayLike
from inrfast.errors import check_tensor
from inrfast.pages import Entries, Page, Picture, Pictures, Section, Text, drawn, figure_picture, image_picture
from inrfast.pixels import as_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

    from inrfast.training.result import FitResult

MOST_POINTS = 240
"""Points of a curve; of more, each is the mean of several."""

RISING, BETTER = 0.1, 0.1
"""dB that are worth a word: gained over the last tenth of the steps, or lost since the best ones."""

STOPS = {
    "steps": "all steps were done",
    "target_psnr": "the target PSNR was reached",
    "patience": "the PSNR had stopped growing (patience)",
    "callback": "a callback ended it",
    "interrupted": "it was interrupted",
    "diverged": "it diverged",
}

MEANINGS = {
    "PSNR": "20 log10(range of the signal / root-mean-square error), in decibels: 6 dB more halve the error, 20 dB "
    "more divide it by ten.",
    "loss": "What the optimizer makes smaller, on the points of each step with the weights before it.",
    "learning rate": "How far one step goes, at the beginning; the schedule says how it changes.",
    "engine": "How the gradients were taken. All engines give the same numbers up to rounding; they differ in speed.",
}


def page(result: FitResult, shown: Sequence[Picture] = ()) -> Page:
    """Return the page of a result alone, with pictures of what the network makes, if there are any."""
    lead = f"{outcome(result)}. The root-mean-square error is {rms_share(result.psnr)} of the signal's range."
    first = [Section("Pictures", [Pictures(shown)])] if shown else []
    return Page("A fit", lead, [*first, *sections(result)], facts(result), warnings(result))


def pictures(images: Mapping[str, ArrayLike | Image]) -> list[Picture]:
    """Return a user's images as pictures of a page, under their names."""
    if not isinstance(images, Mapping):
        raise TypeError(f"images must map names to images, got {type(images).__name__}")
    made = []
    for name, image in images.items():
        named = f"images[{name!r}]"
        taken, _ = as_values(named, image, told=False)
        values = check_tensor(named, taken, finite=False).detach().cpu().double().numpy()
        shape = values.shape
        if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))) or values.size == 0:
            raise ValueError(f"images[{name!r}] must have shape (H, W), (H, W, 1) or (H, W, 3), got {shape}")
        check_tensor(named, values)
        made.append(image_picture(values, f"Image {name}", str(name)))
    return made


def outcome(result: FitResult) -> str:
    """Return how good a fit is, after how much work."""
    return f"PSNR {decibels(result.psnr)} after {result.steps:,} steps in {result.seconds:,.1f} s"


def decibels(psnr: float) -> str:
    """Return a PSNR in words: that of an exact fit is infinite."""
    return f"{psnr:.2f} dB" if np.isfinite(psnr) else "infinite (exact)" if psnr > 0 else "not a number"


def rms_share(psnr: float) -> str:
    """Return the root-mean-square error that a PSNR means, as a share of the signal's range."""
    return "unknown" if np.isnan(psnr) else f"{10 ** (-psnr / 20):.2%}"


def facts(result: FitResult) -> dict[str, str]:
    """Return the numbers that stand at the top."""
    asked = result.config.get("steps", result.steps)
    return {
        "PSNR": decibels(result.psnr),
        "RMS error, of the range": rms_share(result.psnr),
        "steps": f"{result.steps:,} of {asked:,}",
        "time of the fit": f"{result.seconds:,.1f} s",
    }


def warnings(result: FitResult) -> list[str]:
    """Return what a reader should know before believing the numbers, computed from them."""
    found = []
    if result.stopped in ("interrupted", "diverged"):
        found.append(f"The fit did not come to its end: {STOPS[result.stopped]} after {result.steps:,} steps.")
    psnrs, steps = np.asarray(result.psnrs, dtype=float), np.asarray(result.eval_steps)
    earlier = psnrs[(steps <= 0.9 * result.steps) & np.isfinite(psnrs)]
    if result.stopped == "steps" and len(earlier) > 1 and RISING <= psnrs[-1] - earlier[-1] < np.inf:
        found.append(
            f"The PSNR still rose by {psnrs[-1] - earlier[-1]:.2f} dB over the last tenth of the steps: more steps may "
            "make it better."
        )
    if np.isfinite(result.best_psnr) and result.best_psnr - result.psnr >= BETTER:
        found.append(
            f"The weights after {result.best_step:,} steps were better by {result.best_psnr - result.psnr:.2f} dB than "
            "the last ones, which are kept."
        )
    return found


def sections(result: FitResult) -> list[Section]:
    """Return how a fit went, its network and its settings."""
    training = [
        drawn(lambda: _curves(result)),
        Text(
            f"{outcome(result)}: {STOPS.get(result.stopped, result.stopped)}. Best: {decibels(result.best_psnr)} "
            f"after {result.best_step:,} steps."
        ),
    ]
    return [
        Section("Training", training),
        Section("Network and settings", [Entries(settings(result))]),
        Section("What the numbers mean", [Entries(MEANINGS)]),
    ]


def settings(result: FitResult) -> dict[str, str]:
    """Return the network, the engine and the settings of a fit, those that are not set left out."""
    given = dict(result.config)
    net, engine, reason = given.pop("net", None), given.pop("gradient", None), given.pop("reason", None)
    found = {}
    if isinstance(net, Mapping) and "in_features" in net:
        found["network"] = network_name(net)
        names = [name for name in net.get("activation", ()) if isinstance(name, str)]
        if any("omega" in ACTIVATIONS[name].numbers for name in names if name in ACTIVATIONS):
            found["omega of the network"] = _words(net.get("omega"))
        found |= {f"{name} of the network": _words(net[name]) for name in ("bias", "seed") if name in net}
    elif net is not None:
        found["network"] = _words(net)
    if engine is not None:
        found["engine"] = f"{engine}{'' if reason is None else f'; no faster one: {reason}'}"
    given["learning_rate"] = given.pop("lr", None)
    return found | {name.replace("_", " "): _words(value) for name, value in given.items() if value is not None}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        told = [_words(own) for own in value]
        return told[0] if told and len(set(told)) == 1 else ", ".join(told)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _curves(result: FitResult) -> list[Picture]:
    """Draw PSNR and loss over the steps."""
    made = []
    for label, steps, values, log in (
        ("PSNR (dB)", result.eval_steps, result.psnrs, False),
        ("training loss", range(1, len(result.losses) + 1), result.losses, True),
    ):
        at, means = _thinned(np.asarray(steps, dtype=float), np.asarray(values, dtype=float))
        if len(at) == 0 or not np.isfinite(means).any() or (log and not (means > 0).any()):
            continue
        figure = plots.new_figure(5.4, 3.6)
        _curve(figure.subplots(), at, means, label, log)
        last = f"{means[np.isfinite(means)][-1]:.4g}"
        made.append(figure_picture(figure, f"{label} over the steps of the fit, which ends at {last}"))
    return made


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, log: bool) -> None:
    """Draw one curve over the steps."""
    plots.over_steps(steps.tolist(), {label: values.tolist()}, axes, label=label, log=log, legend=False)
    for line in axes.get_lines():
        line.set_marker("o" if len(steps) <= 12 else "None")
    if not log:
        axes.relim()
        axes.autoscale(axis="y")


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve of few points: means of neighbours, and the last point as it is."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= MOST_POINTS:
        return steps, values
    groups = np.array_split(np.arange(len(values) - 1), MOST_POINTS - 1)
    at = [steps[group].mean() for group in groups]
    means = [values[group].mean() for group in groups]
    return np.array([*at, steps[-1]]), np.array([*means, values[-1]])
