"""Films (MP4, MOV, WebM, MKV) by PyAV, an optional dependency: frames out of a file, and into one."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
from collections.abc import Iterator
from contextlib import closing
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
"""Frames that a film's stated duration may exceed its last packet by: durations are rounded."""

BOXES = frozenset({b"free", b"ftyp", b"mdat", b"mfra", b"moof", b"moov", b"sidx", b"skip", b"styp", b"udta", b"wide"})
"""Outermost parts of ``.mp4`` and ``.mov``, by which a cut is told: each states its size."""


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
        Frames that the file states, or else packets that it holds, of which each gives a frame at most.
    rate
        Frames per second, as the file states.
    times
        Seconds at which the frames are shown that :meth:`frames` has given so far; NaN where the file does not say.

    Raises
    ------
    ValueError
        It is no film, has no pictures, or ends before what it states.
    """

    def __init__(self, file: Path) -> None:
        av = library(f"reading {file}")
        self.file = file
        _check_boxes(file)
        self.container = _opened(av, file)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate or not self.stream.width or not self.stream.height:
            raise ValueError(f"{file} states no frame rate or no size of its pictures")
        self.rate, self.times = float(rate), list[float]()
        self.height, self.width = int(self.stream.height), int(self.stream.width)
        self.exact = self.stream.frames > 0
        self.count = self.stream.frames if self.exact else self._packets(av)

    def _packets(self, av: Any) -> int:
        """Count the packets of pictures, decoding none, and refuse a film whose streams all end before they should."""
        count, end = 0, 0.0
        container = _opened(av, self.file)
        with closing(container), decoding(self.file, "is truncated or damaged"):
            for packet in container.demux():
                if packet.size and packet.pts is not None and packet.time_base:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                count += packet.size > 0 and packet.stream.index == self.stream.index
            stated = (container.duration or 0) / av.time_base
        if stated - end > MISSING / self.rate:
            raise ValueError(f"{self.file} is truncated or damaged: it ends after {end:.6g} s of {stated:.6g} s")
        return count

    def rate_of(self, numbers: range) -> float:
        """Return the frames per second of these frames, which have been given, by the times at which they are shown.

        The stated rate stays where it agrees with them, up to their rounding to the file's unit of time.
        """
        span = self.times[-1] - self.times[0] if self.times else 0.0
        steps = (len(self.times) - 1) * numbers.step
        if not span > 0 or abs(span - steps / self.rate) < float(self.stream.time_base or 0):
            return self.rate
        return steps / span

    def frames(self, numbers: range | None) -> Iterator[np.ndarray]:
        """Yield frames as they are seen, uint8 (H, W, 3): these numbers, or all.

        Raises
        ------
        ValueError
            The film is damaged, or ends before what it states.
        """
        found = 0
        stream = self.container.decode(self.stream)
        while numbers is None or found < numbers.stop:
            place = f"after frame {found - 1}" if found else "in its first frame"
            with decoding(self.file, f"is truncated or damaged {place}"):
                last = next(stream, None)
                pixels = None if last is None else last.to_ndarray(format="rgb24")
                turned = 0 if last is None else round(getattr(last, "rotation", 0) / 90)
            if last is None or pixels is None:
                break
            if numbers is None or found in numbers:
                self.times.append(math.nan if last.time is None else float(last.time))
                yield np.ascontiguousarray(np.rot90(pixels, turned))
            found += 1
        if numbers is not None and found < numbers.stop:
            raise ValueError(f"{self.file} is truncated or damaged: it ends after {found} frames of {numbers.stop}")

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def _opened(av: Any, file: Path) -> Any:
    """Return the container of a file with pictures."""
    with decoding(file, "is not a film that can be read"):
        container = av.open(str(file), options={"err_detect": "explode"})
    if not container.streams.video:
        container.close()
        raise ValueError(f"{file} has no stream of pictures")
    return container


def _check_boxes(file: Path) -> None:
    """Refuse a ``.mp4`` or ``.mov`` one of whose outermost parts reaches beyond the file; others are left alone."""
    size, at = file.stat().st_size, 0
    with open(file, "rb") as opened:
        while at + 8 <= size:
            opened.seek(at)
            head = opened.read(16)
            stated, name = int.from_bytes(head[:4], "big"), head[4:8]
            if name not in BOXES:
                return
            stated = int.from_bytes(head[8:], "big") if stated == 1 else stated or size - at
            if at + stated > size:
                raise ValueError(f"{file} is truncated: it states {at + stated} bytes and has {size}")
            at += max(stated, 8)


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
