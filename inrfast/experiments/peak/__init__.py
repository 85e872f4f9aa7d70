"""Li, Ma, Wang, Zeng and Han, "Learning Input Encodings for Kernel-Optimal Implicit Neural Representations".

One file per figure; ``inrfast reproduce peak all`` makes all of them.
"""

from __future__ import annotations

from inrfast.experiments.paper import PAPERS, Figure, Paper
from inrfast.experiments.peak.fig2 import Fig2
from inrfast.experiments.peak.fig3 import Fig3
from inrfast.experiments.peak.fig7 import Fig7
from inrfast.experiments.peak.fig8 import Fig8
from inrfast.experiments.peak.fig9 import Fig9
from inrfast.experiments.peak.table1 import Table1
from inrfast.experiments.peak.table2 import Table2
from inrfast.experiments.peak.table3 import Table3

FIGURES: tuple[Figure, ...] = (Fig2(), Fig3(), Table1(), Table2(), Table3(), Fig7(), Fig8(), Fig9())
"""In the order in which ``all`` makes them: fig2, fig3, table1, table2, table3, fig7, fig8, fig9."""

PAPERS.add(
    "peak",
    Paper(
        "peak",
        "Learning Input Encodings for Kernel-Optimal Implicit Neural Representations",
        "Li, Ma, Wang, Zeng and Han",
        {figure.name: figure for figure in FIGURES},
    ),
)
