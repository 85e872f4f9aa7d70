"""The demo: it writes its folder whole or not at all, and its text says what its numbers say."""

import json
import os
import re
import signal

import html5lib
import pytest
import torch
from browser import browser, check
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inrfast.cli import main
from inrfast.experiments import demo, demo_text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "below" / "demo"
    report = demo.run(out, quick=True, progress=False)
    return out, report


@pytest.fixture
def small(monkeypatch):
    """Make the quick sizes as small as they can be, and drop the figures, which take longest."""
    sizes = demo.Settings((4, 4), (3, 3), (4, 4), width=4, hidden_layers=2, jacobian_pixels=2, steps=1, batch_size=4)
    monkeypatch.setattr(demo, "QUICK", sizes)
    monkeypatch.setattr(demo.demo_figures, "draw", lambda *arguments: None)
    monkeypatch.setattr(demo.demo_figures, "draw_first", lambda *arguments: arguments[-1].touch())


def test_it_writes_all_its_files_and_nothing_else(made):
    out, report = made
    assert sorted(path.name for path in out.iterdir()) == sorted(demo.FILES)
    assert [path.name for path in out.parent.iterdir()] == ["demo"]
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["schema"] == demo.SCHEMA
    for name in demo.FILES:
        if name.endswith(".png"):
            with Image.open(out / name) as picture:
                assert min(picture.size) > 300


def test_the_page_says_all_that_the_text_says(made):
    out, report = made
    html5lib.HTMLParser(strict=True).parse((out / "report.html").read_text())
    with browser() as opened:
        shown = " ".join(check(opened, out / "report.html").split())
    assert (out / "report.html").read_text().count("<img ") == 4
    for line in (out / "report.md").read_text().splitlines():
        words = " ".join(re.sub(r"^(#+|-) |\*|^\|( ?-+:? \|)+$|^\||\|(?= |$)|!\[.*\)", "", line).split())
        assert words in shown, line
    for entry in report["starts"]:
        assert f"{entry['name']} {entry['fit']['psnr']:.2f} dB" in shown


def test_every_start_is_fitted_and_diagnosed(made):
    _, report = made
    assert [entry["name"] for entry in report["starts"]] == [start.name for start in demo.STARTS]
    for start, entry in zip(demo.STARTS, report["starts"], strict=True):
        kernel = entry["diagnosis"]["kernel"]
        assert entry["fit"]["lr"] == start.lr
        assert entry["diagnosis"]["points"] == 32 * 32
        assert (kernel["points"], kernel["grid_points"], kernel["full_grid"]) == (144, 1024, False)
        assert len(entry["diagnosis"]["rtols"]) == 5


def test_the_text_names_both_grids_and_never_calls_the_smaller_one_full(made):
    out, _ = made
    text = (out / "report.md").read_text()
    kernel = text.partition("## The tangent kernel")[2].partition("##")[0]
    assert "144 points (12x12), not the full grid of 1,024" in kernel
    assert "1,024 points of the 32x32 grid" in " ".join(text.split())


def test_the_text_compares_as_the_numbers_do(made):
    """Read every 'higher at t (a against b)' of the report back and hold it against the JSON."""
    out, report = made
    text = (out / "report.md").read_text()
    by_name = {entry["name"]: entry for entry in report["starts"]}
    rtols = report["settings"]["rtols"]
    base = report["starts"][0]["name"]
    sentences = re.findall(
        rf"^- (.+?) against {re.escape(base)}: the rank of (Z_0|the NTK) (.*)\.$", text, re.MULTILINE
    )
    assert len(sentences) == 2 * (len(report["starts"]) - 1)
    for name, what, claim in sentences:
        ranks = demo_text.inlet_ranks if what == "Z_0" else demo_text.kernel_ranks
        ours, others = ranks(by_name[name]), ranks(by_name[base])
        signs = [demo_text.order(a, b) for a, b in zip(ours, others, strict=True)]
        if "at all 5 tolerances" in claim:
            assert set(signs) == {{"higher": 1, "lower": -1}.get(claim.split()[1], 0)}
            continue
        told = {}
        for part in claim.split(";"):
            for word, sign in (("higher at", 1), ("lower at", -1), ("the same at", 0)):
                if word in part:
                    told |= {float(rtol): sign for rtol in re.findall(r"([\d.e-]+) \(", part)}
        assert [told[rtol] for rtol in rtols] == signs
        assert ("depends on the tolerance" in claim) == (1 in signs and -1 in signs)
    best = max(report["starts"], key=lambda entry: entry["fit"]["psnr"])
    assert f"From best to worst: {best['name']}" in text
    assert demo_text.worth(report["starts"]) in text and demo_text.worth(report["starts"]) in demo_text.summary(report)


