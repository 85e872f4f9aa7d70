"""Table 1: six images with random, patch and textural missing pixels, by four methods at equal processor time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure as Drawing

from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.peak.fitting import fit_cell, last, sizes, speed_cell, steps_of
from inrfast.experiments.peak.images import TABLE1, any_of, called, comparable, image, there
from inrfast.experiments.peak.masks import mask
from inrfast.experiments.peak.methods import ABLATIONS, PEAK_METHOD, RIVALS, TUNED_ON, Method
from inrfast.experiments.scores import difference

KINDS = ("random", "patch", "textural")

PAPER: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("Baboon", "random"): (18.64, 20.10, 19.67, 22.60),
    ("Baboon", "patch"): (18.82, 22.35, 25.44, 36.08),
    ("Baboon", "textural"): (18.69, 23.77, 28.84, 31.41),
    ("Boat", "random"): (22.38, 25.17, 26.57, 26.85),
    ("Boat", "patch"): (22.22, 27.70, 26.52, 33.26),
    ("Boat", "textural"): (22.79, 29.68, 33.85, 38.96),
    ("Cameraman", "random"): (23.87, 26.17, 28.51, 29.06),
    ("Cameraman", "patch"): (23.71, 28.68, 28.19, 35.20),
    ("Cameraman", "textural"): (24.03, 30.03, 33.07, 38.02),
    ("Jetplane", "random"): (21.59, 25.39, 25.26, 27.55),
    ("Jetplane", "patch"): (21.61, 26.09, 26.59, 34.40),
    ("Jetplane", "textural"): (21.10, 30.67, 32.65, 36.94),
    ("Lake", "random"): (20.01, 23.52, 24.40, 26.65),
    ("Lake", "patch"): (19.71, 24.41, 21.58, 31.93),
    ("Lake", "textural"): (19.66, 26.53, 32.78, 34.08),
    ("Livingroom", "random"): (22.40, 25.52, 27.32, 27.95),
    ("Livingroom", "patch"): (21.99, 24.21, 27.63, 33.76),
    ("Livingroom", "textural"): (22.03, 30.00, 34.20, 38.15),
}
"""PSNR (dB) of MLP, Fourier, Hash and PEAK."""

SHOWN = (("Baboon", "random"), ("Cameraman", "patch"), ("Lake", "textural"))
"""The scenes of the paper's figure 4."""

FOUR = (*RIVALS, PEAK_METHOD)

Place = tuple[str, str]
"""An image and a kind of mask."""


class Table1(Figure):
    """Four methods on 18 scenes, and PEAK without one of its parts."""

    name = "table1"
    title = "Table 1: PSNR of images with missing pixels, MLP, Fourier, Hash and PEAK at equal processor time"
    takes = ("images", "masks")
    named = MappingProxyType({"images": any_of(TABLE1), "masks": "any other name"})

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        side = sizes(request).side
        for name, kind in places(request):
            image(request, name, side)
            mask(request, kind, side)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        speed = speeds(request)
        if speed.name not in found:
            return [speed]
        return [
            speed,
            *(scene_cell(request, found[speed.name], place, method) for group in (FOUR, ABLATIONS)
              for place in places(request) for method in group),
        ]  # fmt: skip

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        there, speed = places(request), found[speeds(request).name]
        rows = [_row(request, found, speed, place) for place in there]
        counts = {over: wins(found, there, over) for over in ("whole", "missing")}
        for over, won in counts.items():
            pixels = "all pixels" if over == "whole" else "missing pixels alone"
            said = "18 of 18" if over == "whole" else "—"
            rows.append(Row(f"PEAK above all three, {pixels}", said, f"{len(won)} of {len(there)}", "scenes"))
        text = [*self._claims(found, there, counts), *notes(request, speed)]
        tables = [_table(request, found, there, over) for over in ("whole", "missing")]
        tables += [_parts(found, there), _told(sizes(request).side)]
        numbers: dict[str, Any] = {
            "scenes": [
                {"image": name, "mask": kind, **{
                    method.name: {over: last(found[cell_name((name, kind), method)], over)
                                  for over in ("whole", "missing", "observed")}
                    for method in (*FOUR, *ABLATIONS)
                }} for name, kind in there
            ],
            "above": {over: [list(place) for place in won] for over, won in counts.items()},
            "seconds_per_step": dict(speed.numbers["seconds"]),
        }  # fmt: skip
        return Outcome(rows, {self.name: self._drawing(request, found)}, text, tables, numbers)

    def _claims(
        self, found: Mapping[str, Found], there: Sequence[Place], counts: Mapping[str, Sequence[Place]]
    ) -> list[str]:
        scoring = [place for place in there if place[0] not in TUNED_ON]
        won = {over: sum(place in set(places) for place in scoring) for over, places in counts.items()}
        parts = [part_told(found, there, method) for method in ABLATIONS]
        return [
            f"PEAK is above MLP, Fourier and Hash in {len(counts['whole'])} of {len(there)} scenes by the PSNR of the "
            f"whole picture, which the paper's numbers are taken for, and in {len(counts['missing'])} by that of the "
            f"missing pixels alone. Rates and main numbers were tuned on {' and '.join(TUNED_ON)}; of the "
            f"{len(scoring)} scenes of the other images it is ahead in {won['whole']} and {won['missing']}.",
            *parts,
        ]

    def _drawing(self, request: Request, found: Mapping[str, Found]) -> Drawing:
        shown = [place for place in SHOWN if place in places(request)] or list(places(request))[:1]
        drawing = Drawing(figsize=(11, 2.1 * len(shown)), layout="constrained")
        panels = drawing.subplots(len(shown), len(FOUR) + 2, squeeze=False)
        for line, place in zip(panels, shown, strict=True):
            own, hidden = image(request, place[0], sizes(request).side), mask(request, place[1], sizes(request).side)
            pictures = [("observed", (own.values * hidden.observed).numpy())]
            pictures += [
                (f"{method.label} {last(cell):.2f} dB", cell.arrays["picture"] / 255)
                for method in FOUR
                for cell in [found[cell_name(place, method)]]
            ]
            pictures.append((called(request, place[0]), own.values.numpy()))
            for axes, (title, picture) in zip(line, pictures, strict=True):
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(title, fontsize=9)
                axes.set_xticks([])
                axes.set_yticks([])
        return drawing


