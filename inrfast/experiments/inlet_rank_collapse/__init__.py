"""P1: Zheng, Saratchandran and Lucey, "The Inlet Rank Collapse in Implicit Neural Representations" (arXiv 2602.01526).

One file per figure; ``inrfast reproduce inlet-rank-collapse all`` makes all of them.
"""

from __future__ import annotations

from inrfast.experiments.inlet_rank_collapse.fig5 import Fig5
from inrfast.experiments.inlet_rank_collapse.fig8 import Fig8
from inrfast.experiments.paper import PAPERS, Paper

PAPERS.add(
    "inlet_rank_collapse",
    Paper(
        "inlet_rank_collapse",
        "The Inlet Rank Collapse in Implicit Neural Representations",
        "Zheng, Saratchandran and Lucey, arXiv 2602.01526",
        {figure.name: figure for figure in (Fig5(), Fig8())},
    ),
)
