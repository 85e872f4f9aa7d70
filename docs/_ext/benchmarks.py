"""Tables of the benchmarks page, made from ``bench/results/*.json`` while the site is built.

No number is copied by hand. In a page, ``{benchmark} rank-speed`` becomes the regime of that run (processor, threads,
versions, date), its table and a link to the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "bench" / "results"

Rows = list[list[str]]
TABLES: dict[str, Callable[[Any], Rows]] = {}
"""How each file becomes a table: the head first, then its rows."""

GROUPS = {
    "all": "all",
    "matrices": "matrices of a chosen spectrum",
    "networks": "kernels of networks",
    "near rtol": "tolerances next to an eigenvalue",
    "near level": "levels next to an eigenvalue",
    "pairs": "the largest eigenpairs",
    "flat": "flat spectra",
    "cluster": "clustered points or eigenvalues",
    "dead": "networks with dead units",
    "near copies": "units or points that are nearly copies",
    "units scaled": "networks with units of very different scale",
}
"""The groups of cases shown of the truth bench, and in which words."""


def table(name: str) -> Callable[[Callable[[Any], Rows]], Callable[[Any], Rows]]:
    """Keep a function as the way in which the file of this name becomes a table."""

    def keep(function: Callable[[Any], Rows]) -> Callable[[Any], Rows]:
        TABLES[name] = function
        return function

    return keep


def seconds(value: float) -> str:
    """Return a time with three figures, in the unit that suits it."""
    size, unit = (1.0, "s") if value >= 1 else (1e-3, "ms") if value >= 1e-3 else (1e-6, "µs")
    return f"{value / size:.3g} {unit}"


def times(value: float, quartiles: Iterable[float] | None = None) -> str:
    """Return a ratio, with the quartiles of its pairs where they are known."""
    ends = list(quartiles or ())
    shown = [f"{number:,.{0 if number >= 9.95 else 1 if number >= 2 else 2}f}" for number in (value, *ends)]
    return shown[0] + (f" ({shown[1]} to {shown[-1]})" if ends else "")


def level(value: float) -> str:
    """Return a tolerance as people write it: 1e-6."""
    return f"{value:.0e}".replace("e-0", "e-")


def interval(ends: list[int]) -> str:
    """Return a rank's interval, or the rank where it is one number."""
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


@table("rank-speed")
def _(data: Any) -> Rows:
    rows = [["start", "rank at 1e-6", "time", "pivots", "peak memory", "earlier version", "times as fast"]]
    for start in ("default", "rank_expanding", "siren"):
        now, before = data[start]["after"], data[start]["before"]
        memory = f"{now['megabytes'] / 1e3:.1f} GB"
        faster = f"{data[start]['times faster']['seconds']:.1f}"
        rank, taken, earlier = interval(now["interval"]), seconds(now["seconds"]), seconds(before["seconds"])
        rows.append([start.replace("_", "-"), rank, taken, f"{now['pivots']:,}", memory, earlier, faster])
    return rows


@table("inertia")
def _(data: Any) -> Rows:
    rows = [["network", "points", "above", "count", "time", "peak memory"]]
    for name, found in data.items():
        if "rank" in found and "peak_gb" in found:
            network = name.replace(f"-{found['rtol']!r}", "").replace("-in-2-gb", ", in 2 GB")
            count, taken = interval(found["rank"]), seconds(found["seconds"])
            points, memory = f"{found['points']:,}", f"{found['peak_gb']:.1f} GB"
            rows.append([network, points, level(found["rtol"]), count, taken, memory])
    return rows


@table("rank-truth")
def _(data: Any) -> Rows:
    rows = [["cases", "number", "wrong", "intervals asked", "left unresolved", "median width, ranks from 100 on"]]
    for name, shown in GROUPS.items():
        found = data[name]
        width = found.get("the same, ranks from 100 on", {}).get("median")
        counts = [str(found[key]) for key in ("cases", "wrong", "intervals asked", "unresolved")]
        rows.append([shown, *counts, "" if width is None else f"{100 * width:.1f} %"])
    return rows


@table("fits")
def _(data: Any) -> Rows:
    rows = [["step", "against", "times as fast (quartiles)", "inrfast", "the other"]]
    for run in data["benchmarks"]:
        extra = run["extra_info"]
        for other, ratio in extra["measured"].items():
            own, others = (extra["median_seconds"].get(key) for key in ("inrfast", other))
            shown = [seconds(value) if value else "" for value in (own, others)]
            what = f"{run['group']}, {run['params']['activation']}" if run["params"] else run["group"]
            rows.append([what, other, times(ratio, extra["quartiles"].get(other)), *shown])
    return rows


@table("batch-norm")
def _(data: Any) -> Rows:
    rows = [["batch norm behind, networks", "times as fast (quartiles)", "inrfast", "plain PyTorch"]]
    for name, found in data["cases"].items():
        ratio = times(found["measured"]["eager"], found["quartiles"]["eager"])
        own, other = (seconds(found["median_seconds"][key]) for key in ("inrfast", "eager"))
        where, _, networks = name.partition("[")[2].rstrip("]").rpartition("-")
        rows.append([f"{where}, {networks}", ratio, own, other])
    return rows


