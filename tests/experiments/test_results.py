"""Folders of results: what is done stays, whatever stops the work; what is damaged or of other settings is named."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_paper import NAME, registered

from inrfast.experiments.paper import PAPERS
from inrfast.experiments.reproduce import reproduce
from inrfast.experiments.results import OtherSettingsError, parent

CELLS = [f"{figure}/{cell}" for figure in ("one", "two") for cell in "abc"]


def make(out, **options):
    return reproduce(NAME, "all", out, progress=False, **options)


def test_a_call_that_failed_before_its_first_cell_does_not_keep_the_folder(tmp_path):
    def fail(name):
        raise ValueError("an input that cannot be read")

    with registered(fail), pytest.raises(ValueError, match="cannot be read"):
        make(tmp_path / "r", seed=1)
    with registered():
        made = make(tmp_path / "r", seed=2)
        assert numbers(made) == numbers(make(tmp_path / "new", seed=2))
        with pytest.raises(OtherSettingsError, match="seed 2, not 1"):
            make(tmp_path / "r", seed=1)


VARYING = ("seconds", "device", "checksum")


def contents(out):
    """Return what cells found, to the byte, without times, the machine's name and the checksum, which covers them."""
    found = {}
    for path in sorted(out.glob("*/cells/*")):
        text = path.read_bytes()
        if path.suffix == ".json":
            text = json.dumps({k: v for k, v in json.loads(text).items() if k not in VARYING}).encode()
        found[path.relative_to(out).as_posix()] = text
    return found


