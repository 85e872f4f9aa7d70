"""Videos: animations, films, folders of frames to float tensors (T, H, W, C) and back; the kind of signal "video"."""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast import spelling
from inrfast.errors import check_float, check_int, check_tensor, warn
from inrfast.files import shown, write_whole
from inrfast.grids import grid
from inrfast.memory import budget_bytes, require
from inrfast.metrics import psnr
from inrfast.signals.formats import animation, movie
from inrfast.signals.formats.raster import Demand, PagesError
from inrfast.signals.image import LUMA, readable_suffixes, save_image
from inrfast.signals.image import load as load_frame
from inrfast.signals.kinds import FRAME_SIZE, SIGNALS, Option, Signal, SignalKind, frame_sides, unscaled
from inrfast.signals.paths import as_path, readable, writable
from inrfast.signals.views import of_video

__all__ = ["load_video", "save_video"]

READ = (*animation.SUFFIXES, *movie.READ)
WRITTEN = (*animation.SUFFIXES, *movie.CODECS)
"""Suffixes of files; a folder of frames has none."""

MID_GREY = 0.5
"""Subtracted from the pixels before a fit and added again after it."""

LONGEST = 256
"""Pixels of the longer side of a fitted video at most, unless a size is asked for."""

FRAME_RATE = 24.0
"""Frames per second of a folder of frames."""

BATCH, JUDGED = 8192, 2**16
"""Pixels per update, and pixels on which the PSNR is measured during a fit: a clip has millions."""

POINT_BYTES = 40
"""Bytes per pixel that a fit holds beside its values: coordinates, and what it makes of both."""


def load_video(
    path: str | os.PathLike[str],
    frames: slice | None = None,
    size: int | Sequence[int] | None = None,
    grey: bool = False,
    memory_budget: int | None = None,
) -> tuple[Tensor, float]:
    """Return the frames of a video as an fp32 tensor (T, H, W, C) with values in [0, 1], and frames per second.

    Parameters
    ----------
    path
        An animation (``.gif``, ``.webp``, ``.png``, ``.apng``); a film (``.mp4``, ``.mov``, ``.webm``, ``.mkv``), which
        needs PyAV (``pip install 'inrfast[video]'``); or a folder of images of one size, in the order of their names
        with numbers as numbers: ``2.png`` comes before ``10.png``. Files in it that are no images by their suffixes,
        hidden ones and folders are left out. C is 1 where all frames are grey, else 3. Transparent pixels are seen on
        black, with a warning.
    frames
        Which frames, as a slice with positive steps: ``slice(0, 100, 2)``; None: all.
    size
        ``(H, W)``, or one int for a square: frames are cropped about their centre to that aspect and averaged over
        areas, as images are; None keeps the file's.
    grey
        One channel (ITU-R BT.601 luma).
    memory_budget
        Bytes that reading may take; None is half of the free memory. What the headers state is checked first.

    Returns
    -------
    values, rate
        ``rate`` is that of the frames that are returned. Frames that a file shows for different times count as shown
        for their mean; of a film, that is what lies between the times of the first and the last. A folder states none:
        24.

    Raises
    ------
    FileNotFoundError, PermissionError
        The file is missing or not readable.
    ValueError
        The file is empty, not such a video, truncated or damaged; a folder without images, or with images of several
        sizes (the message names the first other one); no frame in the range; a size below 1.
    MemoryBudgetError
        The frames do not fit the budget; none was decoded.
    MissingLibraryError
        A film, without PyAV.
    TypeError
        ``path`` is no path, ``frames`` no slice.
    """
    values, rate, _ = load(path, frames, size, grey, memory_budget)
    return values, rate


def load(
    path: str | os.PathLike[str],
    frames: slice | None = None,
    size: int | Sequence[int] | None = None,
    grey: bool = False,
    memory_budget: int | None = None,
    longest: int | None = None,
) -> tuple[Tensor, float, tuple[int, int]]:
    """Return what :func:`load_video` does, and the (H, W) of the file's frames.

    Without a size, frames whose longer side has more than ``longest`` pixels are averaged down to so many.
    """
    if frames is not None and not isinstance(frames, slice):
        raise TypeError(f"frames must be a slice or None, got {frames!r}")
    shape = None if size is None else _check_size(size)
    source = as_path(path)
    budget = budget_bytes(memory_budget)
    if source.is_dir():
        found, rate = _from_folder(source, frames, shape, longest, budget), FRAME_RATE
    elif source.suffix.lower() in movie.READ:
        found, rate = _from_film(readable(source, "a video", READ), frames, shape, longest, budget)
    else:
        found, rate = _from_animation(readable(source, "a video", READ), frames, shape, longest, budget)
    values, stored = found
    if grey:
        values = (values @ values.new_tensor(LUMA)).unsqueeze(-1)
    elif torch.equal(values[..., 0], values[..., 1]) and torch.equal(values[..., 0], values[..., 2]):
        values = values[..., :1].contiguous()
    step = 1 if frames is None or frames.step is None else frames.step
    return values, rate / step, stored


