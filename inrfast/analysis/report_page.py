"""A diagnosis as a page for readers: figures, tables, and what the numbers say and mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inrfast import plots
from inrfast.analysis.report_text import findings, network_title, tables, tolerance
from inrfast.linalg.spectrum import RankInterval
from inrfast.pages import Block, Entries, Items, Page, Picture, Raw, Section, Table, Text, drawn, figure_picture

if TYPE_CHECKING:
    from inrfast.analysis.report import DiagnosisReport, KernelDiagnosis, Representation

RTOL = 1e-3
"""Tolerance of ranks told in a sentence, where a table has all of them; the nearest one of the report is taken."""

MOST, FEW = 24, 8
"""Numbers of a list that the page holds whole, and those that it holds of a longer one."""

TITLES = {
    "representations": "Representations",
    "sensitivities": "Sensitivities",
    "weights": "Weights",
    "feature Jacobians": "Feature Jacobians",
    "kernel": "Tangent kernel",
}

NOTES = {
    "representations": "One row per layer: the matrix of its outputs at all points, one column per unit. A rank far "
    "below the number of units means that many units say the same, and limits what the next layer can tell apart. "
    "“With ones” is the same matrix with a column of ones, which is what weights and bias of the next layer see.",
    "sensitivities": "How strongly the network's outputs react to the pre-activations of each layer, at all points. "
    "The trace is the layer's share of the tangent kernel's: of the speed at which the outputs change in training.",
    "weights": "The weight matrices as they are, and products of consecutive hidden ones. A product of low rank passes "
    "few directions on, whatever the activations do.",
    "feature Jacobians": "How each hidden layer's output reacts to its input at single points: units that an "
    "activation switches off are lost there.",
    "kernel": "The kernel is the sum of one block per parameter layer. All rows are counted above the same absolute "
    "threshold tau, the tolerance times the largest eigenvalue of the whole kernel.",
}
"""What each table shows, in plain words."""

MEANINGS = {
    "numerical rank": "How many singular values of a matrix, or eigenvalues of a kernel, lie above the tolerance times "
    "the largest one. It means nothing without its tolerance, so every rank is given at several. Two numbers in "
    "brackets are bounds that the rank lies between.",
    "stable rank": "Sum of the squared singular values (for kernels, of the eigenvalues) over the largest: small where "
    "one direction outweighs all others, whatever the tolerance.",
    "effective rank": "The exponential of the entropy of their shares: how many equally strong directions would be "
    "spread as evenly.",
    "dead unit": "A unit that is zero at every point: it takes no part.",
    "dead pixel": "A point at which all units of a layer are zero, or to which a layer's parameters do not matter.",
}

KERNEL_MEANINGS = {
    "tangent kernel (NTK)": "Entry (i, j) is the product of the output's gradients, in all parameters, at points i and "
    "j. Under gradient flow the part of the error along an eigenvector falls like exp(-eigenvalue x time), as long as "
    "the kernel stays near this one.",
    "rank of the NTK": "How many patterns are learned at a rate within that tolerance of the fastest one. Patterns "
    "below it take more than 1 / tolerance times as long.",
}


def page(report: DiagnosisReport) -> Page:
    """Return the page of a report."""
    sections = [
        Section("What the numbers say", [Items(findings(report)) if findings(report) else Text("Nothing stands out.")]),
        Section("Figures", [drawn(lambda: _pictures(report))]),
    ]
    for name, (heading, (head, *rows)) in tables(report).items():
        if rows:
            sections.append(Section(TITLES[name], [Table(head, rows, heading, NOTES[name])]))
    meanings = MEANINGS | ({} if report.kernel is None else KERNEL_MEANINGS)
    sections += [
        Section("What the numbers mean", [Entries(meanings)]),
        Section("Settings", [Entries(_settings(report))]),
        Section("Raw numbers", _raw(report)),
    ]
    lead = " ".join(filter(None, [_of_layers(report), _of_kernel(report)]))
    return Page("Where a network loses rank", f"{network_title(report)}. {lead}".strip(), sections, _facts(report))


def nearest(report: DiagnosisReport) -> int:
    """Return the place of the tolerance that sentences take."""
    return min(range(len(report.rtols)), key=lambda place: abs(math.log(report.rtols[place] / RTOL)))


def narrowest(report: DiagnosisReport) -> Representation | None:
    """Return the hidden representation of the least rank for its number of units, at that tolerance."""
    hidden = [z for z in report.representations if z.name != "input"]
    place = nearest(report)
    return min(hidden, key=lambda z: z.spectrum.ranks[place].lower / z.spectrum.columns, default=None)


def _of_layers(report: DiagnosisReport) -> str:
    """Say whether the narrowest layer is narrow."""
    z = narrowest(report)
    if z is None:
        return ""
    rank, units = z.spectrum.ranks[nearest(report)], z.spectrum.columns
    where = f"at the tolerance {tolerance(rank.rtol)}"
    if rank.lower == units:
        return f"No hidden layer loses rank {where}."
    told = f"the {units} outputs of {z.name} have rank {_told(rank)}"
    if rank.upper == units:
        return f"Whether a hidden layer loses rank {where} is not certain: {told}."
    share = rank.upper / units
    much = "nearly all" if share < 0.1 else "most" if share < 0.5 else "some" if share < 0.9 else "a little"
    return f"The narrowest layer loses {much} of its rank {where}: {told}."


def _of_kernel(report: DiagnosisReport) -> str:
    """Say what the kernel's rank means for training."""
    if report.kernel is None:
        return ""
    rank = report.kernel.whole.ranks[nearest(report)]
    size = report.kernel.whole.size
    return (
        f"Its tangent kernel on {report.kernel.points:,} points has rank {_told(rank)} of {size:,} at "
        f"{tolerance(rank.rtol)}: so many patterns are learned at a rate within that factor of the fastest."
    )


