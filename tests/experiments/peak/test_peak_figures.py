"""The figures run in small and hold together; claims on methods are those that the numbers make."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inrfast.experiments.paper import Found, Request, Work
from inrfast.experiments.peak import fitting, table1
from inrfast.experiments.peak.fig3 import DEGREES, swept
from inrfast.experiments.peak.fig8 import WIDTHS, parameters, sized
from inrfast.experiments.peak.fig9 import FACTORS, FEATURES, _factor_told
from inrfast.experiments.peak.fitting import Scores, Sizes, fit_cell, last, speed_cell, steps_of, stopped
from inrfast.experiments.peak.images import STAND_INS, Named
from inrfast.experiments.peak.masks import Mask
from inrfast.experiments.peak.methods import ABLATIONS, GAMMA, HASH, MLP, PEAK_METHOD, RIVALS, SIREN, TUNED_ON
from inrfast.experiments.peak.sweeps import ranged
from inrfast.experiments.peak.table1 import FOUR, KINDS, PAPER, cell_name, part_told, wins
from inrfast.experiments.peak.weights import FUNCTIONS, OtherWeights
from inrfast.experiments.reproduce import reproduce
from inrfast.grids import grid

SIDE = 32
WORK = Work(torch.device("cpu"), None, False)
SMOOTH = grid((SIDE, SIDE), "center").sum(1).mul(3).sin().mul(0.4).add(0.5).reshape(SIDE, SIDE)
SCENE = Named("Boat", "made-up", SMOOTH, "as it is", paper=False)
HALF = Mask("random", torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.5, "made up")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(fitting, "SIZES", {"quick": Sizes(16, 2e-4, 1)})
    monkeypatch.setattr(fitting, "TIMED", (1, 2))
    monkeypatch.setattr(fitting, "REPEATS", 1)


def test_all_figures_run_in_small_and_tell_what_was_found(tmp_path, tiny):
    (tmp_path / "images").mkdir()
    for name in ("baboon_gray", "boat", "jetplane"):
        values = np.random.default_rng(len(name)).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{name}.png")
    names = ["fig3", "table1", "fig7", "fig8", "fig9"]
    made = reproduce("peak", names, tmp_path / "out", images=tmp_path / "images", progress=False)
    assert list(made) == names
    assert len(made["table1"]["rows"]) == 3 * len(KINDS) + 2  # of the images that there are
    for name, found in made.items():
        assert all((tmp_path / "out" / name / f"{drawing}.png").exists() for drawing in found["drawings"])
    again = reproduce("peak", "table1", tmp_path / "out", images=tmp_path / "images", progress=False)
    assert again["table1"]["rows"] == made["table1"]["rows"]  # nothing is computed anew


@pytest.mark.parametrize("name", ["fig3", "fig7", "fig8", "fig9", "table1", "table2", "table3"])
def test_input_is_refused_before_the_folder_of_results_is_claimed(name, tmp_path):
    """With files of no use to any of the figures: none has a cell of its own done, nor a folder."""
    Image.new("L", (300, 300)).save(tmp_path / "holiday.png")
    (tmp_path / "transforms_train.json").write_text('{"frames": []}')
    given = {"scene": tmp_path} if name == "table3" else {"images": tmp_path}
    with pytest.raises((FileNotFoundError, ValueError), match=r"holiday\.png|at least one frame"):
        reproduce("peak", name, tmp_path / "out", **given, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "shown"), [("fig3", ["Jetplane (here astronaut), 16x16"]), ("fig7", []), ("fig8", []),
                                             ("table1", ["Boat (here rocket), patch"])])  # fmt: skip
def test_a_report_names_the_picture_that_was_taken_in_place_of_the_papers(name, shown, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(table1, "TABLE1", ("Boat",))
    made = reproduce("peak", name, tmp_path, progress=False)[name]
    told = json.dumps(made)
    whose = {"fig3": "Jetplane", "table1": "Boat"}.get(name, "Baboon")
    assert f"{STAND_INS[whose]} for {whose}" in told and all(one in told for one in shown)


def test_the_papers_table_is_whole():
    assert len(PAPER) == 18 and {kind for _, kind in PAPER} == set(KINDS)
    assert all(len(values) == len(FOUR) and max(values) == values[-1] for values in PAPER.values())


@given(st.lists(st.floats(5, 50), min_size=8, max_size=8, unique=True))
def test_peak_wins_where_it_is_above_all_rivals(values):
    there = [("Boat", "random"), ("Lake", "patch")]
    found = {
        cell_name(place, method): Found({"whole": [0.0, value]})
        for (place, method), value in zip(((p, m) for p in there for m in FOUR), values, strict=True)
    }
    expected = [there[i] for i in range(2) if values[4 * i + 3] == max(values[4 * i : 4 * i + 4])]
    assert wins(found, there, "whole") == expected


def test_a_part_is_called_better_only_where_the_interval_leaves_out_zero():
    there = [("Boat", kind) for kind in KINDS]

    def cells(gains):
        return {
            cell_name(place, method): Found({over: [20.0 + (gain if method is PEAK_METHOD else 0.0)]
                                             for over in ("whole", "missing")})
            for place, gain in zip(there, gains, strict=True) for method in (PEAK_METHOD, GAMMA)
        }  # fmt: skip

    assert part_told(cells((1.0, 1.1, 0.9)), there, GAMMA).count("(better)") == 2
    assert part_told(cells((-1.0, -1.1, -0.9)), there, GAMMA).count("(worse)") == 2
    assert part_told(cells((-1.0, 1.1, 0.2)), there, GAMMA).count("beyond chance") == 2


def test_a_fit_is_scored_over_all_missing_and_observed_pixels():
    method = replace(SIREN, network={**SIREN.network, "width": 32}, batch=256)
    found = fit_cell("x", method, SCENE, HALF, 150, 0, scores=3, stopping=True).run(WORK)
    picture = torch.from_numpy(found.arrays["picture"]).double() / 255
    errors, numbers = (picture - SMOOTH).square(), found.numbers
    for over, own in (("whole", errors), ("missing", errors[~HALF.observed]), ("observed", errors[HALF.observed])):
        # A picture in 256 levels is off by 1/510 at most: seen where an error is far above that.
        assert last(found, over) == pytest.approx(-10 * float(own.mean().log10()), abs=0.3)
    assert last(found) > 28 and numbers["steps_scored"][0] == 0 and numbers["steps_scored"][-1] == numbers["steps"]
    assert stopped(found) == numbers["whole"][numbers["stopped"]]
    assert numbers["held_out"][numbers["stopped"]] == max(numbers["held_out"])


def test_scores_are_of_values_cut_to_the_range_of_a_picture():
    watch = Scores(torch.zeros(2, 1), torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    watch.on_eval(SimpleNamespace(net=lambda coords: torch.tensor([[5.0], [0.0]]), step=3))
    assert watch.found["observed"][0] == 120 and watch.found["missing"][0] == pytest.approx(10 * np.log10(4))
    assert watch.steps == [3]


def test_equal_time_gives_steps_in_two_digits():
    speed = Found({"seconds": {"mlp": 0.00217}})
    assert steps_of(MLP, speed, 5.0) == 2300 and steps_of(MLP, speed, 0.1) == 46 and steps_of(MLP, speed, 1e-9) == 2
    quick = replace(MLP, network={**MLP.network, "width": 8})
    slow = replace(MLP, name="slow", network={**MLP.network, "width": 256})
    seconds = speed_cell("s", [quick, slow], SIDE).run(WORK).numbers["seconds"]
    assert 0 < seconds["mlp"] < seconds["slow"]


def test_methods_are_made_as_they_are_told():
    points = grid((SIDE, SIDE), "center")
    for method in (*RIVALS, *ABLATIONS, PEAK_METHOD):
        net, regularizers = method.made(points, 512, 0, torch.device("cpu"))
        assert net(points[:3]).shape == (3, 1) and len(regularizers) == bool(method.kar or method.tv)
        assert f"Adam {method.lr:g}" in method.told and str(method.batch) in method.told
    assert set(TUNED_ON) < set(table1.TABLE1)
    assert parameters(sized(MLP, 32)) < parameters(sized(MLP, 64)) and parameters(sized(HASH, 64)) > 0
    assert parameters(sized(PEAK_METHOD, 32)) == 2 + 3 * 32 + 32 + 2 * (32 * 32 + 32) + 33  # without the attention
    for request in (Request(), Request(preset="paper")):
        assert list(swept(request).methods) == [str(degree) for degree in DEGREES[request.preset]]
        assert len(WIDTHS[request.preset]) > 1
    assert ranged([1.0]) == "1.00" and ranged([1.0, 2.0]) == "1.50 (1.00 to 2.00)"
    assert len(FACTORS) == 8 and len(FEATURES) == 7


def test_larger_pictures_have_settings_of_their_own():
    for method in (*RIVALS, *ABLATIONS, PEAK_METHOD):
        assert method.at(128) is method
        own = method.at(256)
        lr, omega = method.larger.get("lr", method.lr), own.network.get("omega")
        assert (own.name, own.lr) == (method.name, lr) and own.at(512) == own and own.told.count(f"Adam {lr:g}") == 1
        assert omega is None or omega == {"first": method.larger["omega"], "hidden": method.network["omega"]["hidden"]}
        assert "larger" not in own.settings
    scene = replace(SCENE, values=torch.zeros(256, 256))
    told = fit_cell("x", SIREN, scene, HALF, 1, 0).settings["method"]
    assert told == SIREN.at(256).settings != SIREN.settings


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_weights_are_those_of_a_dense_matrix(function):
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    own = OtherWeights(points[:12], function, r=5, width=8, hidden_layers=1, rows="all", keys="all", seed=2)
    net = torch.nn.Linear(2, 1).double()
    features, values = own.kar.attention(points), net(points)
    rows = []
    for i in range(12):
        keys = [j for j in range(40) if j != i]
        weights = FUNCTIONS[function]((features[keys] @ features[i])[None])[0]
        if "soft" not in function:
            weights = weights / (weights.abs().sum() + 1e-6)
        rows.append((values[i] - weights @ values[keys]).norm())
    assert torch.allclose(own(net, points, 0), torch.stack(rows).mean(), rtol=1e-9)
    if function == "softmax":
        assert torch.allclose(own(net, points, 0), own.kar(net, points, 0), rtol=1e-9)


def test_the_text_on_the_factor_follows_the_numbers():
    means = {"0": 20.0, "0.01": 21.0, "1": 19.0, "100": 14.0}
    assert "inside the paper's range, +1.00 dB" in _factor_told(means, "0.01")
    assert "outside" in _factor_told({**means, "1": 22.0}, "1")
    assert "No factor" in _factor_told({**means, "0": 23.0}, "0")
