"""Films (MP4, MOV, WebM, MKV) by PyAV, an optional dependency: frames out of a file, and into one."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inrfast.errors import needs
from inrfast.signals.formats.decoding import decoding

READ = (".mkv", ".mov", ".mp4", ".webm")
"""Suffixes of what is read."""

CODECS = {".mkv": "libx264", ".mov": "libx264", ".mp4": "libx264", ".webm": "libvpx-vp9"}
"""Suffixes of what is written, and with what: lossy, at a quality that the eye hardly tells from the frames."""

QUALITY = {"libx264": {"crf": "12"}, "libvpx-vp9": {"crf": "16", "b": "0"}}

MISSING = 1.5
"""Frames that a film's stated duration may exceed its last frame by: durations are rounded."""


def library(what: str) -> Any:
    """Return PyAV, or say what needs it.

    Raises
    ------
    MissingLibraryError
        It is not installed.
    """
    with needs("video", what):
        return importlib.import_module("av")


def is_there() -> bool:
    """Return whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


class Film:
    """An opened film: its first stream of pictures.

    Attributes
    ----------
    height, width
        As it is seen, turned where the file says so.
    count
        Frames that the file states, or that its duration comes to; None where it states neither.
    rate
        Frames per second.

    Raises
    ------
    ValueError
        It is no film, or has no pictures.
    """

    def __init__(self, file: Path) -> None:
        av = library(f"reading {file}")
        self.file = file
        with decoding(file, "is not a film that can be read"):
            self.container = av.open(str(file), options={"err_detect": "explode"})
        if not self.container.streams.video:
            raise ValueError(f"{file} has no stream of pictures")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate or not self.stream.width or not self.stream.height:
            raise ValueError(f"{file} states no frame rate or no size of its pictures")
        self.rate = float(rate)
        self.height, self.width = int(self.stream.height), int(self.stream.width)
        seconds = self._seconds(av)
        self.exact = self.stream.frames > 0
        self.count = self.stream.frames if self.exact else None if seconds is None else round(seconds * self.rate)

    def _seconds(self, av: Any) -> float | None:
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return None if not self.container.duration else self.container.duration / av.time_base

    def frames(self, numbers: range | None) -> Iterator[np.ndarray]:
        """Yield frames as they are seen, uint8 (H, W, 3): these numbers, or all.

        Raises
        ------
        ValueError
            The film is damaged, or ends before what it states.
        """
        found, last = 0, None
        stream = self.container.decode(self.stream)
        while numbers is None or found < numbers.stop:
            with decoding(self.file, f"is truncated or damaged after frame {found - 1}"):
                last = next(stream, None)
                pixels = None if last is None else last.to_ndarray(format="rgb24")
                turned = 0 if last is None else round(getattr(last, "rotation", 0) / 90)
            if pixels is None:
                break
            if numbers is None or found in numbers:
                yield np.ascontiguousarray(np.rot90(pixels, turned))
            found += 1
        wanted = self.count if numbers is None else numbers.stop
        if wanted is not None and found < wanted - (0 if self.exact else MISSING):
            raise ValueError(f"{self.file} is truncated or damaged: it ends after {found} frames of {wanted}")

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def encoded(frames: np.ndarray, rate: float, suffix: str) -> bytes:
    """Return the content of a film: frames uint8 (T, H, W, 3)."""
    from fractions import Fraction

    av, codec = library(f"writing {suffix}"), CODECS[suffix]
    stream = io.BytesIO()
    name = {".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}[suffix]
    even = frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    with av.open(stream, "w", format=name) as container:
        out = container.add_stream(codec, rate=Fraction(rate).limit_denominator(100_000), options=QUALITY[codec])
        out.height, out.width = frames.shape[1:3]
        out.pix_fmt = "yuv420p" if even else "yuv444p"  # half the colours' sides, where these have halves
        for frame in frames:
            container.mux(out.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(out.encode(None))
    return stream.getvalue()
