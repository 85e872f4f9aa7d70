"""Settings of a fit: what stands where nothing was said, what a paper says, and options that change nothing."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

import inrfast as inr
from inrfast.cli import main
from inrfast.cli.papers import PAPERS
from inrfast.cli.settings import settled
from inrfast.signals.audio import save_audio
from inrfast.signals.image import LONGEST
from inrfast.signals.kinds import SIGNALS, Recipe, Signal

SMALL = ["--width", "8", "--hidden-layers", "2", "--steps", "2", "--json"]
UNSAID = ("lr", "schedule", "optimizer", "weight_decay", "checkpoint_seconds", "steps", "batch_size", "patience")
GIVEN = {"checkpoint": None, "network": None, "like": None, "noted": (), "hidden_layers": None, "width": None}


def picture(path, height, width):
    """Write a smooth picture."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = 0.5 + 0.4 * np.stack([np.sin(3 * rows), np.cos(4 * columns), np.sin(2 * rows * columns)], -1)
    Image.fromarray((255 * waves).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def fitted(tmp_path, capsys):
    """Fit a file and return the report and what stood on stderr."""

    def fit(file, *options):
        assert main(["fit", str(file), *SMALL, "--out", str(tmp_path / f"out{file.suffix}"), *options]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return fit


def arguments(**given):
    return argparse.Namespace(**{**dict.fromkeys(UNSAID), **GIVEN, **given})


def signal(points, weight=None):
    return Signal(inr.grid(points), torch.zeros(points, 1), {"shape": [points]}, weight)


def test_a_file_alone_gets_the_recipe_of_its_kind(tmp_path, fitted):
    photo, sound = picture(tmp_path / "photo.png", 9, 12), tmp_path / "sound.wav"
    save_audio(torch.rand(50, 1) - 0.5, sound, 8000)
    np.save(tmp_path / "cube.npy", np.random.default_rng(0).random((4, 4, 4), dtype=np.float32))
    for file, kind in ((photo, "image"), (sound, "audio"), (tmp_path / "cube.npy", "volume")):
        found, err = fitted(file)
        assert err == ""
        loaded = SIGNALS[kind].load(file, seed=0, memory_budget=None, progress=False)
        recipe = SIGNALS[kind].recipe(loaded)
        network = {**recipe.network, "width": 8, "hidden_layers": 2}
        made = inr.INR(loaded.coords.shape[1], loaded.target.shape[-1], **network)
        assert found["settings"]["net"] == made.config()
        assert (found["settings"]["lr"], found["settings"]["batch_size"]) == (recipe.lr, None)


def test_one_word_on_the_network_makes_all_else_of_it_neutral(tmp_path, fitted):
    photo = picture(tmp_path / "photo.png", 9, 12)
    found, _ = fitted(photo, "--init", "kaiming")
    assert found["settings"]["net"] == inr.INR(2, 3, width=8, hidden_layers=2, init="kaiming").config()
    assert found["settings"]["lr"] == 1e-3
    found, _ = fitted(photo, "--lr", "0.0625", "--batch-size", "50")  # these are no words on the network
    assert found["settings"]["net"] == fitted(photo)[0]["settings"]["net"]
    assert (found["settings"]["lr"], found["settings"]["batch_size"]) == (0.0625, 50)


def test_a_papers_settings_stand_unless_others_are_given(tmp_path, fitted, refused):
    photo = picture(tmp_path / "photo.png", 9, 12)
    for name, paper in PAPERS.items():
        found, _ = fitted(photo, "--like", name)
        settings = found["settings"]
        assert settings["net"] == inr.INR(2, 3, width=8, hidden_layers=2, **paper.network).config()
        for option in ("lr", "schedule", "optimizer", "weight_decay", "batch_size"):
            assert settings[option] == paper.settings[option]
        found, _ = fitted(photo, "--like", name, "--lr", "0.0625", "--schedule", "cosine")
        assert (found["settings"]["lr"], found["settings"]["schedule"]) == (0.0625, "cosine")
        refused(["fit", photo, "--like", name, "--omega", "3"], f"--like {name}", "--omega")
    refused(["fit", photo, "--like", "inlet-rank-colapse"], "--like", "Did you mean 'inlet-rank-collapse'?")


@pytest.mark.parametrize(
    ("given", "points", "expected"),
    [(None, 5000, 4096), (None, 4096, None), (None, 60, None), ("all", 5000, None), (7, 60, 7), (60, 60, None)],
)
def test_batches_are_those_of_the_kind_and_no_larger_than_the_signal(recwarn, given, points, expected):
    found = settled(arguments(batch_size=given), signal(points), Recipe({}, lr=1.0, steps=77))
    assert (found.batch_size, found.steps) == (expected, 77)
    assert not recwarn


def test_the_sizes_are_the_recipes_own_unless_given():
    recipe = Recipe({"width": 64, "hidden_layers": 2}, lr=0.5, steps=77)
    own = settled(arguments(width=9), signal(5), recipe)
    neutral = settled(arguments(noted=("--init",)), signal(5), recipe)
    assert (own.width, own.hidden_layers, own.lr, own.steps) == (9, 2, 0.5, 77)
    assert (neutral.width, neutral.hidden_layers, neutral.lr, neutral.steps) == (256, 3, 1e-3, 2000)


def test_points_that_nobody_knows_are_not_counted():
    weight = (torch.arange(5000) < 4097).float()
    recipe = Recipe({}, lr=1.0)
    assert settled(arguments(), signal(5000, weight), recipe).batch_size == 4096
    weight[0] = 0
    assert settled(arguments(), signal(5000, weight), recipe).batch_size is None


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"batch_size": 61}, "--batch-size 61 is more than the 60 points"),
        ({"checkpoint_seconds": 5.0}, "--checkpoint-seconds changes nothing without --checkpoint"),
        ({"patience": 100}, "--patience 100 never ends"),
        ({"patience": 9, "steps": 9}, "measured 9 times"),
        ({"hidden_layers": 1, "noted": ("--norm", "--first-norm")}, "--norm changes nothing"),
    ],
)
def test_what_changes_nothing_is_told_once(given, word):
    with pytest.warns(RuntimeWarning, match=word) as told:
        settled(arguments(**given), signal(60), Recipe({}, lr=1.0))
    assert len(told) == 1


def test_a_picture_keeps_its_shape_and_large_ones_are_averaged_down(tmp_path, fitted):
    found, err = fitted(picture(tmp_path / "own.png", 9, 12))
    assert found["size"] == [9, 12, 3]
    assert err == ""
    large = picture(tmp_path / "large.png", 3 * LONGEST // 4, 2 * LONGEST)
    found, err = fitted(large)
    assert found["size"] == [3 * LONGEST // 8, LONGEST, 3]
    assert f"{3 * LONGEST // 4}x{2 * LONGEST} pixels and is averaged down to {3 * LONGEST // 8}x{LONGEST}" in err
    assert fitted(large, "--quiet")[1] == ""
    found, err = fitted(large, "--size", "6x16")
    assert found["size"] == [6, 16, 3]
    assert err == ""
    assert "enlarged to 20x20" in fitted(tmp_path / "own.png", "--size", "20")[1]
