"""The demo's text: tables, and sentences chosen by comparing the numbers of its report, none written beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from inrfast.activations import ACTIVATIONS, shown
from inrfast.encodings import described

Entry = Mapping[str, Any]
"""One start in the report: ``name``, ``cured`` (its first layer is the paper's cure), ``diagnosis``, ``fit``."""

Interval = tuple[int, int]
"""A rank, known to lie between two numbers that are mostly equal."""

MATRIX_RTOL = 1e-3
"""Tolerance of ranks told in one line, where a table has all of them: for matrices, relative to sigma_1."""

KERNEL_RTOL = 1e-4
"""The same for kernels, relative to lambda_1."""


ALIKE = 0.1
"""Difference of PSNRs (dB) below which two fits are called alike."""


# ---- numbers out of the report -----------------------------------------------------------------------------------


def representations(entry: Entry) -> dict[str, Mapping[str, Any]]:
    """Return a start's representations by layer name, ``input`` first."""
    return {found["name"]: found for found in entry["diagnosis"]["representations"]}


def inlet_ranks(entry: Entry) -> list[Interval]:
    """Return the ranks of Z_0, the output of the first layer, one per tolerance."""
    return _intervals(representations(entry)["layers.0"]["spectrum"]["ranks"])


def kernel_ranks(entry: Entry) -> list[Interval]:
    """Return the ranks of the tangent kernel, one per tolerance."""
    return _intervals(entry["diagnosis"]["kernel"]["whole"]["ranks"])


def _intervals(ranks: Iterable[Mapping[str, Any]]) -> list[Interval]:
    return [(rank["lower"], rank["upper"]) for rank in ranks]


def _at(entry: Entry, ranks: Sequence[Interval], rtol: float) -> Interval:
    return ranks[list(entry["diagnosis"]["rtols"]).index(rtol)]


def _number(rank: Interval) -> str:
    return f"{rank[0]:,}" if rank[0] == rank[1] else f"{rank[0]:,} to {rank[1]:,}"


def _tolerance(rtol: float) -> str:
    return f"{rtol:.0e}".replace("e-0", "e-")


def _size(axes: Sequence[int]) -> str:
    return "x".join(map(str, axes))


# ---- comparisons -------------------------------------------------------------------------------------------------


def order(ranks: Interval, others: Interval) -> int:
    """Return 1 where the first rank is certainly the larger, -1 where it is the smaller, 0 where they may be equal."""
    return int(ranks[0] > others[1]) - int(ranks[1] < others[0])


def comparison(
    names: tuple[str, str], what: str, ranks: tuple[Sequence[Interval], Sequence[Interval]], rtols: Sequence[float]
) -> str:
    """Return a sentence on which of two starts has the larger rank, and at which tolerances that turns round."""
    signs = [order(first, second) for first, second in zip(*ranks, strict=True)]
    if len(set(signs)) == 1:
        word = {1: "is higher", 0: "is the same", -1: "is lower"}[signs[0]]
        where = f"{word} at all {len(rtols)} tolerances"
        pairs = [
            f"{_number(a)} against {_number(b)} at {_tolerance(rtol)}" for a, b, rtol in zip(*ranks, rtols, strict=True)
        ]
        return f"{names[0]} against {names[1]}: the rank of {what} {where} ({pairs[0]}, {pairs[-1]})."
    parts = []
    for sign, word in ((1, "higher"), (0, "the same"), (-1, "lower")):
        pairs = [
            f"{_tolerance(rtol)} ({_number(a)} against {_number(b)})"
            for a, b, rtol, found in zip(*ranks, rtols, signs, strict=True)
            if found == sign
        ]
        if pairs:
            parts.append(f"{word} at {', '.join(pairs)}")
    turns = 1 in signs and -1 in signs
    note = "; **the order depends on the tolerance**" if turns else ""
    return f"{names[0]} against {names[1]}: the rank of {what} is {'; '.join(parts)}{note}."


def leaders(ranks: Mapping[str, Sequence[Interval]], rtols: Sequence[float]) -> str:
    """Return a sentence on which start has the highest rank at which tolerance."""
    first: dict[str, list[str]] = {}
    for place, rtol in enumerate(rtols):
        best = max(found[place][0] for found in ranks.values())
        winners = [name for name, found in ranks.items() if found[place][1] >= best]
        first.setdefault("all alike" if len(winners) == len(ranks) else ", ".join(winners), []).append(
            f"{_tolerance(rtol)}"
        )
    if len(first) == 1:
        return f"Highest at every tolerance: {next(iter(first))}."
    return "Highest: " + "; ".join(f"{name} at {', '.join(at)}" for name, at in first.items()) + "."


def narrowest(entry: Entry, rtol: float) -> tuple[str | None, float]:
    """Return the hidden layer whose output has the least rank for its width, None for a tie, and that share."""
    shares = {
        name: _at(entry, _intervals(found["spectrum"]["ranks"]), rtol)[0] / found["spectrum"]["columns"]
        for name, found in representations(entry).items()
        if name != "input"
    }
    least = min(shares.values())
    names = [name for name, share in shares.items() if share == least]
    return (names[0] if len(names) == 1 else None), least


def concordant(fitted: Sequence[Entry], values: Mapping[str, float]) -> tuple[int, int]:
    """Return in how many pairs of fits the higher value goes with the higher PSNR, of how many with unequal values."""
    agree = total = 0
    for one, two in combinations(fitted, 2):
        difference = values[one["name"]] - values[two["name"]]
        if difference != 0:
            total += 1
            agree += difference * (one["fit"]["psnr"] - two["fit"]["psnr"]) > 0
    return agree, total


def worth(starts: Sequence[Entry]) -> str:
    """Return what the paper's cure is worth: against the same network without it, and against the best start.

    The first start is the one without it. A difference below :data:`ALIKE` is called none.
    """
    base = starts[0]
    cure = max((entry for entry in starts if entry["cured"]), key=_psnr)
    best = max(starts, key=_psnr)
    gain, short = _psnr(cure) - _psnr(base), _psnr(best) - _psnr(cure)
    first = f"The cure of the first layer, at its best ({cure['name']}), is worth {gain:+.2f} dB against {base['name']}"
    if best is cure or short < ALIKE:
        second = "no start here is better"
    else:
        second = f"the best start, {best['name']}, is {short:.2f} dB above it"
    if gain < ALIKE:
        verdict = "Here it does not pay."
    elif short < ALIKE:
        verdict = "Here it pays."
    else:
        verdict = (
            "It pays where the network has to be one of ReLU layers on raw coordinates; elsewhere the best start "
            f"here is {best['name']}."
        )
    return f"{first}; {second}. {verdict}"


def _psnr(entry: Entry) -> float:
    return float(entry["fit"]["psnr"])


# ---- text --------------------------------------------------------------------------------------------------------


def one_line(entry: Entry) -> str:
    """Return a start's two most telling ranks."""
    inlet, kernel = _at(entry, inlet_ranks(entry), MATRIX_RTOL), _at(entry, kernel_ranks(entry), KERNEL_RTOL)
    points = entry["diagnosis"]["kernel"]["points"]
    return (
        f"{entry['name']}: rank of the first layer's output {_number(inlet)} at {_tolerance(MATRIX_RTOL)}, "
        f"of the NTK on {points:,} points {_number(kernel)} at {_tolerance(KERNEL_RTOL)}"
    )


def summary(report: Mapping[str, Any]) -> str:
    """Return the result as a few lines for a terminal."""
    starts, settings = report["starts"], report["settings"]
    rtols = settings["rtols"]
    lines = []
    for title, ranks in (
        (f"rank of the first layer's output, {_size(settings['grid'])} grid, sigma/sigma_1 >", inlet_ranks),
        (f"rank of the tangent kernel, {_size(settings['ntk_grid'])} grid, lambda/lambda_1 >", kernel_ranks),
    ):
        lines += [title, " " * 22 + "".join(f"{_tolerance(rtol):>12}" for rtol in rtols)]
        lines += [f"  {e['name']:<20}" + "".join(f"{_number(rank):>12}" for rank in ranks(e)) for e in starts]
        lines.append("")
    lines.append(f"PSNR after {settings['steps']} steps on {_size(settings['image_size'])} pixels")
    lines += [f"  {entry['name']:<20}{entry['fit']['psnr']:>9.2f} dB" for entry in starts]
    return "\n".join([*lines, "", worth(starts)])


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report for a reader, in Markdown."""
    parts = [
        "# Where a coordinate network loses rank, and what it then learns",
        _introduction(report),
        "## The inlet: what leaves the first layer",
        _inlet(report),
        "## Along the layers",
        _layers(report),
        "## The tangent kernel",
        _kernel(report),
        "## The photograph",
        _fits(report),
        "## How this was made",
        _method(report),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _introduction(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    sizes = " -> ".join(["2", *[str(settings["width"])] * settings["hidden_layers"], "1"])
    quick = "**Quick sizes: these numbers show that everything runs, and little else.**\n\n" if report["quick"] else ""
    return (
        f"{quick}The network {sizes}, started in {len(report['starts'])} ways. A numerical rank counts the singular "
        "values (for kernels, the eigenvalues) above a tolerance times the largest; it means nothing without its "
        f"tolerance, so every rank is given at {len(settings['rtols'])}. Every sentence that compares was chosen by "
        "comparing numbers."
        "\n\n![overview](overview.png)"
    )


def _inlet(report: Mapping[str, Any]) -> str:
    starts, settings = report["starts"], report["settings"]
    rtols, points = settings["rtols"], settings["grid"][0] * settings["grid"][1]
    rows = []
    for entry in starts:
        inlet = representations(entry)["layers.0"]
        spectrum = inlet["spectrum"]
        rows.append(
            [
                entry["name"],
                *(_number(rank) for rank in inlet_ranks(entry)),
                f"{spectrum['stable_rank']:.1f}",
                f"{spectrum['effective_rank']:.1f}",
                f"{inlet['dead_units']}",
                f"{inlet['dead_pixels'] / points:.2%}",
            ]
        )
    head = ["Z_0", *(f"{_tolerance(rtol)}" for rtol in rtols), "stable", "effective", "dead units", "dead pixels"]
    return (
        f"Z_0 ({points:,} x {settings['width']}) is the activated output of the first layer at all {points:,} points "
        f"of the {_size(settings['grid'])} grid. Ranks at sigma/sigma_1 above the tolerance, full grid:\n\n"
        f"{_table(head, rows)}\n\n"
        f"{_compared(report, 'Z_0', inlet_ranks)}\n\n"
        "The stable rank is |Z|_F^2 / sigma_1^2, the effective rank exp of the entropy of sigma^2 / |Z|_F^2; a dead "
        "unit is 0 at every point, a dead pixel a point where all units are 0."
    )


def _compared(report: Mapping[str, Any], what: str, ranks: Any) -> str:
    """Return a list: who leads, then every start against the first one."""
    base, *others = report["starts"]
    rtols = report["settings"]["rtols"]
    lines = [leaders({entry["name"]: ranks(entry) for entry in report["starts"]}, rtols)]
    for entry in others:
        lines.append(comparison((entry["name"], base["name"]), what, (ranks(entry), ranks(base)), rtols))
    return "\n".join(f"- {line}" for line in lines)


def _layers(report: Mapping[str, Any]) -> str:
    starts, settings = report["starts"], report["settings"]
    names = [name for name in representations(starts[0]) if name != "input"]
    rows, at_inlet = [], []
    for entry in starts:
        found = representations(entry)
        ranks = {name: _intervals(found[name]["spectrum"]["ranks"]) for name in names}
        layer, share = narrowest(entry, MATRIX_RTOL)
        if layer == "layers.0":
            at_inlet.append(entry["name"])
        jacobians = {jacobian["name"]: jacobian for jacobian in entry["diagnosis"]["feature_jacobians"]}
        medians = [_median(jacobians[name]) for name in names[1:]]
        rows.append(
            [
                entry["name"],
                *(_number(_at(entry, ranks[name], MATRIX_RTOL)) for name in names),
                f"{layer or 'tie'} ({share:.0%})",
                *(f"{median:g}" for median in medians),
            ]
        )
    head = ["", *names, "lowest for its width", *(f"Jacobian of {name}" for name in names[1:])]
    if len(at_inlet) == len(starts):
        sentence = "For all of them the first layer is the narrowest place."
    elif at_inlet:
        sentence = f"The first layer is the narrowest place of {', '.join(at_inlet)}, and of no other."
    else:
        sentence = "For none of them is the first layer the narrowest place."
    return (
        f"Ranks of the activated outputs at sigma/sigma_1 > {_tolerance(MATRIX_RTOL)}, width {settings['width']}, full "
        "grid; the last columns are the ranks of the feature Jacobians diag(a) W of the later layers at the same "
        f"tolerance, the median over {settings['jacobian_pixels']} sampled pixels.\n\n{_table(head, rows)}"
        f"\n\n{sentence}"
    )


def _median(jacobian: Mapping[str, Any]) -> float:
    """Return the rank of a feature Jacobian at the median pixel."""
    return next(float(rank["median"]) for rank in jacobian["ranks"] if rank["rtol"] == MATRIX_RTOL)


def _kernel(report: Mapping[str, Any]) -> str:
    starts, settings = report["starts"], report["settings"]
    rtols = settings["rtols"]
    kernel = starts[0]["diagnosis"]["kernel"]
    rows = [
        [
            entry["name"],
            *(_number(rank) for rank in kernel_ranks(entry)),
            f"{entry['diagnosis']['kernel']['whole']['stable_rank']:.1f}",
            f"{entry['diagnosis']['kernel']['whole']['effective_rank']:.1f}",
        ]
        for entry in starts
    ]
    where = f"{kernel['points']:,} points ({_size(settings['ntk_grid'])})"
    if not kernel["full_grid"]:
        where += f", not the full grid of {kernel['grid_points']:,}"
    blocks = [
        [
            f"{entry['name']}: {block['name']}",
            *(_number(rank) for rank in _intervals(block["ranks"])),
            f"{_trace_shares(entry)[block['name']]:.1%}",
        ]
        for entry in starts
        for block in entry["diagnosis"]["kernel"]["blocks"]
    ]
    holding = [all(bound["hold"] for bound in entry["diagnosis"]["kernel"]["bounds"]) for entry in starts]
    bounds = "at every tolerance for all starts" if all(holding) else f"for {sum(holding)} of {len(starts)} starts only"
    return (
        f"Ranks of the tangent kernel on {where}, eigenvalues above the tolerance times lambda_1:\n\n"
        f"{_table(['NTK', *(f'{_tolerance(rtol)}' for rtol in rtols), 'stable', 'effective'], rows)}\n\n"
        f"{_compared(report, 'the NTK', kernel_ranks)}\n\n"
        "The kernel is the sum of one block a parameter layer. Their ranks above the *same absolute* threshold as the "
        "whole kernel's, and each layer's share of the trace (that one on the full grid):\n\n"
        f"{_table(['block', *(f'{_tolerance(rtol)}' for rtol in rtols), 'trace'], blocks)}\n\n"
        "At one absolute threshold tau the largest block's rank bounds the kernel's from below, and the sum of the "
        f"blocks' ranks bounds it from above at L tau, L blocks; measured, this holds {bounds}."
    )


def _trace_shares(entry: Entry) -> dict[str, float]:
    return {layer["name"]: layer["trace_share"] for layer in entry["diagnosis"]["sensitivities"]}


def _fits(report: Mapping[str, Any]) -> str:
    settings, fitted = report["settings"], report["starts"]
    base = fitted[0]
    rows = [
        [
            entry["name"],
            f"{entry['fit']['lr']:g}",
            f"{entry['fit']['psnr']:.2f}",
            "" if entry is base else f"{entry['fit']['psnr'] - base['fit']['psnr']:+.2f}",
            f"{entry['fit']['seconds']:.1f}",
        ]
        for entry in fitted
    ]
    ranked = sorted(fitted, key=lambda entry: -entry["fit"]["psnr"])
    lines = [worth(fitted), f"From best to worst: {', '.join(entry['name'] for entry in ranked)}."]
    for what, ranks, rtols in (("Z_0", inlet_ranks, settings["rtols"]), ("the NTK", kernel_ranks, settings["rtols"])):
        counts = []
        for place, rtol in enumerate(rtols):
            agree, total = concordant(fitted, {entry["name"]: ranks(entry)[place][0] for entry in fitted})
            counts.append(f"{agree} of {total} at {_tolerance(rtol)}")
        lines.append(f"Pairs of fits where the higher rank of {what} goes with the higher PSNR: {', '.join(counts)}.")
    return (
        f"{report['image']}, grey, {_size(settings['image_size'])} pixels; Adam, {settings['steps']:,} steps of "
        f"{settings['batch_size']:,} pixels, learning rate falling {_schedule(settings['schedule'])}, the same for all "
        f"but the rate itself. {settings['subtracted']:g} is subtracted from the pixels before every fit and added "
        "after it. PSNR over all pixels, data range 1:\n\n"
        f"{_table(['', 'learning rate', 'PSNR (dB)', 'against ' + base['name'], 'seconds'], rows)}\n\n"
        + "\n".join(f"- {line}" for line in lines)
        + "\n\n![reconstructions](reconstructions.png)"
    )


def _schedule(name: str) -> str:
    return {"exponential": "exponentially to a tenth", "cosine": "along a cosine", "constant": "nowhere"}[name]


def _method(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    machine = report["machine"]
    stages = [[stage, f"{seconds:.1f}"] for stage, seconds in report["seconds"].items()]
    networks = [
        [
            entry["name"],
            f"{entry['diagnosis']['parameters']:,}",
            ", ".join(f"{key} {value}" for key, value in _options(entry["diagnosis"]["network"]).items()),
        ]
        for entry in report["starts"]
    ]
    return (
        "Diagnosis in fp64 from the first layer on; batch norm with statistics of the full grid, frozen. Seed "
        f"{report['seed']}; {versions}; {machine['model']}, {machine['threads']} threads, {machine['device']}.\n\n"
        f"{_table(['start', 'parameters', 'options'], networks)}\n\n{_table(['stage', 'seconds'], stages)}\n\n"
        "![ranks](ranks.png)\n\n![spectra](spectra.png)"
    )


def _options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one start from another, without what it does not have."""
    activation = network["activation"][0]
    found = {"activation": shown(activation), "init": network["init"]}
    found |= {"encoding": described(network["encoding"]) if network["encoding"] else None}
    found |= {"norm": network["norm"][0], "norm position": network["norm_position"] if network["norm"][0] else None}
    has_omega = isinstance(activation, str) and "omega" in ACTIVATIONS[activation].numbers
    found |= {"omega": network["omega"][0] if has_omega else None}
    return {key: value for key, value in found.items() if value is not None}
