"""Kinds of signals by the endings of files: from a file to points and values, and from predictions to a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from inrfast.errors import check_float, check_int
from inrfast.grids import grid
from inrfast.signals import audio, image, volume
from inrfast.signals.paths import AUDIO_SUFFIXES, MESH_SUFFIXES, VOLUME_SUFFIXES

IMAGE_SIDE, MESH_SIDE, MESH_RENDER_SIDE, SAMPLES = 256, 128, 256, 200_000
"""Defaults: pixels of a fitted image; of a mesh, points an axis when it is fitted and rendered, and points to fit."""


@dataclass(frozen=True)
class Signal:
    """What a network is fitted to, on the CPU, and what its model file has to remember.

    ``prediction * scale + offset`` is the signal. ``weight`` (N,) is 0 where nothing is known; ``held_out`` are points
    and values that the fit does not see.
    """

    coords: Tensor
    target: Tensor
    about: dict[str, Any]
    weight: Tensor | None = None
    held_out: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of signal: its endings, its options of ``fit`` beside the common ones, and the ways in and out."""

    called: str  # with its article
    ending: str  # of what is written by default
    options: tuple[str, ...]
    suffixes: Callable[[int], tuple[str, ...]]  # that can be written, by the number of outputs
    load: Callable[[argparse.Namespace], Signal]
    write: Callable[[Tensor, dict[str, Any], Path], None]  # predictions (*shape, M), what is remembered, the file


def kind_of(path: Path) -> str:
    """Return the kind of a file's signal by its ending; a file without one is tried as an image."""
    suffix = path.suffix.lower()
    for name, suffixes in (("audio", AUDIO_SUFFIXES), ("volume", VOLUME_SUFFIXES), ("mesh", MESH_SUFFIXES)):
        if suffix in suffixes:
            return name
    if suffix and not path.is_dir() and suffix not in image.readable_suffixes():
        others = ", ".join((*AUDIO_SUFFIXES, *VOLUME_SUFFIXES, *MESH_SUFFIXES))
        raise ValueError(
            f"no kind of signal ends in {suffix}; use an image that Pillow reads (.png, .jpg, .tiff, ...), or "
            f"{others}; got {path}"
        )
    return "image"


def listed(suffixes: tuple[str, ...]) -> str:
    """Return the usual endings among many, for a message."""
    usual = [s for s in (".png", ".jpg", ".tiff", ".webp") if s in suffixes]
    return " or ".join(suffixes) if not usual else f"{', '.join(usual)} (or another image)"


def unscaled(predictions: Tensor, about: dict[str, Any]) -> Tensor:
    """Return the values of the signal from a network's predictions."""
    return predictions * about["scale"] + about["offset"]


# ---- images ------------------------------------------------------------------------------------------------------


def _image_suffixes(outputs: int) -> tuple[str, ...]:
    return tuple(image.image_suffixes(transparent=outputs == 4))


def _load_image(arguments: argparse.Namespace) -> Signal:
    size = arguments.size or (IMAGE_SIDE,)
    size = size * 2 if len(size) == 1 else size
    if len(size) != 2:
        raise ValueError(f"--size of an image must be one size or two, such as 240x320, got {'x'.join(map(str, size))}")
    pixels, whole = image.load_with_size(
        arguments.signal, size, arguments.grey, None, arguments.page, arguments.memory_budget
    )
    weight = None if arguments.weight is None else _load_weight(arguments, size, whole)
    about = {"shape": list(pixels.shape[:2]), "offset": image.MID_GREY, "scale": 1.0}
    return Signal(grid(pixels.shape[:2]), pixels - image.MID_GREY, about, weight)


def _load_weight(arguments: argparse.Namespace, size: tuple[int, ...], whole: tuple[int, int]) -> Tensor:
    """Return the mask's grey values (N,), if it is of the ``whole`` image's size or of the fitted one."""
    mask, given = image.load_with_size(arguments.weight, size, grey=True, memory_budget=arguments.memory_budget)
    if given not in (whole, size):
        raise ValueError(
            f"--weight must have the size of the image ({whole[0]}x{whole[1]}) or of the fit "
            f"({size[0]}x{size[1]}), got {given[0]}x{given[1]} in {arguments.weight}"
        )
    weight = mask.flatten()
    if not bool((weight > 0).any()):
        raise ValueError(f"--weight: {arguments.weight} is black everywhere, so that nothing of the image is known")
    return weight


