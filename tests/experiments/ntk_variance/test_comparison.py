"""All figures at tiny sizes, and that choices, correlations and verdicts follow the numbers."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inrfast.experiments.inlet_rank_collapse.shapes import Sizes as Points
from inrfast.experiments.ntk_variance import claims, comparison, figure, hadamard, settings, tasks, topk
from inrfast.experiments.ntk_variance.comparison import chance, correlations, spearman
from inrfast.experiments.ntk_variance.fitting import chosen, tries
from inrfast.experiments.ntk_variance.tasks import AUDIO, IMAGE, SHAPE, SIZES, SOUNDS, TASKS, snr, sound, sources
from inrfast.experiments.ntk_variance.variants import BOTH, DEFINITIONS, HADAMARD, PE, PLAIN, VARIANTS
from inrfast.experiments.paper import Found, Request, Work
from inrfast.experiments.reproduce import reproduce
from inrfast.experiments.runs import seeds
from inrfast.grids import grid

TINY = tasks.Sizes(2, 8, 16, Points((32, 32, 32, 32), 6), 8, 2, 2, 2)


@pytest.fixture
def tiny(monkeypatch):
    """Have the quick preset tiny sizes, and settings that differ from each other in what matters."""
    monkeypatch.setitem(tasks.SIZES, "quick", TINY)
    monkeypatch.setattr(tasks, "RATES", (1e-3,))
    monkeypatch.setattr("inrfast.experiments.ntk_variance.fitting.RATES", (1e-3,))
    monkeypatch.setattr(figure, "HEAT", 4)
    monkeypatch.setattr(comparison, "SHUFFLES", 9)
    monkeypatch.setattr(claims, "WIDTHS", (8, 16))
    for one in TASKS.values():
        few = replace(one, octaves=one.octaves[:1], frequencies=one.frequencies[:1])
        monkeypatch.setitem(tasks.TASKS, one.name, few)
    small = [
        replace(one, side=4, count=12, width=64, hidden_layers=min(one.hidden_layers, 2))
        for one in settings.settings_of(Request()) if one.name in ("base", "theory-2")
    ]  # fmt: skip
    monkeypatch.setattr(claims, "settings_of", lambda request: small)
    monkeypatch.setattr(hadamard, "settings_of", lambda request: small)
    monkeypatch.setattr(topk, "settings_of", lambda request: small)


def test_every_figure_runs_and_reports(tmp_path, tiny):
    made = reproduce("ntk_variance", "all", tmp_path, runs=2, progress=False)
    assert list(made) == ["variance", "figure", "claims", "hadamard", "topk"]
    for name, found in made.items():
        assert found["rows"] and json.dumps(found) and DEFINITIONS in found["text"]
        assert all((tmp_path / name / f"{drawing}.png").stat().st_size > 1000 for drawing in found["drawings"])
        assert {row[1] for row in found["rows"]} <= {"claimed", "—"}  # no number of the paper is at hand
    again = reproduce("ntk_variance", ["variance", "claims"], tmp_path, runs=2, progress=False)
    assert again["variance"]["numbers"] == made["variance"]["numbers"]  # nothing is computed anew
    runs = made["variance"]["numbers"]["runs"]
    assert {place.split("/")[0] for place in runs} == set(TASKS) and all(
        set(by) == set(VARIANTS) for by in runs.values()
    )
    for one in made["claims"]["numbers"]["ratios"]:
        assert sorted(itertools.chain(*one["verdicts"].values())) == ["base", "theory-2"]


# ---- signals -----------------------------------------------------------------------------------------------------


class Truth(torch.nn.Module):
    """A network that knows some points' values, and is wrong elsewhere."""

    def __init__(self, coords, values):
        super().__init__()
        self.known = {tuple(point): value for point, value in zip(coords.tolist(), values[:, 0].tolist(), strict=True)}

    def forward(self, coords):
        return torch.tensor([[self.known.get(tuple(point), 5.0)] for point in coords.tolist()])


@pytest.mark.parametrize("task", [IMAGE, AUDIO])
def test_unseen_points_are_all_those_that_are_not_fitted(task, tiny):
    found = [one for one in sources(Request(), {}) if one.task.name == task.name]
    assert [one.scored for one in found] == [False] + [True] * (len(found) - 1)
    signal = found[0].signal(torch.device("cpu"))
    net = Truth(signal.coords, signal.target)
    assert signal.seen(net) > 80 and signal.unseen(net) < 0
    share = 4 if task is IMAGE else 2
    assert share * len(signal.coords) == len(signal.everywhere)
    seen = {tuple(point) for point in signal.coords.tolist()}
    assert seen < {tuple(point) for point in signal.everywhere.tolist()}


