"""The methods that the paper compares: one network each, 2-D coordinates or others, with the settings left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from inrfast.encodings import Encoding, PositionalEncoding, RandomFourier
from inrfast.nn import INR

WIDTH, HIDDEN_LAYERS = 256, 3


@dataclass(frozen=True)
class Method:
    """A network of the paper's comparison.

    Attributes
    ----------
    name
        As options and files spell it.
    label
        As figures and tables spell it.
    options
        Of :class:`inrfast.INR`; ``"encoding"`` is a dict as JSON holds it: ``{"kind": "random_fourier", "count": 128,
        "sigma": 10.0}`` or ``{"kind": "positional", "count": 10}``.
    colour, dashed
        Of its curve. Dashed: the method acts on the first layer only, all others are standard ReLU layers.
    """

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    colour: str = "#000000"
    dashed: bool = False

    def network(
        self,
        inputs: int,
        outputs: int,
        seed: int,
        width: int = WIDTH,
        hidden_layers: int = HIDDEN_LAYERS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> INR:
        """Return the network ``inputs -> width x hidden_layers -> outputs``."""
        options = dict(self.options)
        encoding = options.pop("encoding", None)
        made = None if encoding is None else _encoding(encoding)
        return INR(
            inputs, outputs, width=width, hidden_layers=hidden_layers, encoding=made, seed=seed, device=device,
            dtype=dtype, **options,
        )  # fmt: skip

    def but(self, **options: Any) -> Method:
        """Return the method with other options."""
        return replace(self, options={**self.options, **options})

    @property
    def told(self) -> str:
        """What the paper leaves open of the method, in words made from its options: a variant's hold its own alone."""
        kinds = (_told_encoding, _told_sine, _told_norm, _told_init)
        return ", ".join(filter(None, (told(self.options) for told in kinds)))


def _told_encoding(options: Mapping[str, Any]) -> str:
    encoding = options.get("encoding")
    if encoding is None:
        return ""
    if encoding["kind"] == "random_fourier":
        return f"{encoding['count']} random Fourier frequencies, sigma {encoding['sigma']:g} on [-1, 1]"
    return f"positional encoding of {encoding['count']} octaves on [-1, 1]"


def _told_sine(options: Mapping[str, Any]) -> str:
    activation = options.get("activation", "relu")
    if activation == "sine":
        return f"omega {options['omega']:g} in all layers"
    if isinstance(activation, Mapping):
        return f"omega {options['omega']:g} in the first layer, then ReLU layers"
    return ""


def _told_norm(options: Mapping[str, Any]) -> str:
    norm = options.get("norm")
    if norm is None:
        return ""
    side = "after" if options["norm_position"] == "post" else "before"
    where = f"{side} each activation" if norm == "batch" else f"{side} the first activation"
    return f"norm {where}, statistics of the whole grid"


INITS = {"default": "torch's default init", "kaiming": "He init", "xavier": "Xavier init", "siren": "SIREN's init"}


def _told_init(options: Mapping[str, Any]) -> str:
    init = options.get("init", "default")
    if init == "rank_expanding":
        init = {"first": init, "hidden": "default"}
    if not isinstance(init, Mapping):
        return f"{INITS[init]} in all layers"
    first = init["first"]
    gain = first.get("gain", 1.0) if isinstance(first, Mapping) else 1.0
    name = first["name"] if isinstance(first, Mapping) else first
    told = f"our init with eps 1e-3 and gain {gain:g}" if name == "rank_expanding" else INITS[name]
    return f"{told} in the first layer, {INITS[init['hidden']]} in the others"


def _encoding(given: Mapping[str, Any]) -> Encoding:
    if given["kind"] == "random_fourier":
        return RandomFourier(given["count"], given["sigma"])
    return PositionalEncoding(given["count"])


DEFAULT = Method("default", "ReLU (default init)", {}, "#000000")
OURS = Method("ours", "ReLU (our init)", {"init": "rank_expanding"}, "#CC79A7")
PE = Method("pe", "PE", {"encoding": {"kind": "random_fourier", "count": 128, "sigma": 10.0}}, "#009E73")
BN = Method("bn", "BN", {"norm": "batch", "norm_position": "post"}, "#E69F00")
SIREN = Method("siren", "SIREN", {"activation": "sine", "omega": 30.0, "init": "siren"}, "#0072B2")
BN_FIRST = replace(BN, name="bn-first", label="BN, first layer", dashed=True).but(norm=["batch", None, None])
SIREN_FIRST = replace(SIREN, name="siren-first", label="SIREN, first layer", dashed=True).but(
    activation={"first": "sine", "hidden": "relu"}, init={"first": "siren", "hidden": "default"}
)

METHODS = {method.name: method for method in (DEFAULT, OURS, PE, BN, SIREN, BN_FIRST, SIREN_FIRST)}
"""The methods by name, with the settings of the method's own paper where this one is silent."""
