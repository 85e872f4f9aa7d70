"""Results in notebooks: whole, escaped, quick HTML with a picture inside, and never an error."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_records import RESULTS, Products, kernel, network

import inrfast as inr
from inrfast import notebook
from inrfast.notebook import Page, shown, written

SHOWN = {
    name: RESULTS[name]
    for name in (
        "DiagnosisReport", "Spectrum", "a spectrum of counts", "a spectrum of estimates", "FitResult",
        "a fit that diverges", "Choice", "Dictionary", "NTKVariance", "Watch", "Restored",
    )
} | {"NTK": kernel}  # fmt: skip


class Read(HTMLParser):
    """Reads HTML whose tags must be closed in the order in which they are opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHOWN)
def test_a_result_is_shown_with_its_table_and_its_figure(name):
    found = SHOWN[name]()
    result = found[0] if isinstance(found, list) else found
    read = Read(result._repr_html_())
    tags = [tag for tag, _ in read.seen]
    assert "table" in tags and "script" not in tags
    assert tags.count("th") <= 14 and tags.count("tr") <= 2 + notebook.ROWS
    pictures = [own for tag, own in read.seen if tag == "img"]
    assert len(pictures) == (name != "NTK")
    for own in pictures:
        assert own["alt"].startswith("Figure: ")
        head, data = own["src"].split(",")
        assert head == "data:image/png;base64"
        assert min(Image.open(io.BytesIO(base64.b64decode(data))).size) > 100


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHOWN)
def test_without_matplotlib_the_table_stands_alone(name, monkeypatch):
    found = SHOWN[name]()
    result = found[0] if isinstance(found, list) else found
    for module in [own for own in sys.modules if own.startswith("matplotlib") or own.endswith("_figure")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    read = Read(result._repr_html_())
    assert "table" in [tag for tag, _ in read.seen] and "img" not in [tag for tag, _ in read.seen]
    assert any("inrfast[plots]" in text for text in read.texts) == (name != "NTK")


def test_a_kernel_is_shown_without_computing_it():
    K = inr.ntk(network(), inr.grid((100, 100), dtype=torch.float64))
    with Products() as computed:
        assert "10,000 x 10,000" in K._repr_html_()
    assert not computed.names


def test_everything_is_escaped():
    bad = '<script>alert("1")</script>&'
    page = Page(bad, [(bad, bad), (bad, bad)], [bad], bad, Figure)
    text = written(page)
    read = Read(text)
    assert "script" not in [tag for tag, _ in read.seen]
    assert read.texts.count(bad) == 7
    assert [own["alt"] for tag, own in read.seen if tag == "img"] == [f"Figure: {bad}"]
    net = torch.nn.Sequential()
    net.add_module("<b>", torch.nn.Linear(2, 1))
    assert not re.search("<b>", inr.ntk(net, inr.grid((2, 2)))._repr_html_())


def test_a_long_table_is_cut_and_says_so():
    read = Read(written(Page("long", [("number",), *((str(i),) for i in range(100))])))
    assert read.texts[1:] == ["number", *map(str, range(notebook.ROWS - 1)), "... 89 more"]


def test_what_cannot_be_shown_is_no_error():
    def fails(*_):
        raise RuntimeError("bad")

    assert shown(fails)(None) is None
    assert Read(written(Page("title", figure=fails))).texts == ["title"]


def test_tables_have_their_own_space_and_numbers_end_on_the_right():
    rows = [("layer", "rank", "note"), ("first", "12 to 15", "2 left"), ("second", "-", "full"), ("... 3 more",)]
    read = Read(written(Page("A table", rows)))
    cells = [attrs["style"] for tag, attrs in read.seen if tag in ("th", "td")]
    assert all("padding" in style for style in cells)
    sides = [style.rpartition(":")[2] for style in cells]
    assert sides == ["left", "right", "left"] * 3 + ["left"]
