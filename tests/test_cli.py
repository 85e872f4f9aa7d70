"""The command line: what each subcommand prints and writes, and one clear line for everything that cannot be done."""

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import inrfast as inr
from inrfast.cli import COMMANDS, main
from inrfast.errors import DivergedError
from inrfast.signals.image import load_image
from inrfast.training import loop

SMALL = ["--width", "8", "--hidden-layers", "2"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def refused(capsys):
    """Check that a command fails with ``code``, one line on stderr that holds all ``words``, and an empty stdout."""

    def check(argv, *words, code=2):
        assert main([str(word) for word in argv]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
        for word in words:
            assert word in captured.err

    return check


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


# ---- help, names, numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_and_exit_codes(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  inrfast {command}" in text.partition("examples:")[2]
    assert "130  interrupted" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_installed_command_is_this_one():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="inrfast")
    assert entry.load() is main


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["required", "diagnose"]),
        (["diagnos"], ["Did you mean 'diagnose'?"]),
        (["ntk", "--nosuch"], ["--nosuch"]),
        (["ntk", "--activation", "relo"], ["activation", "Did you mean 'relu'?"]),
        (["ntk", "--init", "rank-expanding"], ["init", "Did you mean 'rank_expanding'?"]),
        (["ntk", "--norm", "bach"], ["norm", "Did you mean 'batch'?"]),
        (["ntk", "--encoding", "furier:8:1"], ["encoding", "Did you mean 'fourier'?"]),
        (["ntk", "--encoding", "fourier:many"], ["encoding", "fourier:many"]),
        (["ntk", "--encoding", "positional:2:3"], ["encoding", "positional"]),
        (["ntk", "--encoding", "fourier:8", "--init", "rank_expanding"], ["behind an encoding"]),
        (["ntk", "--precision", "higher"], ["precision", "Did you mean 'high'?"]),
        (["ntk", "--output", "fulll"], ["output", "Did you mean 'full'?"]),
        (["ntk", "--grid", "4x4", "--output", "1"], ["output", "below"]),
        (["ntk", "--width", "0"], ["width", "at least 1", "0"]),
        (["ntk", "--hidden-layers", "0"], ["hidden_layers", "at least 1"]),
        (["ntk", "--width", "wide"], ["--width", "wide"]),
        (["ntk", "--grid", "0x4"], ["at least 1", "0"]),
        (["ntk", "--grid", "4by4"], ["--grid", "4by4", "256x256"]),
        (["ntk", "--seed", "-1"], ["seed", "-1"]),
        (["ntk", "--device", "warp"], ["--device", "warp"]),
        (["ntk", *SMALL, "--quiet", "--grid", "4x4", "--rtols", "0"], ["rtol", "above 0"]),
        (["ntk", *SMALL, "--quiet", "--grid", "4x4", "--rtols", "1e-20"], ["rtol", "floor of fp64"]),
        (["diagnose", *SMALL, "--grid", "4x4", "--rtols", "2"], ["rtols", "below 1"]),
        (["diagnose", *SMALL, "--grid", "4x4", "--ntk-points", "0"], ["ntk_points", "at least 1"]),
    ],
)
def test_bad_usage_is_one_clear_line(refused, argv, words):
    refused(argv, *words)


# ---- diagnose ----------------------------------------------------------------------------------------------------


