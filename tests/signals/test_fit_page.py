"""The page of a fit: it shows the signal, and its sentences say what the numbers of the signal and the fit say."""

import dataclasses
import io
import json
import math
import re

import html5lib
import numpy as np
import pytest
import soundfile
import torch
import trimesh
from browser import browser, check
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inrfast as inr
from inrfast import metrics
from inrfast.cli import main
from inrfast.pages import Pictures
from inrfast.signals import comparison, fit_page
from inrfast.signals.fit_page import Fitted, compared_with, page
from inrfast.signals.kinds import Signal
from inrfast.signals.views import of_distances, of_image, of_video, of_volume

FAST = ["--steps", "6", "--width", "8", "--hidden-layers", "1", "--quiet", "--json"]


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    name = tmp_path / "<script>alert(1)<.png"
    Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(name)
    Image.fromarray(np.where(rng.random((12, 14)) < 0.5, 255, 0).astype(np.uint8)).save(tmp_path / "known.png")
    return [str(name), "--size", "6x7", "--weight", str(tmp_path / "known.png"), "--out", str(tmp_path / "out.png")]


@pytest.fixture
def sound(tmp_path):
    soundfile.write(tmp_path / "tone.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)), 8000)
    return [str(tmp_path / "tone.wav"), "--out", str(tmp_path / "out.wav")]


@pytest.fixture
def volume(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).random((4, 5, 6)))
    return [str(tmp_path / "v.npy"), "--out", str(tmp_path / "out.npy")]


@pytest.fixture
def mesh(tmp_path):
    trimesh.creation.icosphere(2).export(tmp_path / "ball.ply")
    options = ["--samples", "300", "--size", "8", "--out", str(tmp_path / "out.ply"), "--lr", "1e-2", "--steps", "40"]
    return [str(tmp_path / "ball.ply"), *options]


def test_each_kind_has_a_page_that_a_browser_shows(photo, sound, volume, mesh, tmp_path, capsys):
    said = {
        "image": (photo, 6, ["<script>alert(1)<.png", "Pixels that the fit was given", "grey levels", "others"]),
        "sound": (sound, 5, ["first of 2 channels", "signal-to-noise"]),
        "volume": (volume, 11, ["slice 2 along axis 1"]),
        "mesh": (mesh, 5, ["IoU", "x = "]),
    }
    with browser() as opened:
        for argv, pictures, words in said.values():
            assert (
                main(["fit", *argv, *[word for word in FAST if "--steps" not in argv or word not in ("--steps", "6")]])
                == 0
            )
            found = json.loads(capsys.readouterr().out)
            made = (tmp_path / "out.html").read_text()
            assert found["page"] == str(tmp_path / "out.html")
            html5lib.HTMLParser(strict=True).parse(made)
            text = check(opened, tmp_path / "out.html")
            assert made.count("<img ") == pictures and all(word in text for word in words)
            assert f"{found['psnr']:.2f} dB" in text and "torch" in text


# ---- its sentences -----------------------------------------------------------------------------------------------


def quality_of(given):
    return fit_page.quality_of(given, compared_with(given))


def fitted(target, predictions, weight=None, kind="image", result=None):
    """Return a fit whose network gives these predictions, with the PSNR that they have."""
    shape = list(target.shape[:-1])
    about = {"shape": shape, "offset": 0.5, "scale": 1.0}
    net = inr.INR(2, target.shape[-1], width=2, hidden_layers=1)
    coords = inr.grid(shape)
    psnr = float(metrics.psnr(predictions, target, data_range=1.0)) if bool(predictions.isfinite().all()) else math.nan
    base = inr.fit(net, coords, target.float().reshape(len(coords), -1), steps=1, progress=False)
    own = dataclasses.replace(base, psnr=psnr, best_psnr=psnr, data_range=1.0, **(result or {}))
    return Fitted("a.png", kind, Signal(coords, target, about, weight), predictions, own, net)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(2, 5), st.integers(1, 3), st.floats(0.001, 0.3), st.sampled_from([1, 4, 10**6]))
