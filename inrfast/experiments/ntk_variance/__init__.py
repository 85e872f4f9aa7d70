"""Ou and Zhuang, "Understanding NTK Variance in Implicit Neural Representations" (arXiv 2512.15169).

One file per figure; ``inrfast reproduce ntk-variance all`` makes all of them. Of the paper a summary alone is at hand:
its claims are tested, and no number of it is printed.
"""

from __future__ import annotations

from inrfast.experiments.ntk_variance.claims import Claims
from inrfast.experiments.ntk_variance.comparison import Variance
from inrfast.experiments.ntk_variance.figure import WholeFigure
from inrfast.experiments.ntk_variance.hadamard import HadamardFigure
from inrfast.experiments.ntk_variance.topk import TopKFigure
from inrfast.experiments.paper import PAPERS, Figure, Paper

FIGURES: tuple[Figure, ...] = (Variance(), WholeFigure(), Claims(), HadamardFigure(), TopKFigure())
"""In the order in which ``all`` makes them: variance, figure, claims, hadamard, topk."""

PAPERS.add(
    "ntk_variance",
    Paper(
        "ntk_variance",
        "Understanding NTK Variance in Implicit Neural Representations",
        "Ou and Zhuang, arXiv 2512.15169",
        {figure.name: figure for figure in FIGURES},
    ),
)
