"""The page of a fit alone: curves, settings, and the images that its caller gives."""

import dataclasses

import html5lib
import numpy as np
import pytest
import torch
from browser import browser, check
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inrfast as inr
from inrfast.training.result_page import MOST_POINTS, _thinned, facts, page, pictures, sections, warnings


@pytest.fixture(scope="module")
def result():
    coords = inr.grid((6, 6))
    return inr.fit(
        inr.INR(2, 1, width=8, hidden_layers=1, activation="sine"), coords, coords[:, :1], steps=9, progress=False
    )


def test_a_browser_shows_it(result, tmp_path):
    images = {"<script>target</script>": np.random.default_rng(0).random((6, 6)), "made": torch.rand(6, 6, 3)}
    made = result.to_html(tmp_path / "fit.html", images)
    assert (tmp_path / "fit.html").read_text() == made
    html5lib.HTMLParser(strict=True).parse(made)
    with browser() as opened:
        text = check(opened, tmp_path / "fit.html")
    assert "<script>target</script>" in text and f"{result.psnr:.2f} dB" in text
    assert "INR 2-8-1, sine" in text and "omega of the network" in text and result.config["gradient"] in text
    assert result.to_html().count("<img ") == 2 and made.count("<img ") == 4


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], TypeError, "map names"),
        ({"a": np.zeros(3)}, ValueError, r"images\['a'\] must have shape"),
        ({"a": np.zeros((2, 2, 2))}, ValueError, "must have shape"),
        ({"a": np.full((2, 2), np.nan)}, ValueError, "finite"),
        ({"a": np.zeros((2, 2), dtype=np.int32)}, TypeError, r"images\['a'\] must have a floating"),
        ({"a": "picture.png"}, TypeError, r"images\['a'\] must be"),
    ],
)
def test_other_images_are_refused(result, images, error, words, tmp_path):
    with pytest.raises(error, match=words):
        result.to_html(tmp_path / "x.html", images)
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_fit_still_has_a_page(result):
    nan = float("nan")
    broken = dataclasses.replace(
        result, psnr=nan, best_psnr=nan, psnrs=(nan, nan), eval_steps=(0, 9), losses=(nan,), stopped="diverged"
    )
    assert any("diverged" in told for told in warnings(broken))
    html5lib.HTMLParser(strict=True).parse(page(broken).html())


def test_better_weights_than_the_last_are_named(result):
    told = warnings(dataclasses.replace(result, psnr=10.0, best_psnr=12.5, best_step=4))
    assert any("after 4 steps were better by 2.50 dB" in one for one in told)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3 * MOST_POINTS))
def test_a_thinned_curve_keeps_its_mean_its_order_and_its_end(values):
    steps, made = _thinned(np.arange(len(values), dtype=float), np.array(values))
    assert len(steps) == min(len(values), MOST_POINTS) and (np.diff(steps) > 0).all()
    assert (steps[-1], made[-1]) == (len(values) - 1, values[-1])
    assert min(values) - 1e-6 <= made.min() and made.max() <= max(values) + 1e-6


def test_pixels_and_pictures_are_shown_as_their_values(result, recwarn):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    shown = [pictures({"a": own})[0] for own in (pixels / 255.0, pixels, torch.tensor(pixels), Image.fromarray(pixels))]
    assert len({own.data for own in shown}) == 1 and not recwarn


@pytest.mark.parametrize("path", ["fit.png", "fit", "fit.txt"])
def test_a_page_has_the_suffix_of_a_page(result, path, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of .html, .htm, got"):
        result.to_html(tmp_path / path)
    assert not list(tmp_path.iterdir()) and result.to_html(tmp_path / "fit.HTM")


@pytest.mark.filterwarnings("error")
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_infinite_psnrs_are_no_trouble(result, data):
    values = st.sampled_from([float("inf"), float("nan"), 3.0, 40.0])
    psnrs = tuple(data.draw(st.lists(values, min_size=10, max_size=10)))
    odd = dataclasses.replace(result, psnrs=psnrs, eval_steps=tuple(range(10)), psnr=psnrs[-1], best_psnr=max(psnrs))
    assert not any("inf" in told for told in warnings(odd))
    sections(odd)
    facts(odd)
    odd.plot()
