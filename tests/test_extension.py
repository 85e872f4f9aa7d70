"""The native module is what it says it is, and its absence is reported with the reason."""

import importlib
from pathlib import Path

import pytest

import inrfast as inr
from inrfast import extension
from inrfast.errors import NotAvailableError
from inrfast.info import info
from inrfast.ops import mlp_step
from inrfast.ops.grid_init import rank_expanding


@pytest.fixture(autouse=True)
def as_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INRFAST_NATIVE", raising=False)
    monkeypatch.delenv("INRFAST_GEMM", raising=False)


def test_missing_extension_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the first attempt, and stays."""

    def fail(name: str) -> None:
        raise ImportError(f"no {name}, for a test")

    extension._extension_or_reason.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", fail)
            with pytest.raises(NotAvailableError, match="for a test"):
                rank_expanding(4, 2)
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


@pytest.mark.parametrize("found", ["avx512", "avx2", ""])
@pytest.mark.parametrize("variant", extension.VARIANTS)
def test_a_variant_by_name_runs_or_says_why_not(variant: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INRFAST_NATIVE", variant)
    monkeypatch.setattr(mlp_step, "_available", lambda: found)
    has = {"avx512": ("avx512", "avx2"), "avx2": ("avx2",), "": ()}[found]
    report = info()
    assert report["extension"]["asked"] == variant
    if variant in ("avx512", "avx2") and variant not in has:
        with pytest.raises(NotAvailableError, match=f"INRFAST_NATIVE={variant} cannot run here"):
            mlp_step.instructions()
        assert "INRFAST_NATIVE" in report["fit"]["native step"]
    else:
        expected = {"auto": found, "plain": "", "absent": ""}.get(variant, variant)
        assert mlp_step.instructions() == expected
        assert report["fit"]["native step"] == (expected or None)
    assert report["extension"]["available"] == (variant != "absent")


def test_an_unknown_variant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INRFAST_NATIVE", "avx")
    for call in (mlp_step.instructions, extension.load_extension, info):
        with pytest.raises(ValueError, match=r"INRFAST_NATIVE must be one of .* got 'avx'"):
            call()


@pytest.mark.parametrize("variant", ["plain", "absent"])
def test_fits_and_kernels_need_no_native_code(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INRFAST_NATIVE", variant)
    net, coords = inr.INR(2, 1, width=16), inr.grid((6, 6))
    assert inr.fit(net, coords, coords.sum(1), steps=3).steps == 3
    assert inr.ntk(net, coords).spectrum(rtol=1e-3).rank().lower >= 1
    if variant == "absent":
        with pytest.raises(NotAvailableError, match="INRFAST_NATIVE=absent"):
            rank_expanding(4, 2)
