"""Folders in the Blender-synthetic layout: there and back, and every way in which one is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inrfast.scenes.blender import load_blender, save_blender
from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.views import Views


def views(count: int = 4, height: int = 6, width: int = 8, seed: int = 0) -> Views:
    images = torch.rand(count, height, width, 4, generator=torch.Generator().manual_seed(seed))
    images[..., 3] = (images[..., 3] > 0.3).float()
    return Views((images * 255).round() / 255, sphere_of_cameras(count, height, width, seed=seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_blender(tmp_path, {"train": views(), "test": views(2, seed=1)})
    return tmp_path


def rewritten(folder: Path, change: Any, split: str = "train") -> None:
    file = folder / f"transforms_{split}.json"
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed))


def test_a_scene_comes_back(folder):
    for split, wanted in (("train", views()), ("test", views(2, seed=1))):
        found = load_blender(folder, split)
        torch.testing.assert_close(found.images, wanted.images)
        for own, camera in zip(found.cameras, wanted.cameras, strict=True):
            assert torch.equal(own.pose, camera.pose) and own.angle == camera.angle
            assert (own.height, own.width) == (6, 8)
    assert load_blender(folder, every=3).names == ("./train/r_0", "./train/r_3")


def test_smaller_images_are_averages_before_any_background(folder):
    """Averages over areas of the pixels before a background are those of the small image: colours weigh by opacity."""
    small, full = load_blender(folder, size=4), load_blender(folder)
    assert small.cameras[0].width == 4 and small.cameras[0].focal == pytest.approx(full.cameras[0].focal / 2)
    for background in ((1.0, 1.0, 1.0), (0.0, 0.3, 0.6)):
        wanted = full.colours(background).view(4, 3, 2, 4, 2, 3).mean((2, 4))
        torch.testing.assert_close(small.colours(background), wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"frames\[0\]: size must be at most"):
        load_blender(folder, size=9)
    bent = load_blender(folder, size=5)  # 6x8 becomes 4x5
    for own, camera in zip(bent.cameras, full.cameras, strict=True):
        assert (own.height, own.width, own.angle) == (4, 5, camera.angle)
        assert own.focal_y / 4 == pytest.approx(camera.focal / 6)
    save_blender(folder, {"val": bent})
    assert [own.angle_y for own in load_blender(folder, "val").cameras] == [own.angle_y for own in bent.cameras]


def test_the_layout_is_that_of_the_paper(tmp_path):
    """As Blender wrote it: a name without a suffix, rotations of 7 digits, entries that nobody reads."""
    turn = math.pi / 5
    c, s = round(math.cos(turn), 7), round(math.sin(turn), 7)
    pose = [[c, -s, 0.0, 0.5], [s, c, 0.0, -1.0], [0.0, 0.0, 1.0, 4.0], [0, 0, 0, 1]]
    (tmp_path / "train").mkdir()
    Image.fromarray(np.full((3, 3, 4), (255, 0, 0, 128), np.uint8)).save(tmp_path / "train" / "r_0.png")
    frame = {"file_path": "./train/r_0", "rotation": 0.0125, "transform_matrix": pose}
    (tmp_path / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": [frame]}))
    found = load_blender(tmp_path)
    torch.testing.assert_close(found.images[0, 0, 0], torch.tensor([1.0, 0.0, 0.0, 128 / 255]))
    assert found.cameras[0].position.tolist() == [0.5, -1.0, 4.0]


def frame(content: Any, index: int = 1) -> Any:
    return content["frames"][index]


WRONG = {
    "no JSON": (lambda c: None, "does not parse as JSON"),
    "a list": (lambda c: [c], "must be an object"),
    "no angle": (lambda c: {"frames": c["frames"]}, "misses the entry 'camera_angle_x'"),
    "an angle of 0": (lambda c: {**c, "camera_angle_x": 0}, "camera_angle_x must be at least 1e-06"),
    "an angle of 4": (lambda c: {**c, "camera_angle_x": 4.0}, "camera_angle_x must be below pi"),
    "an angle in words": (lambda c: {**c, "camera_angle_x": "wide"}, "camera_angle_x must be a number"),
    "an angle of NaN": (lambda c: {**c, "camera_angle_x": math.nan}, "camera_angle_x must be finite"),
    "no frames": (lambda c: {**c, "frames": []}, "at least one frame"),
    "a frame that is none": (lambda c: c["frames"].__setitem__(1, 3), r"frames\[1\] must be an object"),
    "no matrix": (lambda c: frame(c).pop("transform_matrix") and None, r"frames\[1\] misses the entry 'transform_m"),
    "three rows": (lambda c: frame(c)["transform_matrix"].pop() and None, r"frames\[1\]: transform_matrix must be 4"),
    "words": (lambda c: frame(c)["transform_matrix"][0].__setitem__(0, "1"), r"frames\[1\]: transform_matrix must"),
    "NaN": (lambda c: frame(c)["transform_matrix"][0].__setitem__(3, math.nan), r"frames\[1\]: .* must be finite"),
    "huge": (lambda c: frame(c)["transform_matrix"][0].__setitem__(3, 10**400), r"frames\[1\]: "),
    "stretched": (lambda c: frame(c)["transform_matrix"][0].__setitem__(0, 2.0), r"frames\[1\]: .* orthonormal"),
    "another last row": (lambda c: frame(c)["transform_matrix"][3].__setitem__(0, 1.0), r"frames\[1\]: the last row"),
    "no picture": (lambda c: frame(c).update(file_path="./train/r_9"), r"frames\[1\]: there is no image .*r_9.png"),
    "an escape": (lambda c: frame(c).update(file_path="../r_0"), r"frames\[1\]: file_path must stay in the folder"),
    "an absolute path": (lambda c: frame(c).update(file_path="/etc/passwd"), r"frames\[1\]: file_path must stay"),
    "no name": (lambda c: frame(c).update(file_path=""), r"frames\[1\]: file_path must be the name"),
    "a name too long": (lambda c: frame(c).update(file_path="a" * 5000), r"\[1\]: file_path str .* cannot be a file"),
    "a number as name": (lambda c: frame(c).update(file_path=5), r"frames\[1\]: file_path must be the name"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_poses_that_do_not_parse_are_refused_by_file_and_frame(folder, name):
    change, match = WRONG[name]
    if name == "no JSON":
        file = folder / "transforms_train.json"
        file.write_text(file.read_text()[:-9])
    else:
        rewritten(folder, change)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=match) as raised:
        load_blender(folder)
    assert "transforms_train.json" in str(raised.value)


def test_pictures_of_other_sizes_links_out_and_damaged_ones_are_refused(folder, tmp_path_factory):
    picture = folder / "train" / "r_2.png"
    Image.new("RGBA", (8, 7)).save(picture)
    with pytest.raises(ValueError, match=r"frames\[2\]: .*r_2.png has 7x8 pixels, and the first image 6x8"):
        load_blender(folder)
    outside = tmp_path_factory.mktemp("outside") / "r_2.png"
    picture.rename(outside)
    picture.symlink_to(outside)
    with pytest.raises(ValueError, match=r"frames\[2\]: file_path must stay in the folder"):
        load_blender(folder)
    picture.unlink()
    picture.write_bytes(outside.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"frames\[2\]: .*r_2.png"):
        load_blender(folder)


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder of a scene"):
        load_blender(tmp_path / "lego")
    with pytest.raises(FileNotFoundError, match=r"transforms_val\.json"):
        load_blender(tmp_path, "val")
    with pytest.raises(ValueError, match="split must be one of"):
        load_blender(tmp_path, "training")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        load_blender(tmp_path / "file")
    (tmp_path / "transforms_train.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="does not parse"):
        load_blender(tmp_path)
    with pytest.raises(ValueError, match="split"):
        save_blender(tmp_path, {"all": views()})


def test_a_folder_is_read_with_the_lens_of_every_frame(folder):
    rewritten(folder, lambda content: content["frames"][1].update(fl_x=16.0, fl_y=12.0))
    cameras = load_blender(folder, size=4).cameras
    assert (cameras[1].focal, cameras[1].focal_y) == pytest.approx((8.0, 6.0))
    assert cameras[0].focal == cameras[2].focal != cameras[1].focal
    rewritten(folder, lambda content: content["frames"][2].update(k1=0.2))
    with pytest.raises(ValueError, match=r"transforms_train.json: frames\[2\]: k1 must be 0"):
        load_blender(folder)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/lego"):
        with pytest.raises(NotADirectoryError, match=f"folder must be one, and .*{place}"):
            save_blender(tmp_path / place, {"train": views()})
    other = Views(views(1).images, [replace(views(1).cameras[0], angle=0.3)])
    mixed = Views(torch.cat([views(1).images, other.images]), [*views(1).cameras, *other.cameras])
    wrong = {
        "got none": {}, "must be a mapping": [views()],
        r"views\['test'\] must be Views": {"train": views(), "test": None},
        "the test cameras have 2 angles": {"train": views(), "test": mixed},
    }  # fmt: skip
    for told, given in wrong.items():
        with pytest.raises((ValueError, TypeError), match=told):
            save_blender(tmp_path / "lego", given)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
