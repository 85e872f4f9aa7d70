"""Fits in "medium" against fits in fp32: ``python bench/medium.py [--out results.json]``.

The same networks, from several starts each, learn three photographs bundled with scikit-image in fp32 by PyTorch and in
"medium": on a GPU by the fused kernels, elsewhere by :class:`Rounded`, the kernels' arithmetic written out for PyTorch,
rounding by rounding (a test holds it to the interpreted kernels, which would take hours). A fit is chaotic: starts that
differ in the twelfth bit end tenths of a decibel apart in fp32 too. So the difference is a mean over starts, with its
standard error.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast.files import write_whole
from inrfast.info import info
from inrfast.metrics import psnr

IMAGES = ("astronaut", "coffee", "chelsea")
NETWORKS: dict[str, dict[str, Any]] = {
    "siren": {"activation": "sine", "init": "siren"},
    "relu, Fourier features": {"activation": "relu", "encoding": inr.RandomFourier(64, 4.0)},
}
BOUND = 0.1
"""Decibels that "medium" may be worse than fp32."""

LARGEST_SCALE = 24


def photograph(name: str, size: int) -> Tensor:
    """Return the middle square of a bundled photograph, (size * size, 3), around 0."""
    from skimage import data, transform

    pixels = getattr(data, name)()
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = transform.resize(pixels[top : top + side, left : left + side], (size, size), anti_aliasing=True)
    return torch.from_numpy(square).float().view(-1, 3) - 0.5


def half(x: Tensor) -> Tensor:
    """Round to fp16."""
    return x.half().float()


def power(mean_square: Tensor) -> Tensor:
    """Return the power of two that brings errors of this mean square near 1."""
    exponents = -(torch.frexp(mean_square).exponent - 1).div(2, rounding_mode="floor")
    return torch.ldexp(torch.ones_like(mean_square), exponents.clamp(-LARGEST_SCALE, LARGEST_SCALE))


class Rounded:
    """The fused step in "medium" by PyTorch, for networks of one shape: the kernels' roundings, fp32 sums.

    Features, slopes and errors between layers are rounded to fp16 where the kernels store them, weights between hidden
    layers where they are copied; coordinates, biases and the head's weight are not.
    """

    def __init__(self, nets: Sequence[inr.INR], coords: Tensor, target: Tensor) -> None:
        self.activations = nets[0].bound_activations
        self.encoded = nets[0].encoding is not None
        inputs = [net.encoding(coords) if net.encoding is not None else coords for net in nets]
        self.inputs = torch.stack(inputs).detach()
        if self.encoded:
            self.inputs = half(self.inputs)
        self.target = target
        self.parameters = [
            torch.stack([getattr(net.layers[k], part).detach() for net in nets])
            for k in range(len(nets[0].layers))
            for part in ("weight", "bias")
        ]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.scale = power(target.square().mean().expand(len(nets)))
        self.steps = 0

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """Return losses (B,) and gradients, and set the scale of the next errors."""
        weights, biases = self.parameters[::2], self.parameters[1::2]
        operands = [w if k in ((0, -1) if not self.encoded else (-1,)) else half(w) for k, w in enumerate(weights)]
        features, slopes, z = [], [], self.inputs
        for weight, bias, activation in zip(operands[:-1], biases[:-1], self.activations, strict=True):
            u = z @ weight.mT + bias.unsqueeze(1)
            z = half(activation.value(u))
            features.append(z)
            slopes.append(half(activation.slope(u)))
        error = z @ weights[-1].mT + biases[-1].unsqueeze(1) - self.target
        losses = error.square().mean((1, 2))
        factors = 2 / (self.target.numel() * self.scale)
        scaled = error * self.scale[:, None, None]
        error = half(scaled)
        found = [scaled.sum(1), error.mT @ features[-1]]
        back = (error @ weights[-1]) * slopes[-1]
        for k in range(len(features) - 1, -1, -1):
            error = half(back)
            found += [error.sum(1), error.mT @ (features[k - 1] if k else self.inputs)]
            if k:
                back = (error @ operands[k]) * slopes[k - 1]
        self.scale = power(losses)
        return losses, [g * factors.view(-1, *[1] * (g.ndim - 1)) for g in reversed(found)]

    def step(self, lr: float) -> Tensor:
        """Take a step of Adam; return the losses (B,) before it."""
        losses, gradients = self.gradients()
        self.steps += 1
        first, second = 1 - 0.9**self.steps, math.sqrt(1 - 0.999**self.steps)
        for parameter, gradient, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(mean, (square.sqrt() / second).add_(1e-8), value=-lr / first)
        return losses

    def write(self, nets: Sequence[inr.INR]) -> None:
        """Give the networks their weights."""
        with torch.no_grad():
            for index, net in enumerate(nets):
                for parameter, own in zip(net.parameters(), self.parameters, strict=True):
                    parameter.copy_(own[index])


@torch.no_grad()
def rounded_fits(nets: Sequence[inr.INR], coords: Tensor, target: Tensor, steps: int, lr: float) -> list[float]:
    """Fit networks in "medium" on a CPU; return their PSNRs in full precision."""
    fit = Rounded(nets, coords, target)
    for step in range(steps):
        fit.step(lr * 0.1 ** (step / steps))
    fit.write(nets)
    return [float(psnr(net(coords), target)) for net in nets]


def main() -> int:
    """Fit, compare, print; the result is 1 where "medium" is worse than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels an axis")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {"date": date.today().isoformat(), "device": str(device), "versions": info()["versions"]}
    results |= {name: getattr(chosen, name) for name in ("size", "width", "steps", "starts")} | {"fits": []}
    failed = False
    for image in IMAGES:
        target = photograph(image, chosen.size).to(device)
        coords = inr.grid((chosen.size, chosen.size), device=device)
        for name, options in NETWORKS.items():
            begin = time.perf_counter()
            nets = [
                inr.INR(2, 3, width=chosen.width, hidden_layers=3, device=device, seed=seed, **options)
                for seed in range(chosen.starts)
            ]
            twins = copy.deepcopy(nets)
            settings: dict[str, Any] = {"steps": chosen.steps, "seed": 0, "lr": 1e-3, "eval_every": chosen.steps}
            fp32 = [r.psnr for r in inr.fit_many(nets, coords, target, backend="torch", progress=False, **settings)]
            if device.type == "cuda":
                fits = inr.fit_many(twins, coords, target, precision="medium", progress=False, **settings)
                medium = [result.psnr for result in fits]
            else:
                medium = rounded_fits(twins, coords, target, chosen.steps, 1e-3)
            apart = [own - other for own, other in zip(medium, fp32, strict=True)]
            mean, error = statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(chosen.starts)
            row = {"image": image, "network": name, "fp32": fp32, "medium": medium}
            row |= {"difference": mean, "standard error": error}
            failed |= mean < -BOUND
            results["fits"].append(row)
            print(
                f"{image:10} {name:24} fp32 {statistics.fmean(fp32):.3f} dB, medium {mean:+.3f} +- {error:.3f} "
                f"(may be {-BOUND}), {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
            if chosen.out:
                write_whole(chosen.out, json.dumps(results, indent=1).encode() + b"\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
