"""The build: what cannot be compiled is said and left out, or an error where it was asked for."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def has_tools():
    try:
        version("pybind11")
        return int(version("setuptools").partition(".")[0]) >= 77
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_tools(), reason="needs setuptools 77 or newer and pybind11")


def build(tmp_path, **environment):
    """Run the build where no compiler works; return its status, what it said, and the modules that it made."""
    names = ("PATH", "HOME", "LD_LIBRARY_PATH")
    kept = {name: value for name, value in os.environ.items() if name in names}
    words = ["-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    done = subprocess.run(
        [sys.executable, "setup.py", *words],
        cwd=ROOT,
        env=kept | {"CC": "/nowhere/cc", "CXX": "/nowhere/c++", "INRFAST_CUDA": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr, sorted(path.name for path in tmp_path.rglob("*.so"))


def broken_nvcc(tmp_path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 7\n")
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(tmp_path / "cuda")}


def test_without_a_compiler_the_build_goes_on_and_says_so(tmp_path):
    status, said, made = build(tmp_path, INRFAST_CUDA="auto", **broken_nvcc(tmp_path))
    assert (status, made) == (0, [])
    for module, cost in (("inrfast._C", "slower"), ("inrfast._CUDA", "by way of the CPU")):
        assert any(module in line and "could not be built" in line and cost in line for line in said.splitlines()), said


@pytest.mark.parametrize("switch", ["INRFAST_NATIVE_BUILD", "INRFAST_CUDA"])
def test_a_module_that_was_asked_for_is_an_error(switch, tmp_path):
    status, said, _ = build(tmp_path, **{**broken_nvcc(tmp_path), switch: "1"})
    assert status != 0
    assert f"{switch}=1 asks for it" in said


def test_who_wants_no_native_code_gets_none(tmp_path):
    status, said, made = build(tmp_path, INRFAST_NATIVE_BUILD="0", INRFAST_CUDA="1")
    assert (status, made) == (0, [])
    assert "building no native module" in said


@pytest.mark.parametrize("switch", ["INRFAST_NATIVE_BUILD", "INRFAST_CUDA", "INRFAST_OLDER_SYSTEMS"])
def test_other_words_are_refused(switch, tmp_path):
    status, said, _ = build(tmp_path, **{switch: "yes"})
    assert status != 0
    assert f"{switch} must be auto, 0 or 1, got 'yes'" in said
