"""``inrfast inpaint``: what it writes, keeps, measures, refuses, and leaves behind."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from inrfast.cli import main
from inrfast.cli.shell import INTERRUPTED
from inrfast.inverse import restoring
from inrfast.metrics import psnr
from inrfast.signals.image import load_image, save_image

QUICK = ["--steps", "3", "--quiet"]


def draws(*shape, most=256, seed=0):
    return np.random.default_rng(seed).integers(0, most, shape)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a picture in colours and a mask of its size, half of it missing."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draws(10, 14, 3).astype(np.uint8)).save("photo.png")
    Image.fromarray((draws(10, 14, most=2, seed=1) * 255).astype(np.uint8)).save("mask.png")
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def pixels(path):
    return np.asarray(Image.open(path))


def test_known_pixels_are_those_of_the_file(place, capsys):
    assert main(["inpaint", "photo.png", "mask.png", *QUICK, "--out", "new/done.png", "--report", "new/r.json"]) == 0
    captured = capsys.readouterr()
    known = pixels("mask.png") > 127
    found = pixels("new/done.png")
    np.testing.assert_array_equal(found[known], pixels("photo.png")[known])
    assert (found[~known] != pixels("photo.png")[~known]).any()
    assert files(place / "new") == ["done.png", "r.json"]
    assert captured.err == ""
    assert f"filled in {(~known).sum()} of 140 pixels after 3 of 3 steps" in captured.out
    assert "wrote new/done.png and new/r.json" in captured.out


def test_json_is_alone_on_stdout_and_the_same_in_the_report(place, capsys):
    assert main(["inpaint", "photo.png", "mask.png", *QUICK, "--json", "--report", "r.json", "--seed", "4"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert json.loads((place / "r.json").read_text()) == found
    assert (found["schema"], found["out"], found["size"]) == ("inrfast.inpaint/1", "inpainted.png", [10, 14, 3])
    assert (found["steps"], found["interrupted"], found["known_kept"], found["bits"]) == (3, False, True, 8)
    assert found["settings"]["seed"] == 4
    assert found["missing_psnr"] is None
    assert found["missing"] == int((pixels("mask.png") < 128).sum())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_and_greys_stay(place, channels, suffix):
    samples = draws(10, 14, channels, most=2**16).astype(np.uint16)
    save_image(torch.from_numpy(samples.astype(np.float32) / 65535), f"deep{suffix}", bits=16)
    assert main(["inpaint", f"deep{suffix}", "mask.png", *QUICK, "--out", f"done{suffix}"]) == 0
    back = load_image(f"done{suffix}", grey=None)
    known = pixels("mask.png") > 127
    assert back.shape == (10, 14, channels)
    np.testing.assert_array_equal((back.numpy().astype(np.float64) * 65535).round()[known], samples[known])


def test_what_a_format_loses_is_said(place, capsys):
    assert main(["inpaint", "photo.png", "mask.png", *QUICK, "--out", "done.jpg", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["known_kept"] is False
    assert captured.err.strip().splitlines() == [
        "inrfast: warning: known pixels are not bit for bit those of photo.png: done.jpg cannot hold them; .png can"
    ]
    tifffile.imwrite("deep.tif", draws(10, 14, most=2**16).astype(np.uint16))
    assert main(["inpaint", "deep.tif", "mask.png", *QUICK, "--out", "done.bmp"]) == 0
    assert "deep.tif has 16 bits per channel, and done.bmp gets 8; .png, .tif, .tiff take 16" in capsys.readouterr().err


def test_advice_on_what_holds_known_pixels_is_true(place, capsys):
    """Floats and 32 bits have no format here; where .png is advised, it holds them."""
    wide, tall = draws(10, 14, most=2**16), draws(10, 14, 3)
    opacity = np.where(draws(10, 14, most=2, seed=2) > 0, 128, 0)
    tifffile.imwrite("half.tif", (wide / 65535).astype(np.float16))
    tifffile.imwrite("float.tif", (wide / 65535 * 0.987).astype(np.float32))
    tifffile.imwrite("long.tif", (wide * 65521).astype(np.uint32))
    joined = np.dstack([(tall * (opacity / 255)[..., None]).round(), opacity]).astype(np.uint8)
    tifffile.imwrite("joined.tif", joined, photometric="rgb", extrasamples=["assocalpha"])
    tifffile.imwrite("deep.tif", wide.astype(np.uint16))
    for source in ("half.tif", "float.tif", "long.tif", "joined.tif", "deep.tif", "photo.png"):
        words = ["inpaint", source, *([] if source == "joined.tif" else ["mask.png"]), *QUICK, "--json"]
        kept, told = {}, {}
        for suffix in ("bmp", "tif", "png"):
            assert main([*words, "--out", f"done.{suffix}"]) == 0
            captured = capsys.readouterr()
            kept[suffix], told[suffix] = json.loads(captured.out)["known_kept"], captured.err
        assert kept["png"] == (source in ("deep.tif", "photo.png"))
        for suffix in kept:
            assert (".png can" in told[suffix]) == (kept["png"] and not kept[suffix])
            assert ("no format with the up to 16 bits" in told[suffix]) == (not kept["png"])


def test_profiles_and_resolutions_stay_or_are_missed(place, capsys):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open("photo.png").save("own.png", icc_profile=profile, dpi=(300, 300))
    for words in (["inpaint", "own.png", "mask.png"], ["upscale", "own.png"]):
        assert main([*words, *QUICK, "--out", "done.png"]) == 0
        info = Image.open("done.png").info
        assert (info["icc_profile"], [round(each) for each in info["dpi"]]) == (profile, [300, 300])
        assert capsys.readouterr().err == ""
        assert main([*words, *QUICK, "--out", "done.gif"]) == 0
        told = capsys.readouterr().err
        assert "done.gif does not hold the colour profile of own.png" in told
        assert "done.gif does not hold the resolution of own.png, 300 x 300 dots per inch" in told


def test_a_mask_may_be_the_other_way_round(place):
    mask = pixels("mask.png")
    Image.fromarray(255 - mask).save("turned.png")
    Image.fromarray(np.repeat((255 - mask)[..., None], 3, 2)).save("colours.png")
    Image.fromarray(mask > 0).save("bits.png")
    for words in (
        ["mask.png"],
        ["turned.png", "--missing", "white"],
        ["colours.png", "--missing", "white"],
        ["bits.png"],
    ):
        assert main(["inpaint", "photo.png", *words, *QUICK, "--out", "now.png"]) == 0
        found = pixels("now.png")
        if words == ["mask.png"]:
            first = found
        np.testing.assert_array_equal(found, first)


def test_soft_greys_are_halved_and_told(place, capsys):
    mask = np.where(pixels("mask.png") > 127, 255, 0).astype(np.uint8)
    mask[0, :4] = [100, 127, 128, 200]
    Image.fromarray(mask).save("soft.png")
    assert main(["inpaint", "photo.png", "soft.png", *QUICK]) == 0
    assert "soft.png has 4 pixels between black and white; those from 0.5 on count as white" in capsys.readouterr().err
    same = pixels("inpainted.png")[0, :4] == pixels("photo.png")[0, :4]
    assert same[2:].all() and not same[:2].all()


def test_what_is_read_in_part_is_told(place, capsys):
    photo, mask = Image.open("photo.png"), Image.open("mask.png")
    half = Image.fromarray(np.where(np.asarray(mask) > 127, 255, 100).astype(np.uint8))
    Image.merge("RGBA", (*photo.split(), half)).save("soft.png")
    Image.merge("LA", (mask, half)).save("masked.png")
    photo.convert("L").save("grey.png")
    tifffile.imwrite("five.tif", draws(10, 14, 5).astype(np.uint8), photometric="rgb", extrasamples=(0, 0))
    soft = int((np.asarray(half) == 100).sum())
    runs = {
        ("soft.png",): f"soft.png has {soft} pixels half transparent; those from 0.5 on count as opaque",
        ("photo.png", "masked.png"): "the transparency of masked.png is dropped",
        ("photo.png", "mask.png", "--truth", "grey.png"): "grey.png has greys and photo.png colours",
        ("grey.png", "mask.png", "--truth", "photo.png"): "photo.png has colours and grey.png greys",
        ("photo.png", "mask.png", "--truth", "soft.png"): "soft.png is transparent, and its opacity is not compared",
        ("five.tif", "mask.png"): "five.tif has 2 samples per pixel beside its colours and opacity, which are dropped",
    }
    for words, told in runs.items():
        assert main(["inpaint", *words, *QUICK, "--out", "done.tif"]) == 0
        assert told in capsys.readouterr().err


def test_what_is_transparent_is_missing_where_there_is_no_mask(place, capsys, refused):
    cut = np.dstack([pixels("photo.png"), pixels("mask.png")])
    Image.fromarray(cut).save("cut.png")
    assert main(["inpaint", "cut.png", *QUICK, "--out", "a.png"]) == 0
    assert main(["inpaint", "photo.png", "mask.png", *QUICK, "--out", "b.png"]) == 0
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    assert main(["inpaint", "cut.png", "mask.png", *QUICK, "--out", "c.png"]) == 0
    assert "the transparency of cut.png is dropped; mask.png says what is missing" in capsys.readouterr().err
    np.testing.assert_array_equal(pixels("c.png"), pixels("a.png"))
    refused(["inpaint", "photo.png"], "photo.png is opaque everywhere", "give a MASK")
    Image.fromarray(np.dstack([pixels("photo.png"), 0 * pixels("mask.png")])).save("empty.png")
    refused(["inpaint", "empty.png"], "empty.png is transparent everywhere", "every pixel is missing")


def test_the_truth_measures_what_was_filled_in(place, capsys):
    words = ["inpaint", "photo.png", "mask.png", *QUICK, "--truth", "photo.png"]
    assert main([*words, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["missing_psnr"]
    missing = torch.from_numpy(pixels("mask.png") < 128)
    written = psnr(load_image("inpainted.png")[missing], load_image("photo.png")[missing])
    assert scores["picture"] == pytest.approx(written, abs=0.05)  # what is written is rounded to 8 bits
    assert main(words) == 0
    told = capsys.readouterr().out
    for name in ("picture", "network", "biharmonic"):
        assert f"{scores[name]:.2f} dB" in told


def test_everywhere_is_the_network_alone(place, capsys):
    assert main(["inpaint", "photo.png", "mask.png", *QUICK, "--everywhere", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    known = torch.from_numpy(pixels("mask.png") > 127)
    written = psnr(load_image("inpainted.png")[known], load_image("photo.png")[known])
    assert written == pytest.approx(found["psnr"], abs=0.1)
    assert found["known_kept"] is None
    assert written < 40


def test_bad_masks_are_refused_at_the_door(place, refused, monkeypatch):
    monkeypatch.setattr(restoring, "inpaint", lambda *words, **options: pytest.fail("it started"))
    for name, values in (("white", 255), ("black", 0)):
        Image.new("L", (14, 10), values).save(f"{name}.png")
    Image.new("L", (10, 14)).save("other.png")
    (place / "text.txt").write_text("no picture")
    before = files(place)
    refused(["inpaint", "photo.png", "other.png"], "MASK must have the size of IMAGE, 10x14, got 14x10 in other.png")
    refused(["inpaint", "photo.png", "black.png"], "black everywhere", "every pixel is missing", "--missing white")
    refused(["inpaint", "photo.png", "white.png"], "black nowhere", "no pixel is missing")
    refused(["inpaint", "photo.png", "white.png", "--missing", "white"], "every pixel is missing", "--missing black")
    refused(["inpaint", "photo.png", "text.txt"], "text.txt is not an image")
    refused(["inpaint", "photo.png", "none.png"], "none.png")
    refused(["inpaint", "none.png", "mask.png"], "none.png")
    refused(["inpaint", "photo.png", "mask.png", "--missing", "grey"], "--missing", "black")
    refused(["inpaint", "photo.png", "mask.png", "--truth", "other.png"], "--truth", "10x14", "14x10")
    refused(["inpaint", "photo.png", "mask.png", "--out", "mask.png"], "--out must be another file than MASK")
    refused(["inpaint", "photo.png", "mask.png", "--out", "a.xyz"], "--out must name a", ".png")
    refused(["inpaint", "photo.png", "mask.png", "--report", "photo.png"], "--report must be another file than IMAGE")
    refused(["inpaint", "photo.png", "mask.png", "--out", "a.png", "--report", "a.png"], "--report", "--out")
    refused(["inpaint", "photo.png", "mask.png", "--page", "3"], "page must be below")
    refused(["inpaint", "photo.png", "mask.png", "--seconds", "0"], "--seconds", "above 0")
    refused(["inpaint", "photo.png", "mask.png", "--memory-budget", "100"], "budget")
    assert files(place) == before


def test_an_interrupt_keeps_what_is_reached(place, capsys, monkeypatch):
    real = restoring.fit

    class Stop:
        def on_step(self, state):
            if state.step == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "fit", lambda *words, **options: real(*words, **{**options, "callbacks": [Stop()]}))
    code = main(["inpaint", "photo.png", "mask.png", "--steps", "50", "--quiet", "--report", "r.json"])
    told = capsys.readouterr().err
    assert code == INTERRUPTED
    assert "interrupted; kept the result so far, after 4 of 50 steps" in told
    found = json.loads((place / "r.json").read_text())
    assert found["interrupted"] and found["steps"] == 4
    known = pixels("mask.png") > 127
    np.testing.assert_array_equal(pixels("inpainted.png")[known], pixels("photo.png")[known])


def test_time_ends_the_fit(place, capsys):
    words = ["inpaint", "photo.png", "mask.png", "--seconds", "0.2", "--steps", "1000000", "--quiet", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stopped"] == "seconds" and found["steps"] < 1000000


def test_the_colour_of_no_mask_is_refused(place, refused):
    refused(["inpaint", "photo.png", "--missing", "white"], "--missing", "MASK")
