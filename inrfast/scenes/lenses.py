"""What a file of poses says of the lens: angles of view, or focal lengths, for all frames or one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inrfast.errors import check_float
from inrfast.scenes.cameras import angle_of, check_angle, focal_of

DISTORTIONS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
"""Entries of a lens that bends straight lines, where they are not 0."""

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
"""Values of ``camera_model`` that are a pinhole where nothing is distorted."""

NEAR = 1e-3
"""Relative difference of two statements on a focal length up to which they are one: files round to some digits."""

SQUARE = 1e-6
"""Relative difference of the focal lengths up to which pixels are square."""

MIDDLE = 1e-4
"""Of a side, by which the axis may miss the middle of the picture: less than a tenth of a pixel of 800."""


def view_angles(
    content: Mapping[str, Any], frame: Mapping[str, Any], size: tuple[int, int], place: str
) -> tuple[float, float | None]:
    """Return the horizontal and the vertical angle of view of a frame, None for the vertical one of square pixels.

    Parameters
    ----------
    content, frame
        Of JSON; entries of the frame are taken before those of the whole file.
    size
        (height, width) of the frame's picture in its file.
    place
        Of the frame, for messages.

    Raises
    ------
    ValueError, TypeError
        No angle and no focal length; two that contradict each other; entries of a lens that is no pinhole in the middle
        of the picture, or of a picture of another size.
    """
    height, width = size
    try:
        _check_pinhole({**content, **frame}, size)
        angle, angle_y = (_angle((frame, content), *of) for of in (("x", width), ("y", height)))
        if angle is None:
            there = ", ".join(map(repr, list(content)[:8]))
            raise ValueError(f"the file misses the entry 'camera_angle_x', or 'fl_x'; it has {there}")
    except (ValueError, TypeError) as error:
        raise type(error)(f"{place}: {error}") from error
    if angle_y is not None and abs(focal_of(height, angle_y) / focal_of(width, angle) - 1) <= SQUARE:
        angle_y = None
    return angle, angle_y


def _angle(levels: Sequence[Mapping[str, Any]], axis: str, pixels: int) -> float | None:
    """Return the angle of view along an axis, of the first of some objects of JSON that states it."""
    by_angle, by_focal = f"camera_angle_{axis}", f"fl_{axis}"
    for entries in levels:
        stated = []
        if by_angle in entries:
            stated.append(check_angle(by_angle, entries[by_angle]))
        if by_focal in entries:
            stated.append(angle_of(pixels, check_float(by_focal, entries[by_focal], minimum=0.0, exclusive=True)))
        if len(stated) > 1 and abs(focal_of(pixels, stated[0]) / focal_of(pixels, stated[1]) - 1) > NEAR:
            raise ValueError(
                f"{by_angle} and {by_focal} must belong together at {pixels} pixels, and the focal length is "
                f"{focal_of(pixels, stated[0]):.6g} by the one, {entries[by_focal]:.6g} by the other"
            )
        if stated:
            return stated[0]
    return None


def _check_pinhole(entries: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Refuse what a camera here is not."""
    bent = [name for name in DISTORTIONS if name in entries and check_float(name, entries[name]) != 0]
    if bent:
        raise ValueError(f"{', '.join(bent)} must be 0, as lenses with distortion are not taken; undistort the images")
    model = entries.get("camera_model", PINHOLES[0])
    if model not in PINHOLES or entries.get("is_fisheye"):
        got = f"camera_model {str(model)[:60]!r}" if model not in PINHOLES else "is_fisheye"
        raise ValueError(f"the camera must be a pinhole, got {got}; undistort the images")
    for side, centre, pixels in zip("hw", ("cy", "cx"), size, strict=True):
        if side in entries and check_float(side, entries[side]) != pixels:
            raise ValueError(f"{side} must be that of the image, {pixels} pixels, got {entries[side]:g}")
        if centre in entries and abs(check_float(centre, entries[centre]) - pixels / 2) > MIDDLE * pixels:
            raise ValueError(
                f"{centre} must be the middle of the image, {pixels / 2:g}, got {entries[centre]:g}; crop the images"
            )
