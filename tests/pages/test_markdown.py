"""The Markdown of a report becomes the blocks of a page, and no word of it is lost."""

import html5lib
from hypothesis import given
from hypothesis import strategies as st

from inrfast.pages import Items, Page, Picture, Pictures, Table, Text
from inrfast.pages.markdown import sections

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


def read(text):
    return sections(text, lambda alt, name: None if name == "missing.png" else Picture(PNG, alt, name))


def test_each_part_is_what_it_looks_like():
    title, found = read(
        "# T\n\n**Take care.**\n\nOne\ntwo **three**.\n\n## S 1\n\n- a *b*\n  c\n- d\n\n| x | y |\n| --- | ---: |\n"
        "| 1 | a\\|b |\n\n![p](p.png)\n\n![q](missing.png)\n\n## Empty\n\n## S 2\n\n| no table\n"
    )
    assert title == "T" and [section.title for section in found] == ["Overview", "S 1", "S 2"]
    assert found[0].blocks == [Text("Take care.", tone="warning"), Text("One two **three**.", marked=True)]
    assert found[1].blocks == [
        Items(["a *b* c", "d"], marked=True),
        Table(["x", "y"], [["1", "a|b"]]),
        Pictures([Picture(PNG, "p", "p.png")]),
    ]
    assert found[2].blocks == [Text("| no table", marked=True)]


MARKS = ["# ", "## ", "- ", "| ", " |", "\n", "\n\n", "**", "*", "![", "](", ")", "a", "<b>", "7"]


@given(st.lists(st.sampled_from(MARKS)))
def test_no_word_is_lost_whatever_stands_there(parts):
    text = "".join(parts)
    title, found = read(text)
    html5lib.HTMLParser(strict=True).parse(Page(title, "", found).html())
    if not any(mark in text for mark in ("![", "|", "#")):
        blocks = [block for section in found for block in section.blocks]
        told = " ".join(word for block in blocks for word in (block.texts if block.kind == "items" else [block.text]))
        assert [told.count(word) for word in ("a", "<b>", "7")] == [text.count(word) for word in ("a", "<b>", "7")]
