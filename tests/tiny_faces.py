"""The smallest sizes at which the figures with faces run, and weights in the form of the authors' arrays."""

from unittest import mock

import numpy as np

from inrfast.experiments.inr_dictionaries import starts

TINY = starts.Sizes(
    side=9, fine_side=11, fine_atoms=30, width=8, hidden_layers=3, learned=8, held_out=6, meta_steps=4, meta_lr=1e-3,
    batch=3, single_steps=(2, 5), singles=2, long_steps=12, target_steps=6,
)  # fmt: skip


def tiny():
    """Have the quick preset these sizes, for the block."""
    return mock.patch.object(starts, "QUICK", TINY)


def arrays(width=7, layers=3, seed=0):
    """Return random weights of a sine network."""
    draw = np.random.default_rng(seed)
    sizes = [2, *[width] * layers, 1]
    made = {}
    for i in range(layers + 1):
        name = "siren.siren_layer" + (f"_{i}" if i else "") + ".linear."
        made[f"{name}w"] = draw.normal(size=(sizes[i], sizes[i + 1])).astype(np.float32) / 30
        made[f"{name}b"] = draw.normal(size=sizes[i + 1]).astype(np.float32) / 30
    return made
