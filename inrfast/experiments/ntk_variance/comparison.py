"""All variants on images, shapes and sounds: the kernel at the start, the fit, and whether one predicts the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.ntk_variance.fitting import all_cells, name_of_fit, scored, told
from inrfast.experiments.ntk_variance.tasks import RATES, SIZES, TASKS, Task
from inrfast.experiments.ntk_variance.variants import DEFINITIONS, PLAIN, VARIANTS
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.scores import Interval, difference, interval

PREDICTORS = {"normalised": -1, "first_share": -1, "effective_rank": 1, "rest": -1}
"""Numbers of the kernel at the start, and the sign with which they are to predict a better fit."""

WORDS = {
    "normalised": "v/mu^2",
    "first_share": "share of the largest eigenvalue",
    "effective_rank": "effective rank",
    "rest": "v/mu^2 without the largest eigenvalue",
}

SCORES = {"unseen": "unseen points", "seen": "the points fitted"}
"""On which points a fit is scored, in words."""

SHUFFLES = 10_000
"""Of a permutation test."""

LUCK = 0.05
"""Share of shuffles below which a correlation is no chance."""

Place = tuple[str, str]
"""A task and a signal."""


class Variance(Figure):
    """Variance, spectrum and fit of every variant on every kind of signal."""

    name = "variance"
    title = "The eight variants on images, occupancy and audio: variance at the start, and the fit"
    takes = ("images", "mesh")

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return all_cells(request, found)

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        places = [(task, name) for task in TASKS for name in scored(request, found, task)]
        runs = runs_of(found, places)
        whole = {
            score: {number: correlations(runs, places, number, score) for number in PREDICTORS} for score in SCORES
        }
        return Outcome(
            [
                *(_fit_row(runs, places, task) for task in TASKS.values()),
                *(_designer_row(runs, places, number, score) for number in ("normalised", "rest") for score in SCORES),
            ],
            {self.name: _drawing(runs, places)},
            [DEFINITIONS, _settings(request), *_designer(runs, places, whole)],
            [
                *(_table(found, runs, places, task) for task in TASKS.values()),
                *(_correlation_table(runs, places, score) for score in SCORES),
                *(_layers(runs, places, task) for task in TASKS.values()),
                _tries_table(found),
            ],
            {
                "runs": {f"{task}/{name}": by for (task, name), by in runs.items()},
                "chosen": {
                    task: {name: {"lr": cell.numbers["lr"], "options": cell.numbers["options"]} for name in VARIANTS
                           for cell in [found[name_of_fit(*_first(places, task), name)]]}
                    for task in TASKS
                },
                "rank correlations": {
                    score: {
                        number: {**one.json, "p": odds(runs, places, number, score)} for number, one in by.items()
                    } for score, by in whole.items()
                },
                "by task": {
                    task: {
                        score: {
                            number: {**correlations(runs, own, number, score).json, "p": odds(runs, own, number, score)}
                            for number in PREDICTORS
                        } for score in SCORES
                    } for task in TASKS for own in [_of(places, task)]
                },
                "tries": {name: cell.numbers["tries"] for name, cell in found.items() if name.startswith("tries.")},
            },
        )  # fmt: skip


Runs = Mapping[Place, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By signal and variant, one entry per seed."""


def runs_of(found: Mapping[str, Found], places: Sequence[Place]) -> dict[Place, dict[str, list[dict[str, Any]]]]:
    """Return all fits that score."""
    return {place: {name: found[name_of_fit(*place, name)].numbers["runs"] for name in VARIANTS} for place in places}


def _of(places: Sequence[Place], task: str) -> list[Place]:
    return [place for place in places if place[0] == task]


def _first(places: Sequence[Place], task: str) -> Place:
    return _of(places, task)[0]


# ---- prediction --------------------------------------------------------------------------------------------------


def correlations(runs: Runs, places: Sequence[Place], number: str, score: str = "unseen") -> Interval:
    """Return Spearman's rank correlation over the variants of a number, signed, and a score: mean over fits' places.

    One correlation for each signal and seed; the interval is over these.
    """
    return interval([own for place in places for own in _by_seed(runs[place], number, score)])


