"""Sweep the frequency omega of a SIREN: all networks are trained together, as fast as their sizes allow.

python examples/sweep_omega.py [steps]

Half of the pixels are fitted. Prints, for each omega, the PSNR on those and on the other half: too large an omega fits
what it sees and invents the rest.
"""

import sys

import torch

import inrfast as inr
from inrfast.metrics import psnr
from inrfast.signals.image import astronaut

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
image = astronaut(48, grey=True).reshape(-1, 1) - 0.5
coords = inr.grid((48, 48))
known = torch.rand(len(coords), generator=torch.Generator().manual_seed(0)) < 0.5
omegas = [2.0, 5.0, 10.0, 20.0, 40.0, 80.0]
nets = [inr.INR(2, 1, width=64, hidden_layers=2, activation="sine", omega=own, init="siren", seed=0) for own in omegas]
results = inr.fit_many(nets, coords[known], image[known], steps=steps, lr=2e-3, data_range=1.0, seed=0)
for omega, net, result in zip(omegas, nets, results, strict=True):
    with torch.no_grad():
        unseen = psnr(net(coords[~known]), image[~known], 1.0)
    print(f"omega {omega:4.0f}: {result.psnr:6.2f} dB on the pixels it saw, {unseen:6.2f} dB on the others")
