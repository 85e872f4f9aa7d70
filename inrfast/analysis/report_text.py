"""A diagnosis in words: the table of a report, and sentences computed from its numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inrfast.activations import shown
from inrfast.encodings import described

if TYPE_CHECKING:
    from inrfast.analysis.report import DiagnosisReport, KernelDiagnosis, MatrixSpectrum, Sensitivity

COLUMNS = 100
"""Width of the text."""

MEASURES = ("stable", "effective")
Row = tuple[str, ...]


def table(report: DiagnosisReport) -> str:
    """Return the report as text, within ``COLUMNS`` for names and ranks of usual length."""
    title = network_title(report)
    of = "sigma of a matrix, lambda of the NTK; its blocks are counted above the same absolute threshold tau = rtol "
    of += "lambda_1(NTK). Stable rank: sum over largest of sigma^2 or lambda"
    legend = (
        "Rank: number of values above the tolerance times the largest, "
        f"{'sigma. Stable rank: sum over largest of sigma^2' if report.kernel is None else of}; effective rank: exp of "
        "the entropy of their shares."
    )
    lines = [textwrap.fill(title, COLUMNS), textwrap.fill(legend, COLUMNS)]
    for heading, rows in tables(report).values():
        lines += ["", heading, *_aligned(rows)]
    lines += ["", *(textwrap.fill(f"- {said}", COLUMNS, subsequent_indent="  ") for said in findings(report))]
    return "\n".join(lines)


def ranks_by_layer(report: DiagnosisReport) -> list[Row]:
    """Return a short table: the ranks of representations, and of the kernel and its blocks, at every tolerance."""
    rows: list[Row] = [("rank of", "size", *(f"at {own}" for own in _tolerances(report)))]
    rows += [
        ("input" if z.name == "input" else f"output of {z.name}", f"{z.spectrum.columns}", *map(str, z.spectrum.ranks))
        for z in report.representations
    ]
    if report.kernel is not None:
        rows += [
            ("NTK" if k is report.kernel.whole else f"NTK block of {k.name}", f"{k.size:,}", *map(str, k.ranks))
            for k in (report.kernel.whole, *report.kernel.blocks)
        ]
    return rows


def network_title(report: DiagnosisReport) -> str:
    """Return what was diagnosed, in a line."""
    return f"{network_name(report.network)}: {report.parameters:,} parameters, {report.outputs} output(s)"


def tables(report: DiagnosisReport) -> dict[str, tuple[str, list[Row]]]:
    """Return the heading and the rows of each table, of which the first is the head; by what the table is of."""
    found = {
        "representations": _representations(report),
        "sensitivities": _sensitivities(report),
        "weights": _weights(report),
    }
    if report.feature_jacobians:
        found["feature Jacobians"] = _feature_jacobians(report)
    if report.kernel is not None:
        found["kernel"] = _kernel(report, report.kernel)
    return found


def _representations(report: DiagnosisReport) -> tuple[str, list[Row]]:
    rows = [("", "units", *_tolerances(report), *MEASURES, "dead units", "dead pixels")]
    for z in report.representations:
        rows.append((z.name, *_matrix_cells(z.spectrum), f"{z.dead_units}", f"{z.dead_pixels:,}"))
        rows.append(("  with ones", *_matrix_cells(z.with_ones)))
    return f"Representations Z and [Z, 1]: full grid, {report.points:,} points", rows


def _sensitivities(report: DiagnosisReport) -> tuple[str, list[Row]]:
    rows = [("", "units", *_tolerances(report), *MEASURES, "dead pixels", "trace")]
    for s in report.sensitivities:
        rows.append((s.name, *_matrix_cells(s.spectrum), f"{s.dead_pixels:,}", f"{s.trace_share:.1%}"))
    return f"Sensitivities S of the parameter layers: full grid, {report.points:,} points", rows


def _weights(report: DiagnosisReport) -> tuple[str, list[Row]]:
    rows = [("", "units", *_tolerances(report), *MEASURES)]
    for w in (*report.weights, *report.weight_products):
        first, *others = w.factors
        rows.append((f"{first} ... {others[-1]}" if others else first, *_matrix_cells(w.spectrum)))
    return "Weights, and products of the hidden ones without the head", rows


def _feature_jacobians(report: DiagnosisReport) -> tuple[str, list[Row]]:
    rows = [("", "units", *_tolerances(report))]
    for j in report.feature_jacobians:
        rows.append((j.name, f"{j.columns}", *(f"{r.minimum}/{r.median:g}/{r.maximum}" for r in j.ranks)))
    pixels = report.feature_jacobians[0].pixels
    return f"Feature Jacobians diag(a) W: minimum/median/maximum over {pixels} sampled pixels", rows


def _kernel(report: DiagnosisReport, kernel: KernelDiagnosis) -> tuple[str, list[Row]]:
    rows = [("", "order", *_tolerances(report), *MEASURES)]
    for k in (kernel.whole, *kernel.blocks):
        name = "NTK" if k is kernel.whole else f"  {k.name}"
        rows.append((name, f"{k.size:,}", *map(str, k.ranks), _number(k.stable_rank), _number(k.effective_rank)))
    rows.append((f"NTK above {len(kernel.blocks)} tau", "", *(str(bound.whole_at_multiple) for bound in kernel.bounds)))
    rows.append(("sum of blocks", "", *(str(bound.sum_of_blocks) for bound in kernel.bounds)))
    return f"NTK and its blocks: {kernel.label}", rows


def _tolerances(report: DiagnosisReport) -> list[str]:
    return [tolerance(rtol) for rtol in report.rtols]


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Return rows as lines: names to the left, numbers to the right, each column as wide as it needs."""
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)),
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _matrix_cells(spectrum: MatrixSpectrum) -> Row:
    measures = (_number(spectrum.stable_rank), _number(spectrum.effective_rank))
    return (f"{spectrum.columns}", *map(str, spectrum.ranks), *measures)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def tolerance(rtol: float) -> str:
    """Return a tolerance as 1e-3, 2.5e-4, ..."""
    mantissa, exponent = f"{rtol:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def network_name(network: Mapping[str, Any]) -> str:
    """Return a network's sizes, activation, initialisation, encoding and norm in a line."""
    if "class" in network:
        return str(network["class"])
    sizes = [network["in_features"], *[network["width"]] * network["hidden_layers"], network["out_features"]]
    activations = "/".join(dict.fromkeys(map(shown, network["activation"])))
    told = ["-".join(map(str, sizes)), activations, f"init {network['init']}"]
    told += [described(network["encoding"])] if network["encoding"] else []
    norms = [norm or "none" for norm in network["norm"]]
    if any(network["norm"]):
        told += [f"{'/'.join(norms if len(set(norms)) > 1 else norms[:1])} norm {network['norm_position']} activation"]
    filters = dict.fromkeys("none" if own is None else shown(own) for own in network.get("modulation", ()))
    told += [f"modulation {'/'.join(filters)}"] if filters else []
    return "INR " + ", ".join(told)


