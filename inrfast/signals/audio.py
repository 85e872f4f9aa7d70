"""Sound: WAV, FLAC and Ogg files to float tensors (T, C) in [-1, 1] and back; the kind of signal "audio"."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from inrfast import spelling
from inrfast.errors import check_int, check_tensor, needs
from inrfast.files import whole_file
from inrfast.grids import grid
from inrfast.memory import budget_bytes, require
from inrfast.signals.formats import ogg, wav
from inrfast.signals.formats.decoding import decoding
from inrfast.signals.kinds import SIGNALS, Bounds, Option, Signal, SignalKind, unscaled
from inrfast.signals.paths import readable, writable
from inrfast.signals.views import of_audio

FULL_SCALE = 2**15
"""Full scale of 16-bit samples, for reading and writing, so that a round trip changes nothing."""

READ = (".flac", ".oga", ".ogg", ".opus", ".rf64", ".wav", ".wave")
WRITTEN = (".flac", ".wav")
"""The suffixes of what :func:`load_audio` and :func:`save_audio` take."""

MOST_CHANNELS, MOST_BYTES = 2**15 - 1, 2**32 - 1
"""Limits of a WAV header's fields: 16 bits for the bytes of one sample of all channels, 32 for bytes per second."""

FLAC_CHANNELS, FLAC_RATE = 8, 655350
"""Limits of a FLAC file."""

BLOCK = 2**18
"""Samples that are decoded at a time."""

BLOCK_BYTES = 40
"""Most bytes per sample while a block is decoded: as stored, in the upper bits of an integer, as a float."""


def load_audio(path: str | os.PathLike[str], memory_budget: int | None = None) -> tuple[Tensor, int]:
    """Return the sound in a WAV, FLAC or Ogg file, fp32 (T, C), and its sampling rate in Hz.

    Parameters
    ----------
    path
        WAV (also RIFX, RF64 and BW64), FLAC, or Ogg with Vorbis, Opus or FLAC, by its content. PCM of 8 (unsigned), 16,
        24 or 32 bits becomes [-1, 1) by division by its full scale, rounded to fp32 once; floating-point samples stay
        as they are, also beyond [-1, 1] where a file holds such. A data chunk of unknown size, written to a
        pipe, ends with the file; a wrong total size and bytes after the data are ignored.
    memory_budget
        Bytes that reading may take; None is half of the free memory. The size in the header is checked first.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, no such file, a WAV with compressed samples, truncated or damaged (FLAC states a checksum of
        all samples, Ogg one of each page), without samples, or holds NaN or Inf.
    MemoryBudgetError
        The sound is larger than the budget allows; nothing was decoded.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a sound")
    budget = budget_bytes(memory_budget)
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        start = opened.read(4)
        if start in (b"fLaC", b"OggS"):
            values, rate = _by_soundfile(opened, size, file, budget)
        elif start in wav.BYTE_ORDERS:
            about = wav.header(opened, size, file)
            _check_size(file, about.frames, about.channels, budget)
            with decoding(file):
                values, rate = wav.read(opened, about), about.rate
        elif start.startswith(b"ID3"):
            raise ValueError(f"{file} begins with an ID3 tag, as an MP3 does: it is not a WAV, FLAC or Ogg file")
        else:
            raise ValueError(f"{file} is not a WAV, FLAC or Ogg file")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{file} holds NaN or Inf among its samples, or values beyond fp32")
    return values, rate


def save_audio(values: Tensor, path: str | os.PathLike[str], rate: int) -> None:
    """Write a sound as a WAV or FLAC file with 16 bits per sample; values outside [-1, 1] are clipped. Whole or absent.

    Parameters
    ----------
    values
        Floating tensor (T,) or (T, C), any device. What :func:`load_audio` read from 16 bits is written unchanged.
    path
        Ends in ``.wav`` or ``.flac``; its folder must exist. An older file is replaced.
    rate
        Samples per second (Hz).

    Raises
    ------
    ValueError, TypeError
        Another shape, NaN or Inf, a rate below 1, channels or a rate beyond what the format holds, another suffix.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    values = check_tensor("values", values).detach()
    if values.ndim not in (1, 2) or values.shape[-1] > (MOST_CHANNELS if values.ndim == 2 else values.numel()):
        raise ValueError(f"values must have shape (T,) or (T, C) with C <= {MOST_CHANNELS}, got {tuple(values.shape)}")
    rate = check_int("rate", rate, minimum=1)
    target = writable(path, "a sound", WRITTEN)
    channels = values.shape[1] if values.ndim == 2 else 1
    flac = target.suffix.lower() == ".flac"
    if flac and channels > FLAC_CHANNELS:
        raise ValueError(f"values must have at most {FLAC_CHANNELS} channels in a FLAC file, got {channels}; use .wav")
    most = FLAC_RATE if flac else MOST_BYTES // (2 * channels)
    if rate > most:
        raise ValueError(f"rate must be at most {most} Hz in such a file with {channels} channels, got {rate}")
    samples = (values.double() * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).cpu().numpy()
    with whole_file(target) as opened:
        if flac:
            opened.write(_flac(samples, rate))
        else:
            from scipy.io import wavfile  # slow to import

            wavfile.write(opened, rate, samples)