def _told(rank: RankInterval) -> str:
    return f"{rank.lower:,}" if rank.lower == rank.upper else f"{rank.lower:,} to {rank.upper:,}"


def _facts(report: DiagnosisReport) -> dict[str, str]:
    """Return the numbers that stand at the top."""
    place, z, kernel = nearest(report), narrowest(report), report.kernel
    at = tolerance(report.rtols[place])
    found = {"parameters": f"{report.parameters:,}", "points": f"{report.points:,}"}
    if z is not None:
        found[f"narrowest layer, {z.name}, at {at}"] = f"{_told(z.spectrum.ranks[place])} of {z.spectrum.columns}"
    if kernel is not None:
        found[f"rank of the NTK at {at}"] = f"{_told(kernel.whole.ranks[place])} of {kernel.whole.size:,}"
        if kernel.whole.effective_rank is not None:
            found["effective rank of the NTK"] = f"{kernel.whole.effective_rank:,.1f}"
    return found


def _pictures(report: DiagnosisReport) -> list[Picture]:
    """Return the panels of the report's figure, each a picture of its own."""
    from inrfast.analysis.report_figure import panels

    alts = {
        "ranks": "Numerical rank of each layer's output against the relative tolerance",
        "singular values": "Singular values of each layer's output and of its weights, relative to the largest",
        "eigenvalues": "Eigenvalues of the tangent kernel and of its blocks, relative to the largest",
    }
    captions = {
        "ranks": "How many directions the outputs of each layer span, from coarse tolerances to fine ones. A curve far "
        "below the dotted line is a layer that loses rank.",
        "singular values": "Strength of these directions, descending: a steep fall is a loss of rank. Dashed: the "
        "weights that they enter.",
        "eigenvalues": "The faster they fall, the longer training takes for what lies at the right. Black bars: the "
        "kernel's rank at each tolerance.",
    }
    made = []
    for name, panel in panels(report).items():
        figure = plots.new_figure(5.4, 4.8)
        panel(figure.subplots())
        made.append(figure_picture(figure, alts[name], captions[name]))
    return made


def _settings(report: DiagnosisReport) -> dict[str, Any]:
    """Return the network and what was asked for."""
    found = {name.replace("_", " "): _words(value) for name, value in report.network.items() if value is not None}
    found |= {"points": f"{report.points:,}", "outputs": f"{report.outputs}"}
    found["tolerances"] = ", ".join(map(tolerance, report.rtols))
    if report.feature_jacobians:
        found["points of the feature Jacobians"] = f"{report.feature_jacobians[0].pixels:,}"
    found["kernel on"] = "not computed" if report.kernel is None else _kernel_set(report.kernel)
    return found


def _kernel_set(kernel: KernelDiagnosis) -> str:
    return f"{kernel.label}; eigenvalues by {kernel.whole.method}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        told = [_words(own) for own in value]
        return told[0] if len(set(told)) == 1 else ", ".join(told)
    return "none" if value is None else str(value)


def _raw(report: DiagnosisReport) -> list[Block]:
    """Return the report's JSON, long lists cut."""
    return [
        Text(
            f"All fields of the report, without the middle of lists of more than {MOST} numbers: "
            "DiagnosisReport.to_json holds these too."
        ),
        Raw("Show the report's fields", json.dumps(_cut(report.to_dict()), indent=1)),
    ]


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(own) for name, own in value.items()}
    if isinstance(value, list):
        if len(value) > MOST and all(isinstance(own, int | float) for own in value):
            return [*value[:FEW], f"... {len(value) - 2 * FEW:,} more ...", *value[-FEW:]]
        return [_cut(own) for own in value]
    return value
