"""A page: what it says, as plain values, and how that becomes one file of HTML.

The file holds its style and its pictures, has no script and asks for nothing: its own content policy forbids it. All
texts are shown as they are; characters that no page may hold are shown as escapes.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inrfast.files import write_whole

if TYPE_CHECKING:
    from jinja2 import Template

PNG = b"\x89PNG\r\n\x1a\n"

STRONG = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<!\w)\*(?=\S)([^*]+?)(?<=\S)\*(?!\w)")
"""What is emphasised in a marked text."""

NUMBER = re.compile(r"[-+−]?\d[\d,./]*([eE][-+]?\d+)?( ?(%|dB|s)| to [\d,.]+| ± [\d,.e+-]+)?|\[[\d, ]+\]|[-–—]")
"""A number, an interval or nothing known: cells of a column of these stand to the right."""


@dataclass(frozen=True)
class Text:
    """A paragraph; ``marked``: ``**strong**`` and ``*emphasis*`` in it are meant; a warning is set apart."""

    kind: ClassVar[str] = "text"
    text: str
    marked: bool = False
    tone: Literal["", "note", "warning"] = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences; ``marked`` as of :class:`Text`."""

    kind: ClassVar[str] = "items"
    texts: Sequence[str]
    marked: bool = False


@dataclass(frozen=True)
class Entries:
    """Names and what is said of each, such as settings, or words and their meaning."""

    kind: ClassVar[str] = "entries"
    entries: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table: its title, the words of its head, and of each row; the first column names the rows.

    A row shorter than the head has empty cells at its end. ``note`` says below it what its numbers mean.
    """

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        longest = max(map(len, self.rows), default=0)
        if not self.head or longest > len(self.head):
            raise ValueError(f"rows must have at most {len(self.head)} cells, as many as the head, got {longest}")

    def filled(self) -> list[list[str]]:
        """Return the rows, each as long as the head."""
        return [[*row, *[""] * (len(self.head) - len(row))] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Return for each column whether all its cells are numbers, which then stand to the right."""
        columns = zip(*self.filled(), strict=True) if self.rows else ([] for _ in self.head)
        return [all(NUMBER.fullmatch(cell.strip()) or not cell for cell in column) for column in columns]


@dataclass(frozen=True)
class Picture:
    """A PNG file: what it shows, in words for those who do not see it, and what stands below it.

    ``pixels``: its pixels are shown as squares when it is enlarged; ``wide``: it takes the whole width.
    """

    data: bytes
    alt: str
    caption: str = ""
    pixels: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        if self.data[:8] != PNG:
            raise ValueError(f"data must be a PNG file, got {self.data[:8]!r}")
        if not self.alt.strip():
            raise ValueError("alt must say what the picture shows, got nothing")

    @property
    def address(self) -> str:
        """The picture itself, as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file's header."""
        return int.from_bytes(self.data[16:20]), int.from_bytes(self.data[20:24])


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where there is room, below each other where there is not."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]

    def rows(self) -> list[list[Picture]]:
        """Return the pictures in groups, those that take the whole width apart from others."""
        return [list(group) for _, group in groupby(self.pictures, key=lambda picture: picture.wide)]


@dataclass(frozen=True)
class Raw:
    """A long text in a fixed-width font, such as JSON, which a reader opens."""

    kind: ClassVar[str] = "raw"
    title: str
    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens, such as a long table."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


Block = Text | Items | Entries | Table | Pictures | Raw | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; ``name`` is its address in the page, made of the title where it has none."""

    title: str
    blocks: Sequence[Block]
    name: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes
    ----------
    title
        Of the page, and of its window.
    lead
        One or two sentences with the result.
    sections
        In their order; more than two have links at the top.
    facts
        A few numbers that a reader looks for first, by their names.
    warnings
        What a reader must know before believing them.
    footer
        How it was made: versions, machine, time.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    footer: str = ""

    def html(self) -> str:
        """Return the page as one text of HTML 5."""
        return _template().render(page=self, sections=list(zip(_names(self.sections), self.sections, strict=True)))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all.

        Raises
        ------
        OSError
            The folder does not exist or cannot be written.
        """
        write_whole(path, self.html().encode())


def _names(sections: Iterable[Section]) -> list[str]:
    """Return an address for each section, no two alike."""
    found: dict[str, None] = {}
    for section in sections:
        name = "-".join(re.findall(r"[a-z0-9]+", (section.name or section.title).lower())) or "section"
        number = 1
        while (own := name if number == 1 else f"{name}-{number}") in found:
            number += 1
        found[own] = None
    return list(found)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # few commands write a page

    room = files("inrfast.pages")
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    made.finalize = _printable
    made.filters["marked"] = _marked
    made.globals["style"] = room.joinpath("style.css").read_text(encoding="utf-8")
    return made.from_string(room.joinpath("page.html").read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    """Return a text without characters that HTML does not have: those are shown as escapes."""
    if not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    return type(value)(UNSURE.sub(_seen, value))  # what is escaped stays so


UNSURE = re.compile(r"[^\x20-\x7e\n\t]")


def _seen(found: re.Match[str]) -> str:
    sign = found[0]
    return sign if sign.isprintable() or (sign > "\x9f" and sign.isspace()) else ascii(sign)[1:-1]


def _marked(text: str) -> Any:
    from markupsafe import Markup, escape

    def strong(found: re.Match[str]) -> str:
        return f"<strong>{found[1]}</strong>" if found[1] else f"<em>{found[2]}</em>"

    return Markup(STRONG.sub(strong, str(escape(text))))
