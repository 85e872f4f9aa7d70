"""The figure of a diagnosis: ranks, singular values, eigenvalues, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inrfast import plots
from inrfast.analysis.report_text import network_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.analysis.report import DiagnosisReport, KernelDiagnosis, Representation


def ranks(report: DiagnosisReport) -> Figure:
    """Return a figure of one panel: ranks of the representations against the tolerance."""
    figure = plots.new_figure(5.2, 4.0)
    _ranks(figure.subplots(), report)
    return figure


def draw(report: DiagnosisReport, path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`DiagnosisReport.plot` describes; with ``path``, also write it there."""
    panels = 2 if report.kernel is None else 3
    figure = plots.new_figure(14 * panels / 3, 5)
    left, middle, *right = figure.subplots(1, panels)
    ordered = _ranks(left, report)
    hidden = {z.name for z in ordered} - {"input"}
    matrices = {_z_name(z): z.spectrum.singular_values for z in ordered if z.name in hidden}
    weights = {
        f"weight of {w.factors[0]}": w.spectrum.singular_values for w in report.weights if w.factors[0] in hidden
    }
    _spectra(
        middle,
        matrices | weights,
        dashed=weights.keys(),
        title="Singular values of representations and weights",
    )
    if report.kernel is not None:
        _kernel(right[0], report.kernel)
    figure.suptitle(network_name(report.network), fontsize=12)
    if path is not None:
        plots.save(figure, path)
    return figure


def _ranks(axes: Axes, report: DiagnosisReport) -> list[Representation]:
    """Draw ranks of the representations against the tolerance; return these in the order of their colours."""
    # Hidden layers first: a layer has the same colour in all panels.
    ordered = sorted(report.representations, key=lambda z: z.name == "input")
    if ordered:
        plots.rank_against_tolerance(
            report.rtols,
            {_z_name(z): [(rank.lower, rank.upper) for rank in z.spectrum.ranks] for z in ordered},
            axes,
            full_rank=max(z.spectrum.columns for z in ordered),
            title=f"Rank of the representations\nfull grid, {report.points:,} points",
        )
    else:  # only biases or norms were differentiated
        axes.set_axis_off()
    return ordered


def _kernel(axes: Axes, kernel: KernelDiagnosis) -> None:
    """Draw the eigenvalues of the kernel and its blocks, and the intervals of the kernel's ranks."""
    curves = {"NTK": kernel.whole.eigenvalues} | {f"block of {k.name}": k.eigenvalues for k in kernel.blocks}
    _spectra(
        axes,
        curves,
        quantity="lambda",
        relative_to=max(kernel.whole.eigenvalues, default=None),
        black=["NTK"],
        log_index=True,
        title=f"Eigenvalues of the NTK and its blocks\n{kernel.label}",
    )
    largest, error = max(kernel.whole.eigenvalues, default=0.0), kernel.whole.upper_error
    if largest > 0 and error / largest > axes.get_ylim()[0]:
        axes.axhline(error / largest, color="grey", linestyle=":", linewidth=1)
        said: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": "grey", "fontsize": 9, "va": "bottom"}
        axes.text(0.02, error / largest, "certified error of the NTK's", **said)
    if largest > 0:  # intervals of the NTK's ranks: wide bars, or single marks on the curve
        for rank in kernel.whole.ranks:
            if rank.upper > 0:
                axes.plot([max(rank.lower, 1), rank.upper], [rank.rtol] * 2, color="black", marker="|", linewidth=3)


def _spectra(axes: Axes, curves: Mapping[str, tuple[float, ...]], title: str, **options: Any) -> None:
    """Draw those spectra that have a value above zero: a dead layer has none."""
    alive = {name: values for name, values in curves.items() if values}
    if alive:
        plots.spectra(alive, axes, title=title, **options)
    else:
        axes.set_title(f"{title}\nall zero", fontsize=11)
        axes.set_axis_off()


def _z_name(z: Representation) -> str:
    return "input" if z.name == "input" else f"output of {z.name}"
