"""The report: it survives JSON, holds no NaN, is written whole or not at all, and says what its numbers say."""

import dataclasses
import json
import math
import sys

import html5lib
import pytest
import torch
from browser import browser, check
from matplotlib.text import Text
from torch import nn

import inrfast as inr
from inrfast.analysis import report_page
from inrfast.analysis.diagnosis import diagnose
from inrfast.analysis.report import SCHEMA, DiagnosisReport
from inrfast.linalg.spectrum import RankInterval


@pytest.fixture(scope="module")
def report():
    net = inr.INR(2, 2, width=6, hidden_layers=2, encoding=inr.PositionalEncoding(2), norm=["batch", None])
    coords = inr.grid((7, 7))
    inr.calibrate_batchnorm_(net, coords)
    return diagnose(net.eval(), coords, ntk_points=20, jacobian_pixels=5, progress=False)


@pytest.fixture(scope="module")
def dead_report():
    net = inr.INR(2, 1, width=3, hidden_layers=2, bias=False)
    with torch.no_grad():
        net.layers[0].weight.zero_()
    return diagnose(net, inr.grid((4, 4)), progress=False)


def test_round_trip_through_json(report, dead_report, tmp_path):
    for number, given in enumerate((report, dead_report)):
        path = tmp_path / f"{number}.json"
        text = given.to_json(path)
        assert DiagnosisReport.from_dict(given.to_dict()) == given
        assert DiagnosisReport.from_dict(json.loads(text)) == given
        assert json.loads(path.read_text()) == json.loads(text)
        assert json.loads(text)["schema"] == SCHEMA


def test_the_schema_has_what_a_full_grid_method_fills_in(report):
    kernel = report.to_dict()["kernel"]
    assert {"points", "grid_points", "full_grid"} <= kernel.keys()
    for entry in (kernel["whole"], *kernel["blocks"]):
        assert {"method", "lower_error", "upper_error"} <= entry.keys()
        assert all(rank.keys() == {"lower", "upper", "rtol"} for rank in entry["ranks"])


def test_no_number_is_nan_or_infinite(report, dead_report):
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return [x for entry in value for x in numbers(entry)]
        return [value] if isinstance(value, float) else []

    for given in (report, dead_report):
        assert all(math.isfinite(x) for x in numbers(given.to_dict()))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({}, ValueError, "inrfast.diagnosis/1"),
        ({"schema": "inrfast.diagnosis/0"}, ValueError, "diagnosis/0"),
        ("text", TypeError, "mapping"),
    ],
)
def test_other_schemas_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        DiagnosisReport.from_dict(data)


def test_nothing_is_left_where_writing_fails(report, tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "missing" / "report", tmp_path / "file" / "report"):
        with pytest.raises(OSError, match="cannot write"):
            report.to_json(path.with_suffix(".json"))
        with pytest.raises(OSError, match="cannot write"):
            report.plot(path.with_suffix(".png"))
    with pytest.raises(ValueError, match=r"\.png"):
        report.plot(tmp_path / "report.doc")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_the_figure_is_drawn_and_written(report, dead_report, tmp_path):
    figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 3
    assert "not the full grid of 49" in figure.axes[2].get_title()
    assert len(dead_report.plot().axes) == 3


def test_the_text_is_legible(report):
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    for word in ("Representations", "with ones", "layers.1", "norms.0", "NTK and its blocks", "16 points (4x4)"):
        assert any(word in line for line in lines)
    for rtol in ("1e-2", "1e-3", "1e-4", "1e-5", "1e-6"):
        assert any(rtol in line for line in lines)


def test_sentences_follow_the_numbers(report):
    """Change a number, and the sentence about it changes."""
    first, *others = report.representations[1:]
    ranks = tuple(RankInterval(1, 1, rtol) for rtol in report.rtols)
    for changed in (first, others[-1]):
        narrow = dataclasses.replace(changed, spectrum=dataclasses.replace(changed.spectrum, ranks=ranks), dead_units=2)
        representations = tuple(narrow if z is changed else z for z in report.representations)
        said = dataclasses.replace(report, representations=representations).findings()
        assert said[0].startswith(f"Least rank for its width: {changed.name}, 1 of 6 at 1e-2")
        assert f"2 of 6 units of {changed.name} are zero at every point." in said

    assert report.findings()[-1].endswith("hold at every tolerance.")
    bounds = (dataclasses.replace(report.kernel.bounds[0], hold=False), *report.kernel.bounds[1:])
    broken = dataclasses.replace(report, kernel=dataclasses.replace(report.kernel, bounds=bounds))
    assert broken.findings()[-1].endswith("are violated at 1e-2.")


