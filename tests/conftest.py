"""Settings of all tests: hypothesis without deadlines and the same examples everywhere, kernels interpreted.

Where there is no GPU, Triton interprets its kernels on CPU tensors; the choice must be made before it is imported.

Tests are small, and two threads wait for each other at every operation: most run with one, those whose work is shared
by threads with two. ``OMP_NUM_THREADS`` sets the number for all. Threads that wait give way, since several processes
may run tests at once.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import HealthCheck, settings

from inrfast import seeds
from inrfast.backends import reason_against_package

DRAWN = seeds.drawn
seeds.drawn = lambda: 0  # networks and fits without a seed have the numbers of seed 0, wherever a test stands

AGAINST_TRITON = reason_against_package()
if AGAINST_TRITON is not None:
    collect_ignore = ["kernels", "bench", "ops/test_fused_mlp.py"]  # they import Triton

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile(
    "inrfast",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("inrfast")


THREADED = (
    "tests/linalg/test_pivoted_cholesky.py",
    "tests/ops/test_gram.py",
    "tests/signals/test_render.py",
    "tests/tangent/test_local.py::test_large_grids",
    "tests/tangent/test_local.py::test_recomputed_factors",
    "tests/tangent/test_products.py::test_tiles_of_many_points",
    "tests/test_threads.py",
    "tests/training/test_checkpoint.py",
    "tests/training/engines/test_layerwise.py",
)
"""Beginnings of the names of tests whose work falls to several threads."""


def pytest_runtest_setup(item):
    """Every test draws the same numbers, on the same number of threads, whatever ran before it."""
    torch.manual_seed(0)
    default = 2 if item.nodeid.startswith(THREADED) else 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or default))


def pytest_report_header():
    if AGAINST_TRITON is not None:
        return f"no tests of Triton kernels, some files left out: {AGAINST_TRITON}"


def pytest_collection_modifyitems(items):
    """Skip what runs Triton kernels, by name or where kernels run, if this Triton cannot.

    Names of tests hold no addresses: processes that share the tests must give them the same names.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"give ids= to the parameters of {item.nodeid}: its name holds an address")
        if AGAINST_TRITON is not None and ("triton" in item.nodeid or "device" in item.fixturenames):
            item.add_marker(pytest.mark.skip(reason=AGAINST_TRITON))


@pytest.fixture(scope="session")
def device():
    """Where kernels run: the GPU, or the CPU by interpretation."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def drawn_seeds(monkeypatch):
    """Seeds are drawn from torch's global generator, as users have it."""
    monkeypatch.setattr(seeds, "drawn", DRAWN)


@pytest.fixture
def refused(capsys):
    """Check that a command fails with ``code``, one line on stderr that holds all ``words``, and an empty stdout."""

    from inrfast.cli import main  # slow to import

    def check(argv, *words, code=2):
        assert main([str(word) for word in argv]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1, captured.err
        for word in words:
            assert word in captured.err, captured.err

    return check
