"""The GPU benchmark runs where there is no GPU too, by interpretation: a lease must not be spent on its mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


def test_parts_are_measured_checked_and_may_fail(tmp_path):
    out = tmp_path / "gpu.json"
    sizes = ["--grid", "4", "--width", "64", "--repeats", "1", "--seconds", "0"]
    chosen = [
        "--out",
        str(out),
        "--device",
        "cpu",
        *sizes,
        "--only",
        "ceilings|dense relu high$|frobenius high|wide product|ratios|step.* 64x64 (relu )?medium",
    ]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    found = json.loads(out.read_text())
    parts = {"ceilings", "dense relu high", "frobenius high", "wide product, 256 columns", "ratios"}
    steps = ("step 64x64 relu medium", "steps of 100, 64x64 medium")
    parts |= set(steps)
    assert set(found) == {"environment", *parts}, done.stderr
    assert found["dense relu high"]["error"]["largest"] <= 1e-6
    for name in ("plan", "factors", "gram", "to_dense", "ntk_and_to_dense"):
        low, high = found["dense relu high"][name]["quartiles"]
        assert 0 < low <= found["dense relu high"][name]["seconds"] <= high
    assert found["frobenius high"]["error"]["largest"] <= 1e-6
    assert found["frobenius high"]["whole"]["seconds"] > 0
    assert found["wide product, 256 columns"]["product"]["error"] <= 1e-6
    assert found["ceilings"]["copy"]["bytes_per_second"] > 0
    for name in steps:
        assert found[name]["error"]["gradient"] <= 2e-2
        assert found[name]["ratio to eager fp32"] > 0
        assert found[name]["ratio of the floor"] > 0
        assert name in done.stdout
    assert found["steps of 100, 64x64 medium"]["ratio to vmap"] > 0
    # Nothing was run to compare with: that is recorded, said, and ends in an error.
    assert "failed" in found["ratios"]
    assert "FAILED" in done.stdout
    assert done.returncode == 1