def save_video(values: Tensor, path: str | os.PathLike[str], rate: float = FRAME_RATE) -> None:
    """Write a video with 8 bits per channel; values outside [0, 1] are clipped. A file is whole or absent.

    Parameters
    ----------
    values
        Floating tensor (T, H, W), (T, H, W, 1) or (T, H, W, 3), any device.
    path
        ``.webp``, ``.png`` and ``.apng`` keep every pixel, ``.gif`` has 256 colours per frame, ``.mp4``, ``.mov``,
        ``.webm`` and ``.mkv`` are lossy and need PyAV. Without a suffix: a new or empty folder, of frames ``0000.png``,
        ``0001.png`` and so on. What the path stands in must exist. In animations a frame equal to the one before is
        not written again: that one is shown longer.
    rate
        Frames per second, above 0. A GIF's frames are shown for whole hundredths of a second.

    Raises
    ------
    ValueError, TypeError
        Another shape, NaN or Inf, another suffix, a rate that is not above 0.
    FileExistsError
        The folder holds something.
    FileNotFoundError, NotADirectoryError, OSError
        The folder above is missing or cannot be written to; nothing is left behind.
    MissingLibraryError
        A film, without PyAV.
    """
    values = check_tensor("values", values).detach()
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] not in (1, 3)):
        raise ValueError(f"values must have shape (T, H, W), (T, H, W, 1) or (T, H, W, 3), got {tuple(values.shape)}")
    rate = check_float("rate", rate, minimum=0.0, exclusive=True)
    values = values if values.ndim == 4 else values.unsqueeze(-1)
    target = as_path(path)
    if not target.suffix:
        _save_frames(values, target)
        return
    target = writable(target, "a video", WRITTEN)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().expand(-1, -1, -1, 3).contiguous().numpy()
    suffix = target.suffix.lower()
    write_whole(target, (movie if suffix in movie.CODECS else animation).encoded(pixels, rate, suffix))


# ---- reading -----------------------------------------------------------------------------------------------------


def _check_size(size: Any) -> tuple[int, int]:
    """Return ``(H, W)`` from an int or a pair."""
    sides = (size, size) if not isinstance(size, Sequence) or isinstance(size, str) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be an int or a pair (H, W), got {size!r}")
    height, width = (check_int("size", side, minimum=1) for side in sides)
    return height, width


def _sides(stored: tuple[int, int], shape: tuple[int, int] | None, longest: int | None) -> tuple[int, int]:
    """Return the (H, W) of the frames that are kept."""
    if shape is not None or longest is None or max(stored) <= longest:
        return shape or stored
    height, width = (max(round(side * longest / max(stored)), 1) for side in stored)
    return height, width


def _numbers(file: Path, frames: slice | None, count: int) -> range:
    """Return the numbers of the frames that are asked for, if there are any."""
    start, stop, step = (frames or slice(None)).indices(count)
    numbers = range(start, stop, step)
    if step < 1:
        raise ValueError(f"frames must have a step of at least 1, got {step}")
    if not numbers:
        raise ValueError(f"frames must be some of the {count} of {shown(file)}, got none by {_spelled(frames)}")
    return range(start, numbers[-1] + 1, step)


def _spelled(frames: slice | None) -> str:
    """Return a slice as it is written: ``5:2`` or ``::3``."""
    parts = [] if frames is None else [frames.start, frames.stop, *([] if frames.step is None else [frames.step])]
    return ":".join("" if part is None else str(part) for part in parts)


def _room(file: Path, count: int, sides: tuple[int, int], budget: int) -> Tensor:
    """Return where so many frames go, fp32 (T, H, W, 3), if the budget holds them."""
    each = (12 + POINT_BYTES) * sides[0] * sides[1]
    what = f"a video of {count} frames of {sides[0]}x{sides[1]} pixels from {shown(file)}"
    require(count * each, budget, what, f"{max(budget, 0) // each} frames fit; take some of them, or a smaller size")
    return torch.empty(count, *sides, 3)


def _sized(pixels: Tensor, sides: tuple[int, int]) -> Tensor:
    """Crop (H, W, C) about the centre to the aspect of ``sides`` and average areas."""
    if pixels.shape[:2] == sides:
        return pixels
    scale = min(own / wanted for own, wanted in zip(pixels.shape[:2], sides, strict=True))
    height, width = (max(1, math.floor(wanted * scale + 1e-9)) for wanted in sides)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    cut = pixels[top : top + height, left : left + width]
    return F.adaptive_avg_pool2d(cut.permute(2, 0, 1), sides).permute(1, 2, 0)


