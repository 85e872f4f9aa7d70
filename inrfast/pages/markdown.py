"""Markdown as this package writes it, read as the blocks of a page: so that a page says what a report says."""

from __future__ import annotations

import re
from collections.abc import Callable

from inrfast.pages.page import Block, Items, Picture, Pictures, Section, Table, Text

PICTURE = re.compile(r"!\[([^\]]*)\]\(([^()\s]+)\)")

Find = Callable[[str, str], Picture | None]
"""Returns the picture of an alternative text and a file name, or None where there is none."""


def sections(text: str, picture: Find, first: str = "Overview") -> tuple[str, list[Section]]:
    """Return the title of a Markdown text (``# ...``), and its sections (``## ...``).

    Paragraphs, lists, tables and pictures have blank lines between them; ``**`` and ``*`` emphasise; a paragraph that
    is strong as a whole is a warning. Everything else is words. What stands before the first section is in one that is
    called ``first``.
    """
    title, found = "", [(first, list[Block]())]
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.startswith("## "):
            found.append((part[3:].strip(), []))
        elif part.startswith("# "):
            title = part[2:].strip()
        else:
            found[-1][1].extend(_blocks(part, picture))
    return title, [Section(name, blocks) for name, blocks in found if blocks]


def _blocks(part: str, picture: Find) -> list[Block]:
    """Return what a paragraph, a list, a table or a picture is."""
    lines = part.splitlines()
    shown = [PICTURE.fullmatch(line.strip()) for line in lines]
    if all(shown):
        made = [picture(found[1], found[2]) for found in shown if found]
        pictures = [one for one in made if one is not None]
        return [Pictures(pictures)] if pictures else []
    if len(lines) > 1 and all(line.startswith("|") and line.rstrip().endswith("|") for line in lines):
        head, _, *rows = [_cells(line) for line in lines]
        if all(len(row) <= len(head) for row in rows):
            return [Table(head, rows)]
    if all(line.startswith(("- ", "  ")) for line in lines) and lines[0].startswith("- "):
        return [Items([" ".join(item.split()) for item in re.split(r"(?:^|\n)- ", part)[1:]], marked=True)]
    words = " ".join(part.split())
    if re.fullmatch(r"\*\*[^*]+\*\*", words):
        return [Text(words[2:-2], tone="warning")]
    return [Text(words, marked=True)]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
