"""The code of README and pages runs as it stands; its commands exist and take their arguments."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inrfast.cli.commands import parsed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = (
    "README.md",
    "docs/any-network.md",
    "docs/ntk-variance.md",
    "docs/restoring.md",
    "docs/shapes.md",
    "docs/video.md",
)
PAGES = {page: (ROOT / page).read_text() for page in NAMED}
BLOCKS = {f"{page} {number}": code for page, text in PAGES.items() for number, code in enumerate(PYTHON.findall(text))}
RECIPES = {
    block.partition("\n")[0].strip("# ") + f" {number}": code
    for block in (ROOT / "docs" / "architecture.md").read_text().split("\n### ")[1:]
    for number, code in enumerate(PYTHON.findall(block))
}
COMMANDS = [
    line.partition(" #")[0].strip()
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text())
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_python_of_a_page_runs(block, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[block], block, "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("third", range(3))
def test_the_recipes_of_the_architecture_run(third, tmp_path):
    """In a process of their own, so that what they register is gone with it; none is forked, where threads would hang.

    Several to a process, since most of its time goes to imports; each prints something.
    """
    recipes = {name: code for number, (name, code) in enumerate(RECIPES.items()) if number % 3 == third}
    script = tmp_path / "recipes.py"
    script.write_text(
        "import contextlib, io, warnings\nimport inrfast\nwarnings.simplefilter('error')\n"
        f"for name, code in {recipes!r}.items():\n"
        "    print(name)\n"
        "    told = io.StringIO()\n"
        "    with contextlib.redirect_stdout(told):\n"
        "        exec(compile(code, name, 'exec'), {})\n"
        "    assert told.getvalue().strip(), name\n"
    )
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == list(recipes)


def test_the_drawing_is_of_this_house():
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    assert sorted(house["rooms"]()) == sorted(room for floor in house["FLOORS"].values() for room in floor)
    assert [room for floor in house["FLOORS"].values() for room in floor] == house["rooms"]()
    assert (ROOT / "docs" / "house.svg").read_text() == house["drawing"]()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_s_commands_exist_and_take_their_arguments(command):
    """They are not run: some install, and some read a file that a reader brings."""
    program, *words = shlex.split(command)
    if program == "inrfast":
        assert callable(parsed(words).run)
    elif program == "make":
        assert words[0] in TARGETS
    elif program == "torchrun":
        assert (ROOT / next(word for word in words if word.endswith(".py"))).is_file()
    else:
        assert command in ("pip install .", "python -m inrfast.info")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/any-network.md"])
def test_every_file_a_page_points_to_exists(page):
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        file, _, section = link.partition("#")
        text = (ROOT / page).parent / file
        assert text.exists(), link
        titles = re.findall(r"^#+ (.*)$", text.read_text(), re.MULTILINE) if section else []
        assert not section or section in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