@given(st.lists(st.floats(5, 60), min_size=4, max_size=4))
def test_the_cure_is_said_to_pay_where_it_does(psnrs):
    cured = (False, True, True, False)
    starts = [{"name": f"start {i}", "cured": cured[i], "fit": {"psnr": psnrs[i]}} for i in range(4)]
    text = demo_text.worth(starts)
    gain, short = max(psnrs[1:3]) - psnrs[0], max(psnrs) - max(psnrs[1:3])
    assert f"{gain:+.2f} dB against start 0" in text
    assert ("does not pay" in text) == (gain < demo_text.ALIKE)
    assert ("no start here is better" in text) == (short < demo_text.ALIKE)
    if short >= demo_text.ALIKE:
        assert f"start {psnrs.index(max(psnrs))}, is {short:.2f} dB above" in text


def test_a_picture_of_the_fits_is_there_before_the_first_diagnosis(small, tmp_path, monkeypatch, capsys):
    out, real, seen = tmp_path / "demo", demo.diagnose, []

    def looked(*arguments, **options):
        seen.append(sorted(path.name for path in out.iterdir()))
        return real(*arguments, **options)

    monkeypatch.setattr(demo, "diagnose", looked)
    for former in ([], list(demo.FILES)):  # a new folder, and one with an earlier result
        report = demo.run(out, quick=True)
        assert seen[0] == sorted([*former, demo.FIRST])
        left_out = [name for name in demo.FILES if name.endswith(".png")]  # by `small`
        assert sorted(path.name for path in out.iterdir()) == sorted({*demo.FILES} - {*left_out})
        for name in left_out:
            (out / name).touch()
        seen.clear()
        times = report["seconds"]
        fits = [times[f"fit {start.name}"] for start in demo.STARTS]
        assert fits[0] <= times["first picture"] < sum(fits) < times["total"]
        assert f"first picture: {out / demo.FIRST}" in capsys.readouterr().err


ranks = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 5)).map(lambda r: (r[0], r[0] + r[1])), min_size=1, max_size=5
)


@given(ranks, st.data())
def test_swapping_the_two_starts_swaps_higher_and_lower(first, data):
    second = data.draw(st.lists(st.sampled_from(first), min_size=len(first), max_size=len(first)))
    rtols = [10.0**-k for k in range(1, len(first) + 1)]
    one = demo_text.comparison(("a", "b"), "Z", (first, second), rtols)
    two = demo_text.comparison(("b", "a"), "Z", (second, first), rtols)
    assert ("higher" in one, "lower" in one) == ("lower" in two, "higher" in two)
    assert ("depends on the tolerance" in one) == ("depends on the tolerance" in two)


def test_an_order_that_turns_round_is_said_to():
    text = demo_text.comparison(("a", "b"), "Z", ([(9, 9), (20, 30)], [(5, 5), (31, 31)]), [1e-2, 1e-3])
    assert text == (
        "a against b: the rank of Z is higher at 1e-2 (9 against 5); lower at 1e-3 (20 to 30 against 31); "
        "**the order depends on the tolerance**."
    )
    assert "the same" in demo_text.comparison(("a", "b"), "Z", ([(20, 30)], [(30, 40)]), [1e-3])


