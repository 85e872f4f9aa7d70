"""The check of fresh installations: what it runs, and that what it found is whole."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import fresh_install

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "fresh-install.json"


def test_the_fit_runs_here_and_prints_one_line_of_json(capsys, monkeypatch):
    monkeypatch.setenv("INRFAST_NATIVE", "absent")
    exec(compile(fresh_install.FIT, "fit", "exec"), {})
    found = json.loads(capsys.readouterr().out)
    assert found["extension"] is False
    assert len(found["layers"]) == 64
    if RESULTS.exists():
        assert {case["layers"] for case in json.loads(RESULTS.read_text())["cases"]} == {found["layers"]}


def test_the_first_example_is_that_of_the_readme():
    assert fresh_install.first_example().startswith("import inrfast as inr\n")


def test_no_compiler_is_in_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(fresh_install.os, "geteuid", lambda: 1000)
    place = fresh_install.Place(tmp_path)
    assert place.environment["PATH"] == str(tmp_path / "venv" / "bin")
    assert place.environment["CC"] == place.environment["CXX"] == ""
    assert place.run("true", [sys.executable, "-c", "print(1)"]) == "1\n"
    assert place.run("false", [sys.executable, "-c", "raise SystemExit(3)"]) is None
    assert place.run("after", [sys.executable, "-c", ""]) is None  # what comes later needs what failed
    assert place.found["failed"]["false"]["status"] == 3
    assert set(place.found["seconds"]) == {"true", "false"}


def test_results_of_the_same_kind_replace_each_other(tmp_path):
    file = tmp_path / "found.json"
    for python, seconds in (("3.11", 1), ("3.12", 2), ("3.11", 3)):
        fresh_install.keep(file, {"python": python, "torch": "2", "kind": "wheel", "seconds": seconds})
    assert [case["seconds"] for case in json.loads(file.read_text())["cases"]] == [2, 3]


@pytest.mark.skipif(not RESULTS.exists(), reason="nothing was measured")
def test_nothing_failed_in_what_is_kept():
    for case in json.loads(RESULTS.read_text())["cases"]:
        assert case["failed"] == {}
        assert case["extension"] == (case["kind"] == "wheel")
        assert bool(case["warnings"]) == (case["kind"] != "wheel")
