"""Budgets hold on every public path, measured as a process's own growth, and what is refused says what would do.

The law: a call takes its budget and a constant at most, or raises :class:`MemoryBudgetError`, with a budget or a batch
that then works. The constant is for what Python, its libraries and the allocator take of their own; the C library is
told to give large blocks back at once, since what it keeps of freed ones depends on chance.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from growth import CASES

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.memory import available_bytes, is_refusal, refusals_told, require_free
from inrfast.signals.render import render

CONSTANT = 16 * 10**6
FULL = os.environ.get("INRFAST_FUZZ") == "1"
"""Whether to walk with problems of full size, for minutes."""

SIZE, BUDGETS = ("large", (24, 64, 200)) if FULL else ("small", (8, 20, 50))
NAMES = list(CASES)


class Meter:
    """A process that measures calls in children of its own."""

    def __init__(self):
        here = Path(__file__).parent
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # Else the machine's fastest: torch's (oneDNN) takes some 15 MB that no budget counts, and reports a refused
            # allocation as an error of its own. A known gap, not what is tested here.
            "INRFAST_GEMM": "numpy",
            "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
            "MALLOC_MMAP_THRESHOLD_": str(2**17),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "growth.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, name, budget, options=None, room=None, size=SIZE):
        request = {"name": name, "budget": budget, "size": size, "options": options or {}, "room": room}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def meter():
    made = Meter()
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_call_takes_its_budget_or_names_one_that_does(meter, name):
    tried = False
    # All budgets take a minute: otherwise every call gets the smallest, and one of the others.
    some = BUDGETS if FULL else (BUDGETS[0], BUDGETS[1 + NAMES.index(name) % 2])
    for budget in (million * 10**6 for million in some):
        found = meter(name, budget)
        assert found["growth"] <= budget + CONSTANT, (budget, found)
        if "error" not in found:
            continue
        assert found["kind"] == "MemoryBudgetError", found
        assert found["needed"] is not None, found
        assert found["needed"] > budget
        if tried and not FULL:
            continue
        tried = True
        if found["needed"] < 8 * budget:  # more would take long, and say little
            again = meter(name, found["needed"])
            assert "error" not in again, (budget, found, again)
            assert again["growth"] <= found["needed"] + CONSTANT, (found, again)
        if found["batch"] is not None:
            smaller = meter(name, budget, {"batch_size": found["batch"]})
            assert "error" not in smaller, (budget, found, smaller)
            assert smaller["growth"] <= budget + CONSTANT, (found, smaller)


@pytest.mark.parametrize("name", ["product", "to_dense", "cholesky", "diagnose", "fit_callable", "render_image"])
@pytest.mark.parametrize("budget", [None, 10**13])
def test_memory_that_the_system_refuses_is_an_error_of_the_library(meter, name, budget):
    """With a budget beyond what there is, too: then memory ends on the way."""
    found = meter(name, budget, room=(4 if budget is None else 20) * 10**6)
    assert found.get("kind", "MemoryBudgetError") == "MemoryBudgetError", found


def test_the_compiler_of_torch_is_loaded_for_no_budget():
    """It takes 170 MB, at the first dispatch mode of the usual kind."""
    code = """
import sys
import torch
import inrfast as inr
from growth import CASES
from inrfast.errors import MemoryBudgetError
for name in ("product_highest", "diagonal_sine", "jvp", "fit_pairs", "fit_attention"):
    try:
        CASES[name]("small" if name.startswith("fit") else "tiny")(4 * 10**6)
    except MemoryBudgetError:
        print(name)
assert inr.ntk(inr.INR(2, 3, width=8), inr.grid((6, 6))).jacobian_error > 0
sys.exit("torch._dynamo" in sys.modules)
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert {"fit_pairs", "fit_attention"} <= set(found.stdout.split())


HUGE = {
    "points": lambda: inr.grid((100_000, 100_000)),
    "axis": lambda: inr.grid(10**13),
    "axes": lambda: inr.grid((10**6,) * 6),
    "many axes": lambda: inr.grid((2,) + (1,) * 10**4 + (10**6,) * 3),
    "many long axes": lambda: inr.grid((10**9,) * 10**4),
    "width": lambda: inr.INR(2, 1, width=10**8),
    "absurd width": lambda: inr.INR(2, 1, width=10**5000),
    "layers": lambda: inr.INR(2, 1, width=1000, hidden_layers=10**5),
    "absurd layers": lambda: inr.INR(2, 1, hidden_layers=10**40),
    "outputs": lambda: inr.INR(2, 10**9),
    "inputs": lambda: inr.INR(10**9, 1),
    "fused layer": lambda: inr.nn.FusedLinear(10**6, 10**6),
    "frequencies": lambda: inr.RandomFourier(10**12),
    "columns of frequencies": lambda: inr.INR(2, 1, encoding=inr.RandomFourier(10**8)),
    "octaves": lambda: inr.PositionalEncoding(10**12),
    "degree": lambda: inr.Polynomial(10**12),
    "monomials": lambda: inr.INR(8, 1, encoding=inr.Polynomial(1000)),
    "units": lambda: inr.rank_expanding(10**10, 2),
    "dimensions of units": lambda: inr.rank_expanding(10**6, 10**9),
    "pixels": lambda: render(inr.INR(2, 1, width=4), (10**6, 10**6)),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_no_memory_holds_is_refused_at_once(name):
    start, free = time.perf_counter(), available_bytes()
    with pytest.raises(MemoryBudgetError, match="bytes") as caught:
        HUGE[name]()
    assert time.perf_counter() - start < 2
    assert available_bytes() > free / 2
    assert len(str(caught.value)) < 400


SLOW = {
    "layers": (lambda: inr.INR(2, 1, width=1, hidden_layers=10**6), "hidden_layers"),
    "octaves": (lambda: inr.INR(2, 1, encoding=inr.PositionalEncoding(200)), "octaves"),
    "degree": (lambda: inr.INR(2, 1, width=1, encoding=inr.Polynomial(1100)), "degree"),
    "dimensions": (lambda: inr.rank_expanding(2, 10**6), "in_features"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_would_take_forever_or_overflow_is_refused_at_once(name):
    make, named = SLOW[name]
    start = time.perf_counter()
    with pytest.raises(ValueError, match=named):
        make()
    assert time.perf_counter() - start < 2


def test_large_encodings_are_built_at_once():
    start = time.perf_counter()
    net = inr.INR(2, 1, width=2, encoding=inr.Polynomial(600))
    assert net.encoding.out_features == 601 * 602 // 2
    assert time.perf_counter() - start < 5


def test_refusals_of_every_library_are_told_and_other_errors_pass():
    asked = (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60), lambda: torch.empty(2**62))
    for ask in asked:
        with pytest.raises(MemoryBudgetError, match=r"are free"), refusals_told():
            ask()
    for error in (RuntimeError("shapes differ"), ValueError("memory"), OSError(2, "absent")):
        assert not is_refusal(error)
        with pytest.raises(type(error)), refusals_told():
            raise error


def test_what_fits_half_of_the_free_memory_is_not_refused():
    free = available_bytes()
    require_free(free // 3, "it", "never said")
    with pytest.raises(MemoryBudgetError, match=r"it needs .* bytes\), and half of the memory that is free"):
        require_free(free, "it", "take less")
    sizes = itertools.accumulate(itertools.repeat(10, 3), lambda total, more: total * more, initial=10)
    assert all(inr.grid((n,)).shape == (n, 1) for n in sizes)
