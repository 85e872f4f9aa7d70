"""The page of a fit to a signal: signal and reconstruction, what the PSNR means for it, how the fit went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.grids import axes
from inrfast.pages import Block, Items, Page, Section, Text
from inrfast.signals.kinds import SIGNALS, Signal
from inrfast.signals.render import grid_rows
from inrfast.training import result_page
from inrfast.training.result import FitResult

if TYPE_CHECKING:
    from torch import nn

LITTLE = 0.5
"""Share of the signal's variance below which a fit has hardly learned more than its mean."""

CLIPPED = 0.01
"""Share of values outside [0, 1], which an image file has not, that is worth a word."""

SEEN = 64
"""Points at each end of a signal that are compared with the grid's."""


@dataclass(frozen=True)
class Fitted:
    """A fit of the command line, for its page.

    Attributes
    ----------
    source
        The file, as it is shown.
    kind
        Name of its kind in :data:`SIGNALS`.
    signal
        What was fitted.
    predictions
        Of the network, (*grid, M), on the CPU.
    result, net
        Of the fit.
    iou
        At points that a mesh's fit did not see.
    written
        Files by what they are; their names are shown.
    problems
        What went wrong, in sentences.
    chosen
        What chose the network, in words.
    footer
        Versions and machine.
    """

    source: str
    kind: str
    signal: Signal
    predictions: Tensor
    result: FitResult
    net: nn.Module
    iou: float | None = None
    written: Mapping[str, str] | None = None
    problems: Sequence[str] = ()
    chosen: str = ""
    footer: str = ""


def page(fitted: Fitted) -> Page:
    """Return the page of a fit to a signal."""
    result, kind = fitted.result, SIGNALS[fitted.kind]
    quality = quality_of(fitted)
    lead = f"{fitted.source}: {result_page.outcome(result)}."
    if fitted.iou is not None:
        lead += f" At points that it did not see, inside and outside agree with an IoU of {fitted.iou:.4f}."
    elif math.isfinite(result.psnr):
        lead += f" {quality[0]}"
    sections = [] if kind.view is None else [Section(_titled(fitted.kind), _seen(fitted))]
    sections.append(Section("What the PSNR means here", [Items(quality)]))
    training, network, meanings = result_page.sections(result)
    sections += [training, Section(network.title, [*_files(fitted), *network.blocks]), meanings]
    facts = result_page.facts(result)
    facts |= {"IoU": f"{fitted.iou:.4f}"} if fitted.iou is not None else {}
    facts |= {
        "size": _size([*fitted.signal.about["shape"]]),
        "parameters": f"{sum(parameter.numel() for parameter in fitted.net.parameters()):,}",
    }
    told = [*fitted.problems, *_warnings(fitted), *result_page.warnings(result)]
    return Page(f"{kind.called[:1].upper()}{kind.called[1:]} as a network", lead, sections, facts, told, fitted.footer)


def _titled(kind: str) -> str:
    return {"audio": "Sound and reconstruction", "mesh": "Slices"}.get(kind, f"{kind.capitalize()} and reconstruction")


def _seen(fitted: Fitted) -> Sequence[Block]:
    """Return the signal beside the network's, if its values can be drawn."""
    view = SIGNALS[fitted.kind].view
    assert view is not None
    if not bool(fitted.predictions.isfinite().all()):
        return [Text("The network's values are not all finite: there is nothing to draw.", tone="warning")]
    return view(fitted.signal, fitted.predictions)


def _files(fitted: Fitted) -> list[Block]:
    """Return what was written, and what chose the network."""
    told = [] if not fitted.chosen else [Text(fitted.chosen)]
    if fitted.written:
        told.append(Text("Files: " + "; ".join(f"{what} {name}" for what, name in fitted.written.items()) + "."))
    return list(told)


