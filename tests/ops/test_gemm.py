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


@given(
    st.sampled_from(sorted(gemm.LIBRARIES)),
    st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([torch.float32, torch.float64]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([1.0, -1.0, 0.3]),
)
def test_every_library_adds_products_of_operands_in_any_layout(name, sizes, dtype, layouts, alpha):
    """Transposed operands, operands and sums with gaps between their rows; sizes that fill no vector."""
    if not gemm._works(name, dtype):
        return
    m, n, k = sizes

    def operand(rows, columns, transposed, gap):
        full = torch.randn(columns if transposed else rows, (rows if transposed else columns) + 5 * gap, dtype=dtype)
        own = full[:, : rows if transposed else columns]
        return own.t() if transposed else own

    a, b = operand(m, k, layouts[0], layouts[2]), operand(k, n, layouts[1], layouts[2])
    out = operand(m, n, False, layouts[2])
    exact = out.double() + alpha * (a.double() @ b.double())
    bound = 2 * (k + 2) * torch.finfo(dtype).eps * (out.double().abs() + a.double().abs() @ b.double().abs())
    before = dict(gemm._forced)
    gemm._forced[dtype, torch.get_num_threads()] = name
    try:
        product = gemm.product(a, b)
        gemm.addmm_(out, a, b, alpha)
    finally:
        gemm._forced.clear()
        gemm._forced.update(before)
    assert ((out - exact).abs() <= bound).all()
    assert ((product - a.double() @ b.double()).abs() <= bound).all()


class Machine:
    """A machine of a test: a clock, what each library takes, and how often all were measured."""

    def __init__(self) -> None:
        self.now, self.measured, self.seconds, self.load = 1e9, 0, {"torch": 1.0, "numpy": 0.5}, 0.0

    def probe(self, names, dtype):
        self.measured += 1
        return {name: self.seconds[name] for name in names if name in self.seconds}

    def again(self) -> int:
        """Choose as a new process does, and return how often libraries were measured for it."""
        before = self.measured
        gemm._chosen.clear()
        expected = min(self.seconds, key=self.seconds.get)
        assert gemm.choose(torch.float64) == expected
        return self.measured - before


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No choice made yet, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INRFAST_GEMM", raising=False)
    monkeypatch.setattr(gemm, "_chosen", {})
    monkeypatch.setattr(gemm, "_seconds", {})
    monkeypatch.setattr(gemm, "PROBE_ROUNDS", 1)
    return tmp_path


@pytest.fixture
def machine(fresh, monkeypatch):
    machine = Machine()
    monkeypatch.setattr(gemm, "_cores", lambda: 1)
    monkeypatch.setattr(gemm.os, "getloadavg", lambda: (machine.load, 0.0, 0.0))
    monkeypatch.setattr(gemm.time, "time", lambda: machine.now)
    monkeypatch.setattr(gemm, "_probe", machine.probe)
    monkeypatch.setattr(gemm._Tile, "best_seconds", lambda tile, name: machine.seconds[name])
    return machine


def test_the_choice_is_measured_and_cached(fresh, monkeypatch):
    choice = gemm.choose(torch.float32)
    assert choice in gemm.LIBRARIES
    (measured,) = json.loads((fresh / "inrfast" / "gemm.json").read_text()).values()
    assert measured["float32"]["torch"] > 0
    monkeypatch.setattr(gemm, "_probe", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(gemm, "MAX_DRIFT", 1e9)
    gemm._chosen.clear()
    assert gemm.choose(torch.float32) == choice


def test_it_is_measured_again_when_it_is_old(machine):
    assert machine.again() == 1
    machine.now += 0.99 * gemm.MAX_AGE
    assert machine.again() == 0
    machine.now += 0.02 * gemm.MAX_AGE
    assert machine.again() == 1
    machine.now -= 10.0  # a clock that was set back says nothing about the age
    assert machine.again() == 1
    machine.load, machine.now = 0.9, machine.now + 1.01 * gemm.MAX_AGE
    assert machine.again() == 1
    machine.now += 1.01 * gemm.MAX_AGE_BUSY
    assert machine.again() == 1


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_it_is_measured_again_when_the_chosen_library_is_much_slower_or_faster(machine, factor):
    assert machine.again() == 1
    machine.seconds["numpy"] *= factor
    assert machine.again() == (factor in (0.5, 2.0))
    assert machine.again() == 0
    machine.seconds = {"torch": 9.0, "numpy": 99.0}  # torch wins now
    assert machine.again() == 1


def test_it_is_measured_again_when_a_library_or_what_steers_it_changed(machine, monkeypatch):
    assert machine.again() == 1
    for change in (
        lambda: monkeypatch.setattr(torch, "__version__", "99.0"),
        lambda: monkeypatch.setattr(gemm.np, "__version__", "99.0"),
        lambda: monkeypatch.setattr(gemm, "_numpy_blas", lambda: "another 1.0"),
        *(lambda name=name: monkeypatch.setenv(name, "another") for name in gemm.STEERED_BY),
    ):
        change()
        assert machine.again() == 1
        assert machine.again() == 0


FORMER = {"float32": {"torch": 1.0}, "float64": {"torch": 1.0, "numpy": 0.5}}


@pytest.mark.parametrize(
    "entry",
    [
        FORMER,  # without a time
        {**FORMER, "valid until": 3},
        {**FORMER, "valid until": {"float64": "soon"}},
        {"float64": 3, "valid until": {"float64": 1e9 + 1}},
        {"float64": {"torch": None}, "valid until": {"float64": 1e9 + 1}},
        {"float64": {"numpy": 1.0}, "valid until": {"float64": 1e9 + 1}},
        7,
        None,
    ],
)
def test_a_cache_of_another_form_is_measured_again(machine, fresh, entry):
    file = fresh / "inrfast" / "gemm.json"
    file.parent.mkdir()
    file.write_text(json.dumps({gemm._machine(): entry}))
    assert machine.again() == 1
    assert machine.again() == 0
    for whole in ("[]", "null", "{half", ""):
        file.write_text(whole)
        assert machine.again() == 1


def test_numpy_names_its_blas_and_a_numpy_that_does_not_is_no_error(monkeypatch):
    assert gemm._numpy_blas() != "unknown"
    monkeypatch.setattr(gemm.np, "show_config", lambda: None)
    assert gemm._numpy_blas() == "unknown"


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
    monkeypatch.setattr(gemm, "MAX_DRIFT", 1e9)
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
    if not any(gemm._works(library, dtype) for dtype in (torch.float32, torch.float64)):
        pytest.skip(f"{library} does not work here")
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


def test_without_the_private_operator_of_onednn_it_is_no_candidate(fresh, monkeypatch):
    def gone(a, b, out):
        raise AttributeError("no such operator")

    monkeypatch.setitem(gemm.LIBRARIES, "onednn", gone)
    assert "onednn" not in gemm._candidates(torch.float32)
    assert gemm.choose(torch.float32) != "onednn"


@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.sampled_from([1, 2, 4]), st.integers(0, 2**31),
)  # fmt: skip
def test_sums_over_rows_are_those_of_fp64_in_one_part_or_several(k, p, q, each, dtype, parts, seed):
    rng = torch.Generator().manual_seed(seed)
    n = each * parts
    a, b = (torch.randn(k, n, width, generator=rng, dtype=torch.float64).to(dtype) for width in (p, q))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "row_parts", lambda *_: parts)
        found = gemm.summed_over_rows(a, b).double()
    exact = a.double().mT @ b.double()
    allowed = (n + parts + 2) * torch.finfo(dtype).eps * (a.double().abs().mT @ b.double().abs())
    assert bool(((found - exact).abs() <= allowed + 1e-300).all())


@given(st.integers(1, 300), st.integers(1, 2**20))
def test_rows_are_divided_into_equal_parts_on_a_gpu_alone(k, n):
    parts = gemm.row_parts(k, n, torch.device("cuda"))
    assert n % parts == 0
    assert parts == 1 or (n // parts >= gemm.ROWS_AT_ONCE and k * parts < 2 * gemm.PRODUCTS_AT_ONCE)
    assert gemm.row_parts(k, n, torch.device("cpu")) == 1