def test_a_seed_gives_the_same_numbers(small, tmp_path):
    one, two, other = (demo.run(tmp_path / str(k), quick=True, seed=k // 2, progress=False) for k in range(3))
    for first, again, different in zip(one["starts"], two["starts"], other["starts"], strict=True):
        assert first["diagnosis"] == again["diagnosis"]
        assert first["diagnosis"] != different["diagnosis"]
        assert first["fit"]["psnrs"] == again["fit"]["psnrs"]


@pytest.mark.parametrize("stage", ["diagnose", "fit", "write"])
def test_an_interrupt_leaves_the_former_result_and_nothing_else(small, tmp_path, monkeypatch, stage, capsys):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "report.md").write_text("former")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    if stage == "write":
        monkeypatch.setattr(demo.demo_text, "markdown", interrupt)
    else:
        monkeypatch.setattr(demo, stage, interrupt)
    assert main(["demo", "--quick", "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "report.md"]
    assert (out / "report.md").read_text() == "former"


@pytest.mark.parametrize("moment", ["work", "replacement"])
@pytest.mark.parametrize("name", ["demo", "n" * 255])
def test_what_a_killed_demo_has_left_goes_with_the_next_one_and_no_result_is_lost(small, tmp_path, moment, name):
    out = tmp_path / name
    demo.run(out, quick=True, progress=False)
    child = os.fork()
    if child == 0:

        def kill(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "work":
            demo.demo_text.markdown = kill
        else:  # the earlier result has gone, and the new one is not there yet
            replace = os.replace
            os.replace = lambda *names: replace(*names) if names[0] == out else kill()
        demo.run(out, quick=True, progress=False, seed=1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == (2 if moment == "work" else 1)
    mine = tmp_path / ".inrfast-demo-mine"
    mine.mkdir()
    with demo._whole_folder(out) as new:
        assert json.loads((out / "report.json").read_text())["seed"] == 0
        with demo._whole_folder(tmp_path / "other"):
            assert new.exists()  # that of a living one stays
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, name, "other"])


def test_what_it_cannot_use_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "diagnose", lambda *arguments, **options: pytest.fail("it started"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "text.png").write_text("no image")
    for argv, word in (
        (["--out", tmp_path], "notes.txt"),
        (["--out", tmp_path / "notes.txt"], "is a file"),
        (["--out", tmp_path / "notes.txt" / "demo"], "notes.txt"),
        (["--out", "/proc/nowhere/demo"], "/proc/nowhere"),
        (["--out", tmp_path / "new", "--image", tmp_path / "missing.png"], "missing.png"),
        (["--out", tmp_path / "new", "--image", tmp_path / "text.png"], "not an image"),
        (["--out", tmp_path / "new", "--seed", "-1"], "seed"),
        (["--out", tmp_path / ("n" * 256)], "File name too long"),
        (["--out", tmp_path / "nul\0"], "name of a folder"),
        (["--out", tmp_path / "\ud800"], "name of a folder"),
    ):
        assert main(["demo", "--quick", *map(str, argv)]) == 2
        captured = capsys.readouterr()
        assert word in captured.err
        assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "text.png"]


def test_the_command_prints_the_report_as_json_alone(made, tmp_path, monkeypatch, capsys):
    _, report = made
    monkeypatch.setattr(demo, "run", lambda *arguments, **options: report)
    assert main(["demo", "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(json.dumps(report))
    assert captured.err == ""
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    for entry in report["starts"]:
        assert entry["name"] in text


@pytest.mark.parametrize(("name", "told"), [("mine.png", "mine.png"), ("gr\xfcn\udcff.png", "grün\\xff.png")])
def test_another_photograph_may_be_fitted(small, tmp_path, name, told):
    image = torch.rand(8, 8)
    Image.fromarray((image * 255).to(torch.uint8).numpy()).save(tmp_path / "mine.png")
    (tmp_path / "mine.png").rename(tmp_path / name)
    report = demo.run(tmp_path / "demo", image=tmp_path / name, quick=True, progress=False)
    assert report["image"] == told
    assert told in (tmp_path / "demo" / "report.md").read_text(encoding="utf-8")
    assert all(entry["fit"]["steps"] == 1 for entry in report["starts"])
