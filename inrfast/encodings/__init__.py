"""Input encodings: maps of the coordinates before the first layer, one file each; fixed, trained or composed."""

from inrfast.encodings.base import ENCODINGS, Encoding, built, described, encoding_of, from_config, is_own, register
from inrfast.encodings.composed import Compose, Concatenate, Identity
from inrfast.encodings.hash_grid import HashGrid
from inrfast.encodings.polynomial import Polynomial
from inrfast.encodings.positional import PositionalEncoding
from inrfast.encodings.random_fourier import RandomFourier

__all__ = [
    "ENCODINGS",
    "Compose",
    "Concatenate",
    "Encoding",
    "HashGrid",
    "Identity",
    "Polynomial",
    "PositionalEncoding",
    "RandomFourier",
    "built",
    "described",
    "encoding_of",
    "from_config",
    "is_own",
    "register",
]
