"""The figure of a diagnosis: ranks, singular values, eigenvalues, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from inrfast import plots
from inrfast.analysis.report_text import network_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.analysis.report import DiagnosisReport, KernelDiagnosis, Representation


Panel = Callable[["Axes"], None]


def ranks(report: DiagnosisReport) -> Figure:
    """Return a figure of one panel: ranks of the representations against the tolerance."""
    figure = plots.new_figure(5.2, 4.0)
    panels(report)["ranks"](figure.subplots())
    return figure


def draw(report: DiagnosisReport, path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`DiagnosisReport.plot` describes; with ``path``, also write it there."""
    drawn = panels(report)
    figure = plots.new_figure(14 * len(drawn) / 3, 5)
    for axes, panel in zip(figure.subplots(1, len(drawn)), drawn.values(), strict=True):
        panel(axes)
    figure.suptitle(plots.plain(network_name(report.network)), fontsize=12)
    if path is not None:
        plots.save(figure, path)
    return figure


def panels(report: DiagnosisReport) -> dict[str, Panel]:
    """Return what draws each panel of the figure on axes, by what the panel is of, from the left."""
    # Hidden layers first: a layer has the same colour in all panels.
    ordered = sorted(report.representations, key=lambda z: z.name == "input")
    found: dict[str, Panel] = {
        "ranks": partial(_ranks, report=report, ordered=ordered),
        "singular values": partial(_singular_values, report=report, ordered=ordered),
    }
    if report.kernel is not None:
        found["eigenvalues"] = partial(_kernel, kernel=report.kernel)
    return found


def _ranks(axes: Axes, report: DiagnosisReport, ordered: Sequence[Representation]) -> None:
    """Draw the ranks of the representations against the tolerance."""
    if not ordered:  # only biases or norms were differentiated
        axes.set_axis_off()
        return
    plots.rank_against_tolerance(
        report.rtols,
        {_z_name(z): [(rank.lower, rank.upper) for rank in z.spectrum.ranks] for z in ordered},
        axes,
        full_rank=max(z.spectrum.columns for z in ordered),
        title=f"Rank of the representations\nfull grid, {report.points:,} points",
    )


def _singular_values(axes: Axes, report: DiagnosisReport, ordered: Sequence[Representation]) -> None:
    """Draw the singular values of the representations and of the weights that they enter."""
    hidden = {z.name for z in ordered} - {"input"}
    matrices = {_z_name(z): z.spectrum.singular_values for z in ordered if z.name in hidden}
    weights = {
        plots.plain(f"weight of {w.factors[0]}"): w.spectrum.singular_values
        for w in report.weights
        if w.factors[0] in hidden
    }
    _spectra(
        axes,
        matrices | weights,
        dashed=weights.keys(),
        title="Singular values of representations and weights",
    )


def _kernel(axes: Axes, kernel: KernelDiagnosis) -> None:
    """Draw the eigenvalues of the kernel and its blocks, and the intervals of the kernel's ranks."""
    curves = {"NTK": kernel.whole.eigenvalues} | {
        plots.plain(f"block of {k.name}"): k.eigenvalues for k in kernel.blocks
    }
    _spectra(
        axes,
        curves,
        quantity="lambda",
        relative_to=max(kernel.whole.eigenvalues, default=None),
        black=["NTK"],
        log_index=True,
        title=f"Eigenvalues of the NTK and its blocks\n{plots.plain(kernel.label)}",
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
    return "input" if z.name == "input" else plots.plain(f"output of {z.name}")
