"""A fit with a checkpoint after nearly every step, to be killed and run again: ``killed_fit.py FOLDER NAME [SECONDS]``.

Writes the final weights to FOLDER/NAME.final once it ends.
"""

import sys
from pathlib import Path

import torch

import inrfast as inr
from inrfast.ops import gemm

folder, name = Path(sys.argv[1]), sys.argv[2]
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
torch.set_num_threads(1)
coords = inr.grid((30, 30))
target = torch.cat([(3 * coords).sin(), (2 * coords[:, :1] * coords[:, 1:]).cos()], dim=1) / 2
nets = [inr.INR(2, 3, width=48, hidden_layers=2, seed=seed, norm="batch" if seed == 2 else None) for seed in range(3)]
print("started", flush=True)
# Processes may choose other matrix libraries by measurement, and then other digits.
with gemm.forced(torch.float32, {"1": "torch", "2": "torch"}):
    inr.fit_many(
        nets,
        coords,
        target,
        steps=100,
        lr=[1e-3, 2e-3, 3e-3],
        seed=[0, 1, 2],
        batch_size=700,
        checkpoint=folder / f"{name}.safetensors",
        checkpoint_seconds=seconds,
        resume=True,
        progress=False,
    )
torch.save([net.state_dict() for net in nets], folder / f"{name}.tmp")
(folder / f"{name}.tmp").rename(folder / f"{name}.final")
