"""The native module is what it says it is, and its absence is reported with the reason."""

import importlib
from pathlib import Path

import pytest

from inrfast import extension
from inrfast.errors import NotAvailableError
from inrfast.ops.grid_init import rank_expanding


def test_missing_extension_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the first attempt, and stays."""

    def fail(name: str) -> None:
        raise ImportError(f"no {name}, for a test")

    monkeypatch.setattr(importlib, "import_module", fail)
    extension._extension_or_reason.cache_clear()
    try:
        with pytest.raises(NotAvailableError, match="for a test"):
            rank_expanding(4, 2)
        monkeypatch.undo()
        with pytest.raises(NotAvailableError, match="for a test"):
            rank_expanding(4, 2)
    finally:
        extension._extension_or_reason.cache_clear()
    assert rank_expanding(4, 2)[0].shape == (4, 2)


def test_cuda_half_is_in_the_module_exactly_when_it_says_so() -> None:
    """GPU code sits in the ELF section .nv_fatbin."""
    module = extension.load_extension()
    build = module.build_info()
    binary = Path(module.__file__).read_bytes()
    assert (b".nv_fatbin" in binary) == (build["cuda"] is not None)
    assert (build["cuda_archs"] is None) == (build["cuda"] is None)
