"""Lenses in files of poses: what a camera can be is taken, and all else is refused by name."""

from __future__ import annotations

import math

import pytest

from inrfast.scenes.lenses import view_angles

SIZE = (60, 80)
WIDE, NARROW = 2 * math.atan(40 / 100), 2 * math.atan(40 / 200)  # focal lengths of 100 and 200 pixels
HIGH = 2 * math.atan(30 / 110)


@pytest.mark.parametrize(
    ("content", "own", "wanted"),
    [
        ({"camera_angle_x": WIDE}, {}, (WIDE, None)),
        ({"camera_angle_x": WIDE}, {"camera_angle_x": NARROW}, (NARROW, None)),
        ({"camera_angle_x": WIDE}, {"fl_x": 200}, (NARROW, None)),
        ({"fl_x": 100.0, "fl_y": 100.0, "cx": 40, "cy": 30, "w": 80.0, "h": 60, "k1": 0.0}, {}, (WIDE, None)),
        ({"fl_x": 100.0, "fl_y": 110.0, "camera_model": "OPENCV"}, {}, (WIDE, HIGH)),
        ({}, {"camera_angle_x": WIDE, "camera_angle_y": HIGH, "fl_x": 100.01}, (WIDE, HIGH)),
    ],
)
def test_angles_and_focal_lengths_are_taken_and_those_of_a_frame_first(content, own, wanted):
    angle, angle_y = view_angles(content, own, SIZE, "frames[0]")
    assert angle == pytest.approx(wanted[0])
    assert angle_y is None if wanted[1] is None else angle_y == pytest.approx(wanted[1])


@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"cx": 41}, "cx must be the middle of the image, 40, got 41"),
        ({"cy": 29.5}, "cy must be the middle of the image, 30, got 29.5"),
        ({"w": 160}, "w must be that of the image, 80 pixels, got 160"),
        ({"h": 80}, "h must be that of the image, 60 pixels, got 80"),
        ({"k1": 0.1, "p2": 1e-4}, "k1, p2 must be 0"),
        ({"camera_model": "OPENCV_FISHEYE"}, "must be a pinhole, got camera_model 'OPENCV_FISHEYE'"),
        ({"is_fisheye": True}, "must be a pinhole, got is_fisheye"),
        ({"fl_x": 101, "camera_angle_x": WIDE}, "camera_angle_x and fl_x must belong together"),
        ({"fl_x": 0}, "fl_x must be above 0"),
        ({"camera_angle_y": 4}, "camera_angle_y must be below pi"),
        ({"fl_y": "long"}, "fl_y must be a number"),
        ({"cx": [40]}, "cx must be"),
    ],
)
def test_lenses_that_a_camera_is_not_are_refused(entries, told, frame):
    given = ({"camera_angle_x": WIDE}, entries) if frame else ({"camera_angle_x": WIDE, **entries}, {})
    with pytest.raises((ValueError, TypeError), match=rf"^frames\[3\]: .*{told}"):
        view_angles(*given, SIZE, "frames[3]")
