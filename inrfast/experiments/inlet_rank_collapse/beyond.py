"""Beyond the paper: is there a better start of a plain ReLU network? Searched by its tangent kernel, scored by fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.inlet_rank_collapse.protocol import SIZES, Setup, all_fits, fits_cell, scoring, tuning
from inrfast.experiments.inlet_rank_collapse.starts import BASELINES, DIRECTIONS, FAMILY, GAINS, HIDDEN, SHIFTS, STARTS
from inrfast.experiments.inlet_rank_collapse.table1 import images_of
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.pictures import Pictures, pictures
from inrfast.experiments.scores import Interval, difference, interval
from inrfast.grids import grid
from inrfast.signals.image import MID_GREY
from inrfast.tangent.local import ntk

RATES = (1.5e-3, 2.7e-3, 5e-3, 8.7e-3, 1.5e-2, 2.7e-2)
"""Learning rates that every start tries, in the short fits and again in full ones. Starts differ in the rate that they
bear, by factors below 3: on a coarser grid the one whose best rate is hit seems better."""

SCHEDULE = "exponential"
FLOWS = tuple(float(10**power) for power in np.arange(1, 6.5, 0.5))
"""Steps of gradient descent at rate 1 / lambda_1, of which the prediction takes the best."""

RANK_RTOL = 1e-4
"""Tolerance of the kernel's rank, relative to its largest eigenvalue."""

BETTER, AT_LEAST = 1.0, 0.5
"""dB by which a start must beat the paper's, and which the interval's lower end must exceed."""

PREDICTED = {
    "held_out": "held-out pixels, best step",
    "trained": "training pixels, as many steps as the fit",
    "rank": f"rank of the kernel at {RANK_RTOL:g}",
}
"""What the kernel at the start says about a start."""


@dataclass(frozen=True)
class Search:
    """Sizes of the search: side of its images, networks per start, starts fitted for their prediction and as a spread,
    and starts that are scored for their prediction and for their short fit."""

    side: int
    seeds: int
    best: int
    spread: int
    predicted: int = 1
    fitted: int = 3


SEARCHES = {"quick": Search(24, 1, 3, 5), "paper": Search(48, 2, 16, 12)}


