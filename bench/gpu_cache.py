"""Carrying compiled kernels to a GPU: Triton's cache, made on a machine without one.

``bash bench/gpu.sh --compile`` compiles all that the benchmark launches, for sm_90, into ``OUT/triton-cache``. Copy
that folder with the sources: the benchmark finds it at the same place under its own OUT and compiles nothing.

Triton finds machine code by a hash of: its own files and libtriton.so, the version of ptxas and the architecture, the
kernel's text and that of what it calls with the first line's number, the argument types and constants, the options, and
the environment variables that change code. So the wheel of Triton and the sources must be the same; where they lie does
not matter, but the cache's group files name their parts by absolute paths: :func:`use` rewrites them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def use(folder: Path) -> str:
    """Let Triton keep its cache in ``folder``, carried or new, unless ``TRITON_CACHE_DIR`` says where; say which."""
    if "TRITON_CACHE_DIR" in os.environ:
        folder = Path(os.environ["TRITON_CACHE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    groups = relocate(folder)
    return f"{groups} kernels carried" if groups else "cold"


def relocate(folder: Path) -> int:
    """Let every group file of a cache name its parts where they now lie; return how many kernels are whole."""
    whole = 0
    for group in folder.glob("*/__grp__*.json"):
        try:
            names = json.loads(group.read_text())["child_paths"]
        except (json.JSONDecodeError, KeyError):
            continue
        paths = {name: str(group.parent / name) for name in names}
        whole += all(os.path.exists(path) for path in paths.values())
        if paths != names:
            new = group.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"child_paths": paths}))
            os.replace(new, group)
    return whole