def test_the_sentences_hold_the_numbers_of_the_arrays(seed, side, channels, noise, piece):
    draw = torch.Generator().manual_seed(seed)
    target = torch.rand(side, side + 1, channels, generator=draw, dtype=torch.float64) - 0.5
    made = target + noise * torch.randn(target.shape, generator=draw, dtype=torch.float64)
    weight = (torch.rand(target.shape[:2], generator=draw) < 0.5).double().reshape(-1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(comparison, "PIECE", piece)
        said = " ".join(quality_of(fitted(target, made, weight)))
    error = (made - target).numpy()
    rms = math.sqrt((error**2).mean())
    assert f"{rms:.2%} of the signal's range ({255 * rms:.1f} of 255 grey levels)" in said
    assert f"The largest error is {np.abs(error).max():.1%} of the range" in said
    assert f"{(np.abs(error) <= 0.05).mean():.1%} by at most 5%" in said
    variance = ((target - target.mean((0, 1))) ** 2).mean().item()
    assert f"{-10 * math.log10(variance):.2f} dB: the network explains {1 - rms**2 / variance:.2%} of" in said
    known = weight.reshape(target.shape[:2]).numpy() > 0
    for chosen, words in ((known, "points that it was given"), (~known, "others")):
        if chosen.any():
            own = -10 * math.log10((error[chosen] ** 2).mean())
            assert f"{own:.2f} dB at the {chosen.sum():,} {words}" in said


def test_a_constant_signal_has_no_variance_to_explain():
    flat = torch.full((3, 3, 1), 0.2)
    assert compared_with(fitted(flat, flat + 1)).explained is None
    assert "explains" not in " ".join(quality_of(fitted(flat, flat)))
    assert "infinite (exact)" in page(fitted(flat, flat)).facts["PSNR"]


def test_a_signal_of_other_points_is_not_compared_with_the_grid():
    given = fitted(torch.rand(4, 4, 1) - 0.5, torch.rand(4, 4, 1) - 0.5)
    other = dataclasses.replace(given, signal=dataclasses.replace(given.signal, coords=given.signal.coords.flip(0)))
    fewer = dataclasses.replace(
        given,
        signal=dataclasses.replace(given.signal, coords=given.signal.coords[:5], target=torch.rand(5, 1)),
    )
    assert len(quality_of(given)) == 4 and len(quality_of(other)) == len(quality_of(fewer)) == 1


def test_what_a_reader_must_know_is_a_warning_of_the_page():
    target = torch.rand(4, 4, 1) - 0.5
    assert page(fitted(target, target + 1e-3)).warnings == []
    rising = {"stopped": "steps", "steps": 10, "eval_steps": (0, 9, 10), "psnrs": (1.0, 5.0, 6.0)}
    assert any("still rose by 1.00 dB" in told for told in page(fitted(target, target, result=rising)).warnings)
    stopped = rising | {"stopped": "interrupted"}
    told = " ".join(page(fitted(target, target + 9, result=stopped)).warnings)
    assert "interrupted after 10 steps" in told and "still rose" not in told
    assert "of the signal's variance" in told and "outside [0, 1]" in told
    given = fitted(target, target)
    smaller = dataclasses.replace(given, signal=dataclasses.replace(given.signal, stored=(8, 8)), problems=["A fault."])
    assert page(smaller).warnings[:2] == [
        "A fault.",
        "The file has 8x8 points; what was fitted, and all numbers, are of 4x4.",
    ]


def test_values_that_are_not_finite_are_said_to_be_and_not_drawn():
    target = torch.rand(3, 3, 1) - 0.5
    made = page(fitted(target, target * math.nan)).html()
    assert "not all finite" in made and "not a number" in made and "Reconstruction by" not in made


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_the_pictures_are_the_pixels_and_the_error_is_darkest_where_it_is_largest(channels):
    target = torch.rand(5, 6, channels) - 0.5
    made = target.clone()
    made[2, 3] += 0.4
    (block,) = of_image(fitted(target, made).signal, made)
    assert isinstance(block, Pictures)
    original, reconstruction, error = [np.asarray(Image.open(io.BytesIO(own.data))) for own in block.pictures]
    shown = {1: [0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0]}[channels]
    for picture, values in ((original, target), (reconstruction, made)):
        expected = ((values + 0.5).clip(0, 1) * 255).round().numpy()[..., shown]
        np.testing.assert_allclose(picture.reshape(5, 6, -1), expected, atol=1)
    assert error.sum(-1).argmin() == 2 * 6 + 3 and (error.reshape(-1, 3)[0] == 255).all()


def test_volumes_show_their_middle_slices():
    target = torch.rand(4, 5, 6, 1) - 0.5
    _, block = of_volume(Signal(inr.grid((4, 5, 6)), target, {"shape": [4, 5, 6], "offset": 7.0, "scale": 2.0}), target)
    slices = [np.asarray(Image.open(io.BytesIO(own.data))) for own in block.pictures[::3]]
    for picture, values in zip(slices, (target[2], target[:, 2], target[:, :, 3]), strict=True):
        np.testing.assert_allclose(picture, ((values[..., 0] + 0.5) * 255).round().numpy(), atol=1)
    assert len(re.findall("slice", " ".join(own.caption for own in block.pictures))) == 9


def test_videos_show_three_frames():
    target = torch.rand(5, 3, 4, 3) - 0.5
    about = {"shape": [5, 3, 4], "offset": 0.5, "scale": 1.0}
    (block,) = of_video(Signal(inr.grid((5, 3, 4)), target, about), target)
    for picture, frame in zip(block.pictures[::3], (0, 2, 4), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(picture.data)))
        np.testing.assert_allclose(shown, ((target[frame] + 0.5) * 255).round().numpy(), atol=1)


def test_distances_are_drawn_as_slices():
    coords = inr.grid((6, 6, 6))
    distances = coords.norm(dim=1, keepdim=True) - 0.7
    made = of_distances(Signal(coords, distances, {"shape": [6, 6, 6]}), distances.reshape(6, 6, 6, 1))
    assert [len(block.pictures) for block in made] == [3]


def test_a_large_image_is_shown_smaller():
    target = torch.rand(8, 2048, 3) - 0.5
    (block,) = of_image(Signal(torch.empty(0), target, {"shape": [8, 2048], "offset": 0.5, "scale": 1.0}), target)
    assert [own.size for own in block.pictures] == [(1024, 4)] * 3
    assert "Shown at 4x1024 of 8x2048 pixels." in block.pictures[0].caption
    shown = np.asarray(Image.open(io.BytesIO(block.pictures[0].data))) / 255
    np.testing.assert_allclose(shown, (target.numpy() + 0.5).reshape(4, 2, 1024, 2, 3).mean((1, 3)), atol=1 / 255)
