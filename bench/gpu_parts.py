"""The parts of ``bench/gpu.py`` in the order of their value, each with its limit in seconds; plain data, no torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Part:
    """What runs in one process: ``module.function(bench, *arguments)``, stopped after ``limit`` seconds.

    ``smoke``: it is run beside others, for what it finds right or wrong and not for its time.
    """

    name: str
    call: str
    arguments: tuple[Any, ...] = ()
    limit: float = 40.0
    smoke: bool = False


SMOKES = (
    *(f"dense {a} {p}" for p in ("medium", "high", "highest") for a in ("relu", "sine")),
    "norm",
    "columns",
    *(f"stream {f}" for f in ("fp16", "fp16x3", "fp64")),
    *(f"product {p} of {k}" for p in ("high", "highest") for k in (1, 40)),
    "tangent products",
    "pivots",
    *(f"factor {p}" for p in ("high", "highest")),
    *(f"jacobian {p}" for p in ("high", "highest")),
    *(f"layer {kind}" for kind in ("float16 relu", "bfloat16 sine", "float32 sine")),
    "fit medium",
    "fit high",
    "fit encoded medium",
    "fit normed medium",
    "fit normed high",
    "initialisation",
)

PARTS = (
    *(Part(f"smoke {name}", "gpu_smoke.run", (name,), 75, True) for name in SMOKES),
    Part("machine", "gpu_machine.machine", (), 40),
    *(Part(f"dense relu {p}", "gpu_dense.dense", ("relu", p), 30) for p in ("medium", "high", "highest")),
    Part("rank", "gpu_rank.spectrum", (), 40),
    Part("diagnose", "gpu_rank.diagnose", (), 40),
    *(Part(f"factor {p}", "gpu_factor.factor", (p,), 60) for p in ("highest", "high")),
    Part("certified rank", "gpu_factor.certified", (), 60),
    Part("step 512x512 relu medium", "gpu_fit.step_of_one", (512, "relu", "medium"), 40),
    *(
        Part(f"layer auto {kind} {activation}", "gpu_layers.auto", (kind, activation), 30)
        for kind, activation in (("float16", "relu"), ("float32", "sine"), ("float16", "sine"))
    ),
    *(Part(f"rows {p}", "gpu_rows.rows", (p,), 30) for p in ("high", "highest")),
    Part("fp64 K v", "gpu_rank.products", (), 30),
    *(Part(f"candidates {name}", "gpu_tiles.gram", (name,), 30) for name in ("fp16x3", "fp16", "fp64")),
    *(Part(f"dense rival {name}", "gpu_dense.rival", (name,), 45) for name in ("fp32", "tf32", "compiled", "bf16")),
    *(Part(f"candidates factor {p}", "gpu_factor.candidates", (p,), 75) for p in ("highest", "high")),
    *(
        Part(f"layer {kind} {activation}", "gpu_layers.layer", (kind, activation), 40)
        for kind, activation in (("float16", "sine"), ("float16", "relu"), ("float32", "sine"))
    ),
    Part("factor rival eigvalsh", "gpu_factor.rival", (), 40),
    *(Part(f"dense sine {p}", "gpu_dense.dense", ("sine", p), 40) for p in ("medium", "high")),
    Part("step 512x512 sine medium", "gpu_fit.step_of_one", (512, "sine", "medium"), 60),
    Part("step 512x512 relu high", "gpu_fit.step_of_one", (512, "relu", "high"), 60),
    *(
        Part(f"fits, {name}", "gpu_fit.fits_of_many", (name,), 45)
        for name in ("plain", "normed", "normed pre", "mixed")
    ),
    Part("steps of 100, 64x64 medium", "gpu_fit.step_of_many", (100, 64, "medium"), 45),
    Part("frobenius high", "gpu_dense.frobenius", ("high",), 40),
    Part("products K V high", "gpu_dense.product", ("high",), 45),
    *(Part(f"products {p}", "gpu_rows.products", (p,), 40) for p in ("high", "highest")),
    Part("step 64x64 relu medium", "gpu_fit.step_of_one", (64, "relu", "medium"), 45),
    Part("layer bfloat16 sine", "gpu_layers.layer", ("bfloat16", "sine"), 60),
    Part("torch.func", "gpu_dense.by_torch_func", (), 40),
    Part("candidates K v", "gpu_tiles.tangent", (), 60),
    Part("candidates layer", "gpu_tiles.layer", (), 45),
    *(
        Part(f"candidates step, {name}", "gpu_tiles.step", (name, side), 45)
        for name, side in (("mlp_forward", 512), ("mlp_weight_gradients", 512), ("mlp_on_chip", 64))
    ),
)

LAST_BEFORE_TESTS = "candidates fp64"
"""What comes after this part leaves time for the tests."""

NOT_INTERPRETED = ("bfloat16",)
"""Words of parts that a rehearsal leaves out: Triton's interpreter multiplies the bits of bf16."""


def function_of(name: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """Return the function of a part, and its arguments after the bench."""
    part = next(part for part in PARTS if part.name == name)
    module, function = part.call.split(".")
    return getattr(importlib.import_module(module), function), part.arguments