def test_diagnose_prints_and_writes_the_same_report(tmp_path, capsys):
    argv = ["diagnose", *SMALL, "--grid", "8x6", "--rtols", "1e-1", "1e-3", "--ntk-points", "20", "--quiet"]
    assert main([*argv, "--json", "--out", str(tmp_path / "new" / "folder")]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report["points"] == 48
    assert report["rtols"] == [1e-1, 1e-3]
    assert not report["kernel"]["full_grid"]
    assert files(tmp_path / "new" / "folder") == ["report.json", "report.png", "report.txt"]
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == report
    assert main(argv) == 0
    assert capsys.readouterr().out == (tmp_path / "new" / "folder" / "report.txt").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "batch"],
        ["--encoding", "positional:2"],
        ["--encoding", "polynomial:2", "--activation", "tanh"],
        ["--init", "rank_expanding", "--hidden-init", "kaiming"],
    ],
)
def test_the_options_describe_the_network(options, capsys):
    assert main(["ntk", *SMALL, "--grid", "5x4", "--quiet", "--json", "--precision", "highest", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    config = found["network"]
    settings = {key: config[key] for key in ("width", "hidden_layers", "activation", "init", "norm")}
    encodings = {None: None, "positional:2": inr.PositionalEncoding(2), "polynomial:2": inr.Polynomial(2)}
    encoding = encodings[options[1] if options[0] == "--encoding" else None]
    coords = inr.grid((5, 4))
    net = inr.INR(2, 1, encoding=encoding, **settings).eval()
    if "--norm" in options:
        inr.calibrate_batchnorm_(net, coords)
    assert found["trace"] == pytest.approx(float(inr.ntk(net, coords, precision="highest").trace()), rel=1e-12)


# ---- ntk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["trace", "full", "1"])
def test_ntk_writes_the_kernel_and_tells_its_norms(tmp_path, capsys, output):
    path = tmp_path / "kernel.npy"
    argv = ["ntk", *SMALL, "--grid", "5x4", "--outputs", "2", "--output", output, "--precision", "highest"]
    assert main([*argv, "--rtols", "1e-2", "1e-4", "--out", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kernel = np.load(path)
    assert files(tmp_path) == ["kernel.npy"]
    assert list(kernel.shape) == found["shape"]
    assert found["trace"] == pytest.approx(np.trace(kernel), rel=1e-12)
    assert found["frobenius"] == pytest.approx(np.linalg.norm(kernel), rel=1e-12)
    eigenvalues = np.linalg.eigvalsh(kernel)
    for rank in found["ranks"]:
        assert rank["lower"] <= (eigenvalues > rank["rtol"] * eigenvalues[-1]).sum() <= rank["upper"]


def test_ntk_leaves_nothing_when_interrupted(tmp_path, monkeypatch, capsys):
    def interrupted(self, out=None):
        out[0, 0] = 1.0
        raise KeyboardInterrupt

    path = tmp_path / "kernel.npy"
    path.write_bytes(b"former")
    monkeypatch.setattr("inrfast.tangent_kernel.NTK.to_dense", interrupted)
    assert main(["ntk", *SMALL, "--grid", "4x4", "--out", str(path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert files(tmp_path) == ["kernel.npy"]
    assert path.read_bytes() == b"former"


def test_ntk_refuses_a_file_larger_than_the_disk(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    refused(["ntk", *SMALL, "--grid", "4x4", "--quiet", "--out", tmp_path / "kernel.npy"], "1 KiB", "100 B")
    assert files(tmp_path) == []


# ---- fit ---------------------------------------------------------------------------------------------------------


def fit_command(photo, *options):
    return ["fit", str(photo), *SMALL, "--size", "6x8", "--steps", "3", *map(str, options)]


@pytest.mark.parametrize("grey", [True, False])
def test_fit_writes_the_reconstruction_and_its_report(photo, tmp_path, capsys, grey):
    out = tmp_path / "out" / "fitted.png"
    argv = fit_command(photo, "--out", out, "--json", "--quiet", "--activation", "sine", "--init", "siren")
    assert main(argv + ["--grey"] * grey) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert files(tmp_path / "out") == ["fitted.json", "fitted.png"]
    assert json.loads((tmp_path / "out" / "fitted.json").read_text()) == found
    assert found["size"] == [6, 8, 1 if grey else 3]
    assert not found["interrupted"]
    with Image.open(out) as written:
        assert (written.height, written.width) == (6, 8)
        values = torch.from_numpy(np.asarray(written).astype(np.float64) / 255).reshape(found["size"])
    target = load_image(photo, (6, 8), grey).double()
    # The picture is clipped and has 8 bits, which can only move its PSNR by a little here.
    assert -10 * torch.log10((values - target).square().mean()) == pytest.approx(found["psnr"], abs=0.5)


def test_fit_refuses_what_is_no_image(photo, tmp_path, refused):
    truncated, text, empty = (tmp_path / name for name in ("truncated.png", "text.png", "empty.png"))
    truncated.write_bytes(photo.read_bytes()[:200])
    text.write_text("not an image")
    empty.touch()
    before = files(tmp_path)
    out = ["--out", tmp_path / "result.png"]
    refused(fit_command(tmp_path / "missing.png", *out), "missing.png")
    refused(fit_command(truncated, *out), "truncated.png", "truncated")
    refused(fit_command(text, *out), "text.png", "not an image")
    refused(fit_command(empty, *out), "empty.png", "empty")
    refused(fit_command(tmp_path, *out), "folder")
    assert files(tmp_path) == before


def test_fit_refuses_an_unusable_out_before_it_starts(photo, tmp_path, refused, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the fit started")

    monkeypatch.setattr(loop, "fit", never)
    refused(fit_command(photo, "--out", photo / "result.png"), "--out", "photo.png")
    refused(fit_command(photo, "--out", "/proc/nowhere/result.png"), "--out", "/proc/nowhere")
    refused(fit_command(photo, "--out", tmp_path / "result.txt"), "--out", ".png")
    refused(fit_command(photo, "--out", photo), "another file")
    (tmp_path / "folder.png").mkdir()
    refused(fit_command(photo, "--out", tmp_path / "folder.png"), "folder")


def test_fit_refuses_bad_settings(photo, tmp_path, refused):
    out = ["--out", tmp_path / "result.png", "--quiet"]
    refused([*fit_command(photo, *out), "--steps", "0"], "steps", "at least 1")
    refused([*fit_command(photo, *out), "--lr", "-1"], "lr", "above 0")
    refused([*fit_command(photo, *out), "--batch-size", "1000"], "batch_size", "48")
    refused([*fit_command(photo, *out), "--schedule", "exponental"], "Did you mean 'exponential'?")
    refused([*fit_command(photo, *out), "--size", "0"], "size", "at least 1")
    assert files(tmp_path) == ["photo.png"]


def test_an_interrupted_fit_keeps_what_it_has_and_says_so(photo, tmp_path, monkeypatch, capsys):
    taken = loop._Run.step

    def step(self, *arguments):
        if self.done == 2:
            raise KeyboardInterrupt
        return taken(self, *arguments)

    monkeypatch.setattr(loop._Run, "step", step)
    out = tmp_path / "result.png"
    assert main(fit_command(photo, "--out", out, "--quiet", "--json")) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert str(out) in captured.err
    found = json.loads(captured.out)
    assert found["interrupted"]
    assert found["steps"] == 2
    assert files(tmp_path) == ["photo.png", "result.json", "result.png"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (DivergedError("NaN in layers.0"), 1)])
def test_a_fit_that_does_not_end_leaves_nothing(photo, tmp_path, monkeypatch, capsys, error, code):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(loop, "fit", broken)
    assert main(fit_command(photo, "--out", tmp_path / "result.png")) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(error) in captured.err
    assert files(tmp_path) == ["photo.png"]


def test_an_unwritable_folder_is_refused_before_the_diagnosis(tmp_path, refused, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("inrfast.analysis.diagnosis.diagnose", lambda *arguments, **options: pytest.fail("it started"))
    for out in (file, file / "below", Path("/proc/nowhere")):
        refused(["diagnose", *SMALL, "--grid", "4x4", "--out", out], "--out", str(out))


def test_info_is_text_or_json(capsys):
    assert main(["info"]) == 0
    assert "versions" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["inrfast"] == inr.__version__
