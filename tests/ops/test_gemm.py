"""The choice of the matrix library: every library is right, the override and the cache work."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.ops import gemm


@given(
    st.sampled_from(sorted(gemm.LIBRARIES)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_every_library_multiplies(name, m, n, k, dtype, strided):
    if not gemm._works(name, dtype):
        return
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    out = torch.full((m, 2 * n), float("nan"), dtype=dtype)[:, :n] if strided else torch.empty(m, n, dtype=dtype)
    gemm.LIBRARIES[name](a, b.t(), out)
    exact = a.double() @ b.double().t()
    bound = k * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs().t())
    assert ((out - exact).abs() <= bound).all()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No choice made yet, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INRFAST_GEMM", raising=False)
    monkeypatch.setattr(gemm, "_chosen", {})
    monkeypatch.setattr(gemm, "_seconds", {})
    monkeypatch.setattr(gemm, "PROBE_ROUNDS", 1)
    return tmp_path


def test_the_choice_is_measured_once_and_cached(fresh, monkeypatch):
    choice = gemm.choose(torch.float32)
    assert choice in gemm.LIBRARIES
    (measured,) = json.loads((fresh / "inrfast" / "gemm.json").read_text()).values()
    assert measured["float32"]["torch"] > 0
    monkeypatch.setattr(gemm, "_probe", lambda *_: pytest.fail("measured again"))
    gemm._chosen.clear()
    assert gemm.choose(torch.float32) == choice


def test_the_fastest_by_the_margin_wins(fresh, monkeypatch):
    monkeypatch.setattr(gemm, "_cores", lambda: 1)
    monkeypatch.setattr(gemm, "_probe", lambda names, dtype: {"torch": 1.0, "numpy": 0.5})
    assert gemm.choose(torch.float64) == "numpy"
    monkeypatch.setattr(gemm, "_probe", lambda names, dtype: {"torch": 1.0, "numpy": 0.95})
    assert gemm.choose(torch.float32) == "torch"


def test_a_library_that_takes_every_core_is_no_choice_for_fewer_threads(fresh, monkeypatch):
    monkeypatch.setattr(gemm, "_probe", lambda names, dtype: {name: 0.1 if name == "numpy" else 1.0 for name in names})
    threads = torch.get_num_threads()
    monkeypatch.setattr(gemm, "_cores", lambda: threads)
    assert gemm.choose(torch.float64) == "numpy"
    gemm._chosen.clear()
    monkeypatch.setattr(gemm, "_cores", lambda: threads + 1)
    assert gemm.choose(torch.float64) == "torch"


def test_a_damaged_cache_and_a_read_only_home_do_not_fail(fresh, monkeypatch):
    (fresh / "inrfast").mkdir()
    (fresh / "inrfast" / "gemm.json").write_text("{half")
    assert gemm.choose(torch.float32) in gemm.LIBRARIES
    gemm._chosen.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert gemm.choose(torch.float32) in gemm.LIBRARIES


def test_the_environment_overrides(fresh, monkeypatch):
    monkeypatch.setenv("INRFAST_GEMM", "numpy")
    assert gemm.choose(torch.float32) == "numpy"
    monkeypatch.setenv("INRFAST_GEMM", "onednn")
    assert gemm.choose(torch.float64) == "torch"  # oneDNN has no fp64
    monkeypatch.setenv("INRFAST_GEMM", "openblass")
    with pytest.raises(ValueError, match="INRFAST_GEMM must be one of"):
        gemm.choose(torch.float32)


@pytest.mark.parametrize("library", sorted(gemm.LIBRARIES))
def test_accumulation_under_every_library(library, monkeypatch):
    monkeypatch.setenv("INRFAST_GEMM", library)
    a, b, out = torch.randn(5, 3), torch.randn(3, 4), torch.ones(5, 4)
    torch.testing.assert_close(gemm.addmm_(out.clone(), a, b), out + a @ b)


def test_report_names_library_and_rates(fresh):
    table = gemm.report()
    assert set(table) == {"float32", "float64"}
    assert all(rate > 0 for rate in table["float32"]["gflops"].values())


def test_bf16_products_are_for_processors_where_they_pay(monkeypatch):
    for gain, expected in ((0.0, True), (1e9, False)):
        monkeypatch.setattr(gemm, "BF16_GAIN", gain)
        assert gemm.multiplies_bf16.__wrapped__() is expected