def _from_animation(
    file: Path, frames: slice | None, shape: tuple[int, int] | None, longest: int | None, budget: int
) -> tuple[tuple[Tensor, tuple[int, int]], float]:
    require(file.stat().st_size, budget, f"reading {shown(file)}", "no part of such a file can be read alone")
    film = animation.opened(file.read_bytes(), file, Demand(budget, lambda height, width: 12 * height * width))
    numbers, stored = _numbers(file, frames, film.count), (film.height, film.width)
    sides = _sides(stored, shape, longest)
    values, times = _room(file, len(numbers), sides, budget), []
    seen_through = False
    for place, (pixels, shown_for) in enumerate(film.frames(numbers)):
        single = torch.from_numpy(pixels.astype(np.float32)).div_(255)
        opacity = single[..., 3:]
        seen_through = seen_through or bool((opacity < 1).any())
        values[place] = _sized(single[..., :3] * opacity, sides)
        times.append(shown_for)
    if seen_through:
        _tell_seen_through(file)
    return (values, stored), animation.rate_of(times)


def _from_film(
    file: Path, frames: slice | None, shape: tuple[int, int] | None, longest: int | None, budget: int
) -> tuple[tuple[Tensor, tuple[int, int]], float]:
    with closing(movie.Film(file)) as film:
        if film.count == 0:
            raise ValueError(f"{shown(file)} holds no frame")
        numbers = _numbers(file, frames, film.count)
        stated = (film.height, film.width)
        first, parts, stored = None, 0, stated
        values = torch.empty(0)
        for pixels in film.frames(numbers if film.exact or frames is not None else None):
            if first is None:
                stored = (pixels.shape[0], pixels.shape[1])
                if sorted(stored) != sorted(stated):
                    raise ValueError(f"{shown(file)} states frames of {stated} pixels, and its first has {stored}")
                first = stored
                values = _room(file, len(numbers) + 2, _sides(stored, shape, longest), budget)
            if pixels.shape[:2] != first or parts == len(values):
                raise ValueError(f"{shown(file)} changes its size in frame {parts}, or holds more than it states")
            single = torch.from_numpy(pixels.astype(np.float32)).div_(255)
            values[parts] = _sized(single, (values.shape[1], values.shape[2]))
            parts += 1
        if parts == 0:
            raise ValueError(f"{shown(file)} holds no frame")
        return (values[:parts], stored), film.rate_of(numbers)


def natural(name: str) -> list[Any]:
    """Return a key by which names sort with their numbers as numbers."""
    parts = re.split(r"(\d+)", name.casefold())
    return [*((int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)), (0, name)]


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder by their suffixes, in natural order; none for what cannot be listed."""
    suffixes = set(readable_suffixes())
    names = [own for own in folder.iterdir() if own.suffix.lower() in suffixes and not own.name.startswith(".")]
    return sorted((own for own in names if not own.is_dir()), key=lambda own: natural(own.name))


def _from_folder(
    folder: Path, frames: slice | None, shape: tuple[int, int] | None, longest: int | None, budget: int
) -> tuple[Tensor, tuple[int, int]]:
    names = images_in(folder)
    if not names:
        raise ValueError(f"{shown(folder)} is a folder without images: no video")
    numbers = _numbers(folder, frames, len(names))
    values, stored, seen_through = torch.empty(0), (0, 0), False
    for place, number in enumerate(numbers):
        pixels, transparent = _frame(names[number], budget)
        seen_through = seen_through or transparent
        own = (pixels.shape[0], pixels.shape[1])
        if place == 0:
            stored = own
            values = _room(folder, len(numbers), _sides(stored, shape, longest), budget)
        if own != stored:
            raise ValueError(
                f"the frames of {shown(folder)} must be of one size: {names[numbers[0]].name} has "
                f"{stored[0]}x{stored[1]} pixels, {names[number].name} {own[0]}x{own[1]}"
            )
        values[place] = _sized(pixels, (values.shape[1], values.shape[2]))
    if seen_through:
        _tell_seen_through(folder)
    return values, stored


def _frame(file: Path, budget: int) -> tuple[Tensor, bool]:
    """Return one frame of a folder on black, fp32 (H, W, 3), and whether it is transparent in places."""
    if file.is_symlink() and not file.exists():
        raise FileNotFoundError(f"{shown(file)} is a link to a file that is not there")
    try:
        pixels = load_frame(file, alpha=None, memory_budget=budget).pixels
    except PagesError as error:
        raise ValueError(
            f"{shown(file)} holds {error.pages} pages or frames, and each image of a folder of frames is one frame; "
            "read it alone, or write its frames as images of their own"
        ) from error
    return (pixels, False) if pixels.shape[2] == 3 else (pixels[..., :3] * pixels[..., 3:], True)


def _tell_seen_through(file: Path) -> None:
    warn(f"{shown(file)} is transparent in places, which are seen on black")


# ---- writing -----------------------------------------------------------------------------------------------------


def _save_frames(values: Tensor, folder: Path) -> None:
    """Write a folder of frames: one that is not there yet, or empty, and there with all of them or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"cannot write frames into {shown(folder)}: it is no empty folder; name a new one")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {shown(folder)}: {shown(folder.parent)} is not an existing folder")
    digits = max(4, len(str(len(values) - 1)))
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".inrfast-frames-") as workshop:
        made = Path(workshop) / "frames"
        made.mkdir()
        for number, frame in enumerate(values):
            save_image(frame, made / f"{number:0{digits}}.png")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)


