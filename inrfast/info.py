"""What is installed, how the native extension was built, and which backends run here: ``python -m inrfast.info``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from inrfast import backends
from inrfast.errors import NotAvailableError
from inrfast.extension import load_cuda, load_extension, native_variant
from inrfast.ops import gemm, mlp_step

PACKAGES = ("inrfast", "torch", "triton", "numpy", "scipy")


def info() -> dict[str, Any]:
    """Return versions, the extension's build, devices, backends and the choice of GEMM, as plain JSON data.

    Keys: ``versions``, ``extension`` (``asked``: the value of ``INRFAST_NATIVE``; ``available``, then ``build`` or
    ``reason``; the same of its ``CUDA half``), ``cpu``, ``gpus`` (names), ``backends`` (for each device type here, each
    backend: ``available``, or the reason why not), ``gemm`` and ``fit`` (whether the CPU has a native step, by which
    instructions, or why ``INRFAST_NATIVE`` cannot have its way, and whether bfloat16 products pay).
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "torch": str(torch.__version__),  # names the build too, as in 2.8.0+cu128
        },
        "extension": _extension(),
        "cpu": {"model": gemm.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "gpus": gpus,
        "backends": {device: backends.report(device) for device in ("cpu", *(["cuda"] if gpus else []))},
        "gemm": gemm.report(),
        "fit": {"native step": _native_step(), "bf16 pays": gemm.multiplies_bf16()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print :func:`info` for a reader, or as JSON with ``--json``; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m inrfast.info", description="Say what is installed, what was built, and what runs here."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    arguments = parser.parse_args(argv)
    found = info()
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    return 0


def render(found: dict[str, Any]) -> str:
    """Return the text of :func:`info`'s result: a title for each part, a line for each entry."""
    lines: list[str] = []
    for title, part in found.items():
        lines.append(title)
        lines += [f"  {line}" for line in _entries(part)]
    return "\n".join(lines)


def _entries(part: Any) -> list[str]:
    """Return the lines of one part, deeper mappings indented under their key."""
    if isinstance(part, dict):
        lines: list[str] = []
        for key, value in part.items():
            if isinstance(value, dict):
                lines += [str(key), *(f"  {line}" for line in _entries(value))]
            else:
                lines.append(f"{key:<11} {_word(value)}")
        return lines
    if isinstance(part, list):
        return [_word(entry) for entry in part] or ["none"]
    return [_word(part)]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extension() -> dict[str, Any]:
    return {"asked": native_variant(), **_module(load_extension), "CUDA half": _module(load_cuda)}


def _module(load: Callable[[], ModuleType]) -> dict[str, Any]:
    """Return whether a native module is there, and how it was built or why it is not."""
    try:
        return {"available": True, "build": load().build_info()}
    except NotAvailableError as error:
        return {"available": False, "reason": str(error)}


def _native_step() -> str | None:
    try:
        return mlp_step.instructions() or None
    except NotAvailableError as error:
        return f"none: {error}"


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it ends quietly where nobody reads on, as behind "| head"
    sys.exit(main())
