"""Fig. 15: how well a network learns the eigenfunctions of its own kernel at the start, by their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.analysis.dictionary import dictionary
from inrfast.experiments.drawing import finish
from inrfast.experiments.inr_dictionaries.atoms import RTOL
from inrfast.experiments.inr_dictionaries.starts import (
    ADAM_LR,
    INNER_LR,
    META,
    SIREN,
    Start,
    images,
    points,
    rule,
    shape,
    sizes,
    weights_cells,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work, uninterrupted
from inrfast.training.fit import fit_many

INDICES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Numbers of the eigenfunctions, from 1; those above half of the points are left out."""

RMS = 0.25
"""Root mean square of every target, about that of a face: a network of output 0 then has 12.0 dB for each."""

EARLY = 3
"""PSNRs are also kept after a third of the steps."""

STARTS = (META, SIREN)


class Fig15(Figure):
    """PSNR after 2,000 steps on eigenfunction i, from meta-learned weights as in the paper and from random ones."""

    name = "fig15"
    title = "Fig. 15: PSNR of fits of the eigenfunctions"
    takes = ("images", "weights")

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        ready = [start for start in STARTS if start.source(request) in ("", *found)]
        cells = [*weights_cells(STARTS, request), *(_targets_cell(start, request, found) for start in ready)]
        return cells + [_fits_cell(start, request, found) for start in ready if _name("targets", start) in found]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        from scipy.stats import spearmanr  # slow to import

        own, side, (width, layers) = sizes(request), images(request).side, shape(request)
        drawing = Drawing(figsize=(6, 4.2), layout="constrained")
        axes = drawing.subplots()
        rows, numbers = [], {}
        for start, colour in zip(STARTS, ("#000000", "#0072B2"), strict=True):
            targets, fits = found[_name("targets", start)].numbers, found[_name("fits", start)].numbers
            numbers[start.name] = {**targets, **fits}
            for steps, psnrs in ((own.target_steps // EARLY, fits["early"]), (own.target_steps, fits["psnrs"])):
                correlation = float(spearmanr(targets["indices"], psnrs).statistic)
                rows.append(Row(f"PSNR against the eigenfunction's number, {start.label}", "falls (curve only)",
                                f"{psnrs[0]:.1f} dB for the first, {psnrs[-1]:.1f} dB for number "
                                f"{targets['indices'][-1]}; rank correlation {correlation:.2f}",
                                f"{side}x{side}, {steps} steps"))  # fmt: skip
                late = steps == own.target_steps
                style = "o-" if late else "s:"
                label = f"{start.label}, {steps} steps"
                axes.plot(targets["indices"], psnrs, style, markersize=4, color=colour, label=label)
        axes.set_xscale("log")
        finish(axes, f"Fits of eigenfunctions, {own.target_steps} steps", "number of the eigenfunction", "PSNR (dB)")
        axes.legend(frameon=False)
        text = (
            f"Each target is an eigenvector of the kernel at the start on {side}x{side} points, scaled to a root mean "
            f"square of {RMS}, so that a network of output 0 has {-20 * np.log10(RMS):.1f} dB for every one; all "
            f"points in every step, gradient descent at {INNER_LR:g} from meta-learned weights, Adam at {ADAM_LR:g} "
            f"from random ones, {layers} hidden layers of width {width}. The paper states neither scale nor optimiser. "
            "A network with more weights than points learns all of them in time: what tells them apart is the speed."
        )
        return Outcome(rows, {self.name: drawing}, [text], (), numbers)


def _name(kind: str, start: Start) -> str:
    return f"{kind}.{start.name}"


def _targets_cell(start: Start, request: Request, found: Mapping[str, Found]) -> Cell:
    side = images(request).side
    indices = [i for i in INDICES if i <= side**2 // 2]

    def run(work: Work) -> Found:
        net = start.network(request, found, work.device, torch.float64)
        coords = points(side, work.device, torch.float64)
        made = dictionary(net, coords, indices[-1], rtol=RTOL, method="dense", progress=work.progress)
        with torch.no_grad():
            output = net(coords)[:, 0].cpu()
        chosen = [i - 1 for i in indices]
        values = (made.eigenvalues[chosen] / made.eigenvalues[0]).tolist()
        atoms = made.atoms[:, chosen].T.cpu().numpy()
        return Found({"indices": indices, "eigenvalues": values, "output_rms": float(output.square().mean().sqrt())},
                     {"atoms": atoms})  # fmt: skip

    settings = start.settings(request) | {"side": side, "indices": indices}
    return Cell(_name("targets", start), settings, run, (side / 32) ** 6)


def _fits_cell(start: Start, request: Request, found: Mapping[str, Found]) -> Cell:
    own, side = sizes(request), images(request).side
    indices, early = found[_name("targets", start)].numbers["indices"], own.target_steps // EARLY
    lr, optimizer = rule(start)

    def run(work: Work) -> Found:
        atoms = torch.from_numpy(found[_name("targets", start)].arrays["atoms"])
        values = (RMS * side * atoms).float().unsqueeze(2).to(work.device)
        nets = [start.network(request, found, work.device, torch.float32) for _ in indices]
        results = uninterrupted(
            fit_many(
                nets, points(side, work.device), values, own.target_steps, lr, "constant", optimizer=optimizer,
                eval_every=early, data_range=1.0, checkpoint=work.checkpoint, resume=True, progress=work.progress,
                seed=0,
            )
        )  # fmt: skip
        at = results[0].eval_steps.index(early)
        return Found({"psnrs": [result.psnr for result in results], "early": [result.psnrs[at] for result in results]})

    settings = start.settings(request) | {
        "indices": list(indices),
        "steps": own.target_steps,
        "early": early,
        "lr": lr,
        "optimizer": optimizer,
        "rms": RMS,
    }
    return Cell(_name("fits", start), settings, run, 1e-3 * own.target_steps * len(indices))
