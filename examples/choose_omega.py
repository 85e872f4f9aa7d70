"""Choose the frequency omega of a SIREN before training: what gradient descent will do follows from the kernel.

python examples/choose_omega.py [steps of gradient descent]

With the eigenvectors of the tangent kernel, s.predict gives the outputs after any number of steps at once. Half of the
pixels are known; the kernel between these and the others carries the prediction over. Prints, for each omega, the PSNR
predicted on both halves, then the omega to take. (inr.choose does this for whole networks, with a check by training.)
"""

import sys

import torch

import inrfast as inr
from inrfast.metrics import psnr
from inrfast.signals.image import astronaut

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
image = astronaut(32, grey=True).reshape(-1, 1).double() - 0.5
coords = inr.grid((32, 32), dtype=torch.float64)
known = torch.rand(len(coords), generator=torch.Generator().manual_seed(0)) < 0.5
found: dict[float, float] = {}
for omega in (2.0, 5.0, 10.0, 20.0, 40.0, 80.0):
    net = inr.INR(2, 1, width=64, hidden_layers=2, activation="sine", omega=omega, init="siren", dtype=torch.float64)
    with torch.no_grad():
        before = net(coords)
    K = inr.ntk(net, coords[known], precision="highest")
    s = K.spectrum(eigenvectors=True)
    after = s.predict(image[known], before[known], lr=1 / float(s.eigenvalues[0]), steps=steps)
    # The change at the known pixels is K times weights; the same weights change the others.
    weights = K.solve(after - before[known], ridge=1e-9 * K.trace())
    others = before[~known] + inr.ntk(net, coords[~known], coords[known], precision="highest") @ weights
    found[omega] = psnr(others, image[~known], 1.0)
    seen = psnr(after, image[known], 1.0)
    print(f"omega {omega:4.0f}: {seen:6.2f} dB on known pixels, {found[omega]:6.2f} on others")
print(f"take omega {max(found, key=lambda omega: found[omega]):g}")
