"""Yüce, Ortiz-Jiménez, Besbinar and Frossard, "A Structured Dictionary Perspective on INRs" (CVPR 2022).

One file per figure; ``inrfast reproduce inr-dictionaries all`` makes all of them.
"""

from __future__ import annotations

from inrfast.experiments.inr_dictionaries.energy import Fig11, Fig12, Fig13
from inrfast.experiments.inr_dictionaries.fig2 import Fig2
from inrfast.experiments.inr_dictionaries.fig3 import Fig3
from inrfast.experiments.inr_dictionaries.fig4 import Fig4
from inrfast.experiments.inr_dictionaries.fig5 import Fig5, Fig16
from inrfast.experiments.inr_dictionaries.fig6 import Fig6
from inrfast.experiments.inr_dictionaries.fig7 import Fig7
from inrfast.experiments.inr_dictionaries.fig8 import Fig8
from inrfast.experiments.inr_dictionaries.fig9 import Fig9
from inrfast.experiments.inr_dictionaries.fig10 import Fig10, Fig14
from inrfast.experiments.inr_dictionaries.fig15 import Fig15
from inrfast.experiments.paper import PAPERS, Paper

PAPERS.add(
    "inr_dictionaries",
    Paper(
        "inr_dictionaries",
        "A Structured Dictionary Perspective on Implicit Neural Representations",
        "Yüce, Ortiz-Jiménez, Besbinar and Frossard, CVPR 2022",
        {
            figure.name: figure
            for figure in (
                Fig2(),
                Fig3(),
                Fig4(),
                Fig5(),
                Fig6(),
                Fig7(),
                Fig8(),
                Fig9(),
                Fig10(),
                Fig11(),
                Fig12(),
                Fig13(),
                Fig14(),
                Fig15(),
                Fig16(),
            )
        },
    ),
)
