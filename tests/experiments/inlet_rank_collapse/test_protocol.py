"""Fits of images: scores are those of the stored reconstructions, a stopped fit goes on, NaN images stay unread."""

import re

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inrfast.experiments.inlet_rank_collapse import protocol
from inrfast.experiments.inlet_rank_collapse.methods import METHODS
from inrfast.experiments.inlet_rank_collapse.protocol import (
    VARIANTS,
    Setup,
    Sizes,
    fits_cell,
    in_bytes,
    scoring,
    tuning,
    varied,
)
from inrfast.experiments.paper import Request, Work
from inrfast.experiments.pictures import Pictures


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(protocol.SIZES, "quick", Sizes(4, 16, 8, 12, 6, 2))


@pytest.fixture
def images():
    values = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    return Pictures(tuple("abcd"), values, ("drawn",) * 4, 4)


@pytest.mark.parametrize("name", METHODS)
def test_a_variants_words_hold_its_own_numbers_and_no_others(name):
    """Each number and init of the options is named once, by a network that has it: no word of what it replaces."""
    told = {}
    for variant in ("", *VARIANTS[name]):
        method = varied(METHODS[name], variant)
        told[variant], net = Setup(name, 1e-2, "constant", 12, 3, variant).told, method.network(2, 3, 0)
        for word, value in (("omega", method.options.get("omega")), ("sigma", getattr(net.encoding, "sigma", None))):
            assert re.findall(rf"{word} ([\d.]+)", told[variant]) == ([] if value is None else [f"{value:g}"])
        init = method.options.get("init", "default")
        init = init if isinstance(init, dict) else {"first": init, "hidden": init}
        he = "kaiming" in init.values()
        assert ("He init" in told[variant]) == he and ("octaves" in told[variant]) == ("octaves" in variant)
        assert ("torch's default init" in told[variant]) == (
            "default" in init.values() or init["hidden"] == "rank_expanding"
        )
    assert len(set(told.values())) == len(told)


def work(folder, name="fit"):
    return Work(torch.device("cpu"), folder / name, False)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_stored_pictures(method, images, tmp_path):
    setup = Setup(method, 1e-2, "constant", 12)
    found = fits_cell("x", [setup], images, [1, 2], Request(), shown=[2]).run(work(tmp_path))
    fit = found.numbers["fits"][1]
    stored, truth = found.arrays[f"{setup.key}.c"], in_bytes(images.values[2]).numpy()
    assert fit["psnr_8bit"] == pytest.approx(peak_signal_noise_ratio(truth, stored), abs=1e-3)
    expected = structural_similarity(
        truth, stored, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert fit["ssim_8bit"] == pytest.approx(expected, abs=1e-4)


def test_the_images_that_are_scored_are_not_seen_by_a_search(images, tmp_path):
    setup = Setup("default", 1e-2, "constant", 12)
    clean = fits_cell("x", [setup], images, tuning(images), Request()).run(work(tmp_path, "a"))
    assert set(tuning(images)).isdisjoint(scoring(images))
    images.values[scoring(images)] = float("nan")
    assert fits_cell("x", [setup], images, tuning(images), Request()).run(work(tmp_path, "b")) == clean


def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(images, tmp_path, monkeypatch):
    cell = fits_cell("x", [Setup("ours", 1e-2, "constant", 12), Setup("ours", 1e-3, "constant", 12)], images, [0],
                     Request())  # fmt: skip
    whole = cell.run(work(tmp_path, "whole"))
    plain, calls = protocol.fit_many, []

    class Stop:
        def on_step(self, state):
            if state.step == 5 and len(calls) == 1:
                raise KeyboardInterrupt

    def stopped(*arguments, **options):
        calls.append(1)
        return plain(*arguments, **options, callbacks=[Stop()])

    monkeypatch.setattr(protocol, "fit_many", stopped)
    with pytest.raises(KeyboardInterrupt):
        cell.run(work(tmp_path))
    again = cell.run(work(tmp_path))
    assert len(calls) == 2
    for before, after in zip(whole.numbers["fits"], again.numbers["fits"], strict=True):
        assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-4)


def test_a_fit_that_diverges_is_a_result(images, tmp_path):
    found = fits_cell("x", [Setup("default", 1e30, "constant", 12)], images, [0], Request()).run(work(tmp_path))
    (fit,) = found.numbers["fits"]
    assert np.isfinite(fit["psnr"])