def _by_seed(by: Mapping[str, Sequence[Mapping[str, Any]]], number: str, score: str) -> list[float]:
    count = len(next(iter(by.values())))
    sign = PREDICTORS[number]
    return [
        spearman([sign * own[seed][number] for own in by.values()], [own[seed][score] for own in by.values()])
        for seed in range(count)
    ]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 where one of them has no order."""
    from scipy import stats  # slow to import

    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def chance(firsts: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]]) -> float:
    """Return how often shuffled variants have a mean rank correlation as far from 0, over several tasks.

    Entry i of every sequence is of variant i: a shuffle is the same for all tasks.
    """
    from scipy import stats  # slow to import

    generator = np.random.default_rng(0)
    ranks, others = (np.array([_unit(stats.rankdata(own)) for own in all_of]) for all_of in (firsts, seconds))
    seen = abs(float((ranks * others).sum()))
    orders = (generator.permutation(ranks.shape[1]) for _ in range(SHUFFLES))
    further = sum(abs(float((ranks * others[:, order]).sum())) >= seen - 1e-9 for order in orders)
    return (1 + further) / (1 + SHUFFLES)


def _unit(ranks: np.ndarray) -> np.ndarray:
    apart = ranks - ranks.mean()
    made: np.ndarray = apart / max(float(np.linalg.norm(apart)), 1e-300)
    return made


def odds(runs: Runs, places: Sequence[Place], number: str, score: str) -> float:
    """Return :func:`chance` of a number and a score, means over the signals and seeds of each task."""
    tasks = [_of(places, task) for task in dict.fromkeys(task for task, _ in places)]
    firsts = [list(means(runs, own, number).values()) for own in tasks]
    return chance(firsts, [list(means(runs, own, score).values()) for own in tasks])


def means(runs: Runs, places: Sequence[Place], number: str) -> dict[str, float]:
    """Return a number of every variant, mean over signals and seeds; of ratios the geometric one."""
    made = {}
    for name in VARIANTS:
        own = np.array([run[number] for place in places for run in runs[place][name]], dtype=float)
        made[name] = float(np.exp(np.log(own).mean())) if number in ("normalised", "rest") else float(own.mean())
    return made


def _designer_row(runs: Runs, places: Sequence[Place], number: str, score: str) -> Row:
    whole, luck = correlations(runs, places, number, score), odds(runs, places, number, score)
    sure = whole.decided and luck < LUCK
    seen = "not shown" if not sure else "yes" if whole.mean > 0 else "the other way round"
    said = ("a lower variance makes for faster convergence and better reconstruction", "claimed")
    what, paper = said if number == "normalised" else (f"{WORDS[number]} makes for better reconstruction", "—")
    told = (
        f"{seen}: rank correlation with the score on {SCORES[score]} {whole.signed}; p {luck:.2g} by shuffled variants"
    )
    return Row(what, paper, told, f"over 8 variants, mean and 95 % interval over {whole.count} signals and seeds")


def _designer(runs: Runs, places: Sequence[Place], whole: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    told = "; ".join(
        f"on {SCORES[score]} " + ", ".join(f"{WORDS[number]} {one.signed}" for number, one in by.items())
        for score, by in whole.items()
    )
    count = whole["unseen"]["normalised"].count
    text = [
        "Rank correlation (Spearman) over the eight variants of a kernel's number at the start with the score of the "
        f"fit, signed so that 1 is what is expected, mean and 95 % interval over {count} "
        f"signals and seeds: {told}. Seeds and signals share the same eight variants, so that the intervals do not say "
        "what other variants would give; the tables have the share p of shuffled variants that do as well. The number "
        "without the largest eigenvalue is no claim of the paper: it was thought of after a look at fits of the "
        "bundled images."
    ]
    for task in TASKS.values():
        own = _of(places, task.name)
        scores, variances = means(runs, own, "unseen"), means(runs, own, "normalised")
        best, least = max(scores, key=lambda name: scores[name]), min(variances, key=lambda name: variances[name])
        lost = scores[best] - scores[least]
        text.append(
            f"On {task.label} {VARIANTS[best].label} scores best on unseen points ({scores[best]:.3g}), and "
            f"{VARIANTS[least].label} has the smallest v/mu^2 ({variances[least]:.3g}): "
            + ("the same." if best == least else f"taking that one costs {lost:.3g} of {task.score}.")
        )
    return text


# ---- what is shown -----------------------------------------------------------------------------------------------


def _settings(request: Request) -> str:
    sizes = SIZES[request.preset]
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    return (
        f"{sizes.side}x{sizes.side} grey pixels and {sizes.samples:,} samples of sounds made by formula, of which "
        "every second one along an axis is fitted and the others are unseen; "
        f"{sizes.shape.points[2]:,} points of a shape, half of them near its surface, and a grid of "
        f"{sizes.shape.side}^3 unseen ones; {sizes.hidden_layers} hidden layers of {sizes.width}, torch's default "
        f"start; Adam on all points, {sizes.steps:,} steps, the rate falling tenfold. On the signals that choose (the "
        "first quarter of the images, the first sound, other points of the shape made by formula) every variant tried "
        f"the rates {tried}, PE each with three numbers of octaves and the filters with three frequencies, at the size "
        "that is scored, and took what did best on unseen points; all else is scored. "
        "The kernel is that of the network at its start on the very points that are fitted."
    )


def _gain(runs: Runs, places: Sequence[Place], name: str, score: str = "unseen") -> Interval:
    scores = [[run[score] for place in places for run in runs[place][own]] for own in (name, PLAIN.name)]
    return difference(*scores)


def _fit_row(runs: Runs, places: Sequence[Place], task: Task) -> Row:
    own = _of(places, task.name)
    gains = {name: _gain(runs, own, name) for name in VARIANTS if name != PLAIN.name}
    told = ", ".join(f"{VARIANTS[name].label} {_signed(one, task)}" for name, one in gains.items())
    count = next(iter(gains.values())).count
    return Row(f"better reconstruction of {task.label}, {task.score} on unseen points over ReLU's", "claimed", told,
               f"paired over {count} signals and seeds, 95 % intervals")  # fmt: skip


def _signed(one: Interval, task: Task) -> str:
    digits = 3 if task.score == "IoU" else 2
    return f"{one.mean:+.{digits}f}" + ("" if one.half is None else f" ± {one.half:.{digits}f}")


def _table(found: Mapping[str, Found], runs: Runs, places: Sequence[Place], task: Task) -> Table:
    own = _of(places, task.name)
    numbers = ("mean", "variance", "normalised", "overlap", "input", "hidden", "gate", "first_share", "effective_rank",
               "rest")  # fmt: skip
    rows = []
    for name, variant in VARIANTS.items():
        cell = found[name_of_fit(*own[0], name)]
        setting = told(variant.but(**cell.numbers["options"]))
        cells = [_median([run[number] for place in own for run in runs[place][name]]) for number in numbers]
        scores = [
            text for kind in SCORES for text in
            (f"{np.mean([run[kind] for place in own for run in runs[place][name]]):.3g}",
             _signed(_gain(runs, own, name, kind), task))
        ]  # fmt: skip
        rows.append([variant.label, f"{cell.numbers['lr']:g}" + (f", {setting}" if setting else ""), *cells,
                     *scores])  # fmt: skip
    head = ["", "chosen rate", "mu", "v", "v/mu^2", "overlap", "input", "hidden", "gate", "share of lambda_1",
            "effective rank", "v/mu^2 without lambda_1", f"{task.score}, unseen", "over ReLU", f"{task.score}, seen",
            "over ReLU"]  # fmt: skip
    return Table(f"{task.label}: kernel at the start (medians), and fits (means)", head, rows)


def _median(values: Sequence[float | None]) -> str:
    kept = [one for one in values if one is not None]
    return f"{np.median(kept):.3g}" if kept else "—"


def _correlation_table(runs: Runs, places: Sequence[Place], score: str) -> Table:
    rows = []
    for number, word in WORDS.items():
        row = [word]
        for task in TASKS:
            own = _of(places, task)
            row.append(f"{correlations(runs, own, number, score).signed} (p {odds(runs, own, number, score):.2g})")
        rows.append([*row, f"{correlations(runs, places, number, score).signed} "
                           f"(p {odds(runs, places, number, score):.2g})"])  # fmt: skip
    head = ["number at the start", *(task.label for task in TASKS.values()), "all"]
    title = f"Rank correlation with the score on {SCORES[score]}, 1 as expected; p of the means by shuffling"
    return Table(title, head, rows)


def _layers(runs: Runs, places: Sequence[Place], task: Task) -> Table:
    own = _of(places, task.name)
    rows = []
    for name, variant in VARIANTS.items():
        parts = [run["layers"] for place in own for run in runs[place][name]]
        for layer in parts[0]:
            values = [np.mean([part[layer][key] for part in parts]) for key in ("energy", "share")]
            rows.append([variant.label, layer, *(f"{value:.3f}" for value in values)])
    return Table(
        f"{task.label}: layers' shares of the trace and of v, means", ["", "layer", "of the trace", "of v"], rows
    )


def _tries_table(found: Mapping[str, Found]) -> Table:
    rows = []
    for name, cell in found.items():
        if name.startswith("tries."):
            _, task, *_, variant = name.split(".")
            for one in cell.numbers["tries"]:
                setting = told(VARIANTS[variant].but(**one["options"]))
                rows.append([TASKS[task].label, VARIANTS[variant].label, setting, f"{one['lr']:g}",
                             f"{one['normalised']:.3g}", f"{one['unseen']:.3g}",
                             f"{one['seen']:.3g}"])  # fmt: skip
    return Table(
        "All that was tried on the signals that choose", ["", "variant", "", "rate", "v/mu^2", "unseen", "seen"], rows
    )


def _drawing(runs: Runs, places: Sequence[Place]) -> Drawing:
    drawing = Drawing(figsize=(11, 7), layout="constrained")
    panels = drawing.subplots(2, len(TASKS))
    for row, (line, (number, across)) in enumerate(zip(panels, DRAWN.items(), strict=True)):
        for axes, task in zip(line, TASKS.values(), strict=True):
            for name, variant in VARIANTS.items():
                own = [run for place in _of(places, task.name) for run in runs[place][name]]
                axes.scatter([run[number] for run in own], [run["unseen"] for run in own], s=22, color=variant.colour,
                             label=variant.label, linewidth=0)  # fmt: skip
            axes.set_xscale("log")
            finish(axes, "" if row else task.label, across, f"{task.score}, unseen points")
    legend(drawing, panels[0, 0])
    return drawing


DRAWN = {"normalised": "v/mu² at the start", "rest": "v/mu² without the largest eigenvalue"}
"""Numbers against which scores are drawn."""
