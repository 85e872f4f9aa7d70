"""Kernel regression with a tangent kernel: predict pixels that were never seen, without a training step.

python examples/ntk_regression.py [side of the image]

A wide network that is trained by gradient descent makes the predictions of its kernel's regression. Half of the pixels
are known. Prints the PSNR on the others for several networks, and what guessing the mean of the known ones gives.
A kernel of high rank can fit every known pixel, and that alone predicts no other one: the rank-expanding start may be
worse than torch's here, as the numbers show.
"""

import sys

import torch

import inrfast as inr
from inrfast.metrics import psnr
from inrfast.signals.image import astronaut

side = int(sys.argv[1]) if len(sys.argv) > 1 else 48
image = astronaut(side, grey=True).reshape(-1, 1).double()
coords = inr.grid((side, side), dtype=torch.float64)
known = torch.rand(len(coords), generator=torch.Generator().manual_seed(0)) < 0.5
mean = image[known].mean()
print(f"guess of the mean: {psnr(mean.expand_as(image[~known]), image[~known]):.2f} dB")

networks = {
    "ReLU, torch's start": inr.INR(2, 1, width=128, hidden_layers=2, seed=0),
    "ReLU, rank-expanding": inr.INR(2, 1, width=128, hidden_layers=2, init="rank_expanding", seed=0),
    "SIREN, omega 15": inr.INR(2, 1, width=128, hidden_layers=2, activation="sine", omega=15.0, init="siren", seed=0),
}
for name, net in networks.items():
    K = inr.ntk(net, coords[known], precision="highest")
    weights = K.solve(image[known] - mean, ridge=1e-4 * K.trace() / K.shape[0])
    guess = mean + inr.ntk(net, coords[~known], coords[known], precision="highest") @ weights
    print(f"{name}: {psnr(guess, image[~known]):.2f} dB on {len(guess)} unseen pixels")
