"""Fits in "medium" against fits in fp32: ``python bench/medium.py [--out results.json]``.

The same networks learn three photographs bundled with scikit-image in fp32 by PyTorch, in fp64 (how far rounding alone
takes a fit), and by the fused kernels in "medium". On a GPU the kernels run there, else Triton interprets them on the
CPU, in tiles as large as the image: the arithmetic is the same, and Python has less to do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import inrfast as inr
from inrfast.files import write_whole
from inrfast.info import info
from inrfast.kernels import fused_mlp as kernels

IMAGES = ("astronaut", "coffee", "chelsea")
NETWORKS: dict[str, dict[str, Any]] = {
    "siren": {"activation": "sine", "init": "siren"},
    "relu, Fourier features": {"activation": "relu", "encoding": inr.RandomFourier(64, 4.0)},
}
BOUND = 0.1
"""Decibels that "medium" may differ from fp32 by."""


def photograph(name: str, size: int) -> torch.Tensor:
    """Return the middle square of a bundled photograph, (size, size, 3), around 0."""
    from skimage import data, transform

    pixels = getattr(data, name)()
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = transform.resize(pixels[top : top + side, left : left + side], (size, size), anti_aliasing=True)
    return torch.from_numpy(square).float() - 0.5


def large_tiles(points: int, width: int) -> None:
    """Give interpreted kernels tiles of all points."""
    rows = min(1 << (points - 1).bit_length(), (1 << 20) // width)
    for table in (kernels.LARGE, kernels.LARGE_ON_CHIP, kernels.WEIGHT_GRADIENTS):
        for kind in table:
            terms = width if table is not kernels.WEIGHT_GRADIENTS else rows
            tile = rows if table is not kernels.WEIGHT_GRADIENTS else width
            table[kind] = kernels.Config(tile, width, terms, 4, 1)
    kernels.BLOCK, kernels.PARTS = 1 << 14, 1


def main() -> int:
    """Fit, compare, print; the result is 1 where "medium" is further from fp32 than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels an axis")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        large_tiles(chosen.size**2, chosen.width)
    results: dict[str, Any] = {"date": date.today().isoformat(), "device": str(device), "versions": info()["versions"]}
    results |= {"size": chosen.size, "width": chosen.width, "steps": chosen.steps, "fits": []}
    failed = False
    for image in IMAGES:
        target = photograph(image, chosen.size).to(device)
        coords = inr.grid((chosen.size, chosen.size), device=device)
        for name, options in NETWORKS.items():
            row: dict[str, Any] = {"image": image, "network": name}
            for precision, backend in (("high", "torch"), ("highest", "torch"), ("medium", "triton")):
                dtype = torch.float64 if precision == "highest" else torch.float32
                net = inr.INR(2, 3, width=chosen.width, hidden_layers=3, device=device, **options).to(dtype)
                begin = time.perf_counter()
                result = inr.fit(
                    net, coords.to(dtype), target.to(dtype), steps=chosen.steps, lr=1e-3, precision=precision,
                    backend=backend, eval_every=chosen.steps, progress=False,
                )  # fmt: skip
                row[precision] = result.psnr
                row[f"{precision}, seconds"] = time.perf_counter() - begin
            row["difference"] = row["medium"] - row["high"]
            failed |= abs(row["difference"]) > BOUND
            results["fits"].append(row)
            print(
                f"{image:10} {name:24} fp32 {row['high']:.3f} dB, fp64 {row['highest'] - row['high']:+.3f}, "
                f"medium {row['difference']:+.3f} (bound {BOUND}), {row['medium, seconds']:.0f} s",
                flush=True,
            )
            if chosen.out:
                write_whole(chosen.out, json.dumps(results, indent=1).encode() + b"\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
