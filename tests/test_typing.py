"""A user's typed script runs; ``make lint`` checks it, and the examples, by mypy with all that is strict."""

import runpy
import tomllib
from pathlib import Path

SCRIPT = Path(__file__).with_name("typed_script.py")
ROOT = SCRIPT.parents[1]


def test_a_user_s_typed_script_runs(capsys):
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "trace" in capsys.readouterr().out


def test_a_user_s_typed_script_and_the_examples_are_checked_strictly():
    """What is relaxed is relaxed of the library's own modules and of torch's."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"]
    modules = {module.partition(".")[0] for override in settings["overrides"] for module in override["module"]}
    assert not modules & {path.stem for path in [SCRIPT, *(ROOT / "examples").glob("*.py")]}
    assert "*" not in modules
    assert "mypy inrfast tests/typed_script.py examples" in (ROOT / "Makefile").read_text()
