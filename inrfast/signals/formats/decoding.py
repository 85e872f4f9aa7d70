"""One way out for whatever a decoder raises when it meets a damaged file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inrfast.words import one_line

LONGEST = 200
"""Letters of a decoder's own words that are handed on."""


@contextmanager
def decoding(file: Path, fault: str = "is truncated, damaged or too large to decode") -> Iterator[None]:
    """Turn any exception into a ValueError that names the file, says its ``fault`` and hands on the decoder's words.

    Decoders meet damage in their own ways, and new ones with each version: no list of exceptions would be complete.
    Nothing but a decoder's own call belongs inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error here, and names the file
            yield
    except Exception as error:
        words = one_line(" ".join(str(error).split()) or type(error).__name__, LONGEST)
        raise ValueError(f"{file} {fault}: {words}") from error
