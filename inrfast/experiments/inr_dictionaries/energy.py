"""Figures 11 to 13: energy of held-out faces on the eigenfunctions of large eigenvalues, for several starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from inrfast import plots
from inrfast.experiments.drawing import legend
from inrfast.experiments.inr_dictionaries.atoms import FIRST, THRESHOLDS, atoms_cell, energy_at
from inrfast.experiments.inr_dictionaries.starts import (
    ADAM_LR,
    FFN_META,
    FFNS,
    INNER_LR,
    META,
    REPTILE,
    SIREN,
    Start,
    images,
    shape,
    singles,
    weights_cells,
)
from inrfast.experiments.inr_dictionaries.steps import FIRST_STEPS, LEGEND_STEPS, steps_cell, told
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""Thresholds of the tables."""


class EnergyFigure(Figure):
    """E(lambda) for several starts, and their held-out PSNR after a few steps."""

    takes = ("images", "weights")
    said: ClassVar[Mapping[str, str]] = {}
    """What the paper says of a start, by its name."""

    def starts(self, request: Request) -> Sequence[Start]:
        """Return the starts that are compared."""
        raise NotImplementedError

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts = self.starts(request)
        learned = weights_cells(starts, request)
        ready = [start for start in starts if start.source(request) in ("", *found)]
        return [
            *learned,
            *(atoms_cell(start, request, found) for start in ready),
            *(steps_cell(start, request, found) for start in ready),
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts = self.starts(request)
        return Outcome(
            energy_rows(starts, request, found, self.said),
            {self.name: energy_drawing(starts, found)},
            [*about(request, starts), *self.text(request, found)],
            [energy_table(starts, request, found), number_table(starts, found)],
            numbers(starts, found),
        )

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """Return what is seen, beyond the table."""
        return []


class Fig11(EnergyFigure):
    """The same for ReLU networks behind random Fourier features."""

    name = "fig11"
    title = "Fig. 11: energy of faces on the eigenfunctions of Fourier feature networks"
    said: ClassVar[Mapping[str, str]] = {"ffn-maml": "improved significantly (curve only)"}

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`EnergyFigure`."""
        return (*FFNS, FFN_META)

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """See :class:`EnergyFigure`."""
        return [
            above(FFN_META, FFNS[0], found, "Meta-learning improves the energy concentration"),
            agreement(self.starts(request), found),
        ]


class Fig12(EnergyFigure):
    """Weights meta-learned by Reptile."""

    name = "fig12"
    title = "Fig. 12: energy of faces after meta-learning by Reptile"
    said: ClassVar[Mapping[str, str]] = {"reptile": "as with MAML (curve only)"}

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`EnergyFigure`."""
        return SIREN, META, REPTILE

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """See :class:`EnergyFigure`."""
        return [above(REPTILE, SIREN, found, "Reptile concentrates the energy"),
                above(META, REPTILE, found, "MAML is ahead of Reptile")]  # fmt: skip


class Fig13(EnergyFigure):
    """Weights trained on a single image, for several lengths."""

    name = "fig13"
    title = "Fig. 13: energy of faces after training on a single one"

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`EnergyFigure`."""
        return (SIREN, *singles(request), META)

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """See :class:`EnergyFigure`."""
        starts = singles(request)
        steps = sorted({start.steps for start in starts})
        means = {
            count: float(np.mean([np.mean(energy_at(found[f"atoms.{start.name}"], 1e-1)) for start in starts
                                  if start.steps == count]))
            for count in steps
        }  # fmt: skip
        own = float(np.mean(energy_at(found[f"atoms.{SIREN.name}"], 1e-1)))
        falls = all(means[b] < means[a] for a, b in itertools.pairwise(steps)) and means[steps[0]] < own
        listed = ", ".join(f"{means[count]:.3f} after {count} steps" for count in steps)
        return [
            "The paper's claim that the more a network is trained on one image, the more the energy of other images "
            f"moves to small eigenvalues {'holds' if falls else 'does not hold throughout'} for the energy above 0.1: "
            f"{own:.3f} before, {listed} (means over {len(starts) // len(steps)} images)."
        ]


# ---- what they share ---------------------------------------------------------------------------------------------


def about(request: Request, starts: Sequence[Start]) -> list[str]:
    """Return how the numbers were made."""
    there, (width, layers) = images(request), shape(request)
    text = [
        f"Faces: {there.source}. All networks have {layers} hidden layers (Fourier features stand for the first) of "
        f"width {width}, biases of zero, and see the grid [0, 1) of {there.side}x{there.side} points; omega is that of "
        "the first layer, 30 behind it, as in the authors' code.",
        "E(lambda) is the mean over the held-out faces, each minus its mean, of the share of its energy on the "
        "eigenfunctions with lambda_i / lambda_1 >= lambda: the share of |g|^2, as in the authors' code; equation 11 "
        "prints |<g, g>|^2. The kernel is taken in fp64, with all its eigenpairs; the authors' code takes 2,000. "
        "Numbers behind an energy count the eigenfunctions on which it lies: E(lambda) sets no price on their number.",
        f"PSNRs are means over the held-out faces on the half of the pixels that was not trained on, the same for all "
        f"faces: gradient descent at {INNER_LR:g} from meta-learned weights, Adam at {ADAM_LR:g} from all others. "
        f"The legend has them after {LEGEND_STEPS} steps, as the paper's figure 11.",
    ]
    if any(start.given(request) for start in starts):
        text.append("The weights of SIREN (MAML) are those of the file given, learned from other faces.")
    return text


def psnr_of(start: Start, found: Mapping[str, Found], steps: int) -> float | None:
    """Return the held-out PSNR of a start after so many steps; None where a fit diverged."""
    value: float | None = found[f"steps.{start.name}.{FIRST_STEPS}"].numbers["test"][steps]
    return value


def energy_told(cell: Found, level: float) -> str:
    """Return E(lambda), or the interval that holds it, and the number of eigenfunctions that it counts."""
    low, high = energy_at(cell, level)
    count = int((cell.arrays["eigenvalues"] >= level).sum())
    told = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
    return f"{told} on {count:,}" if level >= cell.numbers["smallest"] else f"{told} on at least {count:,}"


def energy_rows(
    starts: Sequence[Start], request: Request, found: Mapping[str, Found], said: Mapping[str, str]
) -> list[Row]:  # fmt: skip
    """Return a row for each start: energy above 0.1, the level at which the authors' code gives it."""
    there = images(request)
    settings = f"{there.side}x{there.side}, {len(there.held_out)} faces"
    return [
        Row(f"E(0.1), {start.label}", said.get(start.name, "curve only"),
            energy_told(found[f"atoms.{start.name}"], 0.1), settings)
        for start in starts
    ]  # fmt: skip


def energy_table(
    starts: Sequence[Start], request: Request, found: Mapping[str, Found], kind: str = "atoms"
) -> Table:  # fmt: skip
    """Return energies at several thresholds, and PSNRs after a few steps."""
    rows = []
    for start in starts:
        cell = found[f"{kind}.{start.name}"]
        row = [start.label, *(energy_told(cell, level) for level in LEVELS)]
        if kind == "atoms":
            row += [told(psnr_of(start, found, steps)) for steps in (0, LEGEND_STEPS, FIRST_STEPS)]
        else:
            open_share = 1 - float(cell.arrays["lower"][-1])
            row += [f"{cell.numbers['listed']:,}", f"{cell.numbers['smallest']:.1e}", f"{open_share:.3f}"]
        rows.append(row)
    head = ["", *(f"E({level:g})" for level in LEVELS)]
    if kind == "atoms":
        head += [f"held-out PSNR after {steps} steps" for steps in (0, LEGEND_STEPS, FIRST_STEPS)]
        side = images(request).side
    else:
        head += ["eigenpairs", "the smallest / lambda_1", "share of the energy beyond them"]
        side = round(found[f"{kind}.{starts[0].name}"].numbers["size"] ** 0.5)
    title = (
        f"Energy on the eigenfunctions with lambda_i / lambda_1 at least ..., and their number, {side}x{side} points"
    )
    return Table(title, head, rows)


def number_table(starts: Sequence[Start], found: Mapping[str, Found]) -> Table:
    """Return the energy on the first eigenfunctions, whatever their eigenvalues."""
    rows = [
        [start.label, *(f"{found[f'atoms.{start.name}'].numbers['first'].get(str(count), np.nan):.3f}"
                        for count in FIRST)]
        for start in starts
    ]  # fmt: skip
    return Table("Energy on the first ... eigenfunctions", ["", *map(str, FIRST)], rows)


def numbers(starts: Sequence[Start], found: Mapping[str, Found]) -> dict[str, object]:
    """Return energies and PSNRs as JSON holds them."""
    return {
        "thresholds": list(LEVELS),
        "starts": {
            start.name: {
                "first": found[f"atoms.{start.name}"].numbers["first"],
                "energy": [list(energy_at(found[f"atoms.{start.name}"], level)) for level in LEVELS],
                "psnr": found[f"steps.{start.name}.{FIRST_STEPS}"].numbers["test"],
            }
            for start in starts
        },
    }


def above(first: Start, second: Start, found: Mapping[str, Found], claim: str) -> str:
    """Return in words at which thresholds the energy of one start exceeds another's, and by how much at 0.1."""
    cells = [found[f"atoms.{start.name}"] for start in (first, second)]
    held = [level for level in LEVELS if energy_at(cells[0], level)[0] > energy_at(cells[1], level)[1]]
    e = [float(np.mean(energy_at(cell, 0.1))) for cell in cells]
    return (
        f"{claim}: {at_levels(held)}. Above 0.1 lie {e[0]:.3f} of the energy for {first.label} and {e[1]:.3f} for "
        f"{second.label}; after {FIRST_STEPS} steps the held-out PSNR is {told(psnr_of(first, found, FIRST_STEPS))} "
        f"and {told(psnr_of(second, found, FIRST_STEPS))}."
    )


def at_levels(held: Sequence[float], levels: Sequence[float] = LEVELS) -> str:
    """Return in words at which of some thresholds something holds."""
    every = f"{levels[0]:g}" if len(levels) == 1 else f"{levels[0]:g} to {levels[-1]:g}"
    if len(held) == len(levels):
        return f"yes, at every threshold from {every}"
    if not held:
        return f"no, at no threshold from {every}"
    others = [level for level in levels if level not in held]
    return f"at {', '.join(f'{x:g}' for x in held)}, not at {', '.join(f'{x:g}' for x in others)}"


def agreement(starts: Sequence[Start], found: Mapping[str, Found]) -> str:
    """Return how the order of the energies agrees with that of the PSNRs."""
    from scipy.stats import spearmanr  # slow to import

    psnrs = [psnr_of(start, found, FIRST_STEPS) for start in starts]
    kept = [(start, value) for start, value in zip(starts, psnrs, strict=True) if value is not None]
    values = [value for _, value in kept]
    told_at = []
    for level in LEVELS[:3]:
        energies = [float(np.mean(energy_at(found[f"atoms.{start.name}"], level))) for start, _ in kept]
        told_at.append(f"{float(spearmanr(energies, values).statistic):.2f} at {level:g}")
    return (
        "The paper sees that the more energy lies on large eigenvalues, the better the held-out PSNR: over these "
        f"{len(kept)} starts the rank correlation of E(lambda) with the PSNR after {FIRST_STEPS} steps is "
        f"{', '.join(told_at)}."
    )


def energy_drawing(starts: Sequence[Start], found: Mapping[str, Found], kind: str = "atoms") -> Drawing:
    """Return the curves of E(lambda), the meta-learned start in black, with held-out PSNRs in the legend."""
    drawing = Drawing(figsize=(9, 5.6), layout="constrained")
    axes = drawing.subplots()
    draw_energies(axes, starts, found, kind)
    legend(drawing, axes)
    return drawing


def draw_energies(axes: Axes, starts: Sequence[Start], found: Mapping[str, Found], kind: str) -> None:
    """Draw the curves of E(lambda) into axes."""
    curves = {}
    for start in starts:
        cell = found[f"{kind}.{start.name}"]
        label = f"{start.label} ({told(psnr_of(start, found, LEGEND_STEPS), 1)})" if kind == "atoms" else start.label
        curves[label] = cell.arrays["lower"], cell.arrays["upper"]
    dashed = [label for label, start in zip(curves, starts, strict=True) if start.learned or start.kind == "relu"]
    black = [label for label, start in zip(curves, starts, strict=True) if start.learned == "maml"]
    side = round(found[f"{kind}.{starts[0].name}"].numbers["size"] ** 0.5)
    title = f"E(lambda) on {side}x{side} points"
    plots.energy(THRESHOLDS, curves, axes, dashed=dashed, black=black, title=title, legend=False)
