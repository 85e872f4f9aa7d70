"""Images are found by the paper's names, and masks miss what they say."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inrfast.cli import main
from inrfast.experiments.paper import PAPERS, Request
from inrfast.experiments.peak.images import STAND_INS, TABLE1, comparable, image, there
from inrfast.experiments.peak.masks import KINDS, PATCHES, RANDOM_SHARE, STROKE_SHARE, mask
from inrfast.experiments.reproduce import reproduce


def saved(folder, name, values):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(folder / name)
    return folder / name


def test_images_are_found_by_the_papers_names_and_brought_to_one_size(tmp_path):
    boat = np.arange(64, dtype=np.uint8).reshape(8, 8)
    files = (saved(tmp_path, "baboon_gray.png", np.full((4, 4), 51)), saved(tmp_path, "boat.png", boat))
    request = Request(images=files)
    assert there(request, TABLE1) == ("Baboon", "Boat") and not comparable(request, ["Boat"])
    assert torch.allclose(image(request, "Baboon", 4).values, torch.full((4, 4), 0.2))
    small = image(request, "Boat", 4)
    means = torch.from_numpy(boat).double().reshape(4, 2, 4, 2).mean((1, 3)) / 255
    assert torch.allclose(small.values.double(), means, atol=1e-6) and small.paper and small.source == "boat.png"
    with pytest.raises(FileNotFoundError, match="begins with lake"):
        image(request, "Lake", 4)
    with pytest.raises(FileNotFoundError, match="begin with house"):
        there(request, ("House",))
    with pytest.raises(ValueError, match="at least 16 pixels"):
        image(request, "Boat", 16)


def test_without_a_folder_there_is_a_stand_in_for_every_image_and_it_is_said():
    request = Request()
    assert (
        "(rocket for Boat, coffee for Lake)" in comparable(request, ["Boat", "Lake"])
        and there(request, TABLE1) == TABLE1
    )
    assert len(set(STAND_INS.values())) == len(STAND_INS)
    for name in STAND_INS:
        found = image(request, name, 24)
        assert found.values.shape == (24, 24) and not found.paper and 0 <= found.values.min() < found.values.max() <= 1


@given(st.sampled_from([32, 48, 64, 96]), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_masks_made_by_formula_miss_their_shares_and_follow_their_seed(side, seed):
    made = {kind: mask(Request(seed=seed), kind, side) for kind in KINDS}
    assert made["random"].share == pytest.approx(RANDOM_SHARE, abs=1 / side**2)
    assert made["patch"].share == 1 - PATCHES * (side // 8) ** 2 / side**2
    assert made["textural"].share == pytest.approx(1 - STROKE_SHARE, abs=2 / side**2)
    assert made["combined"].observed[side // 2 :, : side // 2].double().mean() == 1 / 16
    border = torch.cat([edge for own in (made["patch"].observed,) for edge in (own[0], own[-1], own[:, 0], own[:, -1])])
    assert border.all()
    for kind, one in made.items():
        assert torch.equal(one.observed, mask(Request(), kind, side, seed).observed)
        assert kind == "combined" or not torch.equal(one.observed, mask(Request(), kind, side, seed + 1).observed)


def test_mask_files_are_combined_or_textural_by_name(tmp_path):
    half = np.zeros((8, 8))
    half[:, 4:] = 255
    files = (saved(tmp_path, "mask_combine.png", half), saved(tmp_path, "text.png", half.T))
    request = Request(masks=files)
    combined, textural = mask(request, "combined", 4), mask(request, "textural", 4)
    assert (
        combined.source == "mask_combine.png, 4x4 of its 8x8 pixels"
        and combined.observed.tolist() == [[False] * 2 + [True] * 2] * 4
    )
    assert torch.equal(textural.observed, combined.observed.T)
    larger = mask(request, "combined", 12)
    assert larger.observed.tolist() == [[False] * 6 + [True] * 6] * 12
    assert larger.source == "mask_combine.png, 12x12 from its 8x8 pixels" and larger.share == combined.share
    assert torch.equal(mask(request, "random", 16).observed, mask(Request(), "random", 16).observed)
    empty = Request(masks=(saved(tmp_path, "none.png", np.zeros((8, 8))),))
    with pytest.raises(ValueError, match="misses all pixels"):
        mask(empty, "textural", 8)


def test_mask_files_that_are_missing_or_would_be_bent_are_refused(tmp_path):
    values = np.eye(8) * 255
    own = {"combined": saved(tmp_path, "combined.png", values), "textural": saved(tmp_path, "strokes.png", values)}
    for kind, other in (("combined", "textural"), ("textural", "combined")):
        with pytest.raises(FileNotFoundError, match=f"'combin' in its name for the {kind} mask, got {own[other].name}"):
            mask(Request(masks=(own[other],)), kind, 8)
        assert mask(Request(masks=(own[kind],)), kind, 8).source == own[kind].name
    for shape in ((8, 16), (16, 8), (3, 3)):
        wide = saved(tmp_path, "combined.png", np.resize([0, 255, 255], shape))
        with pytest.raises(ValueError, match=f"square and at least 4 .* {shape[0]}x{shape[1]}"):
            mask(Request(masks=(wide,)), "combined", 8)


@pytest.mark.parametrize(("figure", "names"), [("fig3", "strokes"), ("fig9", "strokes"), ("table1", "combined")])
def test_a_folder_without_the_mask_of_a_figure_is_refused_before_its_first_cell(figure, names, tmp_path):
    (tmp_path / "masks").mkdir()
    saved(tmp_path / "masks", f"{names}.png", np.eye(300) * 255)
    with pytest.raises(FileNotFoundError, match=f"masks must hold .*{names}"):
        reproduce("peak", figure, tmp_path / "out", masks=tmp_path / "masks", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fig3", "fig7", "fig8", "fig9", "table1", "table2"])
def test_the_help_says_by_which_names_files_are_found(name, tmp_path, capsys):
    """Files named as the help says are all that a figure needs: its check passes, and by other names it does not."""
    figure = PAPERS["peak"].figures[name]
    assert main(["reproduce", "--help"]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert set(figure.named) == set(figure.takes)
    assert all("".join(pattern.split()) in told for pattern in figure.named.values())
    (tmp_path / "masks").mkdir()
    values = np.eye(256) * 255
    images = [saved(tmp_path, f"{one}x.png", values) for one in re.findall(r"(\w+)\*", figure.named["images"])]
    masks = [saved(tmp_path / "masks", "a_combined.png", values), saved(tmp_path / "masks", "b.png", values)]
    own = [path for path in masks if ("combin" in path.name) == ("combin" in figure.named.get("masks", ""))]
    figure.check(Request(images=tuple(images), masks=tuple(own)))
    with pytest.raises(FileNotFoundError, match="images must hold"):
        figure.check(Request(images=(saved(tmp_path, "x.png", values),), masks=tuple(own)))
