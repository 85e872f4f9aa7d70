"""The native modules are what they say they are, and their absence costs time alone, which is said once."""

import importlib
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import inrfast as inr
from inrfast import backends, extension
from inrfast.errors import NotAvailableError
from inrfast.info import info
from inrfast.ops import gemm, mlp_step
from inrfast.ops.grid_init import rank_expanding
from inrfast.words import one_line


@pytest.fixture(autouse=True)
def as_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INRFAST_NATIVE", raising=False)
    monkeypatch.delenv("INRFAST_GEMM", raising=False)


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Import no native module, as where neither was built."""
    real = importlib.import_module

    def fail(name: str, package: str | None = None) -> ModuleType:
        if name in ("inrfast._C", "inrfast._CUDA"):
            raise ImportError(f"no {name}, for a test")
        return real(name, package)

    caches = (extension._module_or_reason, mlp_step._available, gemm._native_kernels, backends.warn_once)
    for cache in caches:
        cache.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", fail)
        patch.setattr(platform, "machine", lambda: "x86_64")
        yield
    for cache in caches:
        cache.cache_clear()


def test_missing_modules_say_why_and_how_to_get_them(nothing_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the first attempt, and stays."""
    for load, name in ((extension.load_extension, "_C"), (extension.load_cuda, "_CUDA")):
        with pytest.raises(NotAvailableError, match=rf"no inrfast.{name}, for a test\); `pip install"):
            load()
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", ModuleType)
        with pytest.raises(NotAvailableError, match="for a test"):
            extension.load_extension()


def words_of(run: Callable[[], object]) -> list[str]:
    """Return the warnings of a call that are about the native extension."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught if "native" in str(each.message)]


def a_fit() -> None:
    net, coords = inr.INR(2, 1, width=16, init="rank_expanding"), inr.grid((6, 6))
    inr.fit(net, coords, coords.sum(1), steps=2, progress=False)


def a_kernel() -> None:
    inr.ntk(inr.INR(2, 1, width=16), inr.grid((6, 6))).to_dense()


@pytest.mark.parametrize("work", [a_fit, a_kernel])
def test_without_the_extension_all_works_and_its_cost_is_said_once(work: Callable, nothing_built: None) -> None:
    assert words_of(lambda: rank_expanding(4, 2)) == words_of(info) == []  # they cost nothing
    (said,) = words_of(lambda: (work(), a_fit(), a_kernel()))
    assert one_line(said) == said
    assert "`pip install" in said
    assert "slower" in said
    assert "INRFAST_NATIVE=absent" in said


@pytest.mark.parametrize("wish", [("INRFAST_NATIVE", "absent"), ("INRFAST_NATIVE", "plain"), ("INRFAST_GEMM", "torch")])
def test_who_asks_for_no_native_steps_hears_nothing(
    wish: tuple[str, str], nothing_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*wish)
    assert words_of(lambda: (a_fit(), a_kernel())) == []


def test_processors_without_native_steps_miss_nothing(nothing_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert words_of(lambda: (a_fit(), a_kernel())) == []


def built(load: Callable[[], ModuleType]) -> tuple[bytes, dict[str, str]]:
    module = load()
    assert module.__file__
    return Path(module.__file__).read_bytes(), module.build_info()


def test_gpu_code_is_in_the_module_for_it_alone() -> None:
    """It sits in the ELF section .nv_fatbin. The CUDA half loads without a GPU, and needs no driver to do so."""
    binary, build = built(extension.load_extension)
    assert b".nv_fatbin" not in binary
    assert set(build) == {"compiler", "pybind11"}
    try:
        binary, build = built(extension.load_cuda)
    except NotAvailableError:
        pytest.skip("the CUDA half is not built here")
    assert b".nv_fatbin" in binary
    assert all(arch.startswith("sm_") for arch in build["cuda_archs"].split(";"))
    assert int(build["cuda"].partition(".")[0]) >= 12


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
            extension.load_extension()
    assert rank_expanding(4, 2)[0].shape == (4, 2)
