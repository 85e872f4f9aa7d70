"""Figs. 2, 6, 7 and 8: even bins hold what the mean of four moved copies holds, and a frozen mapping stays."""

import numpy as np
import pytest
import torch

from inrfast.experiments.inr_dictionaries import recovery
from inrfast.experiments.inr_dictionaries.fig2 import Fig2, missing, one_frequency, sharpness
from inrfast.experiments.inr_dictionaries.fig6 import Fig6, drawn, identity
from inrfast.experiments.inr_dictionaries.fig7 import Fig7, spread_out
from inrfast.experiments.inr_dictionaries.fig8 import Fig8
from inrfast.experiments.paper import Request, Work
from inrfast.experiments.reproduce import reproduce

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(recovery.SIZES, "quick", recovery.Sizes(16, 8, 3, 1e-2))


def test_the_mean_of_the_copies_is_the_even_bins_of_the_image():
    image = torch.rand(12, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bins = np.fft.fft2(image.numpy(), axes=(0, 1))
    bins[1::2] = bins[:, 1::2] = 0
    assert np.allclose(np.fft.ifft2(bins, axes=(0, 1)).real, recovery.even(image).numpy(), atol=1e-14)
    copies = recovery.shares(recovery.even(image), image)
    assert copies["odd"] < 1e-28 and copies["recovered"] == pytest.approx(0)
    assert recovery.shares(image + 3, image)["recovered"] == pytest.approx(1)
    assert recovery.shares((image + recovery.even(image)) / 2, image)["recovered"] == pytest.approx(0.75)
    kept = (np.abs(bins) ** 2)[1:].sum() + (np.abs(bins[0, 1:]) ** 2).sum()
    every = (np.abs(np.fft.fft2(image - image.mean((0, 1)), axes=(0, 1))) ** 2).sum()
    assert recovery.of_image(image)["odd"] == pytest.approx(1 - kept / every)


FIGURES = [Fig2(), Fig6(), Fig7(), Fig8()]


@pytest.mark.parametrize(
    ("figure", "variant"), [(figure, one) for figure in FIGURES for one in figure.variants],
    ids=lambda one: getattr(one, "name", None) or one.key,
)  # fmt: skip
def test_a_trained_mapping_moves_and_no_energy_lies_outside_the_support(figure, variant, tmp_path):
    (cell,) = [own for own in figure.cells(Request(), {}) if own.name == variant.key]
    found = cell.run(Work(CPU, tmp_path / "fit", False)).numbers
    trained = "trained" in variant.told
    assert (found["moved"] > 0) == trained
    assert found["outside"] < 1e-12
    if not trained and variant.key in ("f0=1", "W=1"):
        assert found["odd"] < 1e-20 and found["bins"] == 0.25
    else:
        assert found["odd"] > 1e-6


def test_the_first_layer_of_the_paper_is_one_cycle_per_unit():
    net = identity(0.5, False).network(6, 0, CPU)
    coords = torch.rand(5, 2)
    features = net.activate(0, net.layers[0](coords))
    phases = 2 * torch.pi * net.layers[0].bias
    for unit in range(6):
        wave = torch.sin(torch.pi * coords[:, unit % 2] + phases[unit])
        assert (features[:, unit] - wave).abs().max() < 1e-5
    assert not any(part.requires_grad for part in net.layers[0].parameters())
    assert all(part.requires_grad for part in drawn(True).network(6, 0, CPU).parameters())


def test_the_weights_behind_a_mapping_have_the_variance_of_the_code():
    net = one_frequency(1.0).network(400, 1, CPU)
    for layer in net.layers[1:-1]:
        assert layer.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
        assert not layer.bias.any()


@pytest.mark.parametrize("figure", ["fig2", "fig6", "fig7", "fig8"])
def test_the_figure_is_made(figure, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    made = reproduce("inr_dictionaries", figure, tmp_path, progress=False)[figure]
    numbers = made["numbers"]["networks"]
    assert [row[2] for row in made["rows"] if row[0].startswith("PSNR")] == [
        f"{n['psnr']:.2f}" for n in numbers.values()
    ]
    assert all(n["psnr"] <= made["numbers"]["image"]["even_psnr"] for n in numbers.values() if n["bins"] == 0.25)


def test_what_is_said_of_missing_bins_follows_the_numbers():
    assert "missing from the first alone" in missing({"odd": 1e-28}, {"odd": 0.5})
    assert "not missing from the first" in missing({"odd": 0.1}, {"odd": 0.5})
    assert "not there in the second" in missing({"odd": 1e-28}, {"odd": 1e-9})


def test_what_is_said_of_a_trained_mapping_follows_the_numbers():
    one, image = {"moved": 0.1, "odd": 0.8, "psnr": 20.0}, {"odd": 0.8, "even_psnr": 12.0}
    assert "mostly gone, as the paper says" in spread_out({**one, "recovered": 0.9}, image)
    assert "the copies are not gone" in spread_out({**one, "recovered": 0.1}, image)


def test_what_is_said_of_blur_follows_the_numbers():
    def said(fine, psnr):
        found = {"a": {"fine": fine, "psnr": psnr}, "b": {"fine": 0.2, "psnr": 20.0}, "c": {"fine": 1.0, "psnr": 30.0}}
        return " ".join(sharpness(found, ("a", "b"), "c"))

    assert "c is the best, as in" in said(0.3, 10.0) and "are blurry, as the paper says" in said(0.3, 10.0)
    assert "c is not the best, unlike in" in said(0.9, 40.0) and "only b is blurry" in said(0.9, 40.0)
