"""The search for a better start: its prediction is gradient descent, and it never sees the images that are scored."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.experiments.inlet_rank_collapse import beyond, protocol
from inrfast.experiments.inlet_rank_collapse.beyond import checkerboard, linearised, verdict, winners
from inrfast.experiments.inlet_rank_collapse.protocol import Sizes
from inrfast.experiments.inlet_rank_collapse.starts import BASELINES, STARTS
from inrfast.experiments.inlet_rank_collapse.table1 import _images
from inrfast.experiments.reproduce import reproduce
from inrfast.experiments.scores import Interval


@settings(max_examples=15, deadline=None)
@given(side=st.integers(3, 6), rank=st.integers(2, 40), steps=st.integers(1, 60), seed=st.integers(0, 99))
def test_prediction_is_gradient_descent_on_the_training_pixels_alone(side, rank, steps, seed):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(side * side, rank, generator=draw, dtype=torch.float64)
    targets = torch.randn(2, side * side, 3, generator=draw, dtype=torch.float64)
    train = checkerboard(side)
    kernel = features @ features.mT
    weights = torch.zeros(2, rank, 3, dtype=torch.float64)
    rate = 1 / torch.linalg.eigvalsh(kernel[train][:, train])[-1]
    best = np.full(2, -np.inf)
    flows = {round(flow) for flow in beyond.FLOWS if flow <= 100}
    for step in range(1, 101):
        weights += rate * features[train].mT @ (targets[:, train] - features[train] @ weights)
        error = targets - features @ weights
        psnr = [-10 * torch.log10(error[:, part].square().mean((1, 2))).numpy() for part in (train, ~train)]
        if step == steps:
            trained = psnr[0]
        if step in flows:
            best = np.maximum(best, psnr[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beyond, "FLOWS", tuple(map(float, flows)))
        held_out, on_training, _ = linearised(kernel, targets, train, steps)
    # Eigenvalues below roundoff are raised to it, which only fits of almost no error see.
    assert held_out == pytest.approx(best.tolist(), abs=1e-4)
    for got, true in zip(on_training, trained, strict=True):
        assert got == pytest.approx(true, abs=1e-4) or min(got, true) > 150


def test_the_search_is_made_whole_and_without_the_images_that_are_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(protocol.SIZES, "quick", Sizes(4, 12, 8, 8, 4, 1))
    monkeypatch.setitem(beyond.SEARCHES, "quick", beyond.Search(11, 1, 1, 2))
    monkeypatch.setattr(beyond, "RATES", (1e-3, 1e-2))
    for cache in (_images, beyond._small):
        cache.cache_clear()
    seen = {"predict": set(), "short": set(), "rates": set(), "score": set()}
    original = beyond.fits_cell

    def recorded(name, setups, pictures, images, *args, **more):
        seen[name.split("-")[0]] |= {pictures.names[i] for i in images}
        return original(name, setups, pictures, images, *args, **more)

    monkeypatch.setattr(beyond, "fits_cell", recorded)
    try:
        made = reproduce("inlet_rank_collapse", ["beyond"], tmp_path / "out", progress=False)["beyond"]
        monkeypatch.setattr(protocol, "fit_many", None)
        again = reproduce("inlet_rank_collapse", ["beyond"], tmp_path / "out", progress=False)["beyond"]
    finally:
        for cache in (_images, beyond._small):
            cache.cache_clear()
    assert again["numbers"] == made["numbers"]
    assert seen["short"] == seen["rates"] and not seen["score"] & seen["rates"]
    numbers = made["numbers"]
    assert set(numbers["predicted"]) == set(STARTS)
    assert set(numbers["short"]) >= set(BASELINES) and len(numbers["short"]) == len(BASELINES) + 1 + 2
    best = max(numbers["predicted"], key=lambda name: (name not in BASELINES, numbers["predicted"][name]["held_out"]))
    assert best in numbers["scores"] and {"default", "ours", "he"} <= set(numbers["scores"])
    for name, gain in numbers["minus_ours"].items():
        apart = np.subtract(numbers["scores"][name]["psnrs"], numbers["scores"]["ours"]["psnrs"])
        assert gain["mean"] == pytest.approx(apart.mean())


@given(mean=st.floats(-3, 3), half=st.floats(0, 2))
def test_a_start_is_better_only_by_a_decibel_and_an_interval_above_half(mean, half):
    gains = {"he": Interval(mean, half, 12), "default": Interval(-4.0, 0.1, 12)}
    better = mean >= 1 and mean - half > 0.5
    assert winners(gains) == (["he"] if better else [])
    assert verdict(gains).startswith("A better start") == better
