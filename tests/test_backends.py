"""The choice of a backend: automatic never fails, named ones run or say why not."""

import subprocess
import sys

import pytest
import torch

from inrfast import backends
from inrfast.backends import report, resolve, too_little
from inrfast.errors import NotAvailableError


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_and_torch_run_on_a_cpu():
    assert resolve("auto", "cpu") == "torch"
    assert resolve("torch", "cpu") == "torch"
    assert report("cpu")["torch"] == "available"


@pytest.mark.usefixtures("no_interpreter")
def test_a_named_backend_raises_its_reason():
    with pytest.raises(NotAvailableError, match="CUDA"):
        resolve("triton", "cpu")
    assert "CUDA" in report("cpu")["triton"]
    with pytest.raises(ValueError, match="Did you mean 'triton'"):
        resolve("triron", "cpu")


def test_interpreted_kernels_run_on_a_cpu_if_asked_for_by_name(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton", "cpu") == "triton"
    assert resolve("auto", "cpu") == "torch"


def test_a_gpu_that_cannot_run_the_kernels(monkeypatch):
    """Too old, or too little shared memory: by name an error with the reason, automatically torch with one warning."""
    assert too_little("GPU", (9, 0), 227 * 1024) is None
    assert too_little("GPU", (8, 6), 99 * 1024) is None
    for device, capability, shared, reason in (
        (torch.device("cuda", 0), (7, 5), 64 * 1024, "compute capability 7.5.*8.0"),
        (torch.device("cuda", 1), (8, 0), 48 * 1024, "49152 bytes of shared memory.*65536"),
    ):
        monkeypatch.setattr(backends, "gpu", lambda _, c=capability, s=shared: ("Old GPU", c, s))
        with pytest.raises(NotAvailableError, match=f"Old GPU.*{reason}"):
            resolve("triton", device)
        with pytest.warns(RuntimeWarning, match=reason):
            assert resolve("auto", device) == "torch"
        assert resolve("auto", device) == "torch"  # said once


def test_importing_the_package_does_not_import_triton():
    code = "import sys, inrfast; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
