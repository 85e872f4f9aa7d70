"""Table 1's form: seven methods scored on images, as rows, as bars, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure as Drawing

from inrfast.experiments.inlet_rank_collapse.methods import METHODS
from inrfast.experiments.inlet_rank_collapse.protocol import STACKS, Setup, images_told, scoring, size_told, tuning
from inrfast.experiments.paper import Outcome, Request, Row, Table
from inrfast.experiments.pictures import Pictures
from inrfast.experiments.scores import Interval, Pair, difference, interval, kendall, pairs

PAPER = {
    "default": 23.57, "pe": 27.15, "siren": 27.29, "bn": 25.04, "ours": 25.61, "siren-first": 26.15, "bn-first": 25.82
}  # fmt: skip
"""PSNR (dB) of Table 1."""

CELLS = (
    ("default setting: ReLU (default init)", "default"),
    ("default setting: PE", "pe"),
    ("default setting: SIREN", "siren"),
    ("default setting: BN", "bn"),
    ("default setting: ReLU (our init)", "ours"),
    ("first layer: PE", None),
    ("first layer: SIREN", "siren-first"),
    ("first layer: BN", "bn-first"),
    ("first layer: ReLU (our init)", None),
)
"""The nine cells of Table 1 below ReLU's; None: the paper prints a dash."""

DIFFERENCES = (("ours", "default"), ("siren-first", "siren"), ("bn-first", "bn"))

MEASURES = {
    "psnr": "PSNR (dB)",
    "psnr_8bit": "PSNR of 8 bits (dB)",
    "ssim_8bit": "SSIM of 8 bits",
    "psnr_between": "PSNR between the fitted pixels (dB)",
}
"""What is scored; the last where the images have twice the size."""


@dataclass(frozen=True)
class Scored:
    """Seven methods with the setting of each, and their fits of every image.

    Attributes
    ----------
    setups
        By method.
    fits
        By method, one per image in the images' order, as :func:`.protocol.kept` has them.
    pictures
        The images.
    """

    setups: Mapping[str, Setup]
    fits: Mapping[str, Sequence[Mapping[str, Any]]]
    pictures: Pictures

    def values(self, method: str, measure: str, images: Sequence[int]) -> list[float]:
        """Return a method's numbers on some images."""
        return [float(self.fits[method][i][measure]) for i in images]

    def mean(self, method: str, measure: str, images: Sequence[int]) -> Interval:
        """Return their mean and interval."""
        return interval(self.values(method, measure, images))

    @property
    def measures(self) -> dict[str, str]:
        """Names and labels of the measures that every fit has."""
        every = [fit for fits in self.fits.values() for fit in fits]
        return {name: label for name, label in MEASURES.items() if all(name in fit for fit in every)}

    @property
    def psnrs(self) -> dict[str, list[float]]:
        """By method, on the images that chose nothing."""
        return {method: self.values(method, "psnr", scoring(self.pictures)) for method in PAPER}

    @property
    def of_all(self) -> list[int]:
        """Numbers of all images."""
        return list(range(len(self.pictures)))


def outcome(
    scored: Scored, name: str, text: Sequence[str], tables: Sequence[Table], numbers: Mapping[str, Any],
    request: Request,
) -> Outcome:  # fmt: skip
    """Return the finished table, with what is special to it."""
    order = pairs(PAPER, scored.psnrs)
    said = [
        f"{_images(scored)} {images_told(scored.pictures, request)}",
        *text,
        _gain(scored),
        *(_first_layer(scored, whole, first) for first, whole in DIFFERENCES[1:]),
        _order(order, kendall(PAPER, scored.psnrs)),
        "The two dashes of the paper's second row: PE and our initialisation act on the first layer alone, so "
        "'first layer' is the same network.",
        STACKS,
        *_diverged(scored),
        *filter(None, [scored.pictures.shortage]),
    ]
    return Outcome(
        rows(scored, size_told(scored.pictures)),
        {name: bars(scored)},
        said,
        [measures(scored), order_table(order), per_image(scored), *tables],
        {**numbers, "scores": _json(scored), "kendall": kendall(PAPER, scored.psnrs)},
    )


