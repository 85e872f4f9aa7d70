"""Fig. 3: a sine network fitted to a pure tone, seen on the samples it was fitted to and on twice as many."""

from __future__ import annotations

from typing import ClassVar

import torch

from inrfast.experiments.inr_dictionaries.networks import HIDDEN_OMEGA, siren
from inrfast.experiments.inr_dictionaries.tones import HIDDEN_LAYERS, WIDTH, Tone
from inrfast.nn import INR


class Fig3(Tone):
    """A high and a low frequency of the first layer."""

    name = "fig3"
    title = "Fig. 3: aliasing of a pure tone by sine networks, omega 300 and 30"
    symbol: ClassVar = "omega"
    values: ClassVar = (300.0, 30.0)
    told: ClassVar = (
        f"sine network 1-{WIDTH}-{WIDTH}-1, omega in the first layer, {HIDDEN_OMEGA:g} in the second, biases drawn as "
        "the weights"
    )

    def network(self, value: float, seed: int, device: torch.device) -> INR:
        """See :class:`inrfast.experiments.inr_dictionaries.tones.Tone`."""
        return siren(1, 1, WIDTH, HIDDEN_LAYERS, value, seed, device)
