"""Fig. 3: PSNR against the position of a single batch norm in a network of three hidden layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure as Drawing

from inrfast.experiments.inlet_rank_collapse.methods import BN, DEFAULT, Method
from inrfast.experiments.inlet_rank_collapse.protocol import SIZES, STACKS, Setup, fits_cell, images_told, size_told
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.pictures import Pictures, pictures
from inrfast.experiments.scores import Interval, difference, interval

PLACES = {"post": "after the activation", "pre": "before the activation"}
LAYERS = (1, 2, 3)
LR, SCHEDULE = 5e-3, "constant"
"""Of the first author's earlier public code."""


def networks() -> dict[str, Method]:
    """Return the networks by name: without a norm, and with one behind each layer, on either side of its activation."""
    found = {"none": DEFAULT}
    for place in PLACES:
        for layer in LAYERS:
            norm = ["batch" if layer == here else None for here in LAYERS]
            found[f"{place}{layer}"] = replace(BN, name=f"{place}{layer}").but(norm=norm, norm_position=place)
    return found


class Fig3(Figure):
    """The same images for every position, so that differences are paired."""

    name = "fig3"
    title = "Fig. 3: PSNR against the position of one batch norm"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, steps = _pictures(request), SIZES[request.preset].steps
        known = networks()
        return [
            fits_cell(name, [Setup(name, LR, SCHEDULE, steps)], given, range(len(given)), request, networks=known)
            for name in known
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, sizes = _pictures(request), SIZES[request.preset]
        psnrs = {name: [fit["psnr"] for fit in found[name].numbers["fits"]] for name in networks()}
        how = f"{size_told(given)}, lr {LR:g} {SCHEDULE}, {sizes.steps} steps, width {sizes.width}"
        rows = [Row("no batch norm", "lowest", str(interval(psnrs["none"])), how)]
        rows += [
            Row(f"batch norm at layer {layer}, {said}", PAPER[layer], f"{interval(psnrs[f'{place}{layer}'])}; gain "
                f"{difference(psnrs[f'{place}{layer}'], psnrs['none']).signed}", how)
            for place, said in PLACES.items() for layer in LAYERS
        ]  # fmt: skip
        text = [
            f"Mean over {len(given)} images and 95 % confidence interval; gains are paired over images."
            if len(given) > 1
            else "One image, so no interval.",
            images_told(given, request),
            STACKS,
            "The paper draws bars without numbers; it says that the inlet wins and that layer 3 is marginal.",
            *(_claim(psnrs, place) for place in PLACES),
            *filter(None, [given.shortage]),
        ]
        return Outcome(rows, {self.name: _bars(psnrs, sizes.side)}, text, [_table(psnrs, given)], _numbers(psnrs))


PAPER = {1: "highest", 2: "between", 3: "marginal gain"}


def _pictures(request: Request) -> Pictures:
    sizes = SIZES[request.preset]
    return pictures(request, sizes.few, sizes.side)


def _claim(psnrs: Mapping[str, Sequence[float]], place: str) -> str:
    """Say whether the inlet wins, and whether layer 3 gains less than it."""
    first, second, third = (psnrs[f"{place}{layer}"] for layer in LAYERS)
    over = {2: difference(first, second), 3: difference(first, third)}
    gain = difference(third, psnrs["none"])
    if all(apart.low > 0 for apart in over.values()):
        won = "the inlet wins, as the paper says"
    elif any(apart.high < 0 for apart in over.values()):
        won = "the inlet does not win"
    else:
        won = "whether the inlet wins is open"
    told = ", ".join(f"{apart.signed} dB over layer {layer}" for layer, apart in over.items())
    late = difference(first, psnrs["none"])
    return (
        f"Norm {PLACES[place]}: {won} ({told}). Layer 1 gains {late.signed} dB over no norm, layer 3 {gain.signed} dB: "
        f"{_third(late, gain)}."
    )


def _third(first: Interval, third: Interval) -> str:
    if not third.decided:
        return "no effect of layer 3 is shown"
    if third.mean < 0:
        return "layer 3 harms"
    return "marginal, as the paper says" if third.mean < first.mean / 2 else "no marginal gain"


def _bars(psnrs: Mapping[str, Sequence[float]], side: int) -> Drawing:
    drawing = Drawing(figsize=(6, 3.8), layout="constrained")
    axes = drawing.subplots()
    bottom = []
    for place, (_name, hatch, colour) in enumerate((("post", None, BN.colour), ("pre", "///", "#56B4E9"))):
        for layer in (0, *LAYERS):
            if layer == 0 and place:
                continue
            mean = interval(psnrs["none" if layer == 0 else f"{_name}{layer}"])
            x = layer if layer == 0 else layer + (place - 0.5) * 0.4
            colour_here = DEFAULT.colour if layer == 0 else colour
            axes.bar(x, mean.mean, 0.38, color=colour_here, hatch=hatch, edgecolor="white",
                     label=f"norm {PLACES[_name]}" if layer == 1 else None)  # fmt: skip
            if mean.half is not None:
                axes.errorbar(x, mean.mean, mean.half, color="0.4", capsize=3)
            axes.text(x, 0.02, f"{mean.mean:.2f}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
            bottom.append(mean.mean - (mean.half or 0))
    axes.set_title(f"images of {side}x{side} pixels", fontsize=9)
    axes.set_xticks((0, *LAYERS), ["no norm", "layer 1", "layer 2", "layer 3"])
    axes.set_ylim(bottom=min(bottom) - 2)
    axes.set_ylabel(f"PSNR (dB), axis from {min(bottom) - 2:.1f} dB, not from 0")
    axes.set_xlabel("position of the batch norm")
    drawing.legend(fontsize=8, loc="outside upper center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def _table(psnrs: Mapping[str, Sequence[float]], given: Pictures) -> Table:
    lines = [[name, *(f"{values[i]:.2f}" for values in psnrs.values())] for i, name in enumerate(given.names)]
    return Table("PSNR (dB) of every image", ["image", *psnrs], lines)


def _numbers(psnrs: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        name: {
            "psnrs": list(values),
            "mean": interval(values).json,
            "gain": difference(values, psnrs["none"]).json,
        }
        for name, values in psnrs.items()
    }
