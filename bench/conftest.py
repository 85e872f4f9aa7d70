"""What the results name beside the machine: the versions that made them."""

from __future__ import annotations

from typing import Any

import torch

from inrfast.info import info


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add versions and the number of threads (a hook of pytest-benchmark)."""
    machine_info["versions"] = info()["versions"]
    machine_info["threads"] = torch.get_num_threads()