# ---- what the numbers say ----------------------------------------------------------------------------------------


def findings(report: DiagnosisReport) -> list[str]:
    """Return what a report's numbers say, in sentences computed from them."""
    found = [_narrowest(report), _without(report), _shares(report.sensitivities)]
    found += [
        f"{z.dead_units} of {z.spectrum.columns} units of {z.name} are zero at every point."
        for z in report.representations
        if z.dead_units
    ]
    found += [
        f"{layer.name} is insensitive at {layer.dead_pixels:,} of {report.points:,} points: rank([Z, 1]) is no lower "
        "bound of its block's rank there."
        for layer in report.sensitivities
        if layer.dead_pixels
    ]
    found += [] if report.kernel is None else _of_kernel(report.kernel)
    return [sentence for sentence in found if sentence]


def _of_kernel(kernel: KernelDiagnosis) -> list[str]:
    """Return what the ranks of the kernel and of its blocks say."""
    first, last = kernel.whole.ranks[0], kernel.whole.ranks[-1]
    broken = [tolerance(bound.rtol) for bound in kernel.bounds if not bound.hold]
    return [
        _proven(kernel),
        f"The NTK has {first} eigenvalues above {tolerance(first.rtol)} lambda_1, {last} above "
        f"{tolerance(last.rtol)} ({kernel.label}).",
        "max_k r_tau(K_k) <= r_tau(K) and r_{L tau}(K) <= sum_k r_tau(K_k) "
        + (f"are violated at {', '.join(broken)}." if broken else "hold at every tolerance."),
    ]


def _proven(kernel: KernelDiagnosis) -> str:
    """Say which ranks of the kernel and its blocks rest on random starts, by which method, and how surely they hold."""
    at: dict[str, list[str]] = {}
    for k in (kernel.whole, *kernel.blocks):
        places: dict[str, list[str]] = {}
        for rank, proof in zip(k.ranks, k.proofs, strict=False):
            if proof.failure:
                places.setdefault(str(proof), []).append(tolerance(rank.rtol))
        for how, tolerances in places.items():
            at.setdefault(how, []).append(f"{'NTK' if k is kernel.whole else k.name} at {', '.join(tolerances)}")
    told = (f"{'; '.join(names)} ({how})" for how, names in at.items())
    return f"Ranks by certificates of a random start: {'; '.join(told)}." if at else ""


def _narrowest(report: DiagnosisReport) -> str:
    """Say which hidden representation has the least rank for its number of units, at every tolerance."""
    hidden = [z for z in report.representations if z.name != "input"]
    if not hidden:
        return ""
    at: dict[str, list[str]] = {}
    for place, rtol in enumerate(report.rtols):
        least = min(hidden, key=lambda z: z.spectrum.ranks[place].lower / z.spectrum.columns)
        rank, units = least.spectrum.ranks[place], least.spectrum.columns
        at.setdefault(least.name, []).append(f"{rank} of {units} at {tolerance(rtol)}")
    told = (f"{name}, {', '.join(ranks)}" for name, ranks in at.items())
    return f"Least rank for its width: {'; '.join(told)}."


def _without(report: DiagnosisReport) -> str:
    """Say why tables are empty of networks whose parameters enter by no linear layer."""
    if report.representations:
        return ""
    empty = "representations" if report.weights else "representations and weights"
    return (
        f"There are no {empty}: those are of linear layers (nn.Linear, F.linear, @) with trainable weights, and no "
        "parameter is captured as one. K.cost().ways of inrfast.ntk says how each is."
    )


def _shares(layers: Sequence[Sensitivity]) -> str:
    if sum(layer.trace_share for layer in layers) < 0.999:  # others hold a part: those that are too wide to be listed
        return ""
    largest, smallest = max(layers, key=lambda s: s.trace_share), min(layers, key=lambda s: s.trace_share)
    if largest is smallest:
        return ""
    return (
        f"Of the NTK's trace {largest.name} holds most, {largest.trace_share:.1%}, and {smallest.name} least, "
        f"{smallest.trace_share:.2%}."
    )
