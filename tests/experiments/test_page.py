"""The report is one valid file that asks for nothing else, whatever words and names stand in it."""

import html
import re

import html5lib
from browser import browser, check
from hypothesis import given
from hypothesis import strategies as st
from tiny_paper import HOSTILE, NAME, registered

from inrfast.experiments.page import HEAD, text_table, words
from inrfast.experiments.reproduce import reproduce


def test_the_report_is_self_contained_and_names_are_words_in_it(tmp_path):
    meshes = [tmp_path / "<script>alert(1)</script>".replace("/", "-"), tmp_path / "a&b'.obj"]
    for number, mesh in enumerate(meshes):
        mesh.write_text(f"v {number} 0 0\n")
    with registered():
        reproduce(NAME, "all", tmp_path / "r", mesh=meshes, progress=False)
    made = (tmp_path / "r" / "report.html").read_text()
    html5lib.HTMLParser(strict=True).parse(made)
    assert "<script" not in made and made.count("<img ") == 2
    with browser() as opened:
        text = check(opened, tmp_path / "r" / "report.html")
    assert text.count(" ".join(HOSTILE.split())) >= 10
    assert "<script>alert(1)<-script>, a&b'.obj" in text
    assert "2 of 2" in text and "nobody" in text


def test_the_report_tells_images_that_were_used_from_those_that_were_given(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"read by no cell")
    with registered():
        reproduce(NAME, "one", tmp_path / "r", images=tmp_path / "in", progress=False)
    report = (tmp_path / "r/report.html").read_text()
    assert "<dt>images given</dt><dd>a.png, b.png</dd>" in report
    assert "Images used: a.png. " in report and "Images used: a.png. " in (tmp_path / "r/one/one.md").read_text()


def test_markdown_tables_keep_their_columns(tmp_path):
    with registered():
        made = reproduce(NAME, "one", tmp_path / "r", progress=False)
    lines = [line for line in (tmp_path / "r/one/one.md").read_text().splitlines() if line.startswith("|")]
    widths = [re.sub(r"\\.", "", line).count("|") for line in lines]
    assert widths == [5, 5, 5, 3, 3, 3]
    assert len(text_table(HEAD, [["a", "b", "c", "d"]]).splitlines()) == 2
    assert made["one"]["cells"] == 3


MARKS = [
    "<img src=q onerror=alert(1)>",
    "`",
    "\\",
    "*",
    "_",
    "__",
    "[l](x)",
    "![i](x)",
    "&amp;",
    "&",
    "|",
    "~~",
    "$",
    "#",
    "-",
    "1.",
    "x",
]


@given(st.lists(st.sampled_from([*MARKS, " ", "http://x.test", "www.x.test", "a@x.test"]), max_size=8).map("".join))
def test_markdown_shows_any_text_as_it_is(text):
    made = words(text)
    bare = re.sub(r"\\(?=[!-/:-@\[-`{-~]).", "", made)  # without what is escaped
    assert not re.search(r"[<>`*\[\]|~$]|://|www\.|@|^(#|[-+] |\d+[.)] )", bare)
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", re.sub(r"\\[!-/:-@\[-`{-~]", " ", made))
    assert html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", made)) == " ".join(text.split())
