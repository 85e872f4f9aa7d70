"""Settings of all tests: hypothesis without deadlines and the same examples everywhere, kernels interpreted.

Where there is no GPU, Triton interprets its kernels on CPU tensors; the choice must be made before it is imported.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from inrfast.errors import NotAvailableError

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


def pytest_runtest_setup():
    """Every test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip what needs the native extension to compute an initialisation where ``INRFAST_NATIVE`` switches it off."""
    outcome = yield
    if os.environ.get("INRFAST_NATIVE") != "absent" or call.excinfo is None:
        return
    if call.excinfo.errisinstance(NotAvailableError) and call.excinfo.traceback[-2].name == "rank_expanding":
        report = outcome.get_result()
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, "Skipped: needs the native extension")


@pytest.fixture(scope="session")
def device():
    """Where kernels run: the GPU, or the CPU by interpretation."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
