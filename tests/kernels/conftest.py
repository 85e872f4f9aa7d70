"""The compilation of all kernels for GPUs: some minutes of one core, beside the other tests.

Most tests run on one thread, so another core is free. The tests that wait for the result run last.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[2] / "bench" / "kernel_report.py"
RUNNING = pytest.StashKey()


def waits(item):
    return "compiled_kernels" in item.fixturenames


def pytest_collection_modifyitems(items):
    items.sort(key=waits)


def pytest_collection_finish(session):
    """Start in a process of its own: kernels that Triton interprets cannot be compiled."""
    if session.config.option.collectonly or not any(map(waits, session.items)):
        return
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed with the session)
    command = [sys.executable, "-W", "ignore", str(REPORT), "--gates", "--processes", "1"]
    process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
    session.config.stash[RUNNING] = process, output, errors


def pytest_sessionfinish(session):
    if RUNNING in session.config.stash:
        process, *files = session.config.stash[RUNNING]
        process.kill()
        process.wait()
        for file in files:
            file.close()


@pytest.fixture(scope="session")
def compiled_kernels(request):
    """The rows of the report on the kernels, those of the gates."""
    process, output, errors = request.config.stash[RUNNING]
    process.wait()
    output.seek(0)
    errors.seek(0)
    content = output.read()
    assert content, errors.read().decode()
    return json.loads(content)
