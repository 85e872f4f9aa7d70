"""The page of a fit to a signal: signal and reconstruction, what the PSNR means for it, how the fit went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.grids import axes
from inrfast.metrics import mse_to_psnr
from inrfast.pages import Block, Items, Page, Section, Text
from inrfast.signals.comparison import NEAR, NEARER, Comparison, compare
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
    measured
        Further numbers of the kind of signal, by name.
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
    measured: Mapping[str, float] = field(default_factory=dict)
    written: Mapping[str, str] | None = None
    problems: Sequence[str] = ()
    chosen: str = ""
    footer: str = ""


def page(fitted: Fitted) -> Page:
    """Return the page of a fit to a signal."""
    result, kind = fitted.result, SIGNALS[fitted.kind]
    compared = compared_with(fitted)
    quality = quality_of(fitted, compared)
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
    facts |= {name.replace("_", " "): f"{value:.4g}" for name, value in fitted.measured.items()}
    facts |= {
        "size": _size([*fitted.signal.about["shape"]]),
        "parameters": f"{sum(parameter.numel() for parameter in fitted.net.parameters()):,}",
    }
    told = [*fitted.problems, *_warnings(fitted, compared), *result_page.warnings(result)]
    return Page(f"{kind.called[:1].upper()}{kind.called[1:]} as a network", lead, sections, facts, told, fitted.footer)


def _titled(kind: str) -> str:
    special = {"audio": "Sound and reconstruction"} | dict.fromkeys(("mesh", "sdf", "points"), "Slices")
    return special.get(kind, f"{kind.capitalize()} and reconstruction")


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


def quality_of(fitted: Fitted, compared: Comparison | None) -> list[str]:
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
    if compared is None:
        return ["The network's values are not all finite."]
    whole = result.data_range
    found.append(
        f"The largest error is {compared.largest / whole:.1%} of the range; {compared.nearer:.1%} of the values are "
        f"off by at most {NEARER:.0%} of it, {compared.near:.1%} by at most {NEAR:.0%}."
    )
    if compared.explained is not None:
        found.append(
            f"The mean value alone would have {result_page.decibels(mse_to_psnr(compared.variance, whole))}: the "
            f"network explains {compared.explained:.2%} of the signal's variance."
        )
    if fitted.kind == "audio" and compared.power > 0 < compared.mse:
        found.append(f"The signal-to-noise ratio is {10 * math.log10(compared.power / compared.mse):.2f} dB.")
    if signal.weight is not None:
        told = [
            f"{result_page.decibels(mse_to_psnr(mse, whole))} at the {count:,} {what}"
            for (count, mse), what in ((compared.known, "points that it was given"), (compared.others, "others"))
            if count
        ]
        found.append(f"The PSNR is {' and '.join(told)}.")
    if fitted.kind == "image":
        found.append(
            f"All numbers hold at the {_size(signal.about['shape'])} fitted pixels only. Between them the network may "
            "be far off: to enlarge a picture, take inrfast upscale rather than inrfast render."
        )
    return found


def compared_with(fitted: Fitted) -> Comparison | None:
    """Return how the network's values differ from the signal's; None where they cannot be compared."""
    signal, about = fitted.signal, fitted.signal.about
    if not on_grid(signal):
        return None
    made = fitted.predictions.reshape(len(signal.coords), -1)
    target = signal.target.reshape(made.shape)
    whole = fitted.result.data_range
    return compare(target, made, whole, about["scale"], about["offset"], signal.weight)


def on_grid(signal: Signal) -> bool:
    """Return whether a signal's points are those of the grid that is rendered; looks at the first and the last ones."""
    columns, points = axes(signal.about["shape"]), len(signal.coords)
    if math.prod(map(len, columns)) != points:
        return False
    some = min(points, SEEN)
    first, last = slice(0, some), slice(points - some, points)
    return all(torch.allclose(grid_rows(columns, part), signal.coords[part].to(columns[0])) for part in (first, last))


def _warnings(fitted: Fitted, compared: Comparison | None) -> list[str]:
    """Return what a reader should know of the signal and of the network's values."""
    signal, found = fitted.signal, []
    if signal.stored is not None and list(signal.stored) != list(signal.about["shape"]):
        found.append(
            f"The file has {_size(signal.stored)} points; what was fitted, and all numbers, are of "
            f"{_size(signal.about['shape'])}."
        )
    if compared is None:
        return found
    if compared.explained is not None and compared.explained < LITTLE:
        found.append(f"The network explains only {compared.explained:.1%} of the signal's variance.")
    if fitted.kind == "image" and compared.outside > CLIPPED:
        found.append(
            f"{compared.outside:.1%} of the network's values lie outside [0, 1]; the written file has them clipped."
        )
    return found


def _size(axes: Sequence[int]) -> str:
    return "x".join(map(str, axes))
