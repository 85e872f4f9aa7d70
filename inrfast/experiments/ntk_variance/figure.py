"""One figure of an image: heat maps of kernels, spectra, training curves and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish
from inrfast.experiments.ntk_variance.fitting import all_cells, name_of_fit, network, scored
from inrfast.experiments.ntk_variance.measures import dense
from inrfast.experiments.ntk_variance.tasks import IMAGE, SIZES, Source, sources
from inrfast.experiments.ntk_variance.variants import BOTH, DEFINITIONS, PLAIN, VARIANTS, Variant, ready
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work
from inrfast.grids import grid
from inrfast.metrics import mse_to_psnr

HEAT = 16
"""Points per axis of the grid of a heat map, whose kernel so has 256 rows."""

MOST_PSNR = 60.0
"""dB at which curves are cut: the rounding of pixels to 8 bits has 59 dB."""

COMPARED = (PLAIN, BOTH)
"""The two networks of the paper's figure."""


class WholeFigure(Figure):
    """ReLU against sphere + Hadamard, and all variants in spectra and curves."""

    name = "figure"
    title = "Heat map, spectrum, training curve and reconstruction"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        fits = all_cells(request, found, (IMAGE.name,))
        source = shown(request, found)
        names = [name_of_fit(IMAGE.name, source.name, one.name) for one in COMPARED]
        if any(name not in found for name in names):
            return fits
        return [*fits, *(heat_cell(one, found[name], request) for one, name in zip(COMPARED, names, strict=True))]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        source = shown(request, found)
        fits = {name: found[name_of_fit(IMAGE.name, source.name, name)] for name in VARIANTS}
        heats = {one.name: found[f"heat.{one.name}"] for one in COMPARED}
        sizes = SIZES[request.preset]
        rows = [_row(name, cell, source.name) for name, cell in fits.items()]
        text = [
            f"Of {source.name} at {sizes.side}x{sizes.side} pixels. Heat maps: K_ij / mu of the start on a "
            f"{HEAT}x{HEAT} grid, row after row. Spectra: at the start, on "
            f"{len(fits[PLAIN.name].arrays['eigenvalues']):,} points, over the mean eigenvalue: of a kernel without "
            f"variance all are 1. Curves: PSNR of the training loss, that of the fitted quarter of the pixels, up to "
            f"{MOST_PSNR:g} dB.",
            DEFINITIONS,
        ]
        numbers = {name: cell.numbers["runs"][0] for name, cell in fits.items()}
        return Outcome(rows, {self.name: drawn(fits, heats, truth(source), sizes.side)}, text, (), numbers)


def _row(name: str, cell: Found, image: str) -> Row:
    run = cell.numbers["runs"][0]
    found = (f"{run['normalised']:.3g}", f"{run['first_share']:.3f}", f"{run['effective_rank']:.1f}",
             f"{run['unseen']:.2f}", f"{run['seen']:.2f}")  # fmt: skip
    what = "v/mu^2, share of lambda_1, effective rank, PSNR (dB) of unseen and of fitted pixels"
    return Row(f"{VARIANTS[name].label}: {what}", "—", ", ".join(found),
               f"{image}, seed {run['seed']}, lr {cell.numbers['lr']:g}")  # fmt: skip


def shown(request: Request, found: Mapping[str, Found]) -> Source:
    """Return the image that is shown: the first that scores."""
    first = scored(request, found, IMAGE.name)[0]
    return next(one for one in sources(request, found) if one.task is IMAGE and one.name == first and one.scored)


def truth(source: Source) -> np.ndarray:
    """Return the image's grey values (N,) in [0, 1]."""
    assert source.truth is not None
    return source.truth.flatten().numpy()


def heat_cell(variant: Variant, fit: Found, request: Request) -> Cell:
    """Return the cell of a kernel over its mean eigenvalue, as the fit's network has it at its start."""
    sizes = SIZES[request.preset]
    own = variant.but(**fit.numbers["options"])

    def run(work: Work) -> Found:
        coords = grid((HEAT, HEAT), device=work.device)
        kernel = dense(ready(network(own, IMAGE, sizes, request.seed, work), coords), coords)
        mean = float(kernel.diagonal().mean())
        return Found({"mean": mean}, {"kernel": (kernel / mean).float().cpu().numpy()})

    settings = {"options": dict(own.options), "seed": request.seed, "side": HEAT, "width": sizes.width,
                "hidden_layers": sizes.hidden_layers}  # fmt: skip
    return Cell(f"heat.{variant.name}", settings, run, 0.1)


# ---- drawing -----------------------------------------------------------------------------------------------------


def drawn(fits: Mapping[str, Found], heats: Mapping[str, Found], image: np.ndarray, side: int) -> Drawing:
    """Return the figure: heat maps and spectra above, pictures and curves below."""
    drawing = Drawing(figsize=(11, 6.6), layout="constrained")
    above, below = drawing.subfigures(2, 1, squeeze=False, hspace=0.03)[:, 0]
    *maps, right = above.subplots(1, 3, width_ratios=(1, 1, 1.9))
    most = max(float(np.quantile(own.arrays["kernel"], 0.995)) for own in heats.values())
    for axes, one in zip(maps, COMPARED, strict=True):
        picture = axes.imshow(
            heats[one.name].arrays["kernel"], cmap="magma", vmin=0, vmax=most, interpolation="nearest"
        )
        plainly(axes, f"kernel, {one.label}\nv/mu² = {fits[one.name].numbers['runs'][0]['normalised']:.3g}")
    above.colorbar(picture, ax=maps, fraction=0.025, label="K$_{ij}$ / mu", extend="max")
    spectra(right, fits)
    *panels, right = below.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    pictures = [(f"image, {side}x{side}\n", image)] + [
        (f"{one.label}\nunseen pixels {fits[one.name].numbers['runs'][0]['unseen']:.1f} dB",
         fits[one.name].arrays["values"])
        for one in COMPARED
    ]  # fmt: skip
    for axes, (title, values) in zip(panels, pictures, strict=True):
        axes.imshow(values.reshape(side, side), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        plainly(axes, title)
    curves(right, fits)
    handles, labels = right.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9,
                   handlelength=1.8, columnspacing=1.4)  # fmt: skip
    return drawing


def plainly(axes: Axes, title: str) -> None:
    """Give a picture its title, and no axes."""
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def spectra(axes: Axes, fits: Mapping[str, Found]) -> None:
    """Draw all eigenvalues over their mean."""
    for name, cell in fits.items():
        values = cell.arrays["eigenvalues"] / cell.arrays["eigenvalues"].mean()
        axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), color=VARIANTS[name].colour,
                  label=VARIANTS[name].label, **weight(name))  # fmt: skip
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-8)
    finish(axes, "spectrum at the start", "index of the eigenvalue", "eigenvalue / mean")


def curves(axes: Axes, fits: Mapping[str, Found]) -> None:
    """Draw the PSNR of the training loss."""
    for name, cell in fits.items():
        psnrs = [mse_to_psnr(float(loss)) for loss in cell.arrays["losses"]]
        axes.plot(cell.arrays["steps"], psnrs, color=VARIANTS[name].colour, label=VARIANTS[name].label, **weight(name))
    axes.set_ylim(top=min(axes.get_ylim()[1], MOST_PSNR))
    finish(axes, "training curve", "step", "PSNR of the loss (dB)")


def weight(name: str) -> dict[str, Any]:
    """Return how a curve is drawn: those of the two networks compared stand out."""
    stands_out = name in {one.name for one in COMPARED}
    return {"linewidth": 2.0 if stands_out else 1.1, "zorder": 3 if stands_out else 2}
