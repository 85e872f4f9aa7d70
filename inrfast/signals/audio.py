"""Sound: WAV files to float tensors (T, C) in [-1, 1] and back."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from inrfast.errors import check_int, check_tensor
from inrfast.files import whole_file
from inrfast.signals.paths import AUDIO_SUFFIXES, readable, writable

FULL_SCALE = 2**15
"""Of 16-bit samples: the same number on the way in and out, so that they survive both unchanged."""

MOST_CHANNELS, MOST_BYTES = 2**15 - 1, 2**32 - 1
"""What the fields of a WAV header hold: 16 bits for the bytes of a sample of all channels, 32 for bytes a second."""


def load_audio(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Return the sound in a WAV file, fp32 (T, C), and its sampling rate in Hz.

    Parameters
    ----------
    path
        PCM of 8 (unsigned), 16, 24 or 32 bits becomes [-1, 1) by division by its full scale, rounded to fp32 once;
        floating-point samples stay as they are, also beyond [-1, 1] where a file holds such.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, not a WAV file, compressed, truncated, without samples, or holds NaN or Inf.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a WAV")
    rate, samples = _decode(file)
    if samples.size == 0 or rate < 1:
        raise ValueError(f"{file} holds {len(samples)} samples at {rate} Hz: nothing to fit")
    values = torch.from_numpy(_normalised(samples))
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{file} holds NaN or Inf among its samples, or values beyond fp32")
    return values.reshape(len(samples), -1), rate


def save_audio(values: Tensor, path: str | os.PathLike[str], rate: int) -> None:
    """Write a sound as a WAV file with 16 bits a sample; values outside [-1, 1] are clipped. Whole or absent.

    Parameters
    ----------
    values
        Floating tensor (T,) or (T, C), any device. What :func:`load_audio` read from 16 bits is written unchanged.
    path
        Ends in ``.wav``; its folder must exist. An older file is replaced.
    rate
        Samples a second (Hz).

    Raises
    ------
    ValueError, TypeError
        Another shape, NaN or Inf, a rate below 1 or beyond what a WAV header holds, another suffix.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    values = check_tensor("values", values).detach()
    if values.ndim not in (1, 2) or values.shape[-1] > (MOST_CHANNELS if values.ndim == 2 else values.numel()):
        raise ValueError(f"values must have shape (T,) or (T, C) with C <= {MOST_CHANNELS}, got {tuple(values.shape)}")
    rate = check_int("rate", rate, minimum=1)
    sample_bytes = 2 * (values.shape[1] if values.ndim == 2 else 1)
    if rate * sample_bytes > MOST_BYTES:
        raise ValueError(f"rate must be at most {MOST_BYTES // sample_bytes} Hz in a WAV file, got {rate}")
    target = writable(path, "a WAV file", AUDIO_SUFFIXES)
    samples = (values.double() * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)
    with whole_file(target) as opened:
        wavfile.write(opened, rate, samples.cpu().numpy())


def _decode(file: Path) -> tuple[int, np.ndarray[Any, Any]]:
    """Return rate and samples as the file stores them; SciPy puts odd widths (24 bits) in the upper bits of an int."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # of a file that ends early there is no other sign
        warnings.filterwarnings("ignore", "Chunk .non-data. not understood", wavfile.WavFileWarning)  # titles, covers
        try:
            return wavfile.read(file)
        except PermissionError:
            raise
        # SciPy meets damage in its own ways.
        except (ValueError, OSError, EOFError, LookupError, ArithmeticError, NameError, TypeError) as error:
            raise ValueError(f"{file} is not a WAV file that can be read, or damaged: {error}") from error
        except (struct.error, wavfile.WavFileWarning) as error:
            raise ValueError(f"{file} is truncated or damaged: {error}") from error


def _normalised(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return fp32 samples, integers divided by their full scale."""
    if np.issubdtype(samples.dtype, np.floating):
        with np.errstate(over="ignore"):  # the caller refuses what is Inf in fp32
            return samples.astype(np.float32)
    zero = 128 if samples.dtype == np.uint8 else 0
    scale = 128 if samples.dtype == np.uint8 else -float(np.iinfo(samples.dtype).min)
    return ((samples.astype(np.float64) - zero) / scale).astype(np.float32)
