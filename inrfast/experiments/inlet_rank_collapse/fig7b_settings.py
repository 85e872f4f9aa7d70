"""Fig. 7B under settings that the paper leaves open: where its initialisation improves the tangent kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inrfast.experiments.inlet_rank_collapse.methods import DEFAULT, WIDTH
from inrfast.experiments.inlet_rank_collapse.spectra import network, representation, tolerance
from inrfast.experiments.paper import Cell, Found, Request, Table, Work
from inrfast.experiments.runs import runs_told, seeds
from inrfast.tangent.local import ntk

RTOLS = (1e-2, 1e-3, 1e-4, 1e-5)
INDEX = 64
SIDE, RUNS = {True: 32, False: 64}, {True: 2, False: 10}
"""By whether the preset is the quick one; up to 64x64 points LAPACK gives all eigenvalues."""

COVER = 0.085
"""Above sqrt(2) / 17, from where on every point sees an active unit; at ``eps="cover"``, which is that number, four
hinges lie exactly on the diagonals of the grid, where ReLU has no slope."""

CLEARLY = 1.1
"""From this ratio on, one rank counts as higher than another."""


@dataclass(frozen=True)
class Setting:
    """A default ReLU network and one with the paper's first layer, alike in everything else.

    Attributes
    ----------
    label
        As the table names it.
    ours
        Options of the rank-expanding first layer.
    hidden
        Initialisation of the layers behind the first, of both networks.
    layers
        Number of hidden layers.
    options
        Further options of both networks.
    head
        Whether the kernel holds the gradients of the last, linear layer.
    """

    label: str
    ours: Mapping[str, Any]
    hidden: str = "default"
    layers: int = 3
    options: Mapping[str, Any] | None = None
    head: bool = True


SETTINGS = {
    "base": Setting("3 hidden layers, torch's default init, gain 1", {}),
    "gain3": Setting("gain 3: Z_0 about as large as of the default init", {"gain": 3.0}),
    "gain10": Setting("gain 10", {"gain": 10.0}),
    "cover": Setting(f"eps {COVER}: no point without an active unit", {"eps": COVER}),
    "no-head": Setting("without the head's gradients", {}, head=False),
    "he": Setting("He hidden layers", {}, "kaiming"),
    "he-gain3": Setting("He hidden layers, gain 3", {"gain": 3.0}, "kaiming"),
    "he-cover": Setting(f"He hidden layers, eps {COVER}", {"eps": COVER}, "kaiming"),
    "xavier": Setting("Xavier hidden layers", {}, "xavier"),
    "linear": Setting("linear hidden layers (equation 10)", {},
                      options={"activation": ["relu", "identity", "identity"]}),
    "depth1": Setting("1 hidden layer", {}, layers=1),
    "depth2": Setting("2 hidden layers", {}, layers=2),
    "depth5": Setting("5 hidden layers", {}, layers=5),
    "he-depth5": Setting("5 hidden layers, He", {}, "kaiming", layers=5),
}  # fmt: skip

STARTS = ("default", "ours")


def cells(request: Request) -> list[Cell]:
    """Return a cell for each setting and start; all runs of one are in it."""
    side = SIDE[request.quick]
    runs = seeds(request, RUNS[request.quick])[: RUNS[request.quick]]
    return [_cell(name, setting, start, side, runs) for name, setting in SETTINGS.items() for start in STARTS]


def _cell(name: str, setting: Setting, start: str, side: int, runs: range) -> Cell:
    first = "default" if start == "default" else {"name": "rank_expanding", **setting.ours}
    method = DEFAULT.but(**(setting.options or {}), init={"first": first, "hidden": setting.hidden})
    settings = {
        "options": dict(method.options), "layers": setting.layers, "head": setting.head, "side": side, "width": WIDTH,
        "seeds": list(runs), "rtols": list(RTOLS),
    }  # fmt: skip

    def run(work: Work) -> Found:
        found: dict[str, list[Any]] = {key: [] for key in ("ranks", "ratio", "share", "absolute", "head", "rms")}
        for seed in runs:
            net, coords = network(method, side, seed, work.device, hidden_layers=setting.layers)
            params = None if setting.head else [f"layers.{index}" for index in range(setting.layers)]
            kernel = ntk(net, coords, output=0, params=params, precision="highest")
            values = kernel.spectrum(min(RTOLS), method="dense").eigenvalues
            largest, trace = float(values[0]), kernel.trace()
            found["ranks"].append([int((values > rtol * largest).sum()) for rtol in RTOLS])
            found["ratio"].append(float(values[INDEX - 1]) / largest)
            found["share"].append(float(values[INDEX - 1]) / trace)
            found["absolute"].append(float(values[INDEX - 1]))
            found["head"].append(kernel.layers[f"layers.{setting.layers}"].trace() / trace if setting.head else 0.0)
            squares = [rows.square().sum() for rows in representation(net, coords, 0)()]
            found["rms"].append(float((torch.stack(squares).sum() / (len(coords) * WIDTH)).sqrt()))
        return Found(found)

    cost = 0.2 * len(runs) * (side * side / 1024) ** 2
    return Cell(f"setting.{name}.{start}", settings, run, cost)


def _means(found: Mapping[str, Found], name: str, key: str) -> list[np.ndarray]:
    """Return a number's mean over runs for both starts."""
    return [np.mean(found[f"setting.{name}.{start}"].numbers[key], axis=0) for start in STARTS]


