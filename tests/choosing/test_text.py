"""A choice in words says what was looked at, has every candidate, and ends with a line that makes the best."""

import dataclasses
import math

import torch

import inrfast as inr
from inrfast.choosing.choice import Candidate, Choice, arguments_of, name_of

SAMPLE = {
    "signal": 9000,
    "points": 400,
    "train": 200,
    "held_out": 200,
    "patches": 3,
    "patch": [8, 8],
    "cells": [90, 16],
}
NETWORKS = [{"activation": "sine", "omega": 12.0, "init": "siren"}, {"encoding": inr.RandomFourier(4, 2.0)}, {}]


def choice(**others):
    arguments = [arguments_of(inr.INR(2, 3, width=8, hidden_layers=2, **own)) for own in NETWORKS]
    found = [Candidate(name_of(own), own, 30.0 - i, 1.5, 2.5e-4, 1.0) for i, own in enumerate(arguments)]
    return Choice(
        **{"candidates": tuple(found), "data_range": 1.0, "sample": {**SAMPLE, "channels": 3}, "seconds": 1.0} | others
    )


def test_the_text_has_the_sample_every_candidate_and_a_line_that_makes_the_best():
    lines = str(choice()).splitlines()
    for words in (
        "9,000 samples of 3 values",
        "200 of them predict 200 others",
        "3 patches of 8x8 samples",
        "means over 90 and 16 cells",
    ):
        assert words in " ".join(lines)
    rows = [line for line in lines if " dB " in line]
    assert [name_of(arguments_of(inr.INR(2, 3, **own))) in row for own, row in zip(NETWORKS, rows, strict=True)] == [
        True
    ] * 3
    assert "30.00 ± 1.50 dB" in rows[0]
    assert "fitted" not in str(choice())
    assert "a range of" not in str(choice())
    assert "a range of 0.25" in str(choice(data_range=0.25))
    assert "1 of the others is predicted within one standard error" in " ".join(lines)
    scope: dict = {}
    exec("\n".join(lines[-2:]), scope)
    assert lines[-1].endswith("lr=0.00025")
    best = choice().network(seed=0)
    assert all(torch.equal(tensor, best.state_dict()[name]) for name, tensor in scope["net"].state_dict().items())


def test_what_was_fitted_and_what_is_missing_is_said():
    first, *rest = choice().candidates
    text = str(
        choice(candidates=(dataclasses.replace(first, fitted=28.25), *rest), refused=(("tanh", "it is too wide"),))
    )
    assert "28.25 dB" in text
    assert "tanh: it is too wide" in text
    assert "interrupted" in str(choice(stopped="interrupted"))
    assert "time was over" in str(choice(stopped="time"))
    whole = str(choice(sample={**SAMPLE, "channels": 1, "points": 9000, "patches": 0, "patch": None, "cells": []}))
    assert "9,000 samples. 200 of them predict 200 others." in whole
    diverged = str(choice(candidates=(dataclasses.replace(first, fitted=-math.inf), *rest)))
    assert "diverged" in diverged
    assert "inf" not in diverged.replace("inrfast", "")


def test_what_is_far_from_a_fit_is_said():
    first, *rest = choice().candidates
    assert "40 dB" not in str(choice())
    assert "than predicted" not in str(choice())
    assert "Above 40 dB a fit usually reaches less" in str(choice(candidates=(dataclasses.replace(first, psnr=50.0),)))
    fitted = dataclasses.replace(first, fitted=first.psnr - 3.5)
    assert "1 of the fitted PSNRs is more than 3 dB away" in str(choice(candidates=(fitted, *rest)))
    near = dataclasses.replace(first, fitted=first.psnr - 2.5)
    assert "3 dB away" not in str(choice(candidates=(near, *rest)))
    bordered = choice(sample={**SAMPLE, "channels": 1, "patches": 9})
    assert "next to its border" in " ".join(str(bordered).split())
    assert "border" not in str(choice())
