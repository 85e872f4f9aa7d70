"""Fig. 6: the initialisation in 2-D: grid points, directions, hinges, and how many units are active at each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.inlet_rank_collapse.methods import WIDTH
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import seeds, spread
from inrfast.grids import grid
from inrfast.initialisers import default_, rank_expanding_
from inrfast.linalg.tsqr import singular_values
from inrfast.memory import chunks

SIDE, SHOWN, RUNS = 256, 16, {True: 3, False: 20}
RTOL = 1e-3
EPS = 1e-3
ROWS = 4096

LAYERS = {
    "default": "torch's default init",
    "ours": f"our init: outward, eps {EPS:g}",
    "cover": 'our init: outward, eps "cover"',
    "inward": "the same hinges, inward",
    "random": "the same points, random directions",
}
RANDOM = ("default", "random")


def layer(name: str, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return weight (D, 2) and bias (D,) of a first layer, fp64 on the CPU."""
    linear = torch.nn.Linear(2, width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    if name == "default":
        default_(linear, generator)
    else:
        rank_expanding_(linear, eps="cover" if name == "cover" else EPS)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if name == "inward":  # |v| = eps - b, and -w.x + |v| + eps faces the origin
        return -weight, 2 * EPS - bias
    if name == "random":
        angles = 2 * np.pi * torch.rand(width, generator=generator, dtype=torch.float64)
        points = weight * (EPS - bias)[:, None]
        weight = torch.stack([angles.cos(), angles.sin()], 1)
        return weight, EPS - (weight * points).sum(1)
    return weight, bias


class Fig6(Figure):
    """The geometry of the 2-D initialisation at width 256 on the 256x256 grid."""

    name = "fig6"
    title = "Fig. 6: the initialisation in 2-D"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = seeds(request, RUNS[request.quick])
        return [_cell(name, seed) for name in LAYERS for seed in (runs if name in RANDOM else runs[:1])]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        cells = {name: [c for key, c in found.items() if key.startswith(f"{name}.")] for name in LAYERS}
        keys = {
            "rank": ".0f", "active": ".3f", "dead_units": ".0f", "dead_pixels": ".4f", "patterns": ",.0f",
        }  # fmt: skip
        rows = [
            [told, *(spread([cell.numbers[key] for cell in cells[name]], digits) for key, digits in keys.items())]
            for name, told in LAYERS.items()
        ]
        head = ["", f"rank of Z_0 at {RTOL:g}", "share of active units at a pixel", "units active nowhere",
                "share of pixels without an active unit", "activation patterns"]  # fmt: skip
        setting = f"{SIDE}x{SIDE} grid, width {WIDTH}"
        mean = {name: {key: float(np.mean([c.numbers[key] for c in cells[name]])) for key in keys} for name in LAYERS}
        return Outcome(
            [
                Row("hinges spread over the square (activation patterns)", "diverse",
                    f"{mean['ours']['patterns']:,.0f}",
                    f"{setting}; torch's default {mean['default']['patterns']:,.0f}"),
                Row("pixels without an active unit", "no large dead regions", f"{mean['ours']['dead_pixels']:.2%}",
                    f'{setting}, eps {EPS:g}; "cover": {mean["cover"]["dead_pixels"]:.2%}'),
                Row(f"rank of Z_0 at {RTOL:g}", "high", f"{mean['ours']['rank']:.0f}", setting),
            ],
            {"fig6": _drawing({name: cells[name][0].arrays["active"] for name in ("default", "ours")})},
            _text(mean),
            [Table(f"First layers of {WIDTH} ReLU units, {SIDE}x{SIDE} grid", head, rows)],
            {"cells": {key: cell.numbers for key, cell in found.items()}},
        )  # fmt: skip


def _cell(name: str, seed: int) -> Cell:
    def run(work: Work) -> Found:
        weight, bias = (part.to(work.device) for part in layer(name, WIDTH, seed))
        coords = grid((SIDE, SIDE), dtype=torch.float64, device=work.device)
        values = singular_values(
            lambda: ((coords[r] @ weight.t() + bias).relu() for r in chunks(len(coords), ROWS)), RTOL
        )
        active = torch.cat([(coords[r] @ weight.t() + bias > 0).cpu() for r in chunks(len(coords), ROWS)])
        counts = active.sum(1)
        patterns = np.unique(np.packbits(active.numpy(), axis=1), axis=0)
        numbers = {
            "rank": values.rank(RTOL).lower,
            "active": float(counts.double().mean() / WIDTH),
            "dead_units": int((~active.any(0)).sum()),
            "dead_pixels": float((counts == 0).double().mean()),
            "patterns": len(patterns),
        }
        return Found(numbers, {"active": counts.reshape(SIDE, SIDE).numpy().astype(np.uint16)})

    settings = {"layer": name, "eps": EPS, "side": SIDE, "width": WIDTH, "rtol": RTOL, "seed": seed}
    return Cell(f"{name}.{seed}", settings, run)


def _text(mean: Mapping[str, Mapping[str, float]]) -> list[str]:
    ranks = {name: found["rank"] for name, found in mean.items()}
    ordered = sorted(ranks, key=lambda name: -ranks[name])
    told = ", ".join(f"{LAYERS[name]} {ranks[name]:.{int(name in RANDOM)}f}" for name in ordered)
    turned = max(("inward", "random"), key=lambda name: ranks[name])
    cause = (
        "the orientation of the units, outward, matters and not only where their hinges lie"
        if ranks["ours"] > 1.5 * ranks[turned]
        else "where the hinges lie matters more than which way the units face"
    )
    dead, covered = mean["ours"]["dead_pixels"], mean["cover"]["dead_pixels"]
    return [
        "Each unit's hinge passes near a point v of a 16 x 16 grid, at right angles to v; it is active on the side "
        "away from the origin.",
        f"Rank of Z_0 at {RTOL:g} relative to sigma_1: {told}. So {cause}.",
        f'At eps {EPS:g} no unit is active at {dead:.2%} of the pixels, around the origin; with eps "cover", half a '
        f"diagonal of the point grid's cells, at {covered:.2%}, and the rank is {ranks['cover']:.0f} in place of "
        f"{ranks['ours']:.0f}.",
    ]


def _drawing(active: Mapping[str, np.ndarray]) -> Drawing:
    drawing = Drawing(figsize=(13.5, 3.7), layout="constrained")
    axes = drawing.subplots(1, 4)
    _geometry(axes[0], SHOWN)
    _hinges(axes[1], WIDTH)
    most = max(int(counts.max()) for counts in active.values())
    for place, (name, told) in enumerate((("ours", "our init"), ("default", "torch's default")), 2):
        counts = active[name]
        image = axes[place].imshow(
            np.where(counts > 0, counts, np.nan).T, extent=(-1, 1, -1, 1), origin="lower", vmin=0, vmax=most,
            cmap="viridis", interpolation="nearest",
        )  # fmt: skip
        axes[place].set_facecolor("#D55E00")
        axes[place].set_title(f"active units, {told}", fontsize=11)
    drawing.colorbar(image, ax=axes[2:], shrink=0.85, label=f"of {WIDTH} (orange: none)")
    return drawing


def _geometry(axes: Axes, width: int) -> None:
    """Draw the points, directions and hinges of a few units."""
    weight, bias = layer("ours", width)
    points = weight * (EPS - bias)[:, None]
    _hinges(axes, width, linewidth=0.8)
    axes.plot(*points.t().numpy(), "o", color="#D55E00", markersize=4, label="v")
    arrows = 0.16 * weight
    axes.quiver(
        *points.t().numpy(), *arrows.t().numpy(), color="#0072B2", angles="xy", scale_units="xy", scale=1, width=0.008,
        label="w",
    )  # fmt: skip
    axes.set_title(f"{width} units: points, directions, hinges", fontsize=10)


def _hinges(axes: Axes, width: int, linewidth: float = 0.35) -> None:
    """Draw the lines on which a unit's pre-activation is zero."""
    weight, bias = layer("ours", width)
    foot = -weight * bias[:, None]  # of unit normals
    along = torch.stack([-weight[:, 1], weight[:, 0]], 1)
    ends = torch.stack([foot - 3 * along, foot + 3 * along])
    axes.plot(*ends.permute(2, 0, 1).numpy(), color="0.25", linewidth=linewidth)
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    axes.set_aspect("equal")
    axes.set_title(f"hinges of {width} units", fontsize=11)
