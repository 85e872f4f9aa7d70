"""``inrfast choose`` and ``inrfast fit --network auto``: what they print, write, refuse, and leave behind."""

import dataclasses
import importlib
import json
import shlex

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import inrfast as inr
from inrfast.cli import main
from inrfast.cli.shell import INTERRUPTED
from inrfast.signals.audio import save_audio
from inrfast.training.checkpoint import load_network

choosing = importlib.import_module("inrfast.choosing.choose")
CANDIDATES = ["--candidate", "sine:9 siren", "--candidate", "fourier:4:1", "--candidate", "relu rank_expanding"]
SMALL = ["--width", "8", "--hidden-layers", "2", "--quiet"]


@pytest.fixture
def photo(tmp_path):
    rows, columns = np.mgrid[:12, :16] / 12
    waves = 0.5 + 0.4 * np.stack([np.sin(3 * rows), np.cos(4 * columns), np.sin(2 * rows * columns)], -1)
    path = tmp_path / "my photo.png"
    Image.fromarray((255 * waves).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def few(monkeypatch):
    """Let a choice without candidates be one among two networks of a hundred points, and count the choices."""
    real, made = choosing.choose, []

    def fewer(signal, candidates=None, **options):
        given = [{"activation": "sine", "omega": 7.0, "init": "siren"}, {}] if candidates is None else candidates
        made.append(real(signal, candidates=given, **{**options, "points": 100}))
        return made[-1]

    monkeypatch.setattr(choosing, "choose", fewer)
    monkeypatch.setattr("inrfast.cli.automatic.choose", fewer)
    return made


def choose_photo(photo, *options):
    return ["choose", str(photo), "--size", "12x16", *SMALL, "--points", "150", *CANDIDATES, *map(str, options)]


def fit_photo(photo, *options):
    return ["fit", str(photo), "--size", "6x16", *SMALL, "--network", "auto", "--steps", "4", *map(str, options)]


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


# ---- choose ------------------------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout_and_the_same_in_the_report(photo, tmp_path, capsys):
    out = tmp_path / "new" / "choice.svg"
    assert main(choose_photo(photo, "--json", "--out", out)) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert files(out.parent) == ["choice.json", "choice.svg"]
    assert json.loads(out.with_suffix(".json").read_text()) == found
    psnrs = [own["psnr"] for own in found["choice"]["candidates"]]
    assert len(psnrs) == 3
    assert psnrs == sorted(psnrs, reverse=True)
    assert found["choice"]["line"] == found["choice"]["candidates"][0]["line"]
    assert (found["kind"], found["choice"]["sample"]["signal"]) == ("image", 192)


def test_the_printed_line_and_command_make_the_chosen_network(photo, tmp_path, capsys):
    assert main(choose_photo(photo, "--json", "--seed", "5", "--grey")) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(choose_photo(photo, "--seed", "5", "--grey")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"or: {found['command']}"
    net = eval(found["choice"]["line"], {"inr": inr})
    program, *words = shlex.split(found["command"])
    assert program == "inrfast"
    assert main([*words, "--steps", "1", "--quiet", "--json", "--out", str(tmp_path / "fitted.png")]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["net"] == {**net.config(), "seed": 5}
    assert (settings["lr"], settings["points"]) == (found["choice"]["lr"], 12 * 16)


def test_every_kind_of_signal_is_chosen_for(tmp_path, capsys):
    draws = torch.Generator().manual_seed(0)
    save_audio(torch.rand(300, 2, generator=draws) - 0.5, tmp_path / "sound.wav", 8000)
    np.save(tmp_path / "cube.npy", np.random.default_rng(0).random((6, 6, 6), dtype=np.float32))
    trimesh.creation.icosphere(1).export(tmp_path / "ball.obj")
    for name, samples, options in (
        ("sound.wav", 300, []),
        ("cube.npy", 216, []),
        ("ball.obj", 500, ["--samples", "500"]),
    ):
        argv = ["choose", str(tmp_path / name), *SMALL, "--points", "120", *CANDIDATES, *options, "--json"]
        assert main(argv) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["choice"]["sample"]["signal"] == samples
        assert all(word in found["command"] for word in options)


def test_choose_refuses_at_the_door(photo, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(choosing, "choose", lambda *arguments, **options: pytest.fail("it started"))
    (tmp_path / "song.mp3").write_text("a song")
    (tmp_path / "taken.json").mkdir()
    before = files(tmp_path)
    refused(["choose", tmp_path / "missing.png"], "missing.png")
    refused(["choose", tmp_path / "song.mp3"], ".mp3", ".png", ".wav")
    refused(["choose", photo, "--samples", "9"], "--samples", "mesh", "image")
    refused(["choose", photo, "--out", photo], "another file", "the signal")
    refused(["choose", photo, "--out", tmp_path / "choice.txt"], "--out", ".png or .pdf or .svg")
    refused(["choose", photo, "--out", photo / "choice.png"], "--out", "my photo.png")
    refused(["choose", photo, "--out", tmp_path / "taken.png"], "--out", "taken.json", "folder")
    refused(["choose", photo, "--candidate", "sine", "--candidate", "sinee"], "--candidate 'sinee'", "Did you mean")
    refused(["choose", photo, "--check", "-1"], "--check", "at least 0")
    refused(["choose", photo, "--seconds", "0"], "--seconds", "above 0")
    assert files(tmp_path) == before


def test_choose_refuses_a_signal_that_says_nothing(tmp_path, refused):
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "flat.png")
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((2, 3, 4), dtype=np.float32))
    refused(["choose", tmp_path / "flat.png", *SMALL, *CANDIDATES], "constant")
    refused(["choose", tmp_path / "few.npy", *SMALL, *CANDIDATES], "at least", "24")
    refused(["fit", tmp_path / "flat.png", *SMALL, "--network", "auto", "--out", tmp_path / "o.png"], "constant")
    assert files(tmp_path) == ["few.npy", "flat.png"]


def test_an_image_is_taken_at_its_own_size_and_one_that_is_enlarged_is_warned_of(photo, tmp_path, capsys):
    argv = ["choose", str(photo), *SMALL, "--points", "150", *CANDIDATES]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choice"]["sample"]["signal"] == 12 * 16
    assert main([*argv, "--size", "20"]) == 0
    assert "enlarged to 20x20" in capsys.readouterr().err
    line = tmp_path / "line.png"
    Image.fromarray((127 + 100 * np.sin(np.arange(300) / 9)).astype(np.uint8)[:, None]).save(line)
    assert main(["choose", str(line), *SMALL, "--points", "150", *CANDIDATES, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["choice"]["sample"]["signal"] == 300


def test_an_interrupted_choice_keeps_what_it_has_or_nothing(photo, tmp_path, few, monkeypatch, capsys):
    out, argv = tmp_path / "choice.png", choose_photo(photo, "--json", "--out", tmp_path / "choice.png")
    real = choosing.choose
    partly = lambda *given, **options: dataclasses.replace(real(*given, **options), stopped="interrupted")  # noqa: E731
    monkeypatch.setattr(choosing, "choose", partly)
    assert main(argv) == INTERRUPTED
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert json.loads(captured.out)["choice"]["stopped"] == "interrupted"
    assert files(tmp_path) == ["choice.json", "choice.png", "my photo.png"]
    out.unlink()
    out.with_suffix(".json").unlink()

    def at_once(*given, **options):
        raise KeyboardInterrupt

    for place in ("inrfast.choosing.figure.draw", "inrfast.choosing.choose.choose"):
        monkeypatch.setattr(place, at_once)
        assert main(argv) == INTERRUPTED
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "no file is left half-written" in captured.err
        assert files(tmp_path) == ["my photo.png"]


# ---- fit --network auto ------------------------------------------------------------------------------------------


def test_fit_takes_the_chosen_network_and_its_learning_rate(photo, tmp_path, few, capsys):
    argv = fit_photo(photo, "--json", "--seed", "3", "--out", tmp_path / "a.png")
    argv.remove("--quiet")
    assert main(argv) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    (choice,) = few
    assert f"chose {choice.best.name}, learning rate" in captured.err
    told = {**choice.to_dict(), "line": choice.line, "lr": choice.lr}
    assert found["choice"] == json.loads(json.dumps(told))
    assert found["settings"]["lr"] == choice.lr
    assert found["settings"]["net"] == choice.network(3).config()
    assert (choice.network().width, choice.network().hidden_layers) == (8, 2)
    assert main(fit_photo(photo, "--json", "--lr", "0.0625", "--out", tmp_path / "a.png")) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["lr"] == 0.0625
    assert main(fit_photo(photo, "--out", tmp_path / "a.png")) == 0
    assert f"network: {few[-1].best.name}, learning rate" in capsys.readouterr().out


def test_fit_warns_of_an_enlarged_image(photo, tmp_path, few, refused, capsys):
    assert main([*fit_photo(photo, "--out", tmp_path / "a.png"), "--size", "20"]) == 0
    assert "--size 12x16" in capsys.readouterr().err
    line = tmp_path / "line.png"
    Image.fromarray(np.arange(200, dtype=np.uint8)[:, None]).save(line)
    argv = ["fit", line, "--size", "300", *SMALL, "--network", "auto", "--out", tmp_path / "b.png"]
    refused(argv, "constant", "--size 200x1")


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_a_fit_that_goes_on_has_the_same_network(photo, tmp_path, few, monkeypatch, capsys, precision):
    options = ["--precision", precision, "--schedule", "constant", "--json"]
    kept = [*options, "--checkpoint", tmp_path / "state", "--out", tmp_path / "a.png"]
    assert main(fit_photo(photo, *kept)) == 0
    assert main([*fit_photo(photo, *kept), "--resume", "--steps", "9"]) == 0
    assert len(few) == 1
    found = json.loads(capsys.readouterr().out.partition("\n}\n")[2])
    assert (found["steps"], found["settings"]["lr"]) == (9, few[0].lr)
    assert found["choice"]["checkpoint"] == str(tmp_path / "state")
    assert main([*fit_photo(photo, *options, "--out", tmp_path / "b.png"), "--steps", "9"]) == 0
    (a, _), (b, _) = load_network(tmp_path / "a.safetensors"), load_network(tmp_path / "b.safetensors")
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_a_fit_does_not_go_on_with_other_sizes(photo, tmp_path, few, refused, capsys):
    argv = [*fit_photo(photo, "--checkpoint", tmp_path / "state", "--out", tmp_path / "a.png")]
    assert main(argv) == 0
    capsys.readouterr()
    refused(argv, "state", "--resume")
    refused([*argv, "--resume", "--width", "9"], "--checkpoint", "width 8", "9")
    refused([*argv, "--resume", "--seed", "1"], "--checkpoint", "seed 0", "1")
    refused([*argv, "--resume", "--grey"], "--checkpoint", "out_features 3", "1")
    assert len(few) == 1


def test_bad_options_are_refused_before_the_choice(photo, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("inrfast.cli.automatic.choose", lambda *given, **options: pytest.fail("it chose"))
    out = ["--out", tmp_path / "a.png"]
    for option, value in (
        ("--activation", "relu"),
        ("--omega", "3"),
        ("--encoding", "identity"),
        ("--init", "default"),
    ):
        refused(fit_photo(photo, *out, option, value), "--network auto", option)
    refused(fit_photo(photo, *out, "--norm", "none", "--hidden-init", "siren"), "--norm, --hidden-init")
    refused(fit_photo(photo, *out, "--network", "automatic"), "--network", "'auto'")
    refused(fit_photo(photo, *out, "--lr", "-1"), "lr", "above 0")
    refused(fit_photo(photo, *out, "--like", "inlet-rank-collapse"), "--network auto", "--like")
    refused(fit_photo(photo, *out, "--weight-decay", "-1"), "weight_decay", "at least 0")
    refused(fit_photo(photo, *out, "--precision", "higher"), "precision", "high")
    refused(fit_photo(photo, *out, "--checkpoint", photo), "--checkpoint", "the signal")
    assert files(tmp_path) == ["my photo.png"]


def test_an_interrupted_choice_leaves_no_fit(photo, tmp_path, few, monkeypatch, capsys):
    real = choosing.choose
    partly = lambda *given, **options: dataclasses.replace(real(*given, **options), stopped="interrupted")  # noqa: E731
    monkeypatch.setattr("inrfast.cli.automatic.choose", partly)
    assert main(fit_photo(photo, "--checkpoint", tmp_path / "state", "--out", tmp_path / "a.png")) == INTERRUPTED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no file is left half-written" in captured.err
    assert files(tmp_path) == ["my photo.png"]
