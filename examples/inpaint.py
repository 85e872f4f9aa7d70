"""Fit the known half of an image and measure the other half; with a checkpoint to go on from."""

import sys
from pathlib import Path

import torch

import inrfast as inr
from inrfast.signals.image import astronaut
from inrfast.training.callbacks import TrackNTK

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
image = astronaut(64) - 0.5
known = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.5
net = inr.INR(2, 3, width=128, encoding=inr.RandomFourier(64, 3.0))
tracker = TrackNTK(points=256, every=50)
result = inr.fit(
    net,
    inr.grid((64, 64)),
    image,
    weight=known,
    eval_target=image,  # the whole image, the missing pixels included
    steps=steps,
    callbacks=[tracker],
    checkpoint=Path("inpaint.safetensors"),
    resume=True,
)
print(f"{result.psnr:.2f} dB on all pixels after {result.steps} steps, best {result.best_psnr:.2f}")
for entry in tracker.history:
    ranks = ", ".join(f"{rank} at {rank.rtol:g}" for rank in entry.ranks)
    print(f"step {entry.step}: rank of the tangent kernel {ranks} ({entry.seconds:.2f} s)")
