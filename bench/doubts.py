"""Gates and selections that rounding decides, in ordinary networks: how many, and what looking for them costs.

    python bench/doubts.py [--sides 64 256] [--out FILE]

Networks 2-256-256-256-1 of fp32 and fp64 weights, as they start and as fitted to a picture of 64 x 64 in 150 steps, on
grids of both sides: units in doubt, the CPU seconds that the search takes on one thread, and those of a forward pass in
fp64, medians of three, in turns. And what the search adds to ``K.jacobian_error``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast import rounding
from inrfast.doubts import in_doubt
from inrfast.memory import chunks
from inrfast.modes import own_modes
from inrfast.ops.factors import activation_slopes
from inrfast.ops.gemm import processor
from inrfast.tangent.capture import Capture

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank-expanding": {"init": "rank_expanding"},
    "He, 5 hidden layers": {"init": "kaiming", "hidden_layers": 5},
    "sphere norm": {"norm": "sphere"},
    "sphere norm, pre": {"norm": "sphere", "norm_position": "pre"},
    "layer norm, pre": {"norm": "layer", "norm_position": "pre"},
    "batch norm, pre": {"norm": "batch", "norm_position": "pre"},
    "TopK": {"norm": "topk"},
    "random Fourier features": {"encoding": inr.RandomFourier(128, 10.0)},
    "positional encoding": {"encoding": inr.PositionalEncoding(10)},
    "hash grid": {"encoding": inr.encodings.HashGrid()},
    "Fourier filters": {"modulation": "fourier"},
    "Gabor filters, sphere norm": {"modulation": "gabor", "norm": "sphere"},
    "two sine layers below": {"activation": ["sine", "sine", "relu"], "init": "siren"},
}
TRAINED = ("default", "rank-expanding", "sphere norm", "positional encoding", "Fourier filters")


def seconds(calls: list[Callable[[], Any]]) -> list[float]:
    """Return the median CPU seconds of each of some calls, made three times in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(3):
        for own, call in zip(taken, calls, strict=True):
            start = time.process_time()
            call()
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in taken]


def forward(capture: Capture, coords: Tensor) -> None:
    assert capture.modulated_mlp is not None
    for part in chunks(len(coords), 1024):
        activation_slopes(capture.modulated_mlp, capture.inputs(coords[part]), coords=coords[part])


def measured(net: inr.INR, side: int) -> dict[str, Any]:
    coords = inr.grid((side, side), dtype=net.layers[0].weight.dtype)
    if any(isinstance(module, torch.nn.BatchNorm1d) for module in net.norms):
        inr.calibrate_batchnorm_(net, coords)
    capture = Capture(net.eval(), coords)
    mlp, wide = capture.modulated_mlp, coords.double()
    assert mlp is not None
    with own_modes():
        count = len(in_doubt(mlp, capture.inputs, wide))
        looked, passed = seconds([lambda: in_doubt(mlp, capture.inputs, wide), lambda: forward(capture, wide)])
    tables = mlp.encoding is not None
    before = rounding.pass_errors(capture.exact, wide, 1, None, tables).jacobian.sum()
    error = float((capture.pass_errors(wide).jacobian.sum() / before).sqrt())
    return {"in doubt": count, "CPU s": looked, "CPU s of a forward pass": passed, "error, to that without": error}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []

    def add(name: str, net: inr.INR, dtype: torch.dtype, state: str) -> None:
        for side in arguments.sides:
            told = {"network": name, "weights": str(dtype)[6:], "state": state, "points": side * side}
            found.append(told | measured(net, side))
            print(found[-1], flush=True)

    for name, options in KINDS.items():
        for dtype in (torch.float32, torch.float64):
            add(
                name,
                inr.INR(2, 1, width=256, **{"hidden_layers": 3, "seed": 0, **options}, dtype=dtype),
                dtype,
                "start",
            )
    picture = (4 * inr.grid((64, 64))).sin().prod(1).reshape(64, 64) / 2
    for name in TRAINED:
        net = inr.INR(2, 1, width=256, hidden_layers=3, seed=0, **KINDS[name])
        inr.fit(net, inr.grid((64, 64)), picture, steps=150, progress=False, seed=0)
        add(name, net, torch.float32, "fitted")
    if arguments.out is not None:
        record = {"processor": processor(), "threads": 1, "torch": torch.__version__, "networks": found}
        arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