@table("norm-steps")
def _(data: Any) -> Rows:
    rows = [["activation", "norm", "threads", "times as fast (quartiles)", "inrfast", "plain PyTorch"]]
    for case in data["cases"]:
        if case["dtype"] == "float32" and case["native"] == "avx512":
            own, other = (seconds(case["milliseconds"][key] / 1e3) for key in ("inrfast", "eager"))
            ratio = times(case["eager / inrfast"], case["quartiles"])
            rows.append([case["activation"], case["norm"], str(case["threads"]), ratio, own, other])
    return rows


@table("any-network")
def _(data: Any) -> Rows:
    rows = [["network", "parameters", "inrfast", "the best way of torch", "which", "times as fast"]]
    for case in data["networks"]:
        own, other = seconds(case["inrfast s"]), seconds(case["torch s"])
        shown = [case["network"], f"{case['parameters']:,}", own, other, case["best way"]]
        rows.append([*shown, times(case["torch / inrfast"])])
    return rows


@table("dense-2-threads")
def _(data: Any) -> Rows:
    rows = [["points", "width", "outputs", "activation", "times as fast (quartiles)", "inrfast", "tiles in PyTorch"]]
    for case in data["cases"]:
        own, other = (seconds(case["milliseconds"][key] / 1e3) for key in ("inrfast", "torch"))
        about = [f"{case['points']:,}", *(str(case[key]) for key in ("width", "outputs", "activation"))]
        rows.append([*about, times(case["ratio"], case["quartiles"]), own, other])
    return rows


@table("modules")
def _(data: Any) -> Rows:
    rows = [["kind of module", "parameters", "plain PyTorch, per step", "fit, per step", "fit over plain"]]
    for case in data["modules"]:
        plain, own = (seconds(case[key] / 1e3) for key in ("plain ms per step", "fit ms per step"))
        rows.append([case["kind"], f"{case['parameters']:,}", plain, own, f"{case['fit / plain']:.2f}"])
    return rows


@table("2026-11-26-h100")
def _(data: Any) -> Rows:
    rows = [["what", "inrfast", "the other", "which", "times as fast"]]
    step = data["step 512x512 relu medium"]
    own = step["fused"]["seconds"]
    for other in ("eager fp32", "eager TF32", "compiled TF32, CUDA graph", "compiled bf16, CUDA graph"):
        taken = step[other]["seconds"]
        name = "training step, 512x512 points, ReLU, medium"
        rows.append([name, seconds(own), seconds(taken), other, times(taken / own)])
    own, other = data["dense relu high"]["to_dense"]["seconds"], data["dense rival fp32"]["best"]["seconds"]
    name = "dense kernel, 65,536 points, high"
    rows.append([name, seconds(own), seconds(other), "PyTorch in fp32", times(other / own)])
    for name, key, part in (
        ("dense kernel, 65,536 points, highest (fp64)", "dense relu highest", "to_dense"),
        ("certified rank at 1e-6, 65,536 points", "rank", "certified rank"),
        ("diagnosis, 256x256, width 256", "diagnose", "diagnose"),
    ):
        rows.append([name, seconds(data[key][part]["seconds"]), "", "", ""])
    return rows


def regime(data: Any) -> list[str]:
    """Return what the file says of the machine, the threads, the versions and the day, for one line."""
    first = next((value for value in data.values() if isinstance(value, dict) and "processor" in value), {})
    about = {**first, **{key: value for key, value in data.items() if not isinstance(value, dict)}}
    for key in ("regime", "about", "environment"):
        about |= data.get(key, {})
    versions = data.get("versions") or first.get("versions") or {}
    machine = data.get("machine_info", {}).get("cpu", {})
    processor = about.get("gpu") or about.get("processor") or machine.get("brand_raw") or about.get("machine")
    cores = about.get("cores") or machine.get("count")
    threads = about.get("threads") or next(
        (run["extra_info"]["threads"] for run in data.get("benchmarks", []) if "threads" in run["extra_info"]), None
    )
    told = [
        str(processor or "processor not recorded"),
        f"{cores} cores" if cores else "",
        f"{threads} thread{'s' * (threads > 1)}" if threads else "",
        *(f"{name} {about[key]}" for key, name in (("torch", "PyTorch"), ("triton", "Triton")) if key in about),
        f"PyTorch {versions['torch']}" if "torch" in versions and "torch" not in about else "",
        str(about.get("date") or data.get("datetime") or "")[:10] or "date not recorded",
    ]
    return [part for part in told if part]


def markdown(name: str) -> list[str]:
    """Return the lines of a benchmark's regime, table and link."""
    data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    head, *rows = TABLES[name](data)
    if not rows or any(len(row) != len(head) for row in rows):
        raise ValueError(f"bench/results/{name}.json: no table of {len(head)} columns")
    about = data.get("what") or data.get("case") or data.get("network")
    told = ", ".join([about] * bool(about) + regime(data))
    right = ["---:" if row[:1].isdigit() or not row else "---" for row in rows[0]]
    lines = [f"*{told}.* [The numbers](/../bench/results/{name}.json).", "", ":::{div} benchmark"]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, right, *rows)]
    return [*lines, ":::"]


class Benchmark(SphinxDirective):
    """The table of one file of ``bench/results/``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        self.env.note_dependency(str(RESULTS / f"{name}.json"))
        held = nodes.container()
        source = f"bench/results/{name}.json"
        self.state.nested_parse(StringList(markdown(name), source=source), self.content_offset, held)
        return held.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive ``{benchmark}``."""
    app.add_directive("benchmark", Benchmark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
