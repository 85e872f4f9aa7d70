"""Papers whose network and optimiser ``inrfast fit --like`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A paper's network, as arguments of :class:`inrfast.INR`, and the settings of its fits, by the options' names.

    ``batch_size`` None takes all points. ``told`` says it in the help.
    """

    network: Mapping[str, Any]
    settings: Mapping[str, Any]
    told: str


PAPERS: Mapping[str, Paper] = {
    "inlet-rank-collapse": Paper(
        {"init": "rank_expanding"},
        {
            "lr": 5e-3,
            "schedule": "constant",
            "optimizer": "adam",
            "weight_decay": 1e-8,
            "steps": 2000,
            "batch_size": None,
        },
        "ReLU with its rank-expanding first layer (arXiv 2602.01526), Adam, rate 5e-3, 2000 steps of all points",
    ),
}
"""Papers of ``--like``: the settings of the first author's public code, where the paper leaves them open."""