# ---- the page ----------------------------------------------------------------------------------------------------


def bare_report():
    """A diagnosis of a module of another's, without kernel, whose name and layers could be taken for HTML."""
    made = type("<script>alert(1)</script>", (torch.nn.Module,), {"forward": lambda self, x: self.inner(x).sin()})
    net = made()
    net.inner = torch.nn.Sequential()
    net.inner.add_module("<img src=http://x onerror=y>", torch.nn.Linear(2, 3))
    return diagnose(net, inr.grid((4, 4)), ntk_points=0, jacobian_pixels=0, progress=False)


def test_the_page_says_what_the_text_says_at_every_width_and_asks_for_nothing(report, dead_report, tmp_path):
    with browser() as opened:
        for given in (report, dead_report, bare_report()):
            page = tmp_path / "report.html"
            made = given.to_html(page)
            assert page.read_text() == made
            html5lib.HTMLParser(strict=True).parse(made)
            text = " ".join(check(opened, page).split())
            for line in str(given).splitlines():  # headings, and rows of tables, whose columns are apart
                if "  " in line.strip() and not line.startswith(("- ", "  ")):
                    assert " ".join(line.split()) in text
            for sentence in given.findings():
                assert " ".join(sentence.split()) in text
            assert made.count("<img ") == (2 if given.kernel is None else 3)


def test_the_lead_says_what_the_ranks_are(report, dead_report):
    def lead(*ranks):
        bare, first = dataclasses.replace(report, sensitivities=(), weights=(), weight_products=()), []
        for number, rank in enumerate(ranks):
            z = report.representations[0]
            spectrum = dataclasses.replace(z.spectrum, columns=8, ranks=(RankInterval(*rank, 1e-3),))
            first.append(dataclasses.replace(z, name=f"layers.{number}", spectrum=spectrum, with_ones=spectrum))
        shown = dataclasses.replace(bare, rtols=(1e-3,), representations=first, feature_jacobians=(), kernel=None)
        return report_page.page(shown).lead

    assert "No hidden layer loses rank at the tolerance 1e-3." in lead((8, 8), (8, 8))
    assert "loses most of its rank at the tolerance 1e-3: the 8 outputs of layers.1 have rank 3." in lead(
        (8, 8), (3, 3)
    )
    assert "loses some of its rank at the tolerance 1e-3: the 8 outputs of layers.0 have rank 4." in lead(
        (4, 4), (6, 6)
    )
    assert "not certain: the 8 outputs of layers.0 have rank 5 to 8." in lead((5, 8))
    assert "have rank 0" in report_page.page(dead_report).lead
    assert f"has rank {report.kernel.whole.ranks[report_page.nearest(report)]}" in report_page.page(report).lead


def test_the_page_cuts_long_lists_alone(report):
    long = dataclasses.replace(
        report.representations[0].spectrum, singular_values=tuple(float(100 - k) for k in range(60))
    )
    given = dataclasses.replace(
        report, representations=(dataclasses.replace(report.representations[0], spectrum=long),)
    )
    raw = report_page.page(given).sections[-1].blocks[-1].text
    held = json.loads(raw)["representations"][0]["spectrum"]["singular_values"]
    assert held == [*range(100, 92, -1), "... 44 more ...", *range(48, 40, -1)]
    assert json.loads(raw)["kernel"]["bounds"] == json.loads(json.dumps(given.to_dict()))["kernel"]["bounds"]


def test_a_page_without_matplotlib_says_what_is_left_out(report, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    made = report.to_html()
    assert "<img" not in made and "needs matplotlib: pip install &#39;inrfast[plots]&#39;" in made


@pytest.mark.filterwarnings("error")
def test_names_of_modules_are_no_formulas(tmp_path):
    names = ["$\\frac{x$", "a$_{$b", "\\$c$"]
    net = nn.Sequential()
    for name, layer in zip(names, (nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), strict=True):
        net.add_module(name, layer)
    coords = inr.grid((4, 4))
    found = diagnose(net, coords)
    figures = [found.plot(tmp_path / "report.svg"), inr.variance(net, coords).plot(tmp_path / "variance.svg")]
    figures.append(inr.watch(net, coords).plot(tmp_path / "watch.svg"))
    for figure in figures:
        shown = "".join(text.get_text() for text in figure.findobj(Text)).replace(r"\$", "$")
        assert names[0] in shown
    assert "not drawn" not in found.to_html()
