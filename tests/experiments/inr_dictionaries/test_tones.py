"""Figs. 3 and 9: the numbers are those of the network's own values, and what is said follows the number of runs."""

import json

import numpy as np
import pytest
import torch

from inrfast.experiments.inr_dictionaries import tones
from inrfast.experiments.inr_dictionaries.fig3 import Fig3
from inrfast.experiments.inr_dictionaries.networks import siren
from inrfast.experiments.paper import Request, Work
from inrfast.experiments.reproduce import reproduce

pytestmark = pytest.mark.filterwarnings("ignore:the values at the ends")  # of networks that are hardly fitted


def test_omega_acts_in_the_first_layer_alone_and_biases_have_the_bounds_of_the_weights():
    net = siren(1, 1, 64, 2, 300.0, seed=3)
    assert net.omegas == (300.0, 30.0)
    for layer, bound in zip(net.layers[:-1], (1.0, (6 / 64) ** 0.5 / 30), strict=True):
        for part in (layer.weight, layer.bias):
            assert 0.8 * bound < part.detach().abs().max().item() <= bound * (1 + 1e-6)


def test_every_number_is_that_of_a_fit_done_by_hand(tmp_path, monkeypatch):
    """One run of a few steps of Adam, and NumPy's DFT."""
    monkeypatch.setattr(tones, "STEPS", 4)
    monkeypatch.setattr(tones, "LR", 1e-3)
    figure = Fig3()
    cell = figure.cells(Request(runs=1, seed=3), {})[1]
    (fit,) = cell.run(Work(torch.device("cpu"), tmp_path / "fit", False)).numbers["fits"]
    net = figure.network(30.0, 3, torch.device("cpu"))
    coords, finer = (torch.arange(n, dtype=torch.float64)[:, None] / n for n in (128, 256))
    target = torch.sin(2 * torch.pi * 23 * coords).float()
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in net.parameters()]
    for step in range(1, 5):
        loss = (net(coords.float()) - target).square().mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        for part, gradient, (first, second) in zip(net.parameters(), gradients, moments, strict=True):
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            part.data -= 1e-3 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    with torch.no_grad():
        values, fine = net(coords.float())[:, 0].double(), net(finer.float())[:, 0].double().numpy()
    energy = np.abs(np.fft.rfft(fine)) ** 2
    assert fit["alias"] == pytest.approx(10 * np.log10(energy[105] / energy[23]), abs=1e-2)
    halves = energy * np.where(np.arange(129) == 128, 0.5, 1.0)
    assert fit["share"] == pytest.approx(halves[65:].sum() / halves[1:].sum(), rel=1e-2)
    error = (values - target[:, 0].double()).square().mean().item()
    assert fit["psnr"] == pytest.approx(10 * np.log10(4 / error), abs=1e-3)


@pytest.mark.parametrize("figure", ["fig3", "fig9"])
def test_the_figure_is_made_and_says_what_it_counted(figure, tmp_path, monkeypatch):
    monkeypatch.setattr(tones, "STEPS", 2)
    monkeypatch.setattr(tones.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    made = reproduce("inr_dictionaries", figure, tmp_path, runs=2, progress=False)[figure]
    runs = made["numbers"]["runs"]
    for name, own in runs.items():
        counted = sum(any(tuple(peak["frequency"]) == (105.0,) for peak in fit["peaks"]) for fit in own)
        (row,) = (row for row in made["rows"] if row[0] == f"a peak at 105 Hz, {name.replace('=', ' ')}")
        assert row[2] == f"{counted} of 2 runs"
    assert len(made["rows"]) == 10 and json.dumps(made)


def test_the_claim_is_chosen_by_the_numbers():
    yes = {"peaks": [{"frequency": (105.0,), "level": -10.0}]}
    no, other = {"peaks": []}, {"peaks": [{"frequency": (69.0,), "level": -20.0}]}
    figure = Fig3()
    assert "as the paper says: every run" in figure._claim({300.0: [yes, yes], 30.0: [no, other]})
    assert "mostly as the paper says: 1 of 2" in figure._claim({300.0: [yes, no], 30.0: [no, no]})
    assert "not as the paper says: 1 of 2 runs with omega 300 have it, 2" in figure._claim(
        {300.0: [yes, no], 30.0: [yes, yes]}
    )