def _write_image(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    image.save_image(unscaled(predictions, about), path)


# ---- sound -------------------------------------------------------------------------------------------------------


def _load_audio(arguments: argparse.Namespace) -> Signal:
    values, rate = audio.load_audio(arguments.signal, memory_budget=arguments.memory_budget)
    about = {"shape": [len(values)], "offset": 0.0, "scale": 1.0, "rate": rate}
    return Signal(grid(len(values)), values, about)


def _write_audio(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    audio.save_audio(unscaled(predictions, about), path, about["rate"])


# ---- volumes -----------------------------------------------------------------------------------------------------


def _load_volume(arguments: argparse.Namespace) -> Signal:
    values = volume.load_volume(arguments.signal, memory_budget=arguments.memory_budget)
    if arguments.size is not None:
        size = arguments.size * 3 if len(arguments.size) == 1 else arguments.size
        if len(size) != 3 or any(side < 1 or side > whole for side, whole in zip(size, values.shape[:3], strict=True)):
            whole = "x".join(map(str, values.shape[:3]))
            raise ValueError(f"--size must be sizes from 1 to the volume's {whole}, got {'x'.join(map(str, size))}")
        values = F.adaptive_avg_pool3d(values.movedim(3, 0), size).movedim(0, 3).contiguous()
    low, high = float(values.min()), float(values.max())
    offset, scale = (low + high) / 2, high - low if high > low else 1.0
    target = ((values.double() - offset) / scale).float()
    return Signal(grid(values.shape[:3]), target, {"shape": list(values.shape[:3]), "offset": offset, "scale": scale})


def _write_volume(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    volume.save_volume(unscaled(predictions, about), path)


# ---- surfaces ----------------------------------------------------------------------------------------------------


def _load_mesh(arguments: argparse.Namespace) -> Signal:
    from inrfast.cli.output import progress
    from inrfast.signals.mesh import Placement, load_mesh, sample_occupancy

    size = arguments.size or (MESH_SIDE,)
    size = size * 3 if len(size) == 1 else size
    if len(size) != 3 or min(size) < 2:
        raise ValueError(f"--size of a mesh must be 3 sizes (or one for all) of at least 2, got {size}")
    samples = SAMPLES if arguments.samples is None else check_int("--samples", arguments.samples, minimum=1)
    mesh = load_mesh(arguments.signal)
    placement = Placement.of(mesh)
    coords, inside = sample_occupancy(mesh, samples, seed=arguments.seed, progress=progress(arguments))
    # Of another seed, and few beside the others.
    other = (arguments.seed + 1) % 2**32
    held_out = sample_occupancy(mesh, max(samples // 4, 1), seed=other, progress=progress(arguments))
    about = {"shape": list(size), "offset": 0.5, "scale": 1.0}
    about |= {"centre": list(placement.centre), "length": placement.scale}
    return Signal(coords, inside - 0.5, about, held_out=held_out)


def _write_mesh(predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    from inrfast.signals.mesh import Placement, isosurface, save_mesh

    placement = Placement(tuple(about["centre"]), about["length"])
    save_mesh(isosurface(predictions[..., 0], 0.0, placement), path)


KINDS = {
    "image": Kind("an image", ".png", ("size", "grey", "page", "weight"), _image_suffixes, _load_image, _write_image),
    "audio": Kind("a sound", ".wav", (), lambda outputs: audio.WRITTEN, _load_audio, _write_audio),
    "volume": Kind("a NumPy array", ".npy", ("size",), lambda outputs: volume.WRITTEN, _load_volume, _write_volume),
    "mesh": Kind("a mesh", ".obj", ("size", "samples"), lambda outputs: MESH_SUFFIXES, _load_mesh, _write_mesh),
}


def check_about(about: Any, inputs: int, source: Path) -> dict[str, Any]:
    """Return what a model file says about its signal, if it is what :data:`KINDS` need and fits the network."""
    if not isinstance(about, dict) or about.get("kind") not in KINDS:
        raise ValueError(f"{source} does not say what its network stands for; render takes models of inrfast fit")
    try:
        sides = [check_int("shape", side, minimum=1) for side in about["shape"]]
        if len(sides) != inputs or len(sides) != {"image": 2, "audio": 1}.get(about["kind"], 3):
            raise ValueError(f"shape {sides} for a network of {inputs} coordinates")
        check_float("offset", about["offset"])
        check_float("scale", about["scale"], minimum=0.0, exclusive=True)
        if about["kind"] == "audio":
            check_int("rate", about["rate"], minimum=1)
        if about["kind"] == "mesh":
            check_float("length", about["length"], minimum=0.0, exclusive=True)
            if len([check_float("centre", value) for value in about["centre"]]) != 3:
                raise ValueError("centre must have 3 coordinates")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: what it says about its signal is wrong or missing: {error}") from error
    return about
