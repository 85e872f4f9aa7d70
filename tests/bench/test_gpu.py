"""The GPU benchmark runs where there is no GPU too, by interpretation: a lease must not be spent on its mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


def run(tmp_path, *arguments):
    out = tmp_path / "gpu.json"
    sizes = ["--grid", "4", "--width", "64", "--repeats", "1", "--seconds", "0"]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--out", str(out), "--device", "cpu", *sizes, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    return done, json.loads(out.read_text())


def test_parts_are_measured_and_checked(tmp_path):
    done, found = run(tmp_path, "--only", "ceilings|dense relu high$|eager fp32")
    assert done.returncode == 0, done.stderr
    assert set(found) == {"environment", "ceilings", "dense relu high", "eager fp32"}
    assert found["dense relu high"]["error"]["largest"] <= 1e-6
    for name in ("plan", "factors", "gram", "to_dense", "ntk_and_to_dense"):
        low, high = found["dense relu high"][name]["quartiles"]
        assert 0 < low <= found["dense relu high"][name]["seconds"] <= high
    assert found["ceilings"]["copy"]["bytes_per_second"] > 0
    assert "dense relu high" in done.stdout


def test_a_part_that_fails_is_recorded_and_ends_in_an_error(tmp_path):
    done, found = run(tmp_path, "--only", "ceilings|ratios")
    assert done.returncode == 1
    assert "failed" in found["ratios"]
    assert "FAILED" in done.stdout
