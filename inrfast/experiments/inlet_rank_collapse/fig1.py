"""Fig. 1: one image by the same ReLU network from two starts, torch's default and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.inlet_rank_collapse.protocol import (
    SIZES,
    STACKS,
    Setup,
    fits_cell,
    images_told,
    in_bytes,
    size_told,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.pictures import Pictures, pictures

PAPER = {"default": 24.14, "ours": 27.69}
LABELS = {"default": "default init", "ours": "our init"}
LR, SCHEDULE = 5e-3, "constant"
"""Of the first author's earlier public code."""


class Fig1(Figure):
    """Both starts on a few images; the one is shown on which the default comes nearest to the paper's number."""

    name = "fig1"
    title = "Fig. 1: one image, default and our initialisation"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given = _pictures(request)
        every = range(len(given))
        setups = [Setup(method, LR, SCHEDULE, SIZES[request.preset].steps) for method in PAPER]
        return [fits_cell("fits", setups, given, every, request, shown=every)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, sizes, cell = _pictures(request), SIZES[request.preset], found["fits"]
        psnrs: dict[str, dict[str, float]] = {method: {} for method in PAPER}
        keys = {}
        for fit in cell.numbers["fits"]:
            setup = Setup(**fit["setup"])
            psnrs[setup.method][fit["image"]] = fit["psnr"]
            keys[setup.method] = setup.key
        shown = min(given.names, key=lambda name: abs(psnrs["default"][name] - PAPER["default"]))
        network = f"3 hidden layers of {sizes.width}, lr {LR:g} {SCHEDULE}, {sizes.steps} steps"
        how = f"{shown}, {size_told(given)}, {network}"
        ours = {method: psnrs[method][shown] for method in PAPER}
        rows = [Row(LABELS[method], f"{PAPER[method]:.2f}", f"{ours[method]:.2f}", how) for method in PAPER]
        gains = [psnrs["ours"][name] - psnrs["default"][name] for name in given.names]
        rows.append(
            Row("gain", f"{PAPER['ours'] - PAPER['default']:+.2f}", f"{ours['ours'] - ours['default']:+.2f}", how)
        )
        several = (
            f"Of {len(given)} images the one is shown on which the default comes nearest to the paper's 24.14 dB; the "
            f"paper does not name its image. Gains over all {len(given)}: {min(gains):+.2f} to {max(gains):+.2f} dB."
        )
        text = [
            several if len(given) > 1 else "The paper does not name its image.",
            images_told(given, request),
            STACKS,
            *filter(None, [given.shortage]),
        ]
        pictures_of = {method: cell.arrays[f"{keys[method]}.{shown}"] for method in PAPER}
        number = given.names.index(shown)
        drawing = Drawing(figsize=(9, 3.4), layout="constrained")
        columns = drawing.subplots(1, 3)
        named = {
            **{f"{LABELS[method]}: {ours[method]:.2f} dB": picture for method, picture in pictures_of.items()},
            f"image, {sizes.side}x{sizes.side} pixels": in_bytes(given.values[number]).numpy(),
        }
        for axes, (title, picture) in zip(columns, named.items(), strict=True):
            axes.imshow(torch.as_tensor(picture).numpy())
            axes.set_title(title, fontsize=10)
            axes.set_axis_off()
        lines = [[name, *(f"{psnrs[method][name]:.2f}" for method in PAPER)] for name in given.names]
        tables = [Table("PSNR (dB) of the images", ("image", *LABELS.values()), lines)]
        return Outcome(rows, {self.name: drawing}, text, tables, {"shown": shown, "psnrs": psnrs})


def _pictures(request: Request) -> Pictures:
    sizes = SIZES[request.preset]
    return pictures(request, sizes.few, sizes.side)
