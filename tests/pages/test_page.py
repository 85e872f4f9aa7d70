"""A page is valid HTML that shows every text as it is, asks for nothing, and reads well in a real browser."""

import io
import re
from html.parser import HTMLParser

import html5lib
import numpy as np
import pytest
from browser import browser, check
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inrfast.pages import Entries, Folded, Items, Page, Picture, Pictures, Raw, Section, Table, Text, image_picture
from inrfast.pages.page import NUMBER

HOSTILE = "<script>alert(1)</script> \"'&amp; <img src=http://x.test/a onerror=alert(1)> {{ 7 * 7 }} </style>]]>"


def page(text):
    """Return a page with a text at every place that takes one."""
    picture = image_picture(np.random.default_rng(0).random((6, 9, 3)), text or "noise", text)
    blocks = [
        Text(text),
        Text(text, marked=True),
        Text(text, tone="warning"),
        Items([text, text], marked=True),
        Items([text]),
        Entries({text: text, f"{text}1": 7}),
        Table([text, text], [[text, text], [text]], text, text),
        Pictures([picture, picture]),
        Raw(text, text),
        Folded(text, [Text(text)]),
    ]
    sections = [Section(text, blocks), Section(text, blocks, name=text), Section("same", []), Section("same", [])]
    return Page(text, text, sections, {text: text}, [text], text)


class Seen(HTMLParser):
    """What a parser makes of a page: names of elements and attributes, addresses, and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.texts = set(), set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            self.ids += [value] if name == "id" else []
            assert name not in ("src", "href") or value.startswith(("data:image/png;base64,", "#")) or value == "data:,"

    def handle_data(self, data):
        self.texts.append(data)


PLAIN = Seen(page("words").html())

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(max_size=6)
marks = st.lists(st.sampled_from(["<b>", "</p>", "&", "&lt;", '"', "'", "**", "*", "`", "{{", "{%", "a ", "\0", "\r"]))


@given(texts | marks.map("".join))
def test_any_text_is_shown_as_it_is_and_the_page_stays_valid(text):
    made = page(text).html()
    html5lib.HTMLParser(strict=True).parse(made)
    seen = Seen(made)
    assert seen.tags <= PLAIN.tags | {"strong", "em"} and seen.attributes <= PLAIN.attributes
    assert len(set(seen.ids)) == len(seen.ids)
    made.encode()
    if text.isprintable():
        assert text == "" or seen.texts.count(text) >= 10


def test_signs_that_no_page_may_hold_are_seen_as_escapes():
    made = Page("t", "a\0b\x1b[31m\ud800\x85", []).html()
    assert "a\\x00b\\x1b[31m\\ud800\\x85" in made


def test_a_browser_shows_it_at_every_width_and_asks_for_nothing(tmp_path):
    with browser() as opened:
        for text in (HOSTILE, "l" * 400):
            page(text).write(tmp_path / "page.html")
            assert check(opened, tmp_path / "page.html").count(text) >= 10


def test_emphasis_is_made_of_marked_texts_alone():
    made = Page("t", "**no**", [Section("s", [Text("**no**"), Text("a **yes** *so* 2*3*4 <b>", marked=True)])]).html()
    assert made.count("<strong>") == 1 and "<strong>yes</strong> <em>so</em> 2*3*4 &lt;b&gt;" in made
    assert made.count("**no**") == 2


def test_columns_of_numbers_stand_to_the_right():
    numbers = [
        "1",
        "-2.5",
        "1,024",
        "3.1 %",
        "99.5%",
        "32.10 dB",
        "1e-6",
        "3 to 5",
        "[3, 1,200]",
        "-",
        "1.5 ± 0.2",
        "12/13/14",
    ]
    assert all(NUMBER.fullmatch(cell) for cell in numbers)
    assert not any(NUMBER.fullmatch(cell) for cell in ["layers.0", "2 layers", "a 1", "v1.2"])
    table = Table(["", "n", "word"], [["1", "2", "x"], ["a", "", "3"], ["b"]])
    assert table.numeric() == [False, True, False]
    assert [len(row) for row in table.filled()] == [3, 3, 3]


@pytest.mark.parametrize("bad", [lambda: Table(["a"], [["1", "2"]]), lambda: Table([], [])])
def test_a_table_has_a_cell_of_the_head_for_each_of_its_rows(bad):
    with pytest.raises(ValueError, match="cells"):
        bad()


def test_a_picture_says_what_it_shows_and_large_ones_are_made_smaller():
    from inrfast.pages import Picture

    with pytest.raises(ValueError, match="alt"):
        Picture(image_picture(np.zeros((2, 2)), "x").data, " ")
    with pytest.raises(ValueError, match="PNG"):
        Picture(b"GIF89a", "x")
    large = image_picture(np.zeros((1500, 3000, 1)), "x", "A caption.")
    assert large.size == (1024, 512) and large.caption == "A caption. Shown at 1024x512 of 3000x1500 pixels."


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_an_image_keeps_its_pixels(height, width, seed):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    picture = image_picture(values / 255, "x")
    assert (np.asarray(Image.open(io.BytesIO(picture.data))) == values).all()
    assert picture.size == (width, height)


def test_no_rule_of_the_style_asks_for_anything():
    style = re.search("<style>(.*)</style>", Page("t", "l", []).html(), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_three_images_stand_together_and_figures_have_more_room():
    image = image_picture(np.zeros((3, 4)), "black")
    figure = Picture(image.data, "drawn")
    for pictures, together in (([image] * 3, True), ([image] * 2, False), ([image, image, figure], False)):
        made = Page("A page", "Lead.", [Section("Seen", [Pictures(pictures)])]).html()
        assert ('<div class="pictures together">' in made) == together
