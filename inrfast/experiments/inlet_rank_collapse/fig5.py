"""Fig. 5: the initialisation in 1-D, whose units switch on one after another and make Z_0 triangular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work
from inrfast.grids import grid
from inrfast.nn import INR

POINTS = 32


class Fig5(Figure):
    """A stub of the skeleton: the owner of the geometry figures completes it."""

    name = "fig5"
    title = "Fig. 5: the initialisation in 1-D"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        settings = {"points": POINTS, "seed": request.seed}

        def run(work: Work) -> Found:
            coords = grid((POINTS,), device=work.device)
            net = INR(1, 1, width=POINTS, hidden_layers=1, init="rank_expanding", seed=request.seed)
            with torch.no_grad():
                inlet = net.layers[0](coords).relu()
            values = torch.linalg.svdvals(inlet.double())
            return Found({"rank": int((values > 0).sum())}, {"inlet": inlet.cpu().numpy(), "values": values.numpy()})

        return [Cell("triangle", settings, run)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        inlet = found["triangle"].arrays["inlet"]
        drawing = Drawing(figsize=(5, 4), layout="constrained")
        drawing.subplots().imshow(np.where(inlet > 0, inlet, np.nan))
        rank = found["triangle"].numbers["rank"]
        return Outcome([Row("rank of Z_0", "full", f"{rank} of {POINTS}", f"{POINTS} points")], {"fig5": drawing})
