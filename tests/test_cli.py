"""The command line: what each subcommand prints and writes, and one clear line for everything that cannot be done."""

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import inrfast as inr
from inrfast.cli import COMMANDS, main
from inrfast.errors import DivergedError
from inrfast.metrics import psnr
from inrfast.signals.audio import load_audio, save_audio
from inrfast.signals.image import load_image, save_image
from inrfast.signals.mesh import load_mesh, save_mesh
from inrfast.signals.volume import load_volume
from inrfast.training import fit as fitting
from inrfast.training.checkpoint import load_network, save_network

SMALL = ["--width", "8", "--hidden-layers", "2"]
TOPK, TOPK_SPHERE = {"name": "topk", "k": 3}, {"name": "topk_sphere", "k": 2}


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


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
        (["diagnos"], ["Did you mean 'diagnose'?"]),
        (["ntk", "--nosuch"], ["--nosuch"]),
        (["ntk", "--activation", "relo"], ["activation", "Did you mean 'relu'?"]),
        (["ntk", "--init", "rank-expanding"], ["init", "Did you mean 'rank_expanding'?"]),
        (["ntk", "--norm", "bach"], ["norm", "Did you mean 'batch'?"]),
        (["ntk", "--first-norm", "Batch"], ["--first-norm", "Did you mean 'batch'?"]),
        (["ntk", "--norm", "topk:9", "--width", "8"], ["k of the norm", "from 1 to the width, 8", "got 9"]),
        (["ntk", "--norm", "topk:2.5"], ["--norm", "k of topk takes a whole number", "2.5"]),
        (["ntk", "--norm", "tpok:2"], ["--norm", "Did you mean 'topk'?"]),
        (["ntk", "--modulation", "gabr:8"], ["--modulation", "Did you mean 'gabor'?"]),
        (["ntk", "--norm", "topk_sphere:j=2"], ["--norm", "a number of topk_sphere", "'k'"]),
        (["ntk", "--norm", "sphere:2"], ["--norm", "sphere takes 0 number(s)"]),
        (["ntk", "--norm", "batch", "--norm-position", "past"], ["--norm-position", "Did you mean 'post'?"]),
        (["ntk", "--norm-position", "pre"], ["--norm-position", "there are none", "--norm batch"]),
        (["ntk", "--encoding", "furier:8:1"], ["encoding", "Did you mean 'fourier'?"]),
        (["ntk", "--encoding", "fourier:many"], ["encoding", "fourier:many"]),
        (["ntk", "--encoding", "positional:2:3"], ["encoding", "positional"]),
        (["ntk", "--encoding", "fourier:8:1:trainabel"], ["--encoding", "Did you mean 'trainable'?"]),
        (["ntk", "--activation", "sine:0"], ["--activation", "'sine:0'", "omega must be above 0"]),
        (["ntk", "--activation", "wire:3:omega=2"], ["--activation", "omega is given twice"]),
        (["ntk", "--activation", "sine:3", "--omega", "5"], ["--omega", "got 5"]),
        (["fit", "x.png", "--loss", "huber:0"], ["--loss", "delta", "above 0"]),
        (["ntk", "--encoding", "fourier:8", "--init", "rank_expanding"], ["behind an encoding"]),
        (["ntk", "--precision", "higher"], ["precision", "Did you mean 'high'?"]),
        (["ntk", "--output", "fulll"], ["output", "Did you mean 'full'?"]),
        (["ntk", "--grid", "4x4", "--output", "1"], ["output", "below"]),
        (["ntk", "--width", "0"], ["width", "at least 1", "0"]),
        (["ntk", "--hidden-layers", "0"], ["--hidden-layers", "at least 1"]),
        (["ntk", "--width", "wide"], ["--width", "wide"]),
        (["ntk", "--grid", "0x4"], ["at least 1", "0"]),
        (["ntk", "--grid", "4by4"], ["--grid", "4by4", "256x256"]),
        (["ntk", "--seed", "-1"], ["seed", "-1"]),
        (["ntk", "--device", "warp"], ["--device", "warp"]),
        (["ntk", *SMALL, "--quiet", "--grid", "4x4", "--rtols", "0"], ["rtol", "above 0"]),
        (["ntk", *SMALL, "--quiet", "--grid", "4x4", "--rtols", "1e-20"], ["rtol", "floor of fp64"]),
        (["diagnose", *SMALL, "--grid", "4x4", "--rtols", "2"], ["rtols", "below 1"]),
        (["diagnose", *SMALL, "--grid", "4x4", "--ntk-points", "-1"], ["--ntk-points", "at least 0"]),
        (["diagnose", *SMALL, "--grid", "4x4", "--jacobian-pixels", "x"], ["--jacobian-pixels", "at least 0"]),
    ],
)
def test_bad_usage_is_one_clear_line(refused, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()  # a missing file is told first
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
    assert files(tmp_path / "new" / "folder") == ["report.html", "report.json", "report.png", "report.txt"]
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == report
    assert main(argv) == 0
    assert capsys.readouterr().out == (tmp_path / "new" / "folder" / "report.txt").read_text()
    page = tmp_path / "there" / "page.html"
    assert main([*argv, "--html", str(page)]) == 0
    assert page.read_bytes() == (tmp_path / "new" / "folder" / "report.html").read_bytes()
    capsys.readouterr()
    assert main(["diagnose", *SMALL, "--grid", "8x6", "--ntk-points", "0", "--jacobian-pixels", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kernel"], found["feature_jacobians"]) == (None, [])


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "batch"],
        ["--norm", "batch", "--norm-position", "pre"],
        ["--first-norm", "batch", "--norm-position", "post"],
        ["--norm", "sphere", "--first-norm", "none"],
        ["--norm", "topk:3", "--first-norm", "topk_sphere"],
        ["--first-activation", "sine", "--init", "siren", "--hidden-init", "default"],
        ["--encoding", "positional:2"],
        ["--encoding", "polynomial:2", "--activation", "tanh"],
        ["--init", "rank_expanding", "--hidden-init", "kaiming"],
    ],
)
def test_the_options_describe_the_network(options, capsys):
    assert main(["ntk", *SMALL, "--grid", "5x4", "--quiet", "--json", "--precision", "highest", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    config = found["network"]
    settings = {key: config[key] for key in ("width", "hidden_layers", "activation", "init", "norm", "norm_position")}
    given = dict(zip(options[::2], options[1::2], strict=True))
    for key, others in (("norm", "none"), ("activation", "relu")):
        usual = given.get(f"--{key}", others)
        expected = [given.get(f"--first-{key}", usual), usual]
        if key == "norm":  # ones with numbers have them all
            expected = [{"topk:3": TOPK, "topk_sphere": TOPK_SPHERE}.get(own, own) for own in expected]
        assert [own or "none" for own in config[key]] == expected
    assert config["norm_position"] == given.get("--norm-position", "post")
    encodings = {None: None, "positional:2": inr.PositionalEncoding(2), "polynomial:2": inr.Polynomial(2)}
    encoding = encodings[options[1] if options[0] == "--encoding" else None]
    coords = inr.grid((5, 4))
    net = inr.INR(2, 1, encoding=encoding, **settings).eval()
    if "batch" in options:
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


@pytest.mark.parametrize("method", [None, "inertia", "cholesky"])
def test_ntk_counts_eigenvalues_and_says_how(capsys, method):
    argv = [
        "ntk",
        *SMALL,
        "--activation",
        "gaussian",
        "--grid",
        "12x12",
        "--rtols",
        "1e-2",
        "1e-5",
        "--levels",
        "1e-3",
        "2",
    ]
    argv += ["--precision", "highest", "--quiet"] + (["--method", method] if method else [])
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    net = inr.INR(2, 1, **{key: found["network"][key] for key in ("width", "hidden_layers", "activation", "seed")})
    values = torch.linalg.eigvalsh(inr.ntk(net, inr.grid((12, 12)), precision="highest").to_dense())
    assert [rank["rtol"] for rank in found["ranks"]] == [1e-2, 1e-5]
    assert [count["level"] for count in found["counts"]] == [1e-3, 2]
    for entry in found["ranks"] + found["counts"]:
        level = entry["level"] if "level" in entry else entry["rtol"] * float(values[-1])
        assert entry["lower"] <= int((values > level).sum()) <= entry["upper"]
        assert entry["method"].startswith(method or "dense")
        assert (entry["failure"] == 0) == (method is None)
        assert entry["failure"] <= 1e-5
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nrank ") == printed.count("\ncount ") == 2
    assert (printed.count("failure") == 4) == (method is not None)


def test_ntk_says_which_counts_stay_open_and_why(capsys):
    assert main(["ntk", *SMALL, "--quiet", "--grid", "12x12", "--rtols", "1e-2", "1e-13", "--method", "inertia"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"\nby +not one number is the count at rtol=1e-13 \(in \[\d+, \d+\]\): .* take a higher level", printed
    )
    assert "rtol=0.01" not in printed


def test_ntk_leaves_nothing_when_interrupted(tmp_path, monkeypatch, capsys):
    def interrupted(self, out=None):
        out[0, 0] = 1.0
        raise KeyboardInterrupt

    path = tmp_path / "kernel.npy"
    path.write_bytes(b"former")
    monkeypatch.setattr("inrfast.tangent.local.NTK.to_dense", interrupted)
    assert main(["ntk", *SMALL, "--grid", "4x4", "--out", str(path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert files(tmp_path) == ["kernel.npy"]
    assert path.read_bytes() == b"former"


def test_ntk_refuses_a_file_larger_than_the_disk(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    refused(["ntk", *SMALL, "--grid", "4x4", "--quiet", "--out", tmp_path / "kernel.npy"], "1 KiB", "100 B")
    assert files(tmp_path) == []


def test_variance_prints_what_the_library_computes(capsys):
    argv = ["variance", "--grid", "5x4", *SMALL, "--norm", "topk:3", "--quiet", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    own = inr.variance(inr.INR(2, 1, width=8, hidden_layers=2, norm=TOPK).eval(), inr.grid((5, 4)))
    assert (found["mean"], found["variance"]) == pytest.approx((own.mean, own.variance))
    assert list(found["layers"]) == list(own.layers)
    assert main(argv[:-1]) == 0
    assert capsys.readouterr().out.startswith("NTK variance at 20 points")


# ---- fit ---------------------------------------------------------------------------------------------------------


def fit_command(signal, *options):
    return ["fit", str(signal), *SMALL, "--steps", "3", *map(str, options)]


def fit_photo(photo, *options):
    return fit_command(photo, "--size", "6x8", *options)


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.wav"
    save_audio(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) / 2, path, 8000)
    return path


@pytest.fixture
def cube(tmp_path):
    path = tmp_path / "cube.npy"
    np.save(path, np.random.default_rng(0).integers(20, 200, (5, 6, 7), dtype=np.uint8))
    return path


@pytest.fixture
def ball(tmp_path):
    path = tmp_path / "ball.ply"
    save_mesh(trimesh.creation.icosphere(2, 3.0).apply_translation((10, 0, 0)), path)
    return path


@pytest.mark.parametrize("grey", [True, False])
def test_fit_writes_the_reconstruction_and_its_report(photo, tmp_path, capsys, grey):
    out = tmp_path / "out" / "fitted.png"
    argv = fit_photo(photo, "--out", out, "--json", "--quiet", "--activation", "sine", "--init", "siren")
    assert main(argv + ["--grey"] * grey) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert files(tmp_path / "out") == ["fitted.html", "fitted.json", "fitted.png", "fitted.safetensors"]
    assert json.loads((tmp_path / "out" / "fitted.json").read_text()) == found
    assert (found["kind"], found["signal"]) == ("image", str(photo))
    assert found["size"] == [6, 8, 1 if grey else 3]
    assert not found["interrupted"]
    with Image.open(out) as written:
        assert (written.height, written.width) == (6, 8)
        values = torch.from_numpy(np.asarray(written).astype(np.float64) / 255).reshape(found["size"])
    target = load_image(photo, (6, 8), grey).double()
    # The picture is clipped and has 8 bits, which can only move its PSNR by a little here.
    assert -10 * torch.log10((values - target).square().mean()) == pytest.approx(found["psnr"], abs=0.5)


def test_every_kind_is_fitted_and_rendered_again(photo, sound, cube, ball, tmp_path, capsys):
    for signal, ending, options in ((photo, ".png", ["--size", "6x8"]), (sound, ".wav", []), (cube, ".npy", [])):
        fitted, again = tmp_path / f"fitted{ending}", tmp_path / f"again{ending}"
        assert main(fit_command(signal, "--out", fitted, "--quiet", "--json", *options)) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["render", found["model"], str(again), "--quiet"]) == 0
        assert str(again) in capsys.readouterr().out
        assert again.read_bytes() == fitted.read_bytes()
        target = {".wav": lambda: load_audio(sound)[0], ".npy": lambda: load_volume(cube)}.get(ending)
        if target is not None:
            assert found["size"] == list(target().shape)


def test_the_psnr_of_a_volume_is_that_of_its_range(cube, tmp_path, capsys):
    assert main(fit_command(cube, "--out", tmp_path / "out.npy", "--quiet", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    got, target = load_volume(tmp_path / "out.npy"), load_volume(cube)
    assert psnr(got, target, data_range=float(target.max() - target.min())) == pytest.approx(found["psnr"], abs=1e-3)


def test_a_constant_volume_is_fitted(tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.full((3, 3, 3), 7.0))
    out = tmp_path / "out.npy"
    assert main(fit_command(tmp_path / "flat.npy", "--out", out, "--quiet", "--size", "2")) == 0
    assert load_volume(out).shape == (2, 2, 2, 1)
    assert torch.allclose(load_volume(out), torch.tensor(7.0), atol=1.0)


@pytest.mark.parametrize("loss", ["mse", "bce", "huber:delta=0.1"])
def test_a_mesh_is_fitted_and_rendered_again(ball, tmp_path, capsys, loss):
    """With cross-entropy the network gives logits, which are 0 on the surface as other losses' values are."""
    argv = [
        "fit",
        "--loss",
        loss,
        str(ball),
        "--width",
        "16",
        "--activation",
        "relu",
        "--steps",
        "150",
        "--lr",
        "0.02",
        "--samples",
        "2000",
        "--size",
        "16",
    ]
    assert main([*argv, "--out", str(tmp_path / "out.obj"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["size"], found["samples"]) == ("mesh", [16, 16, 16, 1], 2000)
    assert 0.8 < found["iou"] <= 1
    fine = tmp_path / "fine.stl"
    assert main(["render", found["model"], str(fine), "--size", "24", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [24, 24, 24, 1]
    for path in (tmp_path / "out.obj", fine):
        mesh = load_mesh(path)
        assert mesh.volume == pytest.approx(4 / 3 * np.pi * 27, rel=0.2)
        np.testing.assert_allclose(mesh.bounds, [[7, -3, -3], [13, 3, 3]], atol=0.7)


def test_a_fit_that_finds_no_surface_keeps_its_network(ball, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("inrfast.signals.render.render", lambda net, shape, **options: torch.ones(*shape, 1))
    argv = fit_command(ball, "--samples", "50", "--size", "4", "--out", tmp_path / "out.obj", "--quiet")
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no surface" in captured.err and "out.safetensors" in captured.err
    assert files(tmp_path) == ["ball.ply", "out.html", "out.json", "out.safetensors"]
    assert "no surface" in (tmp_path / "out.html").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["out"] is None


def test_transparency_is_kept_unless_the_fit_is_grey(tmp_path, capsys, refused):
    clear = tmp_path / "clear.png"
    save_image(torch.rand(8, 8, 4, generator=torch.Generator().manual_seed(0)), clear)
    for options, channels in (([], 4), (["--grey"], 1)):
        assert main(fit_photo(clear, "--out", tmp_path / "out.png", "--quiet", "--json", *options)) == 0
        assert json.loads(capsys.readouterr().out)["size"] == [6, 8, channels]
    refused(fit_photo(clear, "--out", tmp_path / "out.jpg", "--quiet"), "--out", ".png", "out.jpg")


def test_a_page_is_fitted_as_a_file_of_its_own(tmp_path, capsys, refused):
    pages = [Image.fromarray(values) for values in np.random.default_rng(1).integers(0, 256, (2, 6, 8), dtype=np.uint8)]
    stack = tmp_path / "stack.tif"
    pages[0].save(stack, save_all=True, append_images=pages[1:])
    found = []
    for number, page in enumerate(pages):
        alone = tmp_path / f"{number}.tif"
        page.save(alone)
        for signal, options in ((alone, []), (stack, ["--page", number])):
            argv = fit_command(
                signal, "--steps", "1", "--size", "6x8", "--out", tmp_path / "out.png", "--json", *options
            )
            assert main([str(word) for word in argv]) == 0
            found.append(json.loads(capsys.readouterr().out)["psnrs"])
    assert found[0] == found[1] != found[2] == found[3]
    refused(fit_command(stack, "--out", tmp_path / "none.png"), "2 pages", "page 0 to page 1")
    refused(fit_command(stack, "--out", tmp_path / "none.png", "--page", "2"), "page", "2")


def test_a_mask_leaves_out_what_is_missing_and_the_psnr_is_of_all(photo, tmp_path, capsys, monkeypatch, refused):
    given = {}
    real = fitting.fit

    def spy(*arguments, **options):
        given.update(options, target=arguments[2])
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "fit", spy)
    mask = torch.ones(12, 16)
    mask[:, 8:] = 0
    save_image(mask, tmp_path / "mask.png")
    argv = fit_photo(photo, "--weight", tmp_path / "mask.png", "--out", tmp_path / "out.png", "--quiet", "--json")
    assert main(argv) == 0
    capsys.readouterr()
    assert torch.equal(given["weight"].view(6, 8), torch.ones(6, 8) * (torch.arange(8) < 4))
    assert torch.equal(given["eval_target"], given["target"])
    save_image(mask[:5], tmp_path / "small.png")
    refused([*argv, "--weight", tmp_path / "small.png"], "--weight", "12x16", "6x8", "5x16")
    save_image(0 * mask, tmp_path / "black.png")
    refused([*argv, "--weight", tmp_path / "black.png"], "black")
    refused([*argv, "--weight", tmp_path / "absent.png"], "absent.png")


def test_a_fit_goes_on_from_its_checkpoint(photo, tmp_path, capsys, refused):
    options = ["--quiet", "--json", "--checkpoint", tmp_path / "state.checkpoint", "--schedule", "constant"]
    assert main(fit_photo(photo, "--out", tmp_path / "a.png", *options)) == 0
    capsys.readouterr()
    refused(fit_photo(photo, "--out", tmp_path / "a.png", *options), "state.checkpoint", "resume")
    assert main([*fit_photo(photo, "--out", tmp_path / "a.png", *options), "--steps", "6", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert main([*fit_photo(photo, "--out", tmp_path / "b.png", *options[:2], *options[4:]), "--steps", "6"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_settings_of_the_training_are_those_of_the_options(photo, tmp_path, capsys):
    options = ["--optimizer", "adamw", "--weight-decay", "0.1", "--precision", "highest", "--patience", "50"]
    assert main(fit_photo(photo, "--out", tmp_path / "a.png", "--quiet", "--json", *options)) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["optimizer"], settings["weight_decay"]) == ("adamw", 0.1)
    assert (settings["precision"], settings["patience"]) == ("highest", 50)
    argv = fit_photo(photo, "--out", tmp_path / "a.png", "--quiet", "--json", "--target-psnr", "1")
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] == "target_psnr"


def test_fit_refuses_what_is_no_image(photo, tmp_path, refused):
    truncated, text, empty = (tmp_path / name for name in ("truncated.png", "text.png", "empty.png"))
    truncated.write_bytes(photo.read_bytes()[:200])
    text.write_text("not an image")
    empty.touch()
    (tmp_path / "song.mp3").write_text("a song")
    (tmp_path / "folder").mkdir()
    before = files(tmp_path)
    out = ["--out", tmp_path / "result.png"]
    refused(fit_photo(tmp_path / "missing.png", *out), "missing.png")
    refused(fit_photo(truncated, *out), "truncated.png", "truncated")
    refused(fit_photo(text, *out), "text.png", "not an image")
    refused(fit_photo(empty, *out), "empty.png", "empty")
    refused(fit_photo(tmp_path / "folder", *out), "is a folder")
    refused(fit_photo(tmp_path, *out), "empty.png", "empty")  # a folder of images is a video
    refused(fit_photo(tmp_path / "song.mp3", *out), ".mp3", ".png", ".wav", ".npy")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["a.wav", "a.npy", "a.obj", "a.ply", "a.stl", "a.off", "a.glb"])
def test_fit_refuses_damaged_signals_of_every_kind(tmp_path, refused, name):
    out = ["--out", tmp_path / {"a.wav": "o.wav", "a.npy": "o.npy"}.get(name, "o.obj")]
    (tmp_path / name).write_text("nothing of the kind")
    refused(fit_command(tmp_path / name, *out), name)
    (tmp_path / name).write_text("")
    refused(fit_command(tmp_path / name, *out), name, "empty")
    assert files(tmp_path) == [name]


def test_fit_refuses_options_of_other_kinds(photo, sound, cube, ball, refused):
    refused(fit_command(sound, "--size", "4"), "--size goes with", "image", "mesh", "volume", "sound.wav", "of audio")
    refused(fit_command(cube, "--grey"), "--grey", "image", "volume")
    refused(fit_command(photo, "--samples", "5"), "--samples", "mesh", "image")
    refused(fit_command(cube, "--weight", photo), "--weight", "image")


def test_fit_refuses_an_unusable_out_before_it_starts(photo, sound, tmp_path, refused, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the fit started")

    monkeypatch.setattr(fitting, "fit", never)
    refused(fit_photo(photo, "--out", photo / "result.png"), "--out", "photo.png")
    refused(fit_photo(photo, "--out", "/proc/nowhere/result.png"), "--out", "/proc/nowhere")
    refused(fit_photo(photo, "--out", tmp_path / "result.txt"), "--out", ".png")
    refused(fit_command(sound, "--out", tmp_path / "result.png"), "--out", ".wav")
    refused(fit_photo(photo, "--out", photo), "another file")
    checkpoint = ["--checkpoint", tmp_path / "result.safetensors"]
    refused(fit_photo(photo, "--out", tmp_path / "result.png", *checkpoint), "another file", "--checkpoint")
    (tmp_path / "folder.png").mkdir()
    refused(fit_photo(photo, "--out", tmp_path / "folder.png"), "folder")
    (tmp_path / "named.json").mkdir()
    refused(fit_photo(photo, "--out", tmp_path / "named.png"), "named.json", "folder")


def test_fit_refuses_bad_settings(photo, cube, ball, tmp_path, refused):
    before = files(tmp_path)
    out = ["--out", tmp_path / "result.png", "--quiet"]
    refused([*fit_photo(photo, *out), "--steps", "0"], "steps", "at least 1")
    refused([*fit_photo(photo, *out), "--lr", "-1"], "lr", "above 0")
    refused([*fit_photo(photo, *out), "--batch-size", "0"], "batch-size", "at least 1")
    refused([*fit_photo(photo, *out), "--schedule", "exponental"], "Did you mean 'exponential'?")
    refused([*fit_photo(photo, *out), "--optimizer", "adamm"], "Did you mean 'adam")
    refused([*fit_photo(photo, *out), "--size", "0"], "size", "at least 1")
    refused([*fit_photo(photo, *out), "--resume"], "checkpoint")
    refused([*fit_photo(photo, *out), "--memory-budget", "10"], "budget", "10 bytes")
    refused(fit_command(cube, "--size", "9", "--out", tmp_path / "o.npy"), "--size", "5x6x7", "9x9x9")
    refused(fit_command(ball, "--size", "1", "--out", tmp_path / "o.obj"), "--size", "at least 2")
    refused(fit_command(ball, "--samples", "0", "--out", tmp_path / "o.obj"), "--samples", "at least 1")
    assert files(tmp_path) == before


def test_an_interrupted_fit_keeps_what_it_has_and_says_so(photo, tmp_path, monkeypatch, capsys):
    real = fitting.fit

    class CtrlC:
        def on_step(self, state):
            if state.step == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", lambda *arguments, **options: real(*arguments, **options, callbacks=[CtrlC()]))
    monkeypatch.chdir(tmp_path)  # a long path would be cut
    assert main(fit_photo(photo, "--out", "result.png", "--quiet", "--json")) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert "in result.png" in captured.err
    found = json.loads(captured.out)
    assert found["interrupted"]
    assert found["steps"] == 2
    assert files(tmp_path) == ["photo.png", "result.html", "result.json", "result.png", "result.safetensors"]


def test_a_fit_that_is_interrupted_before_its_first_step_leaves_an_earlier_result(photo, tmp_path, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    assert main(fit_photo(photo, "--out", "result.png", "--quiet")) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr("inrfast.training.trainer.Trainer._steps", interrupted)
    assert main(fit_photo(photo, "--out", "result.png", "--quiet", "--json")) == 130
    captured = capsys.readouterr()
    assert "interrupted before the first step; nothing was learned, and nothing is written" in captured.err
    assert captured.out == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_option_that_is_none_is_told_with_the_nearest_and_the_help_of_its_command(refused, photo):
    for words, hint in (
        (["--stesp", "3"], "Did you mean --steps?"),
        (["--epochs=3"], "Did you mean --steps?"),
        (["--hidden-layer-s", "3"], "Did you mean --hidden-layers?"),
        (["--qqqq"], "--qqqq"),
        (["another.png"], "another.png"),
    ):
        refused(["fit", photo, *words], words[0].partition("=")[0], hint, "(see inrfast fit --help)")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (DivergedError("NaN in layers.0"), 1)])
def test_a_fit_that_does_not_end_leaves_nothing(photo, tmp_path, monkeypatch, capsys, error, code):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(fitting, "fit", broken)
    assert main(fit_photo(photo, "--out", tmp_path / "result.png")) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(error) in captured.err
    assert files(tmp_path) == ["photo.png"]


# ---- render ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(photo, tmp_path, capsys):
    assert main(fit_photo(photo, "--out", tmp_path / "fitted.png", "--quiet")) == 0
    capsys.readouterr()
    return tmp_path / "fitted.safetensors"


def test_render_evaluates_the_network_at_any_size(model, tmp_path, capsys):
    assert main(["render", str(model), str(tmp_path / "large.png"), "--size", "9x13", "--memory-budget", "64K"]) == 0
    net, about = load_network(model)
    with torch.no_grad():
        expected = net(inr.grid((9, 13))).view(9, 13, 3) * about["scale"] + about["offset"]
    assert torch.allclose(load_image(tmp_path / "large.png"), expected.clamp(0, 1), atol=0.6 / 255)
    assert main(["render", str(model), str(tmp_path / "square.tiff"), "--size", "5", "--quiet"]) == 0
    assert load_image(tmp_path / "square.tiff").shape == (4, 5, 3)


def test_nothing_asked_for_gets_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(f"\n    {command}" in captured.err for command in COMMANDS)
    assert captured.err.splitlines()[-1].startswith("inrfast: error: a command is required")


@pytest.mark.parametrize("name", ["report.png", "report.HTML", "new/page.json"])
def test_a_folder_of_a_report_has_no_name_of_a_file(name, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stem = name.rpartition(".")[0]
    refused(["diagnose", *SMALL, "--out", name], "--out is a folder", name, f"--out {stem}", f"--html {stem}.html")
    assert files(tmp_path) == []


@pytest.mark.parametrize("quiet", [False, True])
def test_missing_matplotlib_is_told_before_the_work_and_pages_are_written(photo, tmp_path, monkeypatch, capsys, quiet):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    more = ["--quiet"] * quiet
    page = tmp_path / "page.html"
    small = ["--grid", "6x6", "--ntk-points", "0", "--jacobian-pixels", "0", "--html", str(page)]
    for argv in (["diagnose", *SMALL, *small, *more], fit_command(photo, "--out", tmp_path / "page.png", *more)):
        page.unlink(missing_ok=True)
        assert main(argv) == 0
        err = capsys.readouterr().err
        assert err.count("matplotlib") == (not quiet)
        assert page.exists()


def test_a_long_diagnosis_says_its_parts_and_how_to_take_less(monkeypatch, capsys):
    monkeypatch.setattr("inrfast.cli.shell.WORD_SECONDS", 0.0)
    monkeypatch.setattr("inrfast.cli.output.PART_SECONDS", 0.0)
    argv = ["diagnose", *SMALL, "--jacobian-pixels", "0", "--grid"]
    assert main([*argv, "66x65", "--ntk-points", "30"]) == 0
    err = capsys.readouterr().err
    assert "takes long; Ctrl-C ends it; a smaller grid, --grid 64x64" in err
    assert "eigenvalues of the NTK, part" in err
    assert main([*argv, "8x8", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_one_size_is_that_of_the_longer_side_and_larger_ones_name_the_way_to_enlarge(photo, tmp_path, capsys):
    out = tmp_path / "o.png"
    for size, longer in (("5x20", (10, 40)), ("20x5", (40, 10)), ("1x20", (2, 40))):
        assert main(fit_command(photo, "--size", size, "--out", tmp_path / "f.png", "--quiet")) == 0
        assert main(["render", str(tmp_path / "f.safetensors"), str(out), "--size", "40"]) == 0
        assert load_image(out).shape == (*longer, 3)
        err = capsys.readouterr().err
        assert f"PSNR holds at its {size} points" in err
        assert "inrfast upscale" in err
    assert main(["render", str(tmp_path / "f.safetensors"), str(out), "--size", "3"]) == 0
    assert load_image(out).shape == (1, 3, 3)
    assert capsys.readouterr().err == ""
    assert "fitted pixels only" in (tmp_path / "f.html").read_text()


@pytest.mark.parametrize("rate", [3000, 8000, 16000, 44100])
def test_a_sound_at_another_rate_has_the_same_times(sound, tmp_path, capsys, rate):
    assert main(fit_command(sound, "--out", tmp_path / "fitted.wav", "--quiet")) == 0
    assert main(["render", str(tmp_path / "fitted.safetensors"), str(tmp_path / "o.wav"), "--rate", str(rate)]) == 0
    got, written = load_audio(tmp_path / "o.wav")
    assert written == rate
    assert 40 / 8000 - 1 / 8000 <= len(got) / rate <= 40 / 8000 + 1 / rate
    seconds = torch.arange(len(got), dtype=torch.float64) / rate
    coords = -1 + 2 * seconds / (39 / 8000)
    with torch.no_grad():
        expected = load_network(tmp_path / "fitted.safetensors")[0](coords.float().unsqueeze(1))
    assert torch.allclose(got, expected.clamp(-1, 1), atol=2**-15)


def test_render_refuses_what_does_not_fit_the_model(model, sound, tmp_path, refused, capsys):
    before = files(tmp_path)
    refused(["render", model, tmp_path / "o.wav"], "image", ".png", "o.wav")
    refused(["render", model, tmp_path / "o.png", "--rate", "8000"], "--rate", "image")
    refused(["render", model, tmp_path / "o.png", "--size", "2x3x4"], "--size", "2 of them", "2x3x4")
    refused(["render", model, tmp_path / "o.png", "--size", "0"], "--size", "at least 1")
    refused(
        ["render", model, tmp_path / "o.png", "--size", "99", "--memory-budget", "1K", "--quiet"], "budget", "1 KiB"
    )
    refused(["render", model, tmp_path / "o.png", "--memory-budget", "some"], "--memory-budget", "512M", "some")
    refused(["render", model, model / "o.png"], "OUT", "fitted.safetensors")
    assert main(fit_command(sound, "--out", tmp_path / "s.wav", "--quiet")) == 0
    capsys.readouterr()
    refused(["render", tmp_path / "s.safetensors", tmp_path / "o.wav", "--size", "9"], "--size", "--rate")
    refused(["render", tmp_path / "s.safetensors", tmp_path / "o.wav", "--rate", "0"], "--rate", "at least 1")
    refused(["render", tmp_path / "s.safetensors", tmp_path / "o.wav", "--rate", "100"], "--rate", "2 samples")
    refused(["render", tmp_path / "s.safetensors", tmp_path / "o.png"], "audio", ".wav", "o.png")
    assert files(tmp_path) == sorted([*before, "s.html", "s.json", "s.safetensors", "s.wav"])


def test_render_refuses_what_is_no_model(model, photo, tmp_path, refused):
    cut, bare = tmp_path / "cut.safetensors", tmp_path / "bare.safetensors"
    cut.write_bytes(model.read_bytes()[:-20])
    net, about = load_network(model)
    save_network(net, bare, {})
    out = tmp_path / "o.png"
    refused(["render", tmp_path / "absent.safetensors", out], "absent.safetensors")
    refused(["render", cut, out], "cut.safetensors")
    refused(["render", photo, out], "photo.png")
    refused(["render", bare, out], "bare.safetensors", "does not say")
    for wrong in ({"shape": [4]}, {"shape": [0, 4]}, {"scale": "big"}, {"offset": None}):
        save_network(net, bare, {**about, **wrong})
        refused(["render", bare, out], "bare.safetensors", "damaged", *wrong)
    assert not out.exists()


# ---- others ------------------------------------------------------------------------------------------------------


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


def test_a_checkpoint_is_no_file_that_is_read(photo, tmp_path, refused):
    weight, state = tmp_path / "weight.png", tmp_path / "state"
    weight.write_bytes(photo.read_bytes())
    state.touch()
    refused(fit_photo(photo, "--checkpoint", photo), "--checkpoint must be another file than the signal")
    refused(fit_photo(photo, "--checkpoint", weight, "--weight", weight), "another file than --weight")
    refused(fit_photo(photo, "--checkpoint", state), "--checkpoint", "exists", "--resume")
    assert weight.read_bytes() == photo.read_bytes()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit", ""], ["signal", "takes a path"]),
        (["diagnose", "--html", "page.pdf"], ["--html", ".html or .htm file, got page.pdf"]),
        (["diagnose", "--out", ""], ["--out", "takes a path"]),
        (["diagnose", "--out", "/proc/nowhere"], ["--out", "cannot write /proc/nowhere:"]),
        (["ntk", "--output", "-1"], ["--output", "number of an output"]),
        (["ntk", "--rtols", "2"], ["--rtols", "below 1"]),
        (["ntk", "--levels", "0"], ["--levels", "above 0", "'0'"]),
        (["ntk", "--levels", "nan"], ["--levels", "finite", "'nan'"]),
        # of a grid too large to be made: refused before it is
        (["ntk", "--grid", "900000x900000", "--method", "dense"], ["--method", "--rtols", "--levels"]),
        (["ntk", "--grid", "900000x900000", "--method", "inertai"], ["--method must be", "'inertia'?"]),
        (["ntk", "--grid", "900000x900000", "--rtols", "0.1", "--method", "inertai"], ["--method", "'inertia'?"]),
        (["fit", "photo.png", "--size", "8x8x8"], ["--size of an image", "8x8x8"]),
    ],
)
def test_options_are_named_with_what_they_take(photo, argv, words, monkeypatch, refused):
    monkeypatch.chdir(photo.parent)
    refused(argv, *words)
