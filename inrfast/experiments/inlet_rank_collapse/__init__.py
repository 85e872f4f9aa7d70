"""Zheng, Saratchandran and Lucey, "The Inlet Rank Collapse in Implicit Neural Representations" (arXiv 2602.01526).

One file per figure; ``inrfast reproduce inlet-rank-collapse all`` makes all of them.
"""

from __future__ import annotations

from inrfast.experiments.inlet_rank_collapse.beyond import Beyond
from inrfast.experiments.inlet_rank_collapse.fig1 import Fig1
from inrfast.experiments.inlet_rank_collapse.fig2 import Fig2
from inrfast.experiments.inlet_rank_collapse.fig3 import Fig3
from inrfast.experiments.inlet_rank_collapse.fig5 import Fig5
from inrfast.experiments.inlet_rank_collapse.fig6 import Fig6
from inrfast.experiments.inlet_rank_collapse.fig7a import Fig7A
from inrfast.experiments.inlet_rank_collapse.fig7b import Fig7B
from inrfast.experiments.inlet_rank_collapse.fig8 import Fig8
from inrfast.experiments.inlet_rank_collapse.table1 import Table1
from inrfast.experiments.inlet_rank_collapse.table1_best import Table1Best
from inrfast.experiments.paper import PAPERS, Paper

PAPERS.add(
    "inlet_rank_collapse",
    Paper(
        "inlet_rank_collapse",
        "The Inlet Rank Collapse in Implicit Neural Representations",
        "Zheng, Saratchandran and Lucey, arXiv 2602.01526",
        {
            figure.name: figure
            for figure in (
                Fig1(),
                Fig2(),
                Fig3(),
                Fig5(),
                Fig6(),
                Fig7A(),
                Fig7B(),
                Table1(),
                Table1Best(),
                Fig8(),
                Beyond(),
            )
        },
    ),
)
