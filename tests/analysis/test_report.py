"""The report: it survives JSON, holds no NaN, is written whole or not at all, and says what its numbers say."""

import dataclasses
import json
import math

import pytest
import torch

import inrfast as inr
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