# ---- the kind of signal ------------------------------------------------------------------------------------------


def frame_range(text: str) -> slice:
    """Return the slice of a text such as ``0:100:2``, or ``:50``."""
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 3 or "_" in text:
            raise ValueError
        found = slice(*(int(part) if part.strip() else None for part in parts))
        if found.step is not None and found.step < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes frames as start:stop or start:stop:step, got {text!r}") from None
    return found


def _load(
    path: Path,
    seed: int,
    memory_budget: int | None,
    progress: bool | None,
    size: tuple[int, ...] | None = None,
    grey: bool = False,
    frames: slice | None = None,
) -> Signal:
    """Return the pixels minus mid-grey, and the PSNR of all of them as a measure."""
    if size is not None and len(size) > 2:
        got = "x".join(map(str, size))
        raise ValueError(f"--size of a video must be one size or two, those of its frames, such as 90x160, got {got}")
    sides = size[0] if size is not None and len(size) == 1 else size
    values, rate, whole = load(path, frames, sides, grey, memory_budget, LONGEST)
    shape = tuple(values.shape[:3])
    about = {"shape": list(shape), "offset": MID_GREY, "scale": 1.0, "rate": rate}
    target = values.sub_(MID_GREY)

    def measure(net: nn.Module, predictions: Tensor) -> dict[str, float]:
        return {"whole_psnr": psnr(predictions.to(target), target)}

    points = math.prod(shape)
    return Signal(
        grid(shape),
        target,
        about,
        data_range=1.0,
        stored=(shape[0], *whole),
        batch_size=min(BATCH, points),
        judged=JUDGED if points > JUDGED else None,
        measure=measure if points > JUDGED else None,
    )


def _write(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    save_video(unscaled(predictions, about), path, about["rate"])


def _rendered(
    about: dict[str, Any], size: Sequence[int] | None = None, rate: float | None = None
) -> tuple[list[int], tuple[float, float]]:
    """Return the points per axis at another size or rate: the same first and last moment."""
    count, *sides = about["shape"]
    sides = frame_sides(sides, size)
    if rate is not None:
        count = max(round((count - 1) * rate / about["rate"]), 0) + 1
    return [count, *sides], (-1.0, 1.0)


def _check_rate(about: dict[str, Any]) -> None:
    """Check the rate."""
    check_float("rate", about["rate"], minimum=0.0, exclusive=True)


def _claims(path: Path) -> bool:
    """Return whether a path is an animation, or a folder of two images or more."""
    if os.path.isdir(path):
        try:
            return len(images_in(path)) > 1
        except OSError:
            return False
    return animation.is_animated(path)


SIGNALS.add(
    "video",
    SignalKind(
        called="a video",
        summary="a folder of frames, an animated .gif, .webp or .png, .mp4, ... (PyAV); --size, --grey, --frames",
        ending=".webp",
        axes=3,
        readable=lambda: movie.READ,
        writable=lambda outputs: [
            suffix for suffix in ("", *WRITTEN) if suffix not in movie.CODECS or movie.is_there()
        ],
        load=_load,
        write=_write,
        options={
            "size": Option(f"pixels of a frame (its own, the longer side at most {LONGEST})", spelling.shape),
            "grey": Option("one channel instead of three"),
            "frames": Option("which frames, as start:stop:step, such as 0:100:2 (all)", frame_range),
        },
        render_options={
            "size": FRAME_SIZE,
            "rate": Option("frames per second (default: as fitted); it lasts as long", spelling.level),
        },
        grid=_rendered,
        check=_check_rate,
        shared=lambda: animation.SUFFIXES,
        claims=_claims,
        folders=True,
        view=of_video,
    ),
)
