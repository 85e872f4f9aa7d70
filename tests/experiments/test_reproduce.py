"""Reproducing: names and files are checked at the door, and the command prints its result alone."""

import json
import re
import time

import numpy as np
import pytest
from PIL import Image
from tiny_paper import NAME, registered

from inrfast.cli import main
from inrfast.experiments.paper import PAPERS, Request, spelled
from inrfast.experiments.pictures import pictures
from inrfast.experiments.reproduce import reproduce


@pytest.fixture(autouse=True)
def tiny():
    with registered():
        yield


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tinny", "one"], ["Did you mean 'tiny'?", "'inlet-rank-collapse'"]),
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
    lines = captured.err.splitlines()  # no bar where there is no terminal
    assert [line.partition(",")[0] for line in lines] == ["inrfast: one: finished", "inrfast: two: finished"]
    assert all("3 of 3 cells done, 3 of them in earlier calls" in line for line in lines)


def test_where_there_is_no_terminal_the_share_and_the_time_left_are_said_until_an_interrupt_says_what_is_done(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("inrfast.experiments.reproduce.EVERY", 0.05)

    def slow(name):
        time.sleep(0.3)
        if name == "two/b":
            raise KeyboardInterrupt

    figures = PAPERS[NAME].figures.values()
    for figure in figures:
        monkeypatch.setattr(figure, "before", slow)
    assert main(["reproduce", "tiny", "all", "--out", str(tmp_path)]) == 130
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == (
        "inrfast: interrupted; no file is left half-written; two has 1 of 2 cells done, and the same call goes on from "
        "there"
    )
    assert any(
        re.fullmatch(r"inrfast: one: 0 %, 0 of 2 cells done, \d+ s so far, at work on a", line) for line in lines
    )
    assert any(
        re.fullmatch(r"inrfast: one: \d+ %, 1 of 2 cells done, about \d+ s left, at work on b", x) for x in lines
    )
    assert sum("finished" in line for line in lines) == 1
    for figure in figures:
        monkeypatch.setattr(figure, "before", lambda name: None)
    assert reproduce(NAME, "all", tmp_path, progress=False)["two"]["cells"] == 3


def test_help_says_what_every_figure_shows_and_which_files_feed_it(capsys):
    assert main(["reproduce", "--help"]) == 0

    def joined(text):  # lines of the help break at spaces and hyphens, wherever the order of papers puts them
        return "".join(text.split())

    told = joined(capsys.readouterr().out)
    for paper in (PAPERS["inlet_rank_collapse"], PAPERS["inr_dictionaries"], PAPERS["peak"]):
        assert all(joined(f"{name} {figure.title}") in told for name, figure in paper.figures.items())
        for option, files in (
            ("images", "images"),
            ("mesh", "mesh"),
            ("weights", "weights"),
            ("masks", "masks"),
            ("scene", "scenes"),
        ):
            fed = [name for name, figure in paper.figures.items() if files in figure.takes]
            named = joined(f"{', '.join(fed)} of {spelled(paper.name)}")
            assert not fed or named in told.partition(f"--{option}")[2]


def test_figures_come_in_the_papers_order_each_once(tmp_path):
    assert list(reproduce(NAME, ["two", "one", "two"], tmp_path, progress=False)) == ["one", "two"]
    with pytest.raises(ValueError, match="at least one"):
        reproduce(NAME, [], tmp_path)


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("figures", [None, 5, [5], ["one", None], b"one", "thre", {"one": 1}]),
        ("out", [7, b"r", "", "nul\0", ["r"]]),
        ("images", [3, b"i", "", "nul\0", ["i"], "nowhere"]),
        ("mesh", [3, [3], b"m", "", ["nul\0"], None, "nowhere"]),
        ("weights", [3, b"w", "", "nul\0", ["w"], "nowhere", "."]),
        ("masks", [3, b"k", "", "nul\0", ["k"], "nowhere"]),
        ("scene", [3, [3], b"s", "", ["nul\0"], None, "nowhere", "."]),
        ("preset", [None, 3, "quik"]),
        ("runs", [0, 1.5, "3", True]),
        ("seed", [-1, None, 2**32, 0.5]),
        ("device", [None, 0, "blah", "meta", "cuda:99", b"cpu"]),
        ("progress", [0, "yes"]),
    ],
)
def test_every_argument_is_checked_at_the_door_and_named(argument, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises((TypeError, ValueError, FileNotFoundError), match=f"^{argument} must"):
            reproduce(NAME, **{"progress": False, argument: value})
    assert not list(tmp_path.iterdir())


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