def table(request: Request, found: Mapping[str, Found]) -> Table:
    """Return the numbers of all settings, default and the paper's start side by side."""
    rows = []
    runs = len(found[f"setting.base.{STARTS[0]}"].numbers["rms"])
    digits = ",.0f" if runs == 1 else ",.1f"
    for name, setting in SETTINGS.items():
        before, after = _means(found, name, "ranks")
        row = [setting.label, *(f"{a:{digits}} / {b:{digits}}" for a, b in zip(before, after, strict=True))]
        row += [_pair(found, name, key, ".1e") for key in ("ratio", "share", "absolute")]
        rows.append([*row, _pair(found, name, "head", ".2f"), _pair(found, name, "rms", ".2f")])
    side = SIDE[request.quick]
    at = f"lambda_{INDEX}"
    head = ["default / ours", *(f"rank at {tolerance(rtol)}" for rtol in RTOLS), f"{at} / lambda_1", f"{at} / trace",
            at, "share of the head in the trace", "root mean square of Z_0"]  # fmt: skip
    of = "" if runs == 1 else "means of "
    return Table(f"Settings that the paper leaves open, {side}x{side} grid, {of}{runs_told(runs)}", head, rows)


def _pair(found: Mapping[str, Found], name: str, key: str, digits: str) -> str:
    return " / ".join(f"{value:{digits}}" for value in _means(found, name, key))


def text(request: Request, found: Mapping[str, Found]) -> list[str]:
    """Return in which settings the paper's start has the higher rank, and what goes with it."""
    groups: dict[str, list[str]] = {"all": [], "some": [], "none": [], "lower": []}
    for name in SETTINGS:
        before, after = _means(found, name, "ranks")
        higher = after >= CLEARLY * before
        kind = "all" if higher.all() else "some" if higher.any() else "lower" if (after < before).all() else "none"
        groups[kind].append(SETTINGS[name].label)
    words = {
        "all": "At all of these tolerances", "some": "At some", "none": "At none",
        "lower": "At none, and lower at all",
    }  # fmt: skip
    told = " ".join(f"{words[kind]}: {'; '.join(labels)}." for kind, labels in groups.items() if labels)
    base, he = _means(found, "base", "head"), _means(found, "he", "head")
    small = _means(found, "base", "rms")
    return [
        f"Settings that the paper leaves open: the rank of the tangent kernel with the paper's first layer is at least "
        f"{CLEARLY - 1:.0%} higher than with torch's default one at tolerances of {_told(RTOLS)} as follows. {told}",
        f"At gain 1 the paper's Z_0 has a root mean square of {small[1]:.2f}, torch's default {small[0]:.2f}. With "
        f"torch's default hidden layers the head then makes {base[1]:.0%} of the kernel's trace (default start "
        f"{base[0]:.0%}), with He's {he[1]:.0%} ({he[0]:.0%}).",
    ]


def _told(rtols: Sequence[float]) -> str:
    return ", ".join(map(tolerance, rtols))
