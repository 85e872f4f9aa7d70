"""``inrfast upscale``: sizes, means, measures, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from inrfast.cli import main
from inrfast.cli.shell import INTERRUPTED
from inrfast.inverse import restoring
from inrfast.inverse.enlarging import area_means
from inrfast.signals.image import load_image, save_image

QUICK = ["--steps", "3", "--quiet"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a smooth picture in colours."""
    monkeypatch.chdir(tmp_path)
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 10), torch.linspace(0, 4, 14), indexing="ij")
    save_image(0.5 + 0.3 * torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()], -1), "photo.png")
    return tmp_path


@pytest.mark.parametrize(("factor", "sides"), [("2", (20, 28)), ("4", (40, 56)), ("1.5", (15, 21)), ("2.2", (22, 31))])
def test_the_picture_averaged_back_is_the_picture(place, capsys, factor, sides):
    assert main(["upscale", "photo.png", "--factor", factor, *QUICK, "--out", "new/large.png", "--json"]) == 0
    captured = capsys.readouterr()
    found, large = json.loads(captured.out), load_image("new/large.png")
    assert large.shape == (*sides, 3)
    assert found["size"] == [*sides, 3]
    assert (found["schema"], found["factor"], found["bits"]) == ("inrfast.upscale/1", float(factor), 8)
    assert captured.err == ""
    difference = area_means(large, (10, 14)) - load_image("photo.png")
    assert float(difference.abs().max()) < found["mean_difference"] + 0.51 / 255  # of rounding to 8 bits
    assert found["mean_difference"] < (1e-5 if float(factor).is_integer() else 0.01)


def test_what_a_picture_averaged_back_differs_by_is_told(place, capsys):
    """No picture in [0, 1] has the means of a chequerboard at factor 1.5: pixels between would be black and white."""
    Image.fromarray((np.indices((6, 6)).sum(0) % 2 * 255).astype(np.uint8)).save("board.png")
    assert main(["upscale", "board.png", "--factor", "1.5", *QUICK, "--report", "r.json"]) == 0
    told = json.loads((place / "r.json").read_text())["mean_difference"]
    assert f"averaged back, the picture is board.png to {told:.1g} of white" in capsys.readouterr().out
    difference = area_means(load_image("upscaled.png", grey=True), (6, 6)) - load_image("board.png", grey=True)
    assert float(difference.abs().max()) == pytest.approx(told, abs=0.51 / 255)
    assert told > 0.1


def test_greys_and_sixteen_bits_stay(place):
    samples = np.linspace(0, 65535, 140).reshape(10, 14, 1).round()
    save_image(torch.from_numpy(samples / 65535), "deep.tif", bits=16)
    assert main(["upscale", "deep.tif", *QUICK, "--out", "large.tif"]) == 0
    large = load_image("large.tif", grey=None)
    assert large.shape == (20, 28, 1)
    levels = (large.double() * 65535).round() % 257  # of 8 bits all would be 0
    assert int((levels > 0).sum()) > 100


def test_the_truth_is_compared_with_what_others_reach(place, capsys):
    truth = load_image("photo.png")
    save_image(area_means(truth, (5, 7)), "small.png")
    assert main(["upscale", "small.png", *QUICK, "--truth", "photo.png", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["truth_psnr"]
    assert set(scores) == {"picture", "network", "back_projected", "bicubic"}
    assert scores["back_projected"] > scores["bicubic"] > 20
    assert main(["upscale", "small.png", *QUICK, "--truth", "photo.png"]) == 0
    told = capsys.readouterr().out
    assert all(f"{value:.2f} dB" in told for value in scores.values())


def test_transparency_is_dropped_and_told(place, capsys):
    Image.open("photo.png").convert("RGBA").save("opaque.png")
    cut = Image.open("photo.png").convert("RGBA")
    cut.putpixel((3, 3), (1, 2, 3, 0))
    cut.save("cut.png")
    assert main(["upscale", "opaque.png", *QUICK]) == 0
    assert capsys.readouterr().err == ""
    assert main(["upscale", "cut.png", *QUICK]) == 0
    assert "the transparency of cut.png is dropped" in capsys.readouterr().err
    assert load_image("upscaled.png", alpha=None).shape == (20, 28, 3)


def test_bad_input_is_refused_at_the_door(place, refused, monkeypatch):
    monkeypatch.setattr(restoring, "upscale", lambda *words, **options: pytest.fail("it started"))
    refused(["upscale", "photo.png", "--factor", "1"], "factor", "above 1", "got 1")
    refused(["upscale", "photo.png", "--factor", "0.5"], "factor", "above 1", "0.5")
    refused(["upscale", "photo.png", "--factor", "1.001"], "make the picture larger", "10x14")
    refused(["upscale", "photo.png", "--factor", "1e308"], "factor", "sides")
    refused(["upscale", "photo.png", "--factor", "two"], "--factor", "two")
    refused(["upscale", "photo.png", "--truth", "photo.png"], "--truth", "20x28", "10x14")
    refused(["upscale", "photo.png", "--out", "photo.png"], "--out must be another file than IMAGE")
    refused(["upscale", "missing.png"], "missing.png")
    assert [path.name for path in place.iterdir()] == ["photo.png"]


def test_memory_is_asked_for_before_the_work(place, refused):
    refused(["upscale", "photo.png", "--factor", "300", "--memory-budget", "64M"], "budget", "smaller picture")


def test_an_interrupt_keeps_what_is_reached(place, capsys, monkeypatch):
    real = restoring.fit

    class Stop:
        def on_step(self, state):
            if state.step == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "fit", lambda *words, **options: real(*words, **{**options, "callbacks": [Stop()]}))
    assert main(["upscale", "photo.png", "--steps", "50", "--quiet"]) == INTERRUPTED
    assert "interrupted; kept the result so far, after 4 of 50 steps" in capsys.readouterr().err
    assert load_image("upscaled.png").shape == (20, 28, 3)