class Beyond(Figure):
    """Predictions of all starts, short fits of some, then full fits of the few best on images that chose nothing."""

    name = "beyond"
    title = "Beyond the paper: a search for a better start of a ReLU network"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, small = images_of(request), small_images(request)
        known = [_predictions(group, names, small, request) for group, names in groups().items()]
        if any(cell.name not in found for cell in known):
            return known
        sizes = SIZES[request.preset]
        known += [
            fits_cell(f"short-{name}", _setups(name, sizes.short), small, tuning(small), request, networks=STARTS)
            for name in to_fit(request, found)
        ]
        if any(cell.name not in found for cell in known):
            return known
        known += [
            fits_cell(f"rates-{name}", _setups(name, sizes.steps), given, tuning(given), request, networks=STARTS)
            for name in finalists(request, found)
        ]
        if any(cell.name not in found for cell in known):
            return known
        return known + [
            fits_cell(f"score-{name}", [best_setup(found, name)], given, scoring(given), request, networks=STARTS)
            for name in finalists(request, found)
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        from scipy import stats  # slow to import

        given = images_of(request)
        said, fitted = predictions(found), short_fits(found)
        setups = {name: best_setup(found, name) for name in finalists(request, found)}
        fits = all_fits(cell for name, cell in found.items() if name.startswith("score-"))
        psnrs = {
            name: [fits[one, given.names[i]]["psnr"] for i in scoring(given)] for name, one in setups.items()
        }  # fmt: skip
        gains = {name: difference(psnrs[name], psnrs["ours"]) for name in setups if name != "ours"}
        agreement = {
            kind: float(stats.spearmanr([said[name][kind] for name in fitted], list(fitted.values())).statistic)
            for kind in PREDICTED
        }
        rows = [
            Row(f"{STARTS[name].label}, minus the paper's", _paper(name), gain.signed, f"lr {setups[name].lr:g}")
            for name, gain in gains.items()
        ]
        numbers = {
            "predicted": said,
            "short": fitted,
            "agreement": agreement,
            "scores": {name: {"lr": setups[name].lr, "psnrs": values} for name, values in psnrs.items()},
            "minus_ours": {name: gain.json for name, gain in gains.items()},
            "better": winners(gains),
        }
        return Outcome(
            rows,
            {self.name: _drawing(said, fitted, gains)},
            [_how(request), *_told(said, fitted, agreement), verdict(gains), *_edge(setups), *_short_of(given)],
            [_scores_table(psnrs, gains, setups, found), _factors_table(said), _family_table(said, fitted)],
            numbers,
        )


# ---- the search ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _small(request: Request, preset: str) -> Pictures:
    return pictures(request, SIZES[preset].images, SEARCHES[preset].side)


def small_images(request: Request) -> Pictures:
    """Return the images of the search, read once: those of the table, smaller."""
    return _small(request, request.preset)


def groups() -> dict[str, list[str]]:
    """Return the starts by the cell that predicts them."""
    found = {"baselines": list(BASELINES)}
    for name, start in FAMILY.items():
        factors = start.factors
        group = f"{factors['directions']}-{factors['hidden']}" if factors else "scales"
        found.setdefault(group, []).append(name)
    return found


def _setups(name: str, steps: int) -> list[Setup]:
    return [Setup(name, lr, SCHEDULE, steps) for lr in RATES]


def _predictions(group: str, names: Sequence[str], small: Pictures, request: Request) -> Cell:
    sizes, search, chosen = SIZES[request.preset], SEARCHES[request.preset], tuning(small)
    values = small.values[chosen].clone()
    settings = {
        "starts": {name: dict(STARTS[name].options) for name in names},
        **small.settings,
        "images": [small.names[i] for i in chosen],
        "width": sizes.width,
        "seeds": search.seeds,
        "seed": request.seed,
        "steps": sizes.steps,
        "flows": list(FLOWS),
        "rtol": RANK_RTOL,
    }

    def run(work: Work) -> Found:
        side = values.shape[1]
        coords = grid((side, side), device=work.device)
        targets = values.reshape(len(values), -1, 3).to(work.device).double() - MID_GREY
        found = {
            name: [
                asdict(predict(name, seed, sizes.width, coords, targets, checkerboard(side), sizes.steps))
                for seed in range(request.seed, request.seed + search.seeds)
            ]
            for name in names
        }
        return Found({"predictions": found})

    return Cell(f"predict-{group}", settings, run, len(names) * search.seeds * search.side**4 * 1e-6)


def checkerboard(side: int) -> Tensor:
    """Return which pixels train, (side * side,) bool: every second one, in rows that take turns."""
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((i + j) % 2 == 0).flatten()


@dataclass(frozen=True)
class Prediction:
    """What the kernel of one network at its start says, see :data:`PREDICTED`; PSNRs (dB) of each image."""

    held_out: list[float]
    trained: list[float]
    rank: int


def predict(
    name: str, seed: int, width: int, coords: Tensor, targets: Tensor, train: Tensor, steps: int
) -> Prediction:  # fmt: skip
    """Predict fits of a start's network by gradient descent on its linearisation.

    After T steps at rate ``1 / lambda_1`` the outputs at any points are ``f_0 + K_train U g_T(lambda) U^T (y - f_0)``,
    ``g_T = (1 - (1 - lambda / lambda_1)^T) / lambda``. Each output takes a third of the kernel summed over the three.

    Parameters
    ----------
    name, seed, width
        Of the start and its network.
    coords, targets, train
        (N, 2), (images, N, 3) in fp64, and which of the N points train.
    steps
        After which the training pixels are looked at.
    """
    net = STARTS[name].network(2, 3, seed, width, device=coords.device)
    train = train.to(coords.device)
    kernel = torch.as_tensor(ntk(net, coords, precision="highest").to_dense()).double() / 3
    with torch.no_grad():
        start = net(coords).double()
    held_out, trained, values = linearised(kernel, targets - start, train, steps)
    return Prediction(held_out, trained, int((values > RANK_RTOL * values[-1]).sum()))


def linearised(kernel: Tensor, error: Tensor, train: Tensor, steps: int) -> tuple[list[float], list[float], Tensor]:
    """Return PSNRs of the held-out pixels at their best step, of the training pixels, and the training kernel's values.

    ``kernel`` (N, N) and ``error = y - f_0`` (images, N, outputs) in fp64; ``train`` (N,) bool; PSNRs are by image.
    """
    values, vectors = torch.linalg.eigh(kernel[train][:, train])
    values = values.clamp_min(1e-15 * float(values[-1]))
    share = vectors.mT @ error[:, train]  # (images, n, outputs)
    across = kernel[~train][:, train] @ vectors
    left = [error[:, ~train] - across @ (_learned(values, flow) / values).unsqueeze(1).mul(share) for flow in FLOWS]
    held_out = torch.stack([_psnrs(one) for one in left]).amax(0)
    trained = _psnrs((1 - _learned(values, steps)).unsqueeze(1) * share)
    return held_out.tolist(), trained.tolist(), values


def _learned(values: Tensor, steps: float) -> Tensor:
    """Return ``1 - (1 - lambda / lambda_1)^steps``."""
    return -torch.expm1(steps * torch.log1p(-values / values[-1]))


def _psnrs(error: Tensor) -> Tensor:
    return -10 * torch.log10(error.square().mean((1, 2)))


# ---- what was found ------------------------------------------------------------------------------------------------


def predictions(found: Mapping[str, Found]) -> dict[str, dict[str, float]]:
    """Return the means over networks and images of what was predicted, by start."""
    return {
        name: {kind: float(np.mean([np.mean(one[kind]) for one in seeds])) for kind in PREDICTED}
        for cell, what in found.items()
        if cell.startswith("predict-")
        for name, seeds in what.numbers["predictions"].items()
    }


def to_fit(request: Request, found: Mapping[str, Found]) -> list[str]:
    """Return the starts that are fitted: baselines, the best by prediction, and others from best to worst evenly."""
    search, said = SEARCHES[request.preset], predictions(found)
    ranked = sorted(FAMILY, key=lambda name: -said[name]["held_out"])
    best, rest = ranked[: search.best], ranked[search.best :]
    places = np.unique(np.linspace(0, len(rest) - 1, search.spread).round().astype(int))
    return [*BASELINES, *best, *(rest[place] for place in places)]


def _means(found: Mapping[str, Found], kind: str) -> dict[Setup, float]:
    psnrs: dict[Setup, list[float]] = {}
    for (setup, _), fit in all_fits(cell for name, cell in found.items() if name.startswith(kind)).items():
        psnrs.setdefault(setup, []).append(fit["psnr"])
    return {setup: float(np.mean(values)) for setup, values in psnrs.items()}


def short_fits(found: Mapping[str, Found]) -> dict[str, float]:
    """Return the mean PSNR of every short-fitted start at its best rate."""
    best: dict[str, float] = {}
    for setup, mean in _means(found, "short-").items():
        best[setup.method] = max(mean, best.get(setup.method, -np.inf))
    return best


def finalists(request: Request, found: Mapping[str, Found]) -> list[str]:
    """Return the starts that are scored: default, the paper's, He's, and the best by prediction and by short fits."""
    search, said, fitted = SEARCHES[request.preset], predictions(found), short_fits(found)
    by_prediction = sorted(FAMILY, key=lambda name: -said[name]["held_out"])[: search.predicted]
    by_fit = sorted((name for name in fitted if name in FAMILY), key=lambda name: -fitted[name])[: search.fitted]
    return list(dict.fromkeys(["default", "ours", "he", *by_prediction, *by_fit]))


def best_setup(found: Mapping[str, Found], name: str) -> Setup:
    """Return a finalist at its best rate on the tuning images."""
    tried = {setup: mean for setup, mean in _means(found, "rates-").items() if setup.method == name}
    return max(tried, key=lambda setup: tried[setup])


def winners(gains: Mapping[str, Interval]) -> list[str]:
    """Return the starts that beat the paper's by :data:`BETTER`, the lower end of the interval above its bound."""
    return [name for name, gain in gains.items() if gain.mean >= BETTER and gain.low > AT_LEAST]


# ---- words, tables, drawing ----------------------------------------------------------------------------------------


def _paper(name: str) -> str:
    return "-2.04" if name == "default" else ""


def _how(request: Request) -> str:
    sizes, search, given = SIZES[request.preset], SEARCHES[request.preset], images_of(request)
    names = ", ".join(given.names[i] for i in tuning(given))
    side = given.values.shape[1]
    return (
        f"{len(FAMILY)} starts and {len(BASELINES)} known ones, of width {sizes.width} with 3 hidden layers. "
        f"Predicted by the tangent kernel at the start on {search.side}x{search.side} pixels of {names}, every second "
        f"pixel held out, {search.seeds} network{'s' * (search.seeds > 1)} each. Short fits: {sizes.short} steps on "
        f"the same images, all pixels. Scores: {sizes.steps} steps on {len(scoring(given))} other images of "
        f"{side}x{side}, all pixels. Every start takes the best of the learning rates "
        f"{', '.join(f'{lr:g}' for lr in RATES)}, by the images of the search."
    )


def _told(
    said: Mapping[str, Mapping[str, float]], fitted: Mapping[str, float], agreement: Mapping[str, float]
) -> list[str]:  # fmt: skip
    best = max(FAMILY, key=lambda name: said[name]["held_out"])
    first = max(fitted, key=lambda name: fitted[name])
    known = ", ".join(f"{STARTS[name].label} {said[name]['held_out']:.2f}" for name in ("default", "ours", "he"))
    also = ", ".join(f"{STARTS[name].label} {fitted[name]:.2f}" for name in ("default", "ours", "he"))
    ranks = "; ".join(f"{agreement[kind]:.2f} for {told}" for kind, told in PREDICTED.items())
    return [
        f"Best by prediction: {STARTS[best].label}, {said[best]['held_out']:.2f} dB ({known}).",
        f"Best by {len(fitted)} short fits: {STARTS[first].label}, {fitted[first]:.2f} dB ({also}).",
        f"Spearman's rank correlation of prediction and short fit: {ranks}.",
    ]


def verdict(gains: Mapping[str, Interval]) -> str:
    """Say whether a start of the family, or a known one, beats the paper's by :data:`BETTER`."""
    best = max(gains, key=lambda name: gains[name].mean)
    told = f"{STARTS[best].label} comes out best, {gains[best].signed} dB over the paper's"
    if best in winners(gains):
        return f"A better start: {told}."
    if gains[best].mean >= BETTER:
        return f"Open: {told}, but the interval does not leave out {AT_LEAST:g} dB."
    if gains[best].low > 0:
        return f"No start beats the paper's by {BETTER:g} dB: {told}, which is a gain, but a smaller one."
    return f"No start beats the paper's by {BETTER:g} dB: {told}."


def _edge(setups: Mapping[str, Setup]) -> list[str]:
    names = [STARTS[name].label for name, one in setups.items() if one.lr in (RATES[0], RATES[-1])]
    return [f"Best at an end of the rates that were tried: {'; '.join(names)}."] if names else []


def _short_of(given: Pictures) -> list[str]:
    return [given.shortage] if given.shortage else []


def _scores_table(
    psnrs: Mapping[str, Sequence[float]], gains: Mapping[str, Interval], setups: Mapping[str, Setup],
    found: Mapping[str, Found],
) -> Table:  # fmt: skip
    tried = _means(found, "rates-")
    lines = [
        [
            STARTS[name].label,
            *(f"{tried[one]:.2f}" for one in tried if one.method == name),
            f"{setups[name].lr:g}",
            str(interval(values)),
            gains[name].signed if name in gains else "",
            f"{np.median(np.subtract(values, psnrs['ours'])):+.2f}" if name in gains else "",
            difference(values, psnrs["default"]).signed if name != "default" else "",
        ]
        for name, values in psnrs.items()
    ]
    head = [
        "start",
        *(f"tuning, lr {lr:g}" for lr in RATES),
        "lr",
        "scored",
        "minus the paper's",
        "its median",
        "minus default",
    ]
    return Table("PSNR (dB) of the starts that are scored; differences are paired over images", head, lines)


def _factors_table(said: Mapping[str, Mapping[str, float]]) -> Table:
    levels: dict[str, Iterable[float | str]] = {
        "hidden": HIDDEN,
        "directions": DIRECTIONS,
        "gain": GAINS,
        "eps": SHIFTS,
    }
    lines = []
    for factor, values in levels.items():
        for value in values:
            names = [name for name, start in FAMILY.items() if start.factors and start.factors[factor] == value]
            means = [float(np.mean([said[name][kind] for name in names])) for kind in PREDICTED]
            lines.append([factor, f"{value:g}" if isinstance(value, float) else value, *_shown(means)])
    return Table(
        "Prediction by one factor of the family, mean over all others", ["factor", "", *PREDICTED.values()], lines
    )


def _shown(numbers: Sequence[float]) -> list[str]:
    return [*(f"{number:.2f}" for number in numbers[:-1]), f"{numbers[-1]:.0f}"]


def _family_table(said: Mapping[str, Mapping[str, float]], fitted: Mapping[str, float]) -> Table:
    ranked = sorted(said, key=lambda name: -said[name]["held_out"])
    lines = [
        [
            STARTS[name].label,
            *_shown([said[name][kind] for kind in PREDICTED]),
            f"{fitted[name]:.2f}" if name in fitted else "",
        ]
        for name in ranked
    ]
    head = ["start", *PREDICTED.values(), "short fit"]
    return Table("All starts, the best by prediction first; dB on the tuning images", head, lines)


def _drawing(
    said: Mapping[str, Mapping[str, float]], fitted: Mapping[str, float], gains: Mapping[str, Interval]
) -> Drawing:  # fmt: skip
    drawing = Drawing(figsize=(12, 4.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    colours = {"default": "#0072B2", "kaiming": "#D55E00", "xavier": "#009E73"}
    marks = {"outward": "o", "random": "s", "inward": "v"}
    for name, psnr in fitted.items():
        factors = STARTS[name].factors
        if factors:
            colour, mark = colours[factors["hidden"]], marks[factors["directions"]]
        else:
            colour, mark = ("black", "*") if name in BASELINES else ("0.6", "D")
        left.plot(said[name]["held_out"], psnr, mark, color=colour, markersize=9 if mark == "*" else 6)
        if name in ("default", "ours", "he"):
            left.annotate(name, (said[name]["held_out"], psnr), (5, -9), textcoords="offset points", fontsize=8)
    for hidden, colour in colours.items():
        left.plot([], [], "-", color=colour, linewidth=4, label=f"{HIDDEN[hidden]} hidden")
    for directions, mark in marks.items():
        left.plot([], [], mark, color="0.3", label=directions)
    left.plot([], [], "D", color="0.6", label="one layer scaled")
    left.plot([], [], "*", color="black", markersize=9, label="known starts")
    left.legend(fontsize=7)
    left.set_xlabel("predicted PSNR of held-out pixels (dB)")
    left.set_ylabel("PSNR of a short fit (dB)")
    for place, gain in enumerate(gains.values()):
        right.barh(place, gain.mean, color="#CC79A7", xerr=gain.half, ecolor="0.3", capsize=3)
    right.axvline(0, color="black", linewidth=1)
    right.axvline(BETTER, color="0.4", linestyle=":")
    right.set_yticks(range(len(gains)), [STARTS[name].label for name in gains], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("PSNR minus the paper's start (dB), other images")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return drawing
