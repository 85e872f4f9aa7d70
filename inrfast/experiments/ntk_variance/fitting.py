"""Cells of fits: what every variant tries on the signals that choose, and its fits of those that score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inrfast.experiments.ntk_variance.measures import (
    MOST_POINTS,
    effective_rank,
    first_share,
    measured,
    rest,
    spectrum,
)
from inrfast.experiments.ntk_variance.tasks import (
    RATES,
    SIZES,
    TASKS,
    Signal,
    Sizes,
    Source,
    Task,
    fits,
    sources,
    values,
)
from inrfast.experiments.ntk_variance.variants import VARIANTS, Variant, fourier
from inrfast.experiments.paper import Cell, Found, Request, Work
from inrfast.experiments.runs import seeds
from inrfast.nn import INR
from inrfast.signals.image import MID_GREY

CURVE = 100
"""Losses that are kept of a fit, evenly over its steps."""


def tries(variant: Variant, task: Task) -> list[Variant]:
    """Return what is tried of a variant beside its rate: octaves of the encoding, or frequencies of the filters."""
    if "octaves" in variant.options:
        return [variant.but(octaves=one) for one in task.octaves]
    if variant.filtered:
        return [variant.but(filters=fourier(one)) for one in task.frequencies]
    return [variant]


def told(variant: Variant) -> str:
    """Return in words what was chosen of a variant beside its rate."""
    if "octaves" in variant.options:
        return f"{variant.options['octaves']} octaves"
    return f"frequency {variant.options['filters']['frequency']:g}" if variant.filtered else ""


def all_cells(request: Request, found: Mapping[str, Found], tasks: Sequence[str] = tuple(TASKS)) -> list[Cell]:
    """Return all cells of the fits that are known so far, shared by all figures."""
    there = [one for one in sources(request, found) if one.task.name in tasks]
    made = list({cell.name: cell for one in there for cell in one.needs}.values())
    ready = [one for one in there if one.signal is not None]
    chooses = [one for one in ready if not one.scored]
    for variant in VARIANTS.values():
        made += [try_cell(one, variant, request) for one in chooses]
    for variant in VARIANTS.values():
        for one in ready:
            own = [name_of_tries(other, variant) for other in chooses if other.task is one.task]
            if one.scored and own and all(name in found for name in own):
                made.append(fit_cell(one, variant, chosen(one.task, variant, found), request))
    return made


# ---- choosing ----------------------------------------------------------------------------------------------------


def name_of_tries(source: Source, variant: Variant) -> str:
    """Return the name of the cell in which a variant's settings are tried."""
    return f"tries.{source.task.name}.{source.name}.{variant.name}"


