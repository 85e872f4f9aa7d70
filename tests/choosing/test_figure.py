"""The figure of a choice shows every candidate where it belongs, and the best."""

import dataclasses
import math

import pytest

import inrfast as inr
from inrfast.choosing.choice import Candidate, Choice, arguments_of, name_of
from inrfast.choosing.figure import SPAN, place_of

SINES = [{"activation": "sine", "omega": float(omega), "init": "siren"} for omega in (60, 5, 20)]
FEATURES = [{"encoding": inr.RandomFourier(8, sigma)} for sigma in (1.0, 4.0)]
OCTAVES = [{"encoding": inr.PositionalEncoding(n)} for n in (3, 6)]
OTHERS = [{}, {"init": "rank_expanding"}, {"encoding": inr.encodings.HashGrid(levels=2)}, {"activation": "gaussian"}]


def choice(networks, fitted=()):
    """A choice among networks with made-up predictions, the best first."""
    found = []
    for index, own in enumerate(networks):
        arguments = arguments_of(inr.INR(2, 1, width=4, hidden_layers=2, **own))
        reached = 19.0 - index if index in fitted else None
        found.append(Candidate(name_of(arguments), arguments, 20.0 - index, 0.5, 1e-3, 100.0, fitted=reached))
    sample = {"signal": 900, "points": 400, "train": 200, "held_out": 200, "patches": 3, "patch": [8, 8]}
    return Choice(tuple(found), 1.0, {**sample, "cells": [16], "channels": 3}, 1.0)


def curves(axes):
    """The curves with error bars on the axes, by their labels: x and y."""
    return {c.get_label(): [list(map(float, line)) for line in c.lines[0].get_data()] for c in axes.containers}


def test_families_are_curves_over_their_number_and_others_are_points():
    found = choice([*SINES, *FEATURES, *OCTAVES, *OTHERS])
    omega, sigma, octaves, others = found.plot().axes
    assert curves(omega) == {"sine, siren": [[5, 20, 60], [19, 18, 20]]}
    assert curves(sigma) == {"relu on RandomFourier(n=8)": [[1, 4], [17, 16]]}
    assert curves(octaves) == {"relu on PositionalEncoding": [[3, 6], [15, 14]]}
    assert [label.get_text() for label in others.get_xticklabels()] == [c.name for c in found.candidates[7:]]
    (points,) = curves(others).values()
    assert points[1] == [13, 12, 11, 10]
    low, high = others.get_ylim()
    assert low < 9.5
    assert high > 20.5
    stars = [(axes, line) for axes in found.plot().axes for line in axes.lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for _, line in stars] == [(60, 20)]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"activation": "sine", "omega": 7.0}, ("omega", 7.0, "sine")),
        ({"activation": "wire"}, ("omega", 20.0, "wire")),
        ({"activation": {"name": "wire", "omega": 3, "sigma": 2}}, ("omega", 3.0, "wire")),
        (
            {"activation": "sine", "encoding": inr.RandomFourier(8, 2.0)},
            ("sigma", 2.0, "sine(omega=30) on RandomFourier(n=8)"),
        ),
        (
            {"encoding": inr.PositionalEncoding(4), "norm": "batch"},
            ("n", 4.0, "relu on PositionalEncoding, norm=batch"),
        ),
        ({"encoding": inr.RandomFourier(frequencies=[[1.0, 2.0]])}, None),
        ({"activation": {"first": "sine", "hidden": "relu"}}, None),
        ({"activation": "sine", "omega": [1.0, 2.0]}, None),
        ({}, None),
    ],
)
def test_a_candidate_lies_at_the_number_that_its_family_varies(arguments, place):
    found = place_of(arguments_of(inr.INR(2, 1, hidden_layers=2, width=4, **arguments)))
    assert (found and (found.number, found.value, found.family)) == place


@pytest.mark.parametrize("top", [6.0, 90.0, 3e4])
def test_the_numbers_of_an_axis_have_room(top):
    found = choice([{"activation": "sine", "omega": omega} for omega in (5.0, top)])
    steps = found.plot().axes[0].get_xticks()
    assert 1 <= len(steps) <= 7
    assert 5 / 1.2 <= min(steps) <= max(steps) <= 1.2 * top


@pytest.mark.parametrize("networks", [SINES[:1], [{}], [*SINES, {}], [{"init": "siren"}] * 40])
def test_few_and_many_candidates_are_drawn_and_written(networks, tmp_path):
    path = tmp_path / "choice.png"
    figure = choice(networks, fitted=(0, 1)).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    diamonds = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]
    assert {float(line.get_ydata()[0]) for line in diamonds} == set([19.0, 18.0][: len(networks)])
    assert "after a short fit" in " ".join(figure.get_suptitle().split())


def test_what_is_far_below_the_best_takes_no_room():
    found = choice([*SINES, {}])
    *near, far = found.candidates
    for worst in (dataclasses.replace(far, psnr=-300.0), dataclasses.replace(far, psnr=-math.inf, error=math.nan)):
        low, high = Choice((*near, worst), 1.0, found.sample, 1.0).plot().axes[0].get_ylim()
        assert 20 < high < 25
        assert 20 - 1.2 * SPAN < low < 18


def test_an_exact_prediction_and_an_unknown_error_are_drawn(tmp_path):
    found = choice(SINES[:2])
    exact = tuple(dataclasses.replace(own, psnr=math.inf, error=math.nan) for own in found.candidates)
    dataclasses.replace(found, candidates=exact).plot(tmp_path / "choice.png")
