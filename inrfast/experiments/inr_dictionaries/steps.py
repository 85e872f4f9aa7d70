"""The first steps of fits of held-out faces from one start, on half of the pixels, and PSNRs on either half."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from inrfast.experiments.inr_dictionaries.faces import targets
from inrfast.experiments.inr_dictionaries.starts import Start, images, points, rule
from inrfast.experiments.paper import Cell, Found, Request, Work
from inrfast.metrics import mse_to_psnr
from inrfast.training.meta.adapt import adapt

FIRST_STEPS = 10
"""That the paper's figure 10 shows."""

LEGEND_STEPS = 3
"""After which figure 11 gives the PSNR; figure 4 does not say after how many."""


def halves(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the pixels to train on, a random half, and of all others; the same for all images."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def steps_cell(start: Start, request: Request, found: Mapping[str, Found], steps: int = FIRST_STEPS) -> Cell:
    """Return the cell of these fits: gradient descent from meta-learned weights, Adam from all others."""
    there = images(request)
    lr, optimizer = rule(start)

    def run(work: Work) -> Found:
        net = start.network(request, found, work.device, torch.float32)
        seen, unseen = halves(there.side**2, request.seed)
        coords, values = points(there.side, work.device), targets(there.held_out).to(work.device)
        # One step more than is kept: a loss is taken before its step.
        result = adapt(
            net, coords[seen], values[:, seen], steps + 1, lr, optimizer,
            eval_coords=coords[unseen], eval_signals=values[:, unseen], data_range=1.0,
        )  # fmt: skip
        train = torch.tensor([[mse_to_psnr(float(loss)) for loss in row] for row in result.losses])
        test = result.psnrs[: steps + 1].cpu()
        return Found({"train": _finite(train.mean(1)), "test": _finite(test.mean(1)), "last": _finite(test[-1])})

    settings = start.settings(request) | {
        "faces": there.settings, "steps": steps, "lr": lr, "optimizer": optimizer,
    }  # fmt: skip
    return Cell(f"steps.{start.name}.{steps}", settings, run, 0.1 * steps, shared=True)


def _finite(values: torch.Tensor) -> list[float | None]:
    """Return numbers as JSON holds them: None where a fit diverged."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def told(value: float | None, digits: int = 2) -> str:
    """Return a PSNR in words."""
    return "diverged" if value is None else f"{value:.{digits}f} dB"
