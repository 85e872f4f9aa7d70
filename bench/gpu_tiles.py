"""Parts of ``bench/gpu.py``: the tiles that ``kernels/tiles.py`` holds as candidates, timed beside those in use."""

from __future__ import annotations

from typing import Any

import torch
from gpu_bench import Bench
from gpu_dense import TARGETS, column_error, kernel

from inrfast import backends
from inrfast.kernels import tiles

PRECISIONS = {"fp16": "medium", "fp16x3": "high", "fp64": "highest"}


def gram(bench: Bench, name: str) -> None:
    """The dense kernel with each tile of one format, the one in use first; each is held to its error before."""
    _, capability, shared = backends.gpu(bench.device)
    key = ("gram_aligned", name, tiles.kind_of(capability, shared))
    precision = PRECISIONS[name]
    K, n = kernel(bench, "relu", precision=precision, backend="triton"), bench.grid**2
    exact = kernel(bench, "relu", precision="highest", backend="torch")
    out = torch.empty(n, n, dtype=K.dtype, device=bench.device)
    in_use = tiles.TILES[key]

    def timed(row: Any) -> dict[str, Any]:
        out.fill_(float("nan"))
        K.to_dense(out=out)
        error = column_error(out, exact)
        bench.check(error <= TARGETS[precision][1], f"error {error:.2e} above {TARGETS[precision][1]:.0e}")
        return bench.seconds(lambda: K.to_dense(out=out), 5) | {"key": key, "row": row, "error": error}

    try:
        for row in (in_use, *tiles.CANDIDATES.get(key, ())):
            if bench.late:
                bench.found["stopped"] = "out of time"
                return
            tiles.TILES[key] = row
            block, warps, stages, copy_engine, _, design, _ = row
            title = f"{block}, {warps} warps, {stages} stages, {design}" + ", copy engine" * copy_engine
            bench.attempt(title, lambda row=row: timed(row))
    finally:
        tiles.TILES[key] = in_use
