"""Links of pages to files outside ``docs/``: to their page where there is one, else to the file itself.

A page says ``../README.md`` or ``../examples/fit_image.py``, which is right where the repository is read. On the site
README, CHANGELOG and others have pages of their own; source files are downloads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {"SECURITY.md": "security.md"}
"""Pages of the site that hold a file of the repository's root, or stand for it."""

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?\)")


def rewritten(text: str, folder: Path, docs: Path) -> str:
    """Return a page's text with its links made for the site; ``folder`` is where it was written."""

    def link(match: re.Match[str]) -> str:
        start, target, section = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        file = (folder / target).resolve()
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else ""
        if name in PAGES:
            return f"{start}/{PAGES[name]}{section})"
        if file.is_relative_to(docs):
            return f"{start}/{file.relative_to(docs).as_posix()}{section})"
        if file.is_dir():  # a folder has no page, and no download
            return match[0].partition("](")[0].lstrip("!")[1:]
        return f"{start}/../{name})" if name else match[0]

    return LINK.sub(link, text)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    """Rewrite the links of a page when it is read; a page that is one file of the root takes its text."""
    docs = Path(app.srcdir)
    page = app.env.doc2path(name)
    if page.suffix != ".md":
        return
    whole = next((file for file, own in PAGES.items() if own == f"{name}.md" and file != "README.md"), None)
    folder = ROOT if whole else page.parent
    content[0] = rewritten((ROOT / whole).read_text(encoding="utf-8") if whole else content[0], folder, docs)


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrite links of every page."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