def _images(scored: Scored) -> str:
    if len(scored.pictures) == 1:
        return "PSNR on the one image, which chose the settings too."
    count = len(scoring(scored.pictures))
    if count == 1:
        return "PSNR on the one image that chose no setting."
    return f"PSNR over {count} images that chose no setting, mean and 95 % confidence interval over images."


def rows(scored: Scored, size: str) -> list[Row]:
    """Return the nine cells, the paper's number beside ours, and the differences that the paper speaks of; ``size`` is
    that of the images in words."""
    found = []
    for what, method in CELLS:
        if method is None:
            found.append(Row(what, "-", "-", "the same network as in the default setting"))
            continue
        ours = scored.mean(method, "psnr", scoring(scored.pictures))
        every = scored.mean(method, "psnr", scored.of_all)
        told = f"{ours}; all {len(scored.pictures)} images {every.mean:.2f}" if len(scored.pictures) > 1 else f"{ours}"
        found.append(Row(what, f"{PAPER[method]:.2f}", told, f"{size}; {scored.setups[method].told}"))
    for above, below in DIFFERENCES:
        apart = difference(scored.psnrs[above], scored.psnrs[below])
        what = f"{METHODS[above].label} minus {METHODS[below].label}"
        found.append(Row(what, f"{PAPER[above] - PAPER[below]:+.2f}", apart.signed, f"{size}; paired over images"))
    return found


def _gain(scored: Scored) -> str:
    apart, claimed = difference(scored.psnrs["ours"], scored.psnrs["default"]), PAPER["ours"] - PAPER["default"]
    if apart.half is None:
        return f"Our initialisation minus default: {apart.signed} dB on one image (the paper has {claimed:+.2f})."
    if apart.low > 0:
        size = "holds the paper's" if apart.low <= claimed <= apart.high else "leaves out the paper's"
        return f"Our initialisation beats default by {apart} dB, an interval that {size} {claimed:+.2f}."
    if apart.high < 0:
        return f"Our initialisation loses to default by {-apart.mean:.2f} ± {apart.half:.2f} dB; the paper has a gain."
    return f"Our initialisation minus default is {apart.signed} dB: no gain is shown (the paper has {claimed:+.2f})."


def _first_layer(scored: Scored, whole: str, first: str) -> str:
    apart, claimed = difference(scored.psnrs[first], scored.psnrs[whole]), PAPER[first] - PAPER[whole]
    name = METHODS[whole].label
    seen = "not decided by these images" if not apart.decided else "worse" if apart.mean < 0 else "better"
    return (
        f"{name} in the first layer only against {name} everywhere: {apart.signed} dB, {seen}; the paper has "
        f"{claimed:+.2f} and calls it nearly identical."
    )


def _order(order: Sequence[Pair], tau: float) -> str:
    by = {verdict: [pair for pair in order if pair.verdict == verdict] for verdict in ("agrees", "opposite", "open")}
    against = "; ".join(f"{METHODS[pair.second].label} above {METHODS[pair.first].label}" for pair in by["opposite"])
    return (
        f"Of the {len(order)} pairs of methods {len(by['agrees'])} are in the paper's order, {len(by['opposite'])} in "
        f"the opposite one{f' ({against})' if against else ''}, each beyond its 95 % interval, and {len(by['open'])} "
        f"are open. Kendall's tau of the means is {tau:.2f}."
    )


def _diverged(scored: Scored) -> list[str]:
    bad = [
        f"{METHODS[method].label} on {fit['image']}"
        for method, fits in scored.fits.items()
        for fit in fits
        if fit["stopped"] == "diverged"
    ]
    return [f"Diverged, and scored at the best of its evaluations: {'; '.join(bad)}."] if bad else []


