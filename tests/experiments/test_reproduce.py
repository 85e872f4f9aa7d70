"""Reproducing: names and files are checked at the door, and the command prints its result alone."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_paper import NAME, registered

from inrfast.cli import main
from inrfast.experiments.inlet_rank_collapse.pictures import pictures
from inrfast.experiments.paper import Request
from inrfast.experiments.reproduce import reproduce


@pytest.fixture(autouse=True)
def tiny():
    with registered():
        yield


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tinny", "one"], ["Did you mean 'tiny'?"]),
        (["tiny", "on"], ["Did you mean 'one'?"]),
        (["tiny", "one", "--runs", "0"], ["--runs", "at least 1"]),
        (["tiny", "one", "--preset", "quik"], ["--preset", "quick"]),
        (["tiny", "one", "--images", "nowhere"], ["images", "nowhere"]),
        (["tiny", "one", "--images", "."], ["images", "holds none"]),
        (["tiny", "one", "--mesh", "nowhere.obj"], ["mesh", "nowhere.obj"]),
        (["tiny", "one", "--mesh", "m.obj", "--mesh", "below/m.obj"], ["different names", "m.obj"]),
        (["tiny", "one", "--out", "m.obj"], ["out", "m.obj"]),
    ],
)
def test_bad_usage_is_one_clear_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("m.obj", "below/m.obj"):
        (tmp_path / name).write_text("v 0 0 0\n")
    assert main(["reproduce", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert all(word in captured.err for word in told), captured.err
    assert not (tmp_path / "out").exists()


def test_the_command_prints_json_alone_or_the_tables(tmp_path, capsys):
    words = ["reproduce", "tiny", "all", "--out", str(tmp_path / "r")]
    assert main([*words, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)) == ["one", "two"]
    assert captured.err == ""
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "report.html" in captured.out
    assert captured.err == ""  # no bar where there is no terminal


def test_figures_come_in_the_papers_order_each_once(tmp_path):
    assert list(reproduce(NAME, ["two", "one", "two"], tmp_path, progress=False)) == ["one", "two"]
    with pytest.raises(ValueError, match="at least one"):
        reproduce(NAME, [], tmp_path)


# ---- images ------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_the_same_square(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.bmp")
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([values, values[..., :1]])).save(tmp_path / "clear.png")
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(values[:16]).save(tmp_path / "<img onerror>.png")
    files = tuple(sorted(tmp_path.iterdir()))
    found = pictures(Request(images=files), 16, 8)
    assert len(found) == len(set(found.names)) == 6
    assert {"a.png", "a.bmp", "grey", "<img onerror>"} <= set(found.names)
    assert "16 images were asked for and 6 are there" in found.shortage
    shown = dict(zip(found.names, found.values, strict=True))
    assert (shown["grey"] == shown["grey"][..., :1]).all()
    np.testing.assert_allclose(shown["deep"], shown["grey"], atol=1e-6)
    for name in ("a.bmp", "clear"):
        np.testing.assert_array_equal(shown[name], shown["a.png"])
    np.testing.assert_array_equal(shown["<img onerror>"], values[:16:2, ::2].astype(np.float32) / 255)


@pytest.mark.parametrize("name", ["small.png", "broken.png"])
def test_an_image_that_cannot_be_taken_is_named(name, tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=name.partition(".")[0]):
        pictures(Request(images=(tmp_path / name,)), 1, 8)
