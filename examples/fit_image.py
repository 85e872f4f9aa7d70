"""Fit a SIREN to a photograph and look at its tangent kernel before and after."""

import sys

import torch

import inrfast as inr
from inrfast.signals.image import astronaut, save_image

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
image = astronaut(64, grey=True)
coords = inr.grid((64, 64))
net = inr.INR(2, 1, width=64, hidden_layers=2, activation="sine", init="siren")
before = inr.ntk(net, coords)  # a snapshot: training the network does not change it
result = inr.fit(net, coords, image - 0.5, steps=steps)
after = inr.ntk(net, coords)
print(f"PSNR {result.psnr:.2f} dB; trace of the NTK {before.trace():.4g} before, {after.trace():.4g} after")
with torch.no_grad():
    save_image(net(coords).reshape(image.shape) + 0.5, "astronaut-siren.png")
