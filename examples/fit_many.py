"""Fit eight networks at once, each with its own start and learning rate, and stop each where it is good enough."""

import sys

import inrfast as inr
from inrfast.signals.image import astronaut

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
image = astronaut(64, grey=True) - 0.5
coords = inr.grid((64, 64))
rates = [1e-3 * 1.5**k for k in range(8)]
nets = [inr.INR(2, 1, width=64, activation="sine", init="siren", seed=seed) for seed in range(len(rates))]
results = inr.fit_many(nets, coords, image, steps=steps, lr=rates, target_psnr=40.0, patience=10)
for rate, result in zip(rates, results, strict=True):
    print(f"lr {rate:.2e}: {result.psnr:6.2f} dB after {result.steps} steps ({result.stopped})")