def numbers(made):
    return {name: (found["rows"], found["text"], found["numbers"]) for name, found in made.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "results"
    with registered():
        made = make(out)
    return out, made


@pytest.mark.parametrize("stopped", CELLS)
def test_after_an_interrupt_at_any_cell_the_rest_alone_is_done_with_the_same_result(stopped, whole, tmp_path):
    def interrupt(name):
        if name == stopped:
            raise KeyboardInterrupt

    with registered(interrupt), pytest.raises(KeyboardInterrupt):
        make(tmp_path / "r")
    done = []
    with registered(done.append):
        made = make(tmp_path / "r")
    assert done == CELLS[CELLS.index(stopped) :]
    assert contents(tmp_path / "r") == contents(whole[0])
    assert numbers(made) == numbers(whole[1])


def test_a_killed_process_leaves_a_folder_that_goes_on_and_a_living_one_is_alone(whole, tmp_path):
    program = f"""if True:
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from tiny_paper import NAME, registered
        from inrfast.experiments.reproduce import reproduce
        with registered(lambda name: name == "two/b" and (print("there", flush=True), time.sleep(60))):
            reproduce(NAME, "all", {str(tmp_path / "r")!r}, progress=False)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"there\n"
            with registered(), pytest.raises(BlockingIOError, match=f"process {child.pid}"):
                make(tmp_path / "r")
        finally:
            child.send_signal(signal.SIGKILL)
    done = []
    with registered(done.append):
        made = make(tmp_path / "r")
    assert done == ["two/b", "two/c"]
    assert contents(tmp_path / "r") == contents(whole[0])
    assert numbers(made) == numbers(whole[1])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("one/cells/a.npz", lambda data: data[: len(data) // 2]),
        ("one/cells/a.npz", lambda data: b""),
        ("one/cells/a.npz", None),
        ("one/cells/a.npz", lambda data: data.replace(b"values", b"others")),
        ("one/cells/a.npz", lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:]),
        ("two/cells/b.json", lambda data: data[: len(data) // 2]),
        ("two/cells/b.json", lambda data: b"[]"),
        ("two/cells/b.json", lambda data: b"{}"),
        ("two/cells/b.json", lambda data: b"\xff\xfe"),
        ("settings.json", lambda data: data[:-9]),
    ],
)
def test_a_damaged_file_is_named_and_everything_else_is_kept(file, damage, whole, tmp_path):
    out = tmp_path / "r"
    shutil.copytree(whole[0], out)
    good = (out / file).read_bytes()
    (out / file).unlink()
    if damage:
        (out / file).write_bytes(damage(good))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with registered(), pytest.raises(ValueError, match="damaged") as error:
        make(out)
    assert str(out / file) in str(error.value)
    now = {path: path.read_bytes() for path in before}
    changed = {path.relative_to(out).parts[0] for path in before if now[path] != before[path]}
    assert changed <= {"one", "report.html"} - ({"one", "report.html"} if file.startswith(("one", "sett")) else set())
    (out / file).write_bytes(good)
    with registered():
        assert numbers(make(out)) == numbers(whole[1])


@pytest.mark.parametrize(
    ("options", "word"), [({"seed": 1}, "seed 0, not 1"), ({"runs": 3}, "runs"), ({"preset": "paper"}, "preset")]
)
def test_results_of_other_settings_are_refused_by_name_and_stay(options, word, whole):
    before = contents(whole[0])
    with registered(), pytest.raises(OtherSettingsError, match=word):
        make(whole[0], **options)
    assert contents(whole[0]) == before


def test_a_cell_of_other_settings_is_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "r")
    with registered():
        make(tmp_path / "other", seed=6)
    shutil.copy(tmp_path / "other/one/cells/b.json", tmp_path / "r/one/cells/b.json")
    with registered(), pytest.raises(OtherSettingsError, match="draw 7, not 1"):
        make(tmp_path / "r")


def leaves(data, path=()):
    """Return the way to every value inside an object."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [leaf for key, value in inner for leaf in leaves(value, (*path, key))]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_was_changed_in_a_file_of_numbers_it_is_named_as_damaged(data, whole):
    name = data.draw(st.sampled_from(["settings.json", "one/cells/b.json", "two/cells/a.json", "two/two.json"]))
    file = whole[0] / name
    good = file.read_bytes()
    changed = json.loads(good)
    *way, last = data.draw(st.sampled_from([way for way in leaves(changed) if way != ("checksum",)]))
    inside = functools.reduce(lambda part, key: part[key], way, changed)
    if data.draw(st.booleans()):
        del inside[last]
    else:
        before = json.dumps(inside[last])
        other = st.sampled_from(["", "x", None, 0, -1.5, True, [], {}, [0], {"a": None}])
        inside[last] = data.draw(other.filter(lambda value: json.dumps(value) != before))
    file.write_text(json.dumps(changed))
    try:
        with registered(), pytest.raises(ValueError, match=f"{re.escape(str(file))} is damaged"):
            reproduce(NAME, "one" if name != "two/cells/a.json" else "two", whole[0], progress=False)
    finally:
        file.write_bytes(good)


def test_a_folder_of_unknown_settings_says_so_with_and_without_their_damaged_file(whole, tmp_path):
    out = tmp_path / "r"
    shutil.copytree(whole[0], out)
    (out / "settings.json").write_text("{")
    for _ in range(2):
        with registered(), pytest.raises(ValueError, match=r"settings .*made is unknown; choose another") as error:
            make(out)
        assert "remove" not in str(error.value)  # which would lead nowhere
        (out / "settings.json").unlink(missing_ok=True)


def test_out_is_a_folder_of_its_own(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with registered():
        with pytest.raises(NotADirectoryError, match="file"):
            make(tmp_path / "file")
        with pytest.raises(OtherSettingsError, match=r"notes\.txt"):
            make(tmp_path / "mine")
        if os.geteuid():
            with pytest.raises(OSError, match="locked"):
                make(locked / "r")
        with pytest.raises(ValueError, match="out"):
            parent("nul\0")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_figure_names_the_machines_of_its_cells_and_not_that_of_the_last_call(whole, tmp_path):
    out = tmp_path / "r"
    shutil.copytree(whole[0], out)
    file = out / "one/cells/a.json"
    elsewhere = {k: v for k, v in json.loads(file.read_bytes()).items() if k != "checksum"} | {"device": "elsewhere"}
    file.write_text(json.dumps(elsewhere))  # as it was before files had checksums
    with registered():
        made = make(out)
    assert made["one"]["machine"].startswith("elsewhere; ")
    assert "elsewhere" not in made["two"]["machine"]


def test_a_cell_that_figures_share_is_done_once_for_all_of_them(whole, tmp_path, monkeypatch, capsys):
    done = []
    with registered(done.append):
        for figure in PAPERS[NAME].figures.values():
            own = figure.cells
            monkeypatch.setattr(figure, "cells", lambda *known, own=own: [replace(x, shared=True) for x in own(*known)])
        made = reproduce(NAME, "all", tmp_path)
    assert done == ["one/a", "one/b", "one/c"]
    assert numbers(made) == numbers(whole[1])
    assert made["two"]["seconds"] == made["one"]["seconds"]
    assert "3 of 3 cells done, 3 of them in earlier calls or for other figures" in capsys.readouterr().err
