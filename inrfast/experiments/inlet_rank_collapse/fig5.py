"""Fig. 5: the initialisation in 1-D, whose units switch on one after another and make Z_0 triangular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.drawing import finish
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.grids import grid
from inrfast.initialisers import rank_expanding_

SHOWN, POINTS = 16, 256
"""Points of the triangle that is drawn, and of the ranks."""

SHIFTS = (1e-3, 1e-2, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""eps in spacings of the points."""

ROUNDING = 1e-12
"""Entries below this share of the largest are rounding."""

LARGEST_CONDITION = 1 / (POINTS * torch.finfo(torch.float64).eps)
"""Above this, 1.8e13, a smallest singular value is rounding, and so would be a condition number."""

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32}


def triangle(points: int, shift: float) -> Tensor:
    """Return Z_0 (N, N) in fp64 for as many uniform points as units: entry (i, j) is ``relu(x_i - x_j + eps)``.

    ``shift`` is eps in spacings; the formula is section 6.1's, for eps that its construction excludes too.
    """
    index = torch.arange(points, dtype=torch.float64)
    return (index[:, None] - index[None] + shift).relu() * (2 / (points - 1))


def inlet(points: int, device: torch.device) -> Tensor:
    """Return Z_0 of the layer as the initialiser makes it, at the points of its own uniform grid."""
    linear = torch.nn.Linear(1, points, dtype=torch.float64, device=device)
    with torch.no_grad():
        made: Tensor = rank_expanding_(linear)(grid((points,), dtype=torch.float64, device=device)).relu()
    return made


class Fig5(Figure):
    """The triangle, and the rank of Z_0 against eps."""

    name = "fig5"
    title = "Fig. 5: the initialisation in 1-D"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""

        def drawn(work: Work) -> Found:
            made = inlet(SHOWN, work.device).cpu()
            made[made < ROUNDING * made.amax()] = 0.0  # of x_i - x_(i+1) + h
            numbers = {"triangular": bool((made.triu(1) == 0).all() and (made.diagonal() > 0).all())}
            return Found(numbers, {"inlet": made.numpy()})

        def ranks(work: Work) -> Found:
            values = [torch.linalg.svdvals(triangle(POINTS, shift)) for shift in SHIFTS]
            levels = {name: POINTS * torch.finfo(dtype).eps for name, dtype in PRECISIONS.items()}
            numbers = {
                name: [int((own > level * own[0]).sum()) for own in values] for name, level in levels.items()
            } | {"condition": [float(own[0] / own[-1].clamp_min(1e-300)) for own in values]}
            return Found(numbers)

        return [
            Cell("triangle", {"points": SHOWN}, drawn),
            Cell("ranks", {"points": POINTS, "shifts": list(SHIFTS)}, ranks),
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        numbers, made = found["ranks"].numbers, found["triangle"]
        at = SHIFTS.index(1.0)
        word = "yes" if made.numbers["triangular"] else "no"
        rows = [
            Row("Z_0 is lower triangular with a positive diagonal", "yes", word, f"{SHOWN} points, eps = h"),
            Row("rank of Z_0 at eps = h", "full", f"{numbers['fp64'][at]} of {POINTS}", f"{POINTS} points, fp64"),
            Row("rank of Z_0 at eps = 2h", "eps is a small constant",
                f"{numbers['fp64'][SHIFTS.index(2.0)]} of {POINTS}", f"{POINTS} points, fp64"),
        ]  # fmt: skip
        table = Table(
            f"{POINTS} points at spacing h and as many units",
            ["eps / h", *(f"rank in {name}" for name in PRECISIONS), "condition number"],
            [[f"{shift:g}", *(str(numbers[name][k]) for name in PRECISIONS), told_condition(numbers["condition"][k])]
             for k, shift in enumerate(SHIFTS)],
        )  # fmt: skip
        drawing = Drawing(figsize=(10, 4.4), layout="constrained")
        left, right = drawing.subplots(1, 2)
        _draw_triangle(left, drawing, made.arrays["inlet"])
        _draw_ranks(right, numbers)
        return Outcome(rows, {"fig5": drawing}, _text(numbers), [table], dict(numbers) | {"shifts": list(SHIFTS)})


def told_condition(number: float) -> str:
    """Return a condition number as far as fp64 resolves it."""
    return f"{number:.1e}" if number < LARGEST_CONDITION else "> 1e13"


def _text(numbers: Mapping[str, list[float]]) -> list[str]:
    full = {name: [s for s, rank in zip(SHIFTS, numbers[name], strict=True) if rank == POINTS] for name in PRECISIONS}
    best = min(range(len(SHIFTS)), key=lambda k: numbers["condition"][k])
    told = "; ".join(
        f"in {name} {'at eps / h = ' + ', '.join(f'{s:g}' for s in found) if found else 'at none of these'}"
        for name, found in full.items()
    )
    return [
        "Unit j switches on at x_j - eps: on its own points the layer is lower triangular for 0 < eps <= h, h the "
        "spacing, so its exact rank is full for any such eps.",
        f"Numerically (singular values above {POINTS} roundoffs of the largest) the rank is full {told}. Where it is "
        "not full in fp64, fp64 resolves no condition number either: it is above 1e13. The condition number is "
        f"smallest at eps = {SHIFTS[best]:g} h, {numbers['condition'][best]:.1e}: a small eps, as the paper "
        "has it, leaves a diagonal that rounding hides, and a large one makes the rows dependent. The initialiser's "
        "default in 1-D is eps = h.",
    ]


def _draw_triangle(axes: Axes, drawing: Drawing, made: np.ndarray) -> None:
    image = axes.imshow(np.where(made > 0, made, np.nan), cmap="viridis", vmin=0)
    axes.set_title(f"Z_0 of {SHOWN} points, eps = h (white: inactive)", fontsize=11)
    axes.set_xlabel("unit")
    axes.set_ylabel("point")
    drawing.colorbar(image, ax=axes, shrink=0.8)


def _draw_ranks(axes: Axes, numbers: Mapping[str, list[float]]) -> None:
    for (name, colour), marker in zip({"fp64": "#0072B2", "fp32": "#D55E00"}.items(), "os", strict=True):
        axes.plot(SHIFTS, numbers[name], color=colour, marker=marker, markersize=4, label=f"numerical rank, {name}")
    axes.axhline(POINTS, color="0.45", linestyle=":", linewidth=1, label=f"full rank {POINTS}")
    axes.axvline(1, color="0.45", linestyle="--", linewidth=1, label="eps = h")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.08 * POINTS)
    finish(axes, f"Rank of Z_0, {POINTS} points", "eps / h", "rank")
    axes.legend(frameon=False, fontsize=9)