def measures(scored: Scored) -> Table:
    """Return each method's means by every measure, on the images that chose nothing, that chose, and on all."""
    parts = {"scored": scoring(scored.pictures), "tuning": tuning(scored.pictures), "all": scored.of_all}
    known = scored.measures
    head = ["method", *(f"{label}, {part}" for label in known.values() for part in parts)]
    lines = [
        [
            METHODS[method].label,
            *(
                f"{scored.mean(method, measure, images).mean:.{3 if measure.startswith('ssim') else 2}f}"
                for measure in known
                for images in parts.values()
            ),
        ]
        for method in PAPER
    ]
    names = scored.pictures.names
    scores, chose = ("; ".join(names[i] for i in parts[part]) for part in ("scored", "tuning"))
    return Table(f"Means by {len(known)} measures (scored: {scores}. Chose settings: {chose})", head, lines)


def order_table(order: Sequence[Pair]) -> Table:
    """Return every pair of methods."""
    lines = [
        [METHODS[p.first].label, METHODS[p.second].label, f"{p.paper:+.2f}", p.ours.signed, p.verdict] for p in order
    ]
    return Table("Pairs, in the paper's order", ("first", "second", "paper", "ours", "order"), lines)


def per_image(scored: Scored) -> Table:
    """Return every image's PSNR."""
    head = ["image", *(METHODS[method].label for method in PAPER)]
    lines = [
        [name, *(f"{scored.fits[method][i]['psnr']:.2f}" for method in PAPER)]
        for i, name in enumerate(scored.pictures.names)
    ]
    return Table("PSNR (dB) of every image", head, lines)


def bars(scored: Scored) -> Drawing:
    """Return bars with intervals, in the paper's columns, and the paper's numbers as diamonds."""
    drawing = Drawing(figsize=(7.5, 4), layout="constrained")
    axes = drawing.subplots()
    groups = (("default",), ("pe",), ("siren", "siren-first"), ("bn", "bn-first"), ("ours",))
    lowest = min(PAPER.values())
    for place, group in enumerate(groups):
        for number, method in enumerate(group):
            x = place + (number - (len(group) - 1) / 2) * 0.4
            mean = scored.mean(method, "psnr", scoring(scored.pictures))
            hatch = "///" if METHODS[method].dashed else None
            axes.bar(x, mean.mean, 0.38, color=METHODS[method].colour, hatch=hatch, edgecolor="white")
            if mean.half is not None:
                axes.errorbar(x, mean.mean, mean.half, color="0.25", capsize=3)
            axes.plot(x, PAPER[method], "D", color="white", markeredgecolor="black", markersize=6)
            axes.text(x, 0.02, f"{mean.mean:.2f}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
            lowest = min(lowest, mean.mean - (mean.half or 0))
    side = scored.pictures.values.shape[1]
    axes.set_title(f"images of {side}x{side} pixels", fontsize=9)
    axes.set_xticks(range(len(groups)), [METHODS[group[0]].label for group in groups])
    axes.set_ylim(bottom=lowest - 2)
    axes.set_ylabel(f"PSNR (dB), axis from {lowest - 2:.1f} dB, not from 0")
    axes.plot([], [], "D", color="white", markeredgecolor="black", markersize=6, label="paper (size not stated)")
    axes.bar([0], [0], color="0.5", label="all layers")
    axes.bar([0], [0], color="0.5", hatch="///", edgecolor="white", label="first layer only")
    drawing.legend(fontsize=8, loc="outside upper center", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def _json(scored: Scored) -> dict[str, Any]:
    parts = {"scored": scoring(scored.pictures), "tuning": tuning(scored.pictures), "all": scored.of_all}
    return {
        method: {
            "setting": scored.setups[method].told,
            "paper": PAPER[method],
            **{
                part: {measure: scored.mean(method, measure, images).json for measure in scored.measures}
                for part, images in parts.items()
            },
            "images": {
                fit["image"]: {measure: fit[measure] for measure in scored.measures} for fit in scored.fits[method]
            },
        }
        for method in PAPER
    }
