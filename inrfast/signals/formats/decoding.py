"""Turns any exception of a decoder on a damaged file into one kind of error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inrfast.errors import MissingLibraryError
from inrfast.words import one_line

LONGEST = 200
"""Most characters of a decoder's own message that are quoted."""


@contextmanager
def decoding(file: Path, fault: str = "is truncated, damaged or too large to decode") -> Iterator[None]:
    """Turn any exception into a ValueError that names the file, states its ``fault`` and quotes the decoder's message.

    Only that of a missing library stays as it is. Decoders raise all kinds of exceptions on damage, and new ones with
    each version: no list would be complete. Only the call of a decoder belongs inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error that names the file
            yield
    except MissingLibraryError:
        raise
    except Exception as error:
        words = one_line(" ".join(str(error).split()) or type(error).__name__, LONGEST)
        raise ValueError(f"{file} {fault}: {words}") from error