def test_a_shape_is_chosen_for_by_other_points_than_it_is_scored_on(tiny):
    first, second = (one for one in sources(Request(), {}) if one.task.name == SHAPE.name)
    assert (first.scored, second.scored) == (False, True) and first.signal is None
    cell = first.needs[0]
    found = {cell.name: cell.run(Work(torch.device("cpu"), None, False))}
    trial, scored = (
        one.signal(torch.device("cpu")) for one in sources(Request(), found) if one.task.name == SHAPE.name
    )
    assert not set(map(tuple, trial.coords.tolist())) & set(map(tuple, scored.coords.tolist()))
    for signal in (trial, scored):
        logits = 2 * signal.target - 1
        assert signal.seen(Truth(signal.coords, logits)) == 1


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_what_they_are_called(name):
    values = sound(name, grid(4096, "center"))[:, 0]
    assert values.abs().max() == pytest.approx(1) and values.mean().abs() < 0.05
    power = torch.fft.rfft(values).abs().square()
    if name == "chord":
        assert sorted(power.topk(3).indices.tolist()) == [22, 28, 33]
    assert power[400:].sum() < 1e-3 * power.sum()  # far below what every second of 2,048 samples tells apart


@given(st.floats(0.01, 1), st.integers(0, 9))
def test_the_snr_is_that_of_the_added_noise(size, seed):
    truth = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    noise = size * truth.flip(0)
    assert snr(truth + noise, truth) == pytest.approx(-20 * np.log10(size), abs=1e-4)


# ---- choices and correlations ------------------------------------------------------------------------------------


def test_what_is_chosen_has_the_best_mean_on_unseen_points():
    options = [dict(one.options) for one in tries(PE, IMAGE)]
    scores = {"a": [1.0, 5.0, 2.0], "b": [4.0, 1.0, 3.0]}  # means 2.5, 3, 2.5
    found = {
        f"tries.image.{name}.pe": Found(
            {
                "tries": [
                    {"options": own, "lr": 1e-3, "unseen": one, "seen": -one}
                    for own, one in zip(options, values, strict=True)
                ]
            }
        )
        for name, values in scores.items()
    }
    found["tries.audio.c.pe"] = Found({"tries": [{"options": options[0], "lr": 1e-3, "unseen": 99.0, "seen": 0.0}]})
    variant, rate = chosen(IMAGE, PE, found)
    assert dict(variant.options) == options[1] and rate == 1e-3
    assert len(tries(HADAMARD, IMAGE)) == len(tries(BOTH, AUDIO)) == 3 and tries(PLAIN, IMAGE) == [PLAIN]


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_correlations_are_spearmans_signed_by_what_is_expected(variances, scores):
    runs = {
        ("image", "x"): {
            name: [
                {"normalised": 1.0 + v, "effective_rank": 1.0 + v, "rest": 1.0, "unseen": float(s), "seen": -float(s)}
            ]
            for name, v, s in zip(VARIANTS, variances, scores, strict=True)
        }
    }
    expected = stats.spearmanr(variances, scores).statistic
    assert correlations(runs, list(runs), "normalised").mean == pytest.approx(-expected)
    assert correlations(runs, list(runs), "normalised", "seen").mean == pytest.approx(expected)
    assert correlations(runs, list(runs), "effective_rank").mean == pytest.approx(expected)


def test_an_order_by_chance_is_as_good_as_often_as_it_is():
    """Of four things two of the 24 orders are as far from 0 as the same order."""
    same = [[1, 2, 3, 4]]
    assert chance(same, same) == pytest.approx(2 / 24, abs=0.01)
    assert chance(3 * same, 3 * same) == pytest.approx(2 / 24, abs=0.01)  # no surer by tasks that are alike
    assert chance(same, [[1, 4, 3, 2]]) > 0.5 and spearman([1, 1], [1, 2]) == 0


def test_presets_differ_and_seeds_are_those_asked_for():
    assert SIZES["paper"].side > SIZES["quick"].side and list(seeds(Request(runs=2, seed=5), 3)) == [5, 6]
