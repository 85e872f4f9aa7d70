"""Fig. 2: its numbers are those of the kernels drawn, and what is said follows them."""

import json

import numpy as np
import pytest
import torch
from random_networks import exact_jacobian, exact_kernel

from inrfast.experiments.paper import Found, Request, Work
from inrfast.experiments.peak import fig2
from inrfast.experiments.peak.fig2 import METHODS, Fig2
from inrfast.experiments.reproduce import reproduce


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"STEPS": 3, "POINTS": 33, "WIDTH": 16, "R": 8, "FOURIER": 8}.items():
        monkeypatch.setattr(fig2, name, value)


def test_optimal_kernels_are_their_formulas():
    x = np.linspace(-1, 1, 33)
    wave = np.sin(4 * np.pi * x)
    np.testing.assert_allclose(fig2.optimal("given"), np.outer(wave, wave), atol=1e-14)
    np.testing.assert_allclose(fig2.optimal("phases"), np.cos(4 * np.pi * (x[:, None] - x)) / 2, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_the_kernels_before_and_after(method, tmp_path):
    (cell,) = (cell for cell in Fig2().cells(Request(runs=1, seed=4), {}) if cell.name == f"{method}.4")
    found = cell.run(Work(torch.device("cpu"), tmp_path / "fit", False))
    coords, _ = fig2.places(torch.device("cpu"))
    net, regularizers = fig2.made(method, coords, 4)
    truth = exact_kernel(*(exact_jacobian(net, coords),) * 2, "trace").numpy()
    np.testing.assert_allclose(found.arrays["before"], truth, atol=2e-6 * truth.max())
    assert bool(regularizers) == (method == "peak") and not np.allclose(found.arrays["after"], truth)
    wave = np.sin(4 * np.pi * np.linspace(-1, 1, 33))
    for when in ("before", "after"):
        kernel = found.arrays[when].astype(np.float64)
        plain = wave @ kernel @ wave / (np.linalg.norm(kernel) * wave @ wave)
        assert found.numbers[when]["plain"] == pytest.approx(plain, abs=1e-6)
        assert found.numbers[when]["regression"] >= 0


def test_peak_and_the_network_without_kar_start_as_one_function():
    coords, _ = fig2.places(torch.device("cpu"))
    (one, first), (other, second) = (fig2.made(name, coords, 0) for name in ("without", "peak"))
    assert torch.equal(one(coords), other(coords)) and not first
    ((_, factor),) = second
    assert factor == pytest.approx(fig2.LAMBDA * 33 / 9)  # all points over those fitted


def test_the_figure_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(fig2.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    made = reproduce("peak", "fig2", tmp_path, runs=2, progress=False)["fig2"]
    assert len(made["rows"]) == len(METHODS) + 2 and all(row[1] == "picture only" for row in made["rows"])
    own = made["numbers"]["runs"]["peak"]
    assert len(own) == 2 and json.dumps(made)
    mean = np.mean([cell["after"]["plain"] for cell in own])
    assert any(f" / {mean:.3f}" in row[2] for row in made["rows"] if row[0].endswith(", PEAK"))
    assert made["numbers"]["optimal"]["given"]["plain"] == pytest.approx(1)


def runs(peak, without):
    """Two runs of every method, with these centred alignments after the fit."""

    def cell(after):
        numbers = {"plain": after, "centered": after, "regression": 0.1}
        return Found({"before": {**numbers, "centered": 0.1}, "after": numbers, "psnr": 30.0})

    return {name: [cell({"peak": peak, "without": without}.get(name, 0.05))] * 2 for name in METHODS}


def test_what_is_said_follows_the_numbers():
    assert (
        "largest for PEAK (0.900)" in fig2.said(runs(0.9, 0.4))[1] and "in 2 of 2 runs" in fig2.said(runs(0.9, 0.4))[1]
    )
    worse = fig2.said(runs(0.3, 0.4))
    assert "largest for PEAK without KAR (0.400)" in worse[1] and "in 0 of 2 runs" in worse[1]
    assert "30.0 ± 0.0 dB with KAR and 30.0 ± 0.0 dB without, higher with it in 0 of 2 runs" in worse[2]
