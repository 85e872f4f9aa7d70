"""Posed images in the layout of the NeRF paper's synthetic scenes: a folder with ``transforms_train.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inrfast.errors import check_choice, check_int
from inrfast.files import opened, shown, write_whole
from inrfast.memory import require_free
from inrfast.scenes.cameras import Camera, check_pose
from inrfast.scenes.lenses import view_angles
from inrfast.scenes.views import Views
from inrfast.signals.image import load, save_image

SPLITS = ("train", "val", "test")

MOST_BYTES = 2**26
"""Of a file of poses: 100 frames take some 100 KB."""


def load_blender(
    folder: str | os.PathLike[str], split: str = "train", size: int | None = None, every: int = 1
) -> Views:
    """Return the posed images of a folder in the Blender-synthetic layout.

    ``transforms_<split>.json`` holds ``camera_angle_x`` (radians, horizontal) and ``frames``, each with a ``file_path``
    relative to the folder (``.png`` is added where it has no such suffix) and a ``transform_matrix`` (4x4, camera to
    world, OpenGL axes). Images are PNG with an opacity, or opaque. Focal lengths in pixels, ``fl_x`` and ``fl_y``, and
    ``camera_angle_y`` are taken too, and a frame's own entries before those of the file.

    Parameters
    ----------
    folder
        That of the scene.
    split
        ``"train"``, ``"val"`` or ``"test"``.
    size
        Pixels of the longer side, by averages over areas weighted with the opacity; None keeps the files' size.
    every
        Every so many-th frame, from the first on.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        No such folder, file of poses or image; the message names the frame.
    ValueError, TypeError
        Poses that do not parse: no JSON, missing entries, an angle out of range, a matrix that is no rigid motion; a
        lens that a :class:`Camera` is not, such as one off the middle (``cx``, ``cy``) or with distortion (``k1``), or
        of pictures of another size (``w``, ``h``); an image outside the folder, damaged, or of another size than the
        first. The message names the file and the frame.
    MemoryBudgetError
        The images would take more than half of what is free.

    Source: Mildenhall et al., NeRF, ECCV 2020 (the data sets beside its code).
    """
    name = check_choice("split", split, SPLITS)
    every = check_int("every", every, minimum=1)
    size = None if size is None else check_int("size", size, minimum=1)
    root = Path(folder)
    file, content, frames = _frames(root, name)
    images, cameras, names = [], [], []
    first: tuple[int, int] | None = None
    for index in range(0, len(frames), every):
        place = f"{shown(file)}: frames[{index}]"
        picture = _picture(frames[index], root, place)
        pose = _pose(frames[index], place)
        image, full = _image(picture, size, place)
        first = first or full
        if full != first:
            raise ValueError(
                f"{place}: {shown(picture)} has {full[0]}x{full[1]} pixels, and the first image {first[0]}x{first[1]}"
            )
        if index == 0:
            count = len(range(0, len(frames), every))
            require_free(3 * count * image.numel() * 4, f"{count} images of {full[0]}x{full[1]} pixels",
                         "take a smaller size, or fewer by every")  # fmt: skip
        images.append(image)
        angles = view_angles(content, frames[index], full, place)
        cameras.append(Camera(pose, *full, *angles).resized(image.shape[0], image.shape[1]))
        names.append(str(frames[index]["file_path"]))
    return Views(torch.stack(images), cameras, names)


def save_blender(folder: str | os.PathLike[str], views: Mapping[str, Views]) -> None:
    """Write posed images in the Blender-synthetic layout: ``transforms_<split>.json`` and ``<split>/r_<i>.png``.

    Images have 8 bits per channel; poses keep all digits.

    Parameters
    ----------
    folder
        Made where it is missing; files of the same names are replaced.
    views
        By split, ``"train"``, ``"val"`` or ``"test"``. All cameras of a split have one angle of view.

    Raises
    ------
    ValueError, TypeError
        No split, or another one; what is no views; cameras of several angles. Nothing is written then.
    NotADirectoryError, OSError
        The folder is a file; it cannot be made.
    """
    root = Path(folder)
    _check_splits(views)
    for split in views:
        try:
            (root / split).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(f"folder must be one, and {shown(root / split)} is a file or below one") from None
        except OSError as error:
            raise OSError(f"cannot make the folder {shown(root / split)}: {error.strerror or error}") from error
    for split, own in views.items():
        angle, angle_y = own.cameras[0].angle, own.cameras[0].angle_y
        frames = []
        for index, (image, camera) in enumerate(zip(own.images, own.cameras, strict=True)):
            save_image(image, root / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": camera.pose.tolist()})
        vertical = {} if angle_y is None else {"camera_angle_y": angle_y}
        content = {"camera_angle_x": angle, **vertical, "frames": frames}
        write_whole(root / f"transforms_{split}.json", json.dumps(content, indent=1).encode())


def _check_splits(views: Any) -> None:
    """Refuse what is no mapping of views by split, or has cameras that one file of poses cannot hold."""
    if not isinstance(views, Mapping):
        raise TypeError(f"views must be a mapping from splits, {', '.join(SPLITS)}, to Views, got {_told(views)}")
    if not views:
        raise ValueError(f"views must have at least one of the splits {', '.join(SPLITS)}, got none")
    for split, own in views.items():
        check_choice("a split of views", split, SPLITS)
        if not isinstance(own, Views):
            raise TypeError(f"views[{split!r}] must be Views, images with their cameras, got {type(own).__name__}")
        angles = {(camera.angle, camera.angle_y) for camera in own.cameras}
        if len(angles) > 1:
            raise ValueError(f"the {split} cameras have {len(angles)} angles of view; a file holds one")


def frames_of(folder: str | os.PathLike[str], split: str) -> int:
    """Return how many frames a split of a folder has; no picture is looked at."""
    return len(_frames(Path(folder), check_choice("split", split, SPLITS))[2])


def _frames(root: Path, split: str) -> tuple[Path, Any, list[Any]]:
    """Return the file of poses of a split, its content and its frames."""
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(f"{shown(root)} is not a folder of a scene, with transforms_{split}.json in it")
    file = root / f"transforms_{split}.json"
    content = _parsed(file)
    frames = _of(content, "frames", shown(file))
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{shown(file)}: frames must be a list of at least one frame, got {_told(frames)}")
    return file, content, frames


def _parsed(file: Path) -> Any:
    """Return the content of a JSON file."""
    with opened(file, "a file of poses") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{shown(file)} is larger than {MOST_BYTES} bytes; it is no file of poses")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} does not parse as JSON: {str(error)[:200]}") from None


def _of(content: Any, entry: str, place: str) -> Any:
    """Return an entry of an object of JSON."""
    if not isinstance(content, dict):
        raise ValueError(f"{place} must be an object with the entry {entry!r}, got {_told(content)}")
    if entry not in content:
        raise ValueError(
            f"{place} misses the entry {entry!r}; it has {', '.join(map(repr, list(content)[:8])) or 'none'}"
        )
    return content[entry]


def _told(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}"


def _picture(frame: Any, root: Path, place: str) -> Path:
    """Return the path of a frame's image, which lies in the folder."""
    given = _of(frame, "file_path", place)
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError(f"{place}: file_path must be the name of an image, got {_told(given)}")
    path = root / given
    try:
        there = path.is_file()
    except OSError as error:  # of a name that no system takes
        raise ValueError(f"{place}: file_path {_told(given)} cannot be a file: {error.strerror}") from error
    if path.suffix.lower() != ".png" and not there:
        path = path.with_name(f"{path.name}.png") if path.name else path
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{place}: file_path must stay in the folder of the scene, got {given[:200]!r}")
    return path


def _pose(frame: Any, place: str) -> torch.Tensor:
    """Return the pose of a frame."""
    given = _of(frame, "transform_matrix", place)
    rows = given if isinstance(given, list) else []
    shaped = len(rows) == 4 and all(isinstance(row, list) and len(row) == 4 for row in rows)
    if not shaped or not all(type(entry) in (int, float) for row in rows for entry in row):
        raise ValueError(f"{place}: transform_matrix must be 4 rows of 4 numbers, got {_told(given)}")
    try:
        return check_pose("transform_matrix", [[float(entry) for entry in row] for row in rows])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {error}") from None


def _image(picture: Path, size: int | None, place: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return an image (H, W, 4), its longer side of ``size`` pixels, and its size in the file."""
    try:
        found = load(picture, alpha=True)
        image, full = found.pixels, found.stored
        if size is not None and size != max(full):
            if size > max(full):
                raise ValueError(f"size must be at most the file's {max(full)} pixels, got {size}")
            shape = tuple(max(round(side * size / max(full)), 1) for side in full)
            image = load(picture, size=shape, alpha=True).pixels
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: there is no image {shown(picture)}") from None
    except (ValueError, OSError) as error:
        raise type(error)(f"{place}: {error}") from error
    return image, full
