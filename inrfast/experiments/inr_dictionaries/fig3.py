"""Fig. 3: a sine network fitted to a pure tone, seen on the samples it was fitted to and on twice as many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish
from inrfast.experiments.inr_dictionaries.networks import siren
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work, uninterrupted
from inrfast.experiments.runs import seeds
from inrfast.grids import grid
from inrfast.training.fit import fit_many

TONE, FS, FS_TEST = 23, 128, 256
WIDTH, HIDDEN_LAYERS, STEPS, LR = 128, 2, 2000, 1e-4
OMEGAS = (300.0, 30.0)
RUNS = {True: 5, False: 20}


class Fig3(Figure):
    """Both frequencies of the first layer, each over several random networks."""

    name = "fig3"
    title = "Fig. 3: aliasing of a pure tone by sine networks, omega 300 and 30"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return [_cell(omega, seeds(request, RUNS[request.quick])) for omega in OMEGAS]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        drawing = Drawing(figsize=(9, 5), layout="constrained")
        rows = []
        for omega, axes in zip(OMEGAS, drawing.subplots(2, 1), strict=True):
            values = found[f"omega={omega:g}"].arrays["values"]
            spectra = 20 * np.log10(np.abs(np.fft.rfft(values, axis=1)) + 1e-12)
            alias = spectra[:, FS - TONE]
            rows.append(Row(f"magnitude at {FS - TONE} Hz, omega {omega:g}", "", f"{np.median(alias):.1f} dB"))
            axes.plot(spectra.T)
            finish(axes, f"omega {omega:g}", "frequency (Hz)", "magnitude (dB)")
        return Outcome(rows, {self.name: drawing})


def _cell(omega: float, runs: Sequence[int]) -> Cell:
    settings = {"omega": omega, "seeds": list(runs), "steps": STEPS, "lr": LR, "width": WIDTH}

    def run(work: Work) -> Found:
        coords = grid(FS, endpoint="exclusive", bounds=(0, 1), device=work.device)
        target = (2 * math.pi * TONE * coords).sin()
        nets = [siren(1, 1, WIDTH, HIDDEN_LAYERS, omega, seed, work.device) for seed in runs]
        results = uninterrupted(
            fit_many(nets, coords, target, STEPS, LR, "constant", data_range=2.0, checkpoint=work.checkpoint,
                     resume=True, progress=work.progress)
        )  # fmt: skip
        finer = grid(FS_TEST, endpoint="exclusive", bounds=(0, 1), device=work.device)
        with torch.no_grad():
            values = torch.stack([net(finer)[:, 0] for net in nets]).double().cpu().numpy()
        return Found({"psnrs": [result.psnr for result in results]}, {"values": values})

    return Cell(f"omega={omega:g}", settings, run)
