"""Fig. 9: a ReLU network behind random Fourier features fitted to a pure tone, as the sine networks of Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from inrfast.encodings import RandomFourier
from inrfast.experiments.inr_dictionaries.networks import ffn
from inrfast.experiments.inr_dictionaries.tones import FS, FS_TEST, HIDDEN_LAYERS, TONE, WIDTH, Tone
from inrfast.nn import INR

COUNT = 128


class Fig9(Tone):
    """A large and a small deviation of the frequencies."""

    name = "fig9"
    title = "Fig. 9: aliasing of a pure tone by Fourier feature networks, sigma 100 and 3"
    symbol: ClassVar = "sigma"
    values: ClassVar = (100.0, 3.0)
    told: ClassVar = (
        f"{COUNT} random Fourier frequencies, then ReLU network {2 * COUNT}-{WIDTH}-{WIDTH}-1, weights N(0, 1/in), "
        "biases zero"
    )

    def network(self, value: float, seed: int, device: torch.device) -> INR:
        """See :class:`inrfast.experiments.inr_dictionaries.tones.Tone`."""
        return ffn(1, 1, WIDTH, HIDDEN_LAYERS, RandomFourier(COUNT, value), seed, device)

    def notes(self) -> Sequence[str]:
        """See :class:`inrfast.experiments.inr_dictionaries.tones.Tone`."""
        return (
            "The paper states neither the number of frequencies nor the initialisation; widths are those of Fig. 3. "
            f"ReLU adds odd harmonics of the tone, such as {3 * TONE} Hz, which lie above {FS // 2} Hz and are seen at "
            f"{FS_TEST} Hz whatever sigma is; they fold to {FS - 3 * TONE} Hz.",
        )
