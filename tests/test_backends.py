"""The choice of a backend: automatic never fails, named ones run or say why not."""

import pytest

from inrfast.backends import report, resolve
from inrfast.errors import NotAvailableError


def test_auto_and_torch_run_on_a_cpu():
    assert resolve("auto", "cpu") == "torch"
    assert resolve("torch", "cpu") == "torch"
    assert report("cpu")["torch"] == "available"


def test_a_named_backend_raises_its_reason():
    with pytest.raises(NotAvailableError, match="CUDA"):
        resolve("triton", "cpu")
    assert "CUDA" in report("cpu")["triton"]
    with pytest.raises(ValueError, match="Did you mean 'triton'"):
        resolve("triron", "cpu")
