"""Kinds of signals: each gives back what it loads, and a new one needs nothing but its registration."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast import spelling
from inrfast.cli import main
from inrfast.cli.signal_options import add_signal_options
from inrfast.signals.audio import save_audio
from inrfast.signals.image import save_image
from inrfast.signals.kinds import SIGNALS, Option, Signal, SignalKind, by_hash_grid, check_about, kind_of, unscaled
from inrfast.signals.volume import save_volume

ENDING = ".frames"


def load_slides(path, seed, memory_budget, progress, frames=None):
    values = torch.from_numpy(np.load(path))[:frames]
    about = {"shape": list(values.shape[:3]), "offset": 0.5, "scale": 1.0, "fps": 25}
    return Signal(inr.grid(values.shape[:3]), values - 0.5, about, data_range=1.0)


def write_slides(predictions, about, path):
    with open(path, "wb") as file:
        np.save(file, unscaled(predictions, about).numpy())


@pytest.fixture
def slides():
    """A kind of signal that nothing else in the package knows."""
    yield SIGNALS.add(
        "slides",
        SignalKind(
            called="slides",
            summary="frames in one array",
            ending=ENDING,
            axes=3,
            readable=lambda: [ENDING],
            writable=lambda outputs: [ENDING],
            load=load_slides,
            write=write_slides,
            options={"frames": Option("frames to fit (100% if not given)", spelling.whole())},
        ),
    )
    del SIGNALS._items["slides"]


def test_a_registered_kind_is_fitted_and_rendered(slides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("clip.frames", "wb") as file:
        np.save(file, np.random.default_rng(0).random((4, 5, 6, 3), dtype=np.float32))
    network = ["--width", "8", "--hidden-layers", "1", "--steps", "2", "--quiet"]
    assert main(["fit", "clip.frames", *network, "--frames", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["size"], found["out"]) == ("slides", [3, 5, 6, 3], "result.frames")
    assert main(["render", "result.safetensors", "again.frames"]) == 0
    assert Path("again.frames").read_bytes() == Path("result.frames").read_bytes()
    assert main(["render", "result.safetensors", "large.frames", "--size", "6x7x8", "--quiet"]) == 0
    assert np.load("large.frames").shape == (6, 7, 8, 3)
    capsys.readouterr()
    Path("clip.frame").touch()
    for words, told in (
        (
            ["fit", "clip.frames", "--grey"],
            "--grey goes with a signal of the kind image or video; clip.frames is of slides",
        ),
        (["fit", "clip.frames", "--frames", "0"], "argument --frames: takes a whole number, at least 1"),
        (["fit", "clip.frame"], "slides (.frames)"),
        (["render", "result.safetensors", "out.png"], "slides: OUT must name a .frames file"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
    assert main(["fit", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "frames in one array" in told
    assert "slides: frames to fit (100% if not given)" in told


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_kind_without_a_recipe_is_fitted_whatever_its_shape(sides):
    coords = inr.grid(sides)
    recipe = by_hash_grid(Signal(coords, torch.zeros(len(coords), 1), {"shape": sides}))
    net = inr.INR(len(sides), 1, **recipe.network)
    assert net(coords).shape == (len(coords), 1)
    assert recipe.steps >= 1000 and recipe.lr > 0


def test_the_recipe_reconstructs_what_the_neutral_network_does_not():
    x = inr.grid((20, 28))
    target = 0.5 * ((25 * x).sin().prod(1, keepdim=True) + (x.sum(1, keepdim=True) > 0.3)) - 0.25
    recipe = by_hash_grid(Signal(x, target, {"shape": [20, 28]}))
    fitted = [
        inr.fit(net, x, target, steps=200, lr=lr, data_range=1.0, eval_every=200, progress=False).psnr
        for net, lr in ((inr.INR(2, 1, **recipe.network), recipe.lr), (inr.INR(2, 1, width=64, hidden_layers=2), 1e-3))
    ]
    assert fitted[0] > 35 > 25 > fitted[1], fitted


def test_an_option_of_two_kinds_has_one_form(slides):
    slides.options["grey"] = Option("a value where images have a switch", spelling.whole())
    with pytest.raises(ValueError, match="--grey must take a value for all of image, video, slides"):
        add_signal_options(argparse.ArgumentParser(), "options")


@pytest.mark.parametrize("name", ["image", "audio", "volume"])
def test_a_kind_gives_back_what_it_loads(name, tmp_path):
    """What is written from predictions that are the target loads as the same target and the same words."""
    draws = torch.Generator().manual_seed(0)
    kind, path = SIGNALS[name], tmp_path / "first"
    path = path.with_suffix(kind.ending)
    {
        "image": lambda: save_image(torch.rand(5, 7, 3, generator=draws), path),
        "audio": lambda: save_audio(torch.rand(40, 2, generator=draws) - 0.5, path, 8000),
        "volume": lambda: save_volume(torch.rand(3, 4, 5, 1, generator=draws), path),
    }[name]()
    options = {"size": (5, 7)} if name == "image" else {}
    first = kind.load(path, seed=0, memory_budget=None, progress=False, **options)
    assert kind_of(path) == name
    assert first.coords.shape == (first.target.shape[:-1].numel(), kind.axes)
    stated, about = check_about({"kind": name, **first.about}, kind.axes, path)
    assert stated is kind
    shape, bounds = kind.grid(about)
    torch.testing.assert_close(inr.grid(shape, bounds=bounds), first.coords)
    again = path.with_stem("again")
    kind.write(first.target, about, again)
    second = kind.load(again, seed=0, memory_budget=None, progress=False, **options)
    torch.testing.assert_close(second.target, first.target, atol=1e-6, rtol=0)
    assert second.about.pop("shape") == first.about.pop("shape")
    assert second.about == pytest.approx(first.about)


def test_a_model_of_an_unknown_kind_is_refused_by_name():
    unknown = ({}, "does not say"), ({"kind": 3}, "does not say"), ({"kind": "imagee"}, "Did you mean 'image'")
    for about, told in unknown:
        with pytest.raises(ValueError, match=told):
            check_about(about, 2, Path("model.safetensors"))


def test_a_kind_whose_suffixes_are_no_suffixes_or_anothers_is_refused_and_leaves_no_trace(slides):
    known = dict(SIGNALS)
    for other, taken in [(name, kind) for name, kind in SIGNALS.items() if kind.readable()]:
        suffix = sorted(taken.readable())[0]
        with pytest.raises(ValueError, match=rf"\{suffix} of the signal 'films' belongs to '{other}'"):
            SIGNALS.add("films", replace(slides, readable=lambda suffix=suffix: [".films", suffix]))
    for wrong in ({"readable": lambda: []}, {"readable": lambda: ".films"}, {"readable": lambda: [".a.b"]}):
        with pytest.raises(ValueError, match="must be suffixes in lower case"):
            SIGNALS.add("films", replace(slides, **wrong))
    with pytest.raises(ValueError, match="must be suffixes in lower case"):
        SIGNALS.add("films", replace(slides, readable=lambda: [".films"], ending="films"))
    assert dict(SIGNALS) == known


@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        (lambda signal: None, "load of the signal 'slides' must return a Signal.*, got NoneType"),
        (lambda signal: (signal.coords, signal.target), "must return a Signal.*, got tuple"),
        (lambda signal: replace(signal, coords=signal.coords[:-1]), r"target of .*'slides' must be .* N = 59 coords"),
        (lambda signal: replace(signal, coords=signal.coords[:, :2]), r"coords of .*'slides' must be \(N, 3\)"),
        (lambda signal: replace(signal, coords=signal.coords.tolist()), "coords of .*'slides' must be a torch.Tensor"),
        (lambda signal: replace(signal, target=signal.target.flatten()), "target of .*'slides' must be"),
        (lambda signal: replace(signal, about={}), "about of .*'slides' .*'shape' is missing"),
        (lambda signal: replace(signal, about=None), "about of .*'slides' .*got NoneType"),
        (
            lambda signal: replace(signal, about={**signal.about, "scale": 0}),
            "about of .*'slides' .*scale must be above",
        ),
    ],
)
def test_what_is_no_signal_is_told_with_its_kind(slides, loaded, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("clip.frames", "wb") as file:
        np.save(file, np.zeros((3, 4, 5, 1), dtype=np.float32))
    wrong = replace(slides, load=lambda *given, **options: loaded(load_slides(*given, **options)))
    monkeypatch.setattr(SIGNALS, "_items", {**SIGNALS, "slides": wrong})
    assert main(["fit", "clip.frames", "--width", "4", "--steps", "1", "--quiet"]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_a_kind_that_writes_nothing_is_told_and_the_network_is_kept(slides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("clip.frames", "wb") as file:
        np.save(file, np.zeros((3, 4, 5, 1), dtype=np.float32))
    monkeypatch.setattr(SIGNALS, "_items", {**SIGNALS, "slides": replace(slides, write=lambda *given: None)})
    for _ in range(2):  # also over a file that is there already
        assert main(["fit", "clip.frames", "--width", "4", "--steps", "1", "--quiet"]) == 1
        told = capsys.readouterr().err
        assert "write of the signal 'slides' wrote no file result.frames" in told
        assert "kept the network" in told
        assert main(["render", "result.safetensors", "result.frames", "--quiet"]) == 2
        assert "wrote no file result.frames" in capsys.readouterr().err
        Path("result.frames").write_bytes(b"old")
