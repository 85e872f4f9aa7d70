"""Short real fits of the best candidates, where a prediction is to be checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from inrfast.choosing.choice import Candidate
from inrfast.choosing.prediction import Fit
from inrfast.choosing.samples import Samples
from inrfast.errors import DivergedError
from inrfast.training.fit import fit as train

MOST_HELD_OUT = 2**14
"""Samples at most on which a fit is judged."""


def checked(
    candidates: Sequence[Candidate],
    samples: Samples,
    fit: Fit,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
) -> list[Candidate]:
    """Return candidates in the order of what short fits of half of the samples reach on others, ``fitted``.

    A fit that diverges counts as minus infinity.
    """
    order = torch.randperm(len(samples.values), generator=torch.Generator().manual_seed(seed))
    if samples.known is not None:
        order = order[samples.known[order]]
    rows, judges = order[: fit.samples], order[fit.samples :][:MOST_HELD_OUT]
    found = []
    for candidate in candidates:
        net = candidate.network(seed)
        dtype = next(net.parameters()).dtype
        try:
            result = train(
                net,
                samples.coords[rows].to(dtype),
                samples.values[rows].to(dtype),
                steps=fit.steps,
                lr=candidate.lr,
                batch_size=min(fit.batch, len(rows)),
                eval_every=fit.steps,
                eval_coords=samples.coords[judges].to(dtype),
                eval_target=samples.values[judges].to(dtype),
                data_range=samples.data_range,
                seed=seed,
                memory_budget=memory_budget,
                progress=progress,
            )
            if result.interrupted:
                raise KeyboardInterrupt
            reached = result.psnr
        except DivergedError:
            reached = -math.inf
        found.append((reached, replace(candidate, fitted=reached)))
    return [candidate for _, candidate in sorted(found, key=lambda pair: -pair[0])]
