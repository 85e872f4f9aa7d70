"""Parts of ``bench/gpu.py``: what the machine is, and what its libraries reach."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

QUERY = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,driver_version"


def clocks() -> dict[str, str]:
    """Return clocks, power and temperature now, or the reason why they cannot be read."""
    if shutil.which("nvidia-smi") is None:
        return {"not read": "nvidia-smi is not here"}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return {"not read": "nvidia-smi does not answer"}
    values = done.stdout.strip().split(", ")
    return (
        dict(zip(QUERY.split(","), values, strict=False)) if done.returncode == 0 else {"not read": done.stderr[:200]}
    )


def preflight() -> dict[str, Any]:
    """Return what is here; ``"stop"`` is the reason not to go on, and ``"missing"`` what only some parts need."""
    found: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    found["python"] = platform.python_version()
    missing = [tool for tool in ("nvcc", "nvidia-smi") if shutil.which(tool) is None]
    found["missing"] = missing
    driver = Path("/proc/driver/nvidia/version")
    found["driver"] = driver.read_text().splitlines()[0] if driver.exists() else "not known"
    try:
        import torch
    except ImportError as error:
        return found | {"stop": f"torch is not here: {error}", "status": 2}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return found | {"stop": f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU", "status": 3}
    properties: Any = torch.cuda.get_device_properties(0)
    found |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
    found["capability"] = f"{properties.major}.{properties.minor}"
    found["free_bytes"], found["total_bytes"] = torch.cuda.mem_get_info(0)
    try:
        import triton

        found["triton"] = triton.__version__
        from inrfast import backends
    except ImportError as error:
        return found | {"stop": f"not here: {error}", "status": 4}
    reason = backends.reason_against_triton("cuda")
    if reason is not None:
        return found | {"stop": reason, "status": 4}
    found["compiler"] = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or ""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not found["compiler"] or not header.exists():
        lacking = "a C compiler (gcc or clang)" if not found["compiler"] else f"{header}"
        return found | {"stop": f"Triton launches no kernel without {lacking}", "status": 5}
    missing += [name for name in ("pytest", "hypothesis") if not _is_here(name)]
    return found | {"clocks": clocks()}


def _is_here(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def machine(bench: Any) -> None:
    """One large copy, and one large matrix product in each kind of number, through the libraries that are there."""
    import torch

    from inrfast.modes import products

    bench.found["clocks"] = clocks()
    count, n = (1 << 29, 8192) if bench.large else (1 << 12, 16)
    old, new = (torch.randn(count, device=bench.device) for _ in range(2))
    copied = bench.seconds(functools.partial(new.copy_, old))
    bench.found["copy"] = copied | {"bytes_per_second": 2 * old.numel() * old.itemsize / copied["seconds"]}
    del old, new
    for name, dtype in (
        ("fp16", torch.float16), ("bf16", torch.bfloat16), ("tf32", torch.float32), ("fp32", torch.float32),
        ("fp64", torch.float64),
    ):  # fmt: skip
        a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
        with products("high" if name == "tf32" else "highest"):
            bench.found[name] = bench.seconds(lambda a=a, b=b: a @ b)
        bench.found[name]["flops_per_second"] = 2 * n**3 / bench.found[name]["seconds"]
    bench.found["clocks after"] = clocks()


if __name__ == "__main__":
    if sys.argv[1:] == ["pretend"]:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        import pretend_gpu

        pretend_gpu.install("compile")
    print(json.dumps(preflight()))
