"""Cure a ReLU field of your own: one line before training, on the box that its coordinates lie in.

python examples/fix_my_relu_field.py [steps]

Prints, for torch's start and for the rank-expanding one, the rank of the first layer's output, that of the tangent
kernel, and the PSNR after as many steps of training.
"""

import sys

import torch
from torch import nn

import inrfast as inr
from inrfast.signals.image import astronaut

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
image = astronaut(48, grey=True) - 0.5
coords = inr.grid((48, 48), bounds=(0, 1))

for start in ("torch's start", "rank-expanding"):
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
    if start == "rank-expanding":
        print(inr.init.apply_(field, "rank_expanding", coords=coords))
    first = inr.representation(field, coords, "0", rtols=(1e-3,)).spectrum.ranks[0]
    kernel = inr.ntk(field, coords[::4]).spectrum(rtol=1e-3).rank(1e-3)
    psnr = inr.fit(field, coords, image, steps=steps).psnr
    print(f"{start}: first layer's rank {first} of 128, NTK's rank {kernel} of {len(coords[::4])}, {psnr:.2f} dB")