def _flac(samples: np.ndarray[Any, Any], rate: int) -> bytes:
    with needs("audio", "writing FLAC"):
        import soundfile  # loads a library of its own, for these formats only

    content = io.BytesIO()  # encoded in memory, since the library ignores a full disk
    soundfile.write(content, samples, rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _check_size(file: Path, frames: int, channels: int, budget: int) -> None:
    """Refuse a sound beyond the budget: all samples, one block in progress, a byte per sample to search for NaN."""
    block = BLOCK_BYTES * min(frames * channels, max(BLOCK, channels))
    fit = max(budget - block, 0) // (5 * channels)
    what = f"reading {file} ({frames} samples of {channels} channels)"
    require(5 * frames * channels + block, budget, what, f"{fit} samples fit")


def _by_soundfile(opened: BinaryIO, size: int, file: Path, budget: int) -> tuple[Tensor, int]:
    """Return samples and rate of a FLAC or Ogg file; checksums are verified, since the decoders skip damage."""
    with needs("audio", f"reading {file}"):
        import soundfile  # loads a library of its own, for these formats only

    opened.seek(0)
    start = opened.read(42)
    if start.startswith(b"OggS"):
        require(size, budget, f"reading {file}", "no part of such a file can be read alone")
        ogg.check(start + opened.read(), file)
    opened.seek(0)
    with decoding(file):
        sound = soundfile.SoundFile(opened)
        frames, channels, rate = sound.frames, sound.channels, sound.samplerate
        whole = sound.subtype.startswith("PCM")
    if frames >= 2**62:
        raise ValueError(f"{file} does not state how many samples it holds; encode it again, not to a pipe")
    if frames < 1 or rate < 1:
        raise ValueError(f"{file} holds {frames} samples at {rate} Hz: no sound")
    _check_size(file, frames, channels, budget)
    bits = ((start[20] & 1) << 4 | start[21] >> 4) + 1 if start.startswith(b"fLaC") else 0
    with decoding(file), sound:
        values, checksum = _decoded(sound, whole, bits)
    if len(values) != frames:
        raise ValueError(f"{file} is truncated or damaged: it holds {len(values)} of {frames} samples that it states")
    if bits and any(start[26:42]) and checksum != start[26:42]:
        raise ValueError(f"{file} is damaged: the checksum of its samples is wrong")
    return values, rate


def _decoded(sound: Any, whole: bool, bits: int) -> tuple[Tensor, bytes]:
    """Return the samples of an open file of soundfile, and FLAC's checksum of them.

    ``whole``: samples are integers, of ``bits`` bits in a FLAC file. The checksum is of their bytes, as few per sample
    as hold the bits.
    """
    values, done = torch.empty(sound.frames, sound.channels), 0
    seen = hashlib.md5(usedforsecurity=False)
    dtype, rows = "int32" if whole else "float32", max(BLOCK // sound.channels, 1)
    while len(part := sound.read(rows, dtype=dtype, always_2d=True)):
        if bits:
            numbers = (part >> (32 - bits)).astype("<i4", copy=False).view(np.uint8).reshape(-1, 4)
            seen.update(numbers[:, : (bits + 7) // 8].tobytes())
        if done + len(part) > len(values):
            raise ValueError(f"it holds more than the {len(values)} samples that it states")
        # Integers lie in the upper bits of 32, so that a power of two divides them exactly.
        scaled = part.astype(np.float32) * np.float32(2.0**-31) if whole else part
        values[done : done + len(part)] = torch.from_numpy(scaled)
        done += len(part)
    return values[:done], seen.digest()


# ---- the kind of signal ------------------------------------------------------------------------------------------


def _load(path: Path, seed: int, memory_budget: int | None, progress: bool | None, **options: Any) -> Signal:
    """Return the samples; the rate is kept for the file that is written."""
    values, rate = load_audio(path, memory_budget)
    about = {"shape": [len(values)], "offset": 0.0, "scale": 1.0, "rate": rate}
    return Signal(grid(len(values)), values, about)


def _check_rate(about: dict[str, Any]) -> None:
    """Check the rate."""
    check_int("rate", about["rate"], minimum=1)


def _resampled(about: dict[str, Any], rate: int | None = None) -> tuple[list[int], Bounds]:
    """Return the samples at another rate and their bounds: the same times, none after the last fitted one."""
    (samples,), fitted = about["shape"], about["rate"]
    if rate is None or rate == fitted or samples == 1:
        return [samples], (-1.0, 1.0)
    count = (samples - 1) * rate // fitted + 1
    if count < 2:
        raise ValueError(f"--rate must leave at least 2 samples of {samples} at {fitted} Hz, got {rate}")
    return [count], (-1.0, min(2.0 * (count - 1) * fitted / (rate * (samples - 1)) - 1.0, 1.0))


SIGNALS.add(
    "audio",
    SignalKind(
        called="a sound",
        summary=".wav, .flac, .ogg",
        ending=".wav",
        axes=1,
        readable=lambda: READ,
        writable=lambda outputs: WRITTEN,
        load=_load,
        write=lambda predictions, about, path: save_audio(unscaled(predictions, about), path, about["rate"]),
        render_options={"rate": Option("in Hz (default: as fitted); it lasts as long, to a sample", spelling.whole())},
        grid=_resampled,
        check=_check_rate,
        view=of_audio,
    ),
)