def places(request: Request) -> list[Place]:
    """Return the scenes for which there is an image."""
    return [(name, kind) for name in there(request, TABLE1) for kind in KINDS]


def speeds(request: Request) -> Cell:
    """Return the cell of the times of a step, which other figures of equal time share."""
    side = sizes(request).side
    return speed_cell(f"speed.{side}", (*FOUR, *ABLATIONS), side, shared=True)


def cell_name(place: Place, method: Method) -> str:
    """Return the name of a fit."""
    return f"fit.{place[0]}.{place[1]}.{method.name}"


def scene_cell(request: Request, speed: Found, place: Place, method: Method) -> Cell:
    """Return the fit of a scene by a method for the preset's time."""
    own = sizes(request)
    steps = steps_of(method, speed, own.seconds)
    return fit_cell(
        cell_name(place, method), method, image(request, place[0], own.side), mask(request, place[1], own.side), steps,
        request.seed, shared=True,
    )  # fmt: skip


def wins(found: Mapping[str, Found], there: Sequence[Place], over: str) -> list[Place]:
    """Return the scenes in which PEAK is above all rivals."""
    return [
        place for place in there
        if all(last(found[cell_name(place, PEAK_METHOD)], over) > last(found[cell_name(place, rival)], over)
               for rival in RIVALS)
    ]  # fmt: skip


def part_told(found: Mapping[str, Found], there: Sequence[Place], method: Method) -> str:
    """Return in words what PEAK gains over itself without a part, paired over the scenes."""
    told = []
    for over, pixels in (("whole", "whole picture"), ("missing", "missing pixels")):
        values = [[last(found[cell_name(place, own)], over) for place in there] for own in (PEAK_METHOD, method)]
        gain = difference(*values)
        verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "neither better nor worse beyond chance"
        told.append(f"{gain.signed} dB on the {pixels} ({verdict})")
    scenes = f"mean and 95 % interval over {len(there)} scenes"
    return f"PEAK against {method.label} at equal time: {', '.join(told)}, {scenes}."


def notes(request: Request, speed: Found) -> list[str]:
    """Return what the numbers are of."""
    own, seconds = sizes(request), speed.numbers["seconds"]
    times = ", ".join(f"{method.label} {1e3 * seconds[method.name]:.2f}" for method in FOUR)
    said = [
        f"{own.side}x{own.side} grey pixels; each fit has {own.seconds:g} s of one core, of which the number of steps "
        f"follows by the time of a step, {times} ms. Values are clamped to [0, 1]; known pixels are the network's too. "
        "Scores are of the last step: no step is chosen by the truth. The paper states no size, steps, times or masks.",
        comparable(request, there(request, TABLE1)),
    ]
    return [one for one in said if one]


def _row(request: Request, found: Mapping[str, Found], speed: Found, place: Place) -> Row:
    ours = " / ".join(f"{last(found[cell_name(place, method)]):.2f}" for method in FOUR)
    own = mask(request, place[1], sizes(request).side)
    paper = " / ".join(f"{value:.2f}" for value in PAPER[place])
    tuned = ", tuned on" if place[0] in TUNED_ON else ""
    labels = " / ".join(one.label for one in FOUR)
    what = f"PSNR (dB) {labels}, {called(request, place[0])}, {place[1]}"
    return Row(what, paper, ours, f"{own.share:.0%} observed{tuned}")


def _table(request: Request, found: Mapping[str, Found], there: Sequence[Place], over: str) -> Table:
    methods = (*FOUR, *ABLATIONS)
    pixels = "whole picture" if over == "whole" else "missing pixels"
    rows = [
        [
            f"{called(request, name)}, {kind}",
            *(f"{last(found[cell_name((name, kind), method)], over):.2f}" for method in methods),
        ]
        for name, kind in there
    ]
    return Table(f"PSNR (dB) of the {pixels}", ["scene", *(method.label for method in methods)], rows)


def _parts(found: Mapping[str, Found], there: Sequence[Place]) -> Table:
    rows = []
    for method in (*RIVALS, *ABLATIONS):
        gains = []
        for over in ("whole", "missing"):
            values = [[last(found[cell_name(place, own)], over) for place in there] for own in (PEAK_METHOD, method)]
            above = sum(ours > other for ours, other in zip(*values, strict=True))
            gains += [difference(*values).signed, f"{above} of {len(there)}"]
        rows.append([method.label, *gains])
    head = ["against", "whole picture (dB)", "scenes above", "missing pixels (dB)", "scenes above"]
    return Table("What PEAK gains, paired over the scenes, with 95 % intervals", head, rows)


def _told(side: int) -> Table:
    rows = [[method.label, method.at(side).told] for method in (*FOUR, *ABLATIONS)]
    return Table("Settings of the methods", ["method", "settings"], rows)