def quality_of(fitted: Fitted) -> list[str]:
    """Return sentences that say what the PSNR of a fit means for its signal, computed from its values."""
    signal, result = fitted.signal, fitted.result
    share = result_page.rms_share(result.psnr)
    steps = f" ({255 * 10 ** (-result.psnr / 20):.1f} of 255 grey levels)" if fitted.kind == "image" else ""
    found = [f"The root-mean-square error is {share} of the signal's range{steps}."]
    if fitted.iou is not None:
        return [
            "The PSNR here is of inside (1) and outside (0) at the sampled points that were fitted; the IoU, at points "
            "that were not, says more.",
            *found,
        ]
    if not on_grid(signal):
        return found
    target = signal.target.reshape(*fitted.predictions.shape).double()
    error = fitted.predictions.double() - target
    if not bool(error.isfinite().all()):
        return ["The network's values are not all finite."]
    whole = result.data_range
    found.append(
        f"The largest error is {float(error.abs().max()) / whole:.1%} of the range; {_share(error, 0.01 * whole)} of "
        f"the values are off by at most 1 % of it, {_share(error, 0.05 * whole)} by at most 5 %."
    )
    explained = explained_share(target, error)
    if explained is not None:
        mean = float((target - _means(target)).square().mean())
        found.append(
            f"The mean value alone would have {10 * math.log10(whole**2 / mean):.2f} dB: the network explains "
            f"{explained:.2%} of the signal's variance."
        )
    power, left = float(target.square().sum()), float(error.square().sum())
    if fitted.kind == "audio" and power > 0 < left:
        found.append(f"The signal-to-noise ratio is {10 * math.log10(power / left):.2f} dB.")
    if signal.weight is not None:
        found.append(_by_weight(signal.weight, error, whole))
    return found


def on_grid(signal: Signal) -> bool:
    """Return whether a signal's points are those of the grid that is rendered; looks at the first and the last ones."""
    columns, points = axes(signal.about["shape"]), len(signal.coords)
    if math.prod(map(len, columns)) != points:
        return False
    some = min(points, SEEN)
    first, last = slice(0, some), slice(points - some, points)
    return all(torch.allclose(grid_rows(columns, part), signal.coords[part].to(columns[0])) for part in (first, last))


def explained_share(target: Tensor, error: Tensor) -> float | None:
    """Return the share of a signal's variance, about the mean of each channel, that is explained; None: it has none."""
    variance = float((target - _means(target)).square().mean())
    return None if variance == 0 else 1 - float(error.square().mean()) / variance


def _means(target: Tensor) -> Tensor:
    return target.mean(dim=tuple(range(target.ndim - 1)), keepdim=True)


def _share(error: Tensor, most: float) -> str:
    return f"{float((error.abs() <= most).double().mean()):.1%}"


def _by_weight(weight: Tensor, error: Tensor, whole: float) -> str:
    """Say how good the points are that the fit was given, and those that it filled in."""
    from inrfast.metrics import mse_to_psnr

    squares = error.square().mean(-1).reshape(-1)
    known = weight.reshape(-1) > 0
    told = [
        f"{result_page.decibels(mse_to_psnr(float(squares[chosen].mean()), whole))} at the {int(chosen.sum()):,} {what}"
        for chosen, what in ((known, "points that it was given"), (~known, "others"))
        if bool(chosen.any())
    ]
    return f"The PSNR is {' and '.join(told)}."


def _warnings(fitted: Fitted) -> list[str]:
    """Return what a reader should know of the signal and of the network's values."""
    signal, found = fitted.signal, []
    if signal.stored is not None and list(signal.stored) != list(signal.about["shape"]):
        found.append(
            f"The file has {_size(signal.stored)} points; what was fitted, and all numbers, are of "
            f"{_size(signal.about['shape'])}."
        )
    if not on_grid(signal) or not bool(fitted.predictions.isfinite().all()):
        return found
    target = signal.target.reshape(*fitted.predictions.shape).double()
    explained = explained_share(target, fitted.predictions.double() - target)
    if explained is not None and explained < LITTLE:
        found.append(f"The network explains only {explained:.1%} of the signal's variance.")
    if fitted.kind == "image":
        values = fitted.predictions.double() * signal.about["scale"] + signal.about["offset"]
        clipped = float(((values < 0) | (values > 1)).double().mean())
        if clipped > CLIPPED:
            found.append(f"{clipped:.1%} of the network's values lie outside [0, 1]; the file has them clipped.")
    return found


def _size(axes: Sequence[int]) -> str:
    return "x".join(map(str, axes))
