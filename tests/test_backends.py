"""The choice of a backend: automatic never fails, named ones run or say why not."""

import subprocess
import sys
import types

import pytest
import torch

import inrfast as inr
from inrfast import backends
from inrfast.backends import report, resolve, too_little
from inrfast.errors import NotAvailableError
from inrfast.ops import gram


@pytest.fixture(autouse=True)
def usable_triton(monkeypatch):
    """Whichever Triton is installed."""
    monkeypatch.setattr(backends, "reason_against_package", lambda: None)


PACKAGE_CHECK = backends.reason_against_package.__wrapped__


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


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "triton is not installed"),
        ("3.4.0", r"triton 3\.4\.0 is installed, and its kernels need 3\.6 or newer"),
        ("2.9", r"triton 2\.9 is installed"),
        ("3.6.0", None),
        ("3.10.1+git1234", None),
        ("4.0.0", None),
    ],
)
def test_a_triton_that_is_missing_or_too_old(found, reason, monkeypatch):
    """The kernels' place is taken by the reference; asked for by name they say why not."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None if found is None else name)
    monkeypatch.setattr(backends, "triton_version", lambda: found)
    monkeypatch.setattr(backends, "reason_against_package", PACKAGE_CHECK)
    net, coords = inr.INR(2, 1, width=8), inr.grid((4, 4))
    if reason is None:
        assert PACKAGE_CHECK() is None
        return
    for call in (
        lambda: resolve("triton", "cpu"),
        lambda: inr.ntk(net, coords, backend="triton"),
        lambda: inr.fit(net, coords, coords.sum(1), steps=1, backend="triton"),
    ):
        with pytest.raises(NotAvailableError, match=reason):
            call()
    assert inr.ntk(net, coords).to_dense().shape == (16, 16)
    assert not gram.runs_kernels(torch.device("cpu"))


def test_the_version_of_triton_is_that_of_the_module_where_no_package_has_its_name(monkeypatch):
    def nameless(name):
        raise backends.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backends.importlib.metadata, "version", nameless)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.7.0"))
    assert backends.triton_version() == "3.7.0"


def test_importing_the_package_does_not_import_triton():
    code = "import sys, inrfast; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
