"""The report of what is installed and what runs here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from inrfast.errors import NotAvailableError
from inrfast.info import info, main, render


@pytest.fixture(autouse=True)
def as_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INRFAST_NATIVE", raising=False)


def test_info_is_plain_json_and_agrees_with_this_process() -> None:
    found = json.loads(json.dumps(info()))
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["backends"]["cpu"]["torch"] == "available"
    assert found["extension"]["available"] is True
    assert set(found["extension"]["build"]) == {"compiler", "pybind11"}
    half = found["extension"]["CUDA half"]
    if half["available"]:
        assert set(half["build"]) == {"compiler", "pybind11", "cuda", "cuda_archs"}
    else:
        assert "_CUDA" in half["reason"]
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_text_has_every_leaf() -> None:
    found = info()
    text = render(found)

    def leaves(part: object) -> list[str]:
        if isinstance(part, dict):
            return [leaf for value in part.values() for leaf in leaves(value)]
        return [] if isinstance(part, (bool, list)) or part is None else [str(part)]

    assert all(leaf in text for leaf in leaves(found))


def test_missing_extension_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NotAvailableError("it was not built")

    monkeypatch.setattr("inrfast.info.load_extension", missing)
    monkeypatch.setattr("inrfast.info.load_cuda", missing)
    half = {"available": False, "reason": "it was not built"}
    assert info()["extension"] == {"asked": "auto", **half, "CUDA half": half}


def test_json_option_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["inrfast"]


def test_unknown_option_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--jsn"])
    assert exit_info.value.code == 2
    assert "--jsn" in capsys.readouterr().err


def test_module_runs_without_warnings() -> None:
    run = subprocess.run([sys.executable, "-m", "inrfast.info"], capture_output=True, text=True, check=True)
    assert "versions" in run.stdout
    assert run.stderr == ""
