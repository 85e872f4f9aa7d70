"""P4: Yüce, Ortiz-Jiménez, Besbinar and Frossard, "A Structured Dictionary Perspective on INRs" (CVPR 2022).

One file per figure; ``inrfast reproduce inr-dictionaries all`` makes all of them.
"""

from __future__ import annotations

from inrfast.experiments.inr_dictionaries.fig2 import Fig2
from inrfast.experiments.inr_dictionaries.fig3 import Fig3
from inrfast.experiments.inr_dictionaries.fig6 import Fig6
from inrfast.experiments.inr_dictionaries.fig7 import Fig7
from inrfast.experiments.inr_dictionaries.fig8 import Fig8
from inrfast.experiments.inr_dictionaries.fig9 import Fig9
from inrfast.experiments.paper import PAPERS, Paper

PAPERS.add(
    "inr_dictionaries",
    Paper(
        "inr_dictionaries",
        "A Structured Dictionary Perspective on Implicit Neural Representations",
        "Yüce, Ortiz-Jiménez, Besbinar and Frossard, CVPR 2022",
        {figure.name: figure for figure in (Fig2(), Fig3(), Fig6(), Fig7(), Fig8(), Fig9())},
    ),
)
