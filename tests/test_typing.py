"""A user's typed script, and the examples, are clean under mypy --strict; the script runs."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("typed_script.py")
ROOT = SCRIPT.parents[1]
EXAMPLES = [str(path) for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "watch_in_lightning"]


def test_typed_scripts_are_clean_under_mypy_strict(monkeypatch):
    """As of an installed package: what the library itself says to this strictness is not the user's."""
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(ROOT)
    words = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir=.mypy_cache/strict", str(SCRIPT)]
    said, failed, status = api.run([*words, *EXAMPLES])
    assert status == 0, said + failed


def test_a_user_s_typed_script_runs(capsys):
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "trace" in capsys.readouterr().out
