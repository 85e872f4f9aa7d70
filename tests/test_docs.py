"""The documentation: every public name has an entry, every link inside the repository leads somewhere.

That the site builds without a warning, its notebooks executed, is for ``make docs`` to say.
"""

import ast
import importlib
import inspect
import json
import re
import runpy
from pathlib import Path

import pytest

import inrfast
from inrfast import public

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.rst")))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench" / "results").glob("*.md"), *NOTEBOOKS])
PAGES = [page for page in PAGES if "_build" not in page.parts]

ENTRY = re.compile(r"^\.\. (?:currentmodule|auto(function|class|data|exception|module)):: (\S+)", re.MULTILINE)
MODULES = [
    "inrfast.activations",
    "inrfast.encodings",
    "inrfast.errors",
    "inrfast.init",
    "inrfast.layers",
    "inrfast.losses",
    "inrfast.metrics",
    "inrfast.modulations",
    "inrfast.norms",
    "inrfast.signals.audio",
    "inrfast.signals.image",
    "inrfast.signals.mesh",
    "inrfast.signals.points",
    "inrfast.signals.render",
    "inrfast.signals.sdf",
    "inrfast.signals.video",
    "inrfast.signals.volume",
    "inrfast.testing",
    "inrfast.training.callbacks",
    "inrfast.training.checkpoint",
    "inrfast.training.optimizers",
]
"""Modules beside the public names that the reference must speak of."""


def entries():
    """Return the full names of all entries of the reference."""
    found, module = set(), ""
    for page in sorted((DOCS / "api").glob("*.rst")):
        for kind, name in ENTRY.findall(page.read_text()):
            if not kind:
                module = name
            found.add(name if not kind or kind == "module" else f"{module}.{name}")
    return found


ENTRIES = entries()


def test_every_public_name_has_an_entry_in_the_reference():
    missing = []
    for name in public.__all__:
        thing = getattr(public, name)
        homes = {thing.__name__} if inspect.ismodule(thing) else {f"inrfast.{name}", f"{thing.__module__}.{name}"}
        missing += [] if homes & ENTRIES else [name]
    assert missing == [], "add them to a page of docs/api"


def test_the_modules_that_users_import_from_are_in_the_reference():
    assert [module for module in MODULES if module not in ENTRIES] == []


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_an_entry_of_the_reference_exists(name):
    module, _, last = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        assert hasattr(importlib.import_module(module), last)


def prose(page):
    """Return the text of a page without its code; of a notebook, that of its Markdown cells."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^(`{3,})[^{`].*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def sections(page):
    """Return the names by which the sections of a page are linked to."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page):
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(page))):
        file, _, section = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not section or section in sections(target), link
    for place in re.findall(r"^:link: (\S+)$", prose(page), re.MULTILINE):
        assert any((page.parent / f"{place}{ending}").is_file() for ending in (".md", ".rst", ".ipynb")), place


def test_every_page_is_in_a_table_of_contents():
    named = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = [line for line in block.splitlines() if line and not line.startswith(":")]
            places = [line.rpartition("<")[2].rstrip(">") for line in lines]
            named |= {(page.parent / place).relative_to(DOCS).as_posix() for place in places}
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.*") if page.suffix in ENDINGS]
    assert sorted(named) == sorted(page for page in pages if page != "index")


ENDINGS = (".md", ".rst", ".ipynb")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(notebook):
    """Its pictures are made when the site is built: `make docs` runs it."""
    kept = json.loads(notebook.read_text())
    assert kept["nbformat"] == 4
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_the_description_for_a_package_index_has_no_link_that_leads_nowhere_there():
    description = runpy.run_path(str(DOCS / "long_description.py"))["long_description"]()
    fences = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"\]\((?!https://)[^)]*\)", fences.sub("", description)) == []
    assert "![" not in description
    assert fences.findall(description) == fences.findall(readme)  # code stays as it is
    titles = re.compile(r"^#+ .*$", re.MULTILINE)
    assert titles.findall(description) == titles.findall(readme)
    assert set(re.findall(r"\]\((https://[^)]*)\)", description)) == set(re.findall(r"\]\((https://[^)]*)\)", readme))


def test_papers_are_named_where_readers_meet_them():
    """Never by a number that only this project's notes explain."""
    code = re.compile(r"\bP[1-4]\b")
    for page in PAGES:
        assert not code.search(page.read_text()), page
    for file in (ROOT / "inrfast").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not code.search(node.value), (file, node.lineno)


def test_the_citation_is_of_this_version_and_of_no_invented_person():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == inrfast.__version__
    assert "authors:\n  - name: The inrfast authors\n" in text
    assert text.startswith("cff-version: 1.2.0\n")
