"""One part of ``bench/gpu.py`` in a process of its own: ``python bench/gpu_part.py NAME --out FILE --results FILE``.

What the part found is in ``--out`` after each figure, so that a crash leaves what came before it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

TINY = {"grid": 5, "width": 64, "repeats": 1}
"""Sizes of a rehearsal by interpretation; compiled kernels take the full width and a grid of as good a divisor."""


def pretend(how: str) -> None:
    """Put the pretend GPU in the place of ``torch.cuda``; must come before anything asks for a device."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if how == "interpret":
        os.environ["TRITON_INTERPRET"] = "1"
    import pretend_gpu

    pretend_gpu.install(how)
    from inrfast import backends
    from inrfast.ops import grid_init

    backends.interpreted = lambda: False  # tensors of the CPU take the CPU's own path
    grid_init.load_cuda = pretend_gpu.without_cuda


def main() -> int:
    """Run the part; its failure is a word in its results, and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="what the parts before this one found")
    parser.add_argument("--seconds", type=float, default=60.0, help="its limit: near it, fewer repeats")
    parser.add_argument("--rehearse", choices=("interpret", "compile"), default="")
    chosen = parser.parse_args()
    deadline = time.monotonic() + 0.7 * chosen.seconds
    warnings.simplefilter("ignore")
    if chosen.rehearse:
        pretend(chosen.rehearse)
    import gpu_bench
    import gpu_parts
    import torch

    torch.set_num_threads(1 if chosen.rehearse else min(8, os.cpu_count() or 1))
    sizes = {"grid": 256, "width": 256, "repeats": 5} | (TINY if chosen.rehearse else {})
    if chosen.rehearse == "compile":
        sizes |= {"grid": 16, "width": 256}
    results = json.loads(chosen.results.read_text()) if chosen.results and chosen.results.exists() else {}
    bench = gpu_bench.Bench(**sizes, rehearsal=chosen.rehearse, deadline=deadline, out=chosen.out, results=results)
    function, arguments = gpu_parts.function_of(chosen.name)
    try:
        function(bench, *arguments)
        torch.cuda.synchronize()
    except Exception as error:
        bench.found["failed"] = f"{type(error).__name__}: {error}"[:2000]
        bench.save()
        raise
    bench.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