def try_cell(source: Source, variant: Variant, request: Request) -> Cell:
    """Return the cell that tries every rate with every number of a variant; of each number also the kernel's v/mu^2."""
    task, sizes = source.task, SIZES[request.preset]
    options = tries(variant, task)

    def run(work: Work) -> Found:
        assert source.signal is not None
        signal = source.signal(work.device)
        nets = [network(own, task, sizes, request.seed, work) for own in options for _ in RATES]
        variances = [
            kernel_numbers(network(own, task, sizes, request.seed, work), signal)["normalised"] for own in options
        ]
        done = fits(nets, signal, task, RATES * len(options), sizes.steps, work)
        made = [
            {"options": dict(options[place // len(RATES)].options), "lr": RATES[place % len(RATES)], **score,
             "normalised": variances[place // len(RATES)], "stopped": result.stopped}
            for place, (score, result) in enumerate(done)
        ]  # fmt: skip
        return Found({"tries": made})

    settings = {
        **source.settings, "options": [dict(own.options) for own in options], "rates": list(RATES),
        "seed": request.seed, **fit_settings(task, sizes),
    }  # fmt: skip
    return Cell(name_of_tries(source, variant), settings, run, len(options) * len(RATES) * cost(sizes), shared=True)


def chosen(task: Task, variant: Variant, found: Mapping[str, Found]) -> tuple[Variant, float]:
    """Return a variant with the number and the rate that do best on unseen points, by the mean over signals."""
    scores: dict[tuple[int, float], list[float]] = {}
    options = tries(variant, task)
    for name, cell in found.items():
        if name.startswith(f"tries.{task.name}.") and name.endswith(f".{variant.name}"):
            for one in cell.numbers["tries"]:
                number = [dict(own.options) for own in options].index(one["options"])
                scores.setdefault((number, one["lr"]), []).append(one["unseen"])
    best = max(scores, key=lambda key: np.mean(scores[key]))
    return options[best[0]], best[1]


# ---- fits that are scored ----------------------------------------------------------------------------------------


def name_of_fit(task: str, source: str, variant: str) -> str:
    """Return the name of the cell of a variant's fits of a signal."""
    return f"fit.{task}.{source}.{variant}"


def fit_cell(source: Source, variant: Variant, chosen: tuple[Variant, float], request: Request) -> Cell:
    """Return the cell of a variant's fits of a signal, one per seed, with the numbers of the kernel at each start.

    Arrays, of the first seed: ``eigenvalues``, ``losses``, and ``values`` of the fitted network everywhere.
    """
    task, sizes = source.task, SIZES[request.preset]
    own, rate = chosen
    runs = seeds(request, sizes.runs)

    def run(work: Work) -> Found:
        assert source.signal is not None
        signal = source.signal(work.device)
        nets = [network(own, task, sizes, seed, work) for seed in runs]
        eigenvalues = [spectrum(net, signal.coords) for net in nets]
        starts = [kernel_numbers(net, signal) for net in nets]
        done = fits([net.train() for net in nets], signal, task, [rate] * len(nets), sizes.steps, work)
        made = [
            start | {"seed": seed, **score, "stopped": result.stopped, "first_share": first_share(own_values),
                     "effective_rank": effective_rank(own_values), "rest": rest(own_values),
                     "gradient": result.config["gradient"]}
            for seed, start, own_values, (score, result) in zip(runs, starts, eigenvalues, done, strict=True)
        ]  # fmt: skip
        losses = np.array(done[0][1].losses)
        steps = np.unique(np.linspace(0, len(losses) - 1, CURVE).round().astype(int))
        arrays = {
            "eigenvalues": eigenvalues[0],
            "steps": steps,
            "losses": losses[steps],
            "values": (values(nets[0], signal.everywhere) + MID_GREY * (task.name == "image")).numpy(),
        }
        return Found({"runs": made, "lr": rate, "options": dict(own.options)}, arrays)

    settings = {
        **source.settings, "options": dict(own.options), "lr": rate, "seeds": list(runs), **fit_settings(task, sizes),
    }  # fmt: skip
    name = name_of_fit(task.name, source.name, variant.name)
    return Cell(name, settings, run, len(runs) * cost(sizes), shared=True)


def network(variant: Variant, task: Task, sizes: Sizes, seed: int, work: Work) -> INR:
    """Return the network of a fit at its start."""
    return variant.network(task.inputs, sizes.width, sizes.hidden_layers, seed, device=work.device)


def kernel_numbers(net: INR, signal: Signal) -> dict[str, Any]:
    """Return the numbers of a network's kernel on a signal's points: in fp64 for few of them."""
    return measured(net, signal.coords, precision="highest" if len(signal.coords) <= MOST_POINTS else "high")


def fit_settings(task: Task, sizes: Sizes) -> dict[str, Any]:
    """Return what every fit of a task depends on."""
    return {"width": sizes.width, "hidden_layers": sizes.hidden_layers, "steps": sizes.steps, "loss": task.loss}


def cost(sizes: Sizes) -> float:
    """Return the work of a fit, in arbitrary units."""
    return 1e-9 * sizes.steps * sizes.side**2 * sizes.width * sizes.hidden_layers


def scored(request: Request, found: Mapping[str, Found], task: str) -> list[str]:
    """Return the names of the signals of a task that score."""
    return [one.name for one in sources(request, found) if one.task.name == task and one.scored]
