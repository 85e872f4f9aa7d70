"""A fit of what users have is the fit of the tensors that it stands for, bit by bit."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import inrfast as inr
from inrfast.signals.render import render

PIXELS = torch.randint(0, 256, (9, 6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
VALUES = PIXELS / 255
COORDS = inr.grid((9, 6))
NOTED = pytest.mark.filterwarnings("ignore:.*pixels of")


def network(outputs=3, axes=2):
    return inr.INR(axes, outputs, width=8, hidden_layers=1, seed=0)


def losses(*args, net=None, **options):
    return inr.fit(net or network(), *args, steps=4, progress=False, **options).losses


GIVEN = {
    "values": VALUES,
    "fp64": VALUES.double().numpy(),
    "pixels": PIXELS,
    "array": PIXELS.numpy(),
    "picture": Image.fromarray(PIXELS.numpy()),
}


@NOTED
@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("coords", [None, COORDS, COORDS.double().numpy()], ids=["none", "grid", "fp64"])
def test_an_image_is_its_values_on_the_grid(kind, coords):
    usual = inr.fit(network(), COORDS, VALUES, steps=4, progress=False)
    net = network()
    found = inr.fit(net, coords, GIVEN[kind], steps=4, progress=False)
    if kind == "fp64":  # rounded once more
        assert np.allclose(found.losses, usual.losses, rtol=1e-5)
    else:
        assert found.losses == usual.losses and found.psnrs == usual.psnrs
    assert found.data_range == usual.data_range == 1.0
    assert found.config.get("white") == (255 if kind in ("pixels", "array", "picture") else None)
    assert found.grid == (None if coords is not None else (9, 6)) and usual.grid is None
    if coords is None:
        assert found.config["grid"] == [9, 6]
        shown = render(net, found.grid)
        assert abs(inr.metrics.psnr(shown, VALUES) - found.psnr) < 1e-3


@NOTED
def test_a_range_of_pixels_is_that_of_their_values():
    for data_range in (None, 1, 255):
        assert inr.fit(network(), None, PIXELS, steps=1, data_range=data_range).data_range == 1.0
    (result,) = inr.fit_many([network()], None, [PIXELS], steps=1, data_range=255)
    assert result.data_range == 1.0 and result.config["white"] == 255
    with pytest.raises(ValueError, match="data_range must be 255"):
        inr.fit(network(), None, PIXELS, steps=1, data_range=100)


@NOTED
@pytest.mark.parametrize("targets", [PIXELS, VALUES, [PIXELS, PIXELS], torch.stack([VALUES, VALUES])])
def test_many_fits_make_one_grid(targets):
    usual = inr.fit(network(), COORDS, VALUES, steps=4, progress=False)
    for result in inr.fit_many([network(), network()], None, targets, steps=4, progress=False):
        assert np.allclose(result.losses, usual.losses, rtol=1e-5) and result.grid == (9, 6)


def test_one_output_needs_no_last_axis_and_other_modules_are_asked_what_they_take():
    grey = VALUES[..., 0]
    usual = losses(COORDS, grey.reshape(-1, 1), net=network(1))
    assert losses(None, grey, net=network(1)) == losses(None, grey[..., None], net=network(1)) == usual

    def plain(outputs, seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, outputs))

    assert losses(None, grey, net=plain(1)) == losses(COORDS, grey, net=plain(1))
    assert losses(None, VALUES, net=plain(3)) == losses(COORDS, VALUES, net=plain(3))
    sound = torch.sin(torch.arange(20.0))
    assert losses(None, sound, net=network(1, 1)) == losses(inr.grid(20), sound, net=network(1, 1))


@pytest.mark.parametrize(
    ("target", "net", "told"),
    [
        (VALUES.permute(2, 0, 1), network(), r"target of shape \(3, 9, 6\) .* target.permute\(1, 2, 0\) brings them"),
        (torch.rand(9, 6, 4), network(), r"target\[..., :3\] leaves out the opacity of RGBA, or make .* with 4"),
        (VALUES, network(1), r"target.mean\(-1\) is grey, or make the network with 3"),
        (VALUES[..., 0], network(), "it has 1 value per point, the network 3 outputs"),
        (VALUES.reshape(-1, 3), network(), "give coords"),
        (VALUES, nn.Linear(7, 3), "net takes neither 2 nor 3 coordinates"),
    ],
)
def test_values_that_are_no_grid_of_the_network_are_refused_with_help(target, net, told):
    with pytest.raises(ValueError, match=told):
        inr.fit(net, None, target, steps=1)


def test_a_missing_target_is_told():
    with pytest.raises(TypeError, match=r"target is missing: call fit\(net, coords, target\), or fit\(net, target=im"):
        inr.fit(network(), VALUES)
    with pytest.raises(TypeError, match="targets are missing"):
        inr.fit_many([network()], COORDS)


# ---- batches -----------------------------------------------------------------------------------------------------

FLAT = TensorDataset(COORDS, VALUES.reshape(-1, 3))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_its_points_in_batches_of_its_size(shuffle):
    usual = losses(COORDS, VALUES, batch_size=10, seed=3)
    assert losses(DataLoader(FLAT, batch_size=10, shuffle=shuffle), seed=3) == usual
    listed = [(COORDS[part], VALUES.reshape(-1, 3)[part].double().numpy()) for part in torch.arange(54).split(10)]
    assert np.allclose(losses(listed, seed=3), usual, rtol=1e-5)
    assert losses(DataLoader(FLAT, batch_size=10), batch_size=7, seed=3) == losses(COORDS, VALUES, batch_size=7, seed=3)
    whole = DataLoader(TensorDataset(COORDS[None], VALUES.reshape(1, -1, 3)))  # one item holds all points
    assert losses(whole) == losses(COORDS, VALUES)
    assert inr.fit(network(), DataLoader(FLAT, batch_size=10), steps=1).psnr > 0


class Stream(IterableDataset):
    def __iter__(self):
        yield from FLAT


@pytest.mark.parametrize(
    ("batches", "error", "told"),
    [
        (FLAT, TypeError, r"got the data set TensorDataset; give torch.utils.data.DataLoader\(dataset"),
        (DataLoader(Stream()), TypeError, "a loader of an IterableDataset without a length"),
        ((pair for pair in [(COORDS, VALUES)]), TypeError, "got generator without a length"),
        ([], ValueError, "at least one batch"),
        ([(COORDS,)], TypeError, r"batch 0 of coords must be a pair \(coords, values\), got tuple of 1"),
        ([{"coords": COORDS, "values": VALUES}], TypeError, "batch 0 of coords must be a pair .* got dict of 2"),
        ([(COORDS, VALUES)], ValueError, r"of the same points, got \(54, 2\) and \(9, 6, 3\)"),
    ],
)
def test_what_is_no_batches_is_refused_with_help(batches, error, told):
    with pytest.raises(error, match=told):
        inr.fit(network(), batches, steps=1)


def batches(points=lambda own: own, values=lambda own: own):
    """Return two batches, the second one changed."""
    pairs = [(COORDS[part], VALUES.reshape(-1, 3)[part]) for part in torch.arange(54).split(27)]
    return [pairs[0], (points(pairs[1][0]), values(pairs[1][1]))]


OTHERS = {
    "complex": ({"values": lambda own: own + 0j}, TypeError, "batch 1's values must have a floating-point dtype"),
    "whole": ({"values": lambda own: own.long()}, TypeError, "batch 1's values must have a floating-point dtype"),
    "fp8": ({"values": lambda own: own.to(torch.float8_e4m3fn)}, TypeError, "batch 1's values must .* of 16 bits"),
    "sparse": ({"values": lambda own: own.to_sparse()}, TypeError, "batch 1's values must be a dense tensor"),
    "counted": ({"points": lambda own: own.long()}, TypeError, r"batch 1's coords must .* inrfast.grid\(\(H, W\)\)"),
    "masked": ({"values": lambda own: own > 0}, TypeError, "floating-point values in batch 0 and booleans in 1"),
    "bytes": ({"values": lambda own: own.byte()}, TypeError, "floating-point values in batch 0 and pixels of 8 bits"),
    "wide": ({"points": lambda own: own.double() * 1e300}, ValueError, "batch 1's coords must be within the range"),
    "line": (
        {"points": lambda own: own[:, :1]},
        ValueError,
        r"points of \(n, 2\) in batch 0 and points of \(n, 1\) in",
    ),
    "grey": ({"values": lambda own: own[:, :1]}, ValueError, r"values of \(n, 3\) in batch 0 and values of \(n, 1\)"),
}


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_of_another_kind_is_refused(kind):
    changed, error, told = OTHERS[kind]
    with pytest.raises(error, match=told):
        inr.fit(network(), batches(**changed), steps=1)


def test_batches_of_pixels_are_told_and_have_their_range():
    flat = PIXELS.reshape(-1, 3)
    with pytest.warns(UserWarning, match="batch 0's values holds pixels of 8 bits") as told:
        found = inr.fit(network(), [(COORDS[:27], flat[:27]), (COORDS[27:], flat[27:])], steps=1, data_range=255)
    assert found.data_range == 1 and found.config["white"] == 255 and len(told) == 1
    half = [(COORDS[:27], flat[:27] / 255), (COORDS[27:], flat[27:].to(torch.uint16))]
    with pytest.warns(UserWarning, match="batch 1's values"), pytest.raises(TypeError, match="of one kind"):
        inr.fit(network(), half, steps=1)


@pytest.mark.parametrize("target", [torch.rand(9, 6).to_sparse(), torch.zeros(0, 6), torch.zeros(9, 6, device="meta")])
def test_values_that_are_not_there_are_refused(target):
    for coords in (None, COORDS):
        with pytest.raises(
            (TypeError, ValueError), match=r"target must (be a dense|not be empty)|target is on the meta"
        ):
            inr.fit(network(1), coords, target, steps=1)


def test_batches_where_points_belong_are_refused():
    loader = DataLoader(FLAT, batch_size=10)
    with pytest.raises(TypeError, match="coords holds batches, whose values are the target; leave target out"):
        inr.fit(network(), loader, VALUES, steps=1)
    for given in (loader, [loader, loader]):
        for targets in (None, VALUES):
            with pytest.raises(TypeError, match=r"coords must be points, got a DataLoader; fit\(net, loader\)"):
                inr.fit_many([network(), network()], given, targets, steps=1)


def test_batches_take_no_weight_and_no_more_memory_than_there_is():
    loader = DataLoader(FLAT, batch_size=10)
    with pytest.raises(ValueError, match="weight can't go with batches"):
        inr.fit(network(), loader, steps=1, weight=torch.ones(54))
    with pytest.raises(inr.errors.MemoryBudgetError, match="gathering 6 batches needs"):
        inr.fit(network(), loader, steps=1, memory_budget=2000)


@NOTED
@pytest.mark.parametrize("have", ["L", "LA", "RGB", "RGBA", "1", "P", "CMYK", "F", "I;16"])
@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
@pytest.mark.parametrize("coords", [None, COORDS], ids=["none", "grid"])
def test_what_is_said_of_channels_cures_what_was_given(have, outputs, coords):
    values = VALUES[..., 0].numpy()
    picture = (
        Image.fromarray(PIXELS.numpy())
        .convert("L" if have in ("LA", "I;16") else "RGB")
        .convert("LA" if have == "LA" else "L" if have == "I;16" else have)
    )
    if have in ("F", "I;16"):
        picture = Image.fromarray(values if have == "F" else (values * 65535).astype(np.uint16))
    array = np.array(picture.convert("RGB") if have == "P" else picture)
    for name, given in (("picture", picture), ("array", array), ("tensor", torch.tensor(array))):
        said = told(given, outputs, coords)
        cures = CURE.findall(said)
        for cure in cures:
            assert not told(eval(cure, {"target": given}), outputs, coords)
        assert not said or ("make the network with" in said and (cures or name != "picture" or have in ("F", "I;16")))


CURE = re.compile(r"(?:; (?:give )?|, or )([(]?target(?:[.][a-z]|\[| /).*?)(?: is grey| leaves|, or make)")


def told(target, outputs, coords):
    """Return why a target is refused, nothing where it is not."""
    try:
        inr.fit(network(outputs), coords, target, steps=1, progress=False)
    except ValueError as error:
        return str(error)
    return ""


@NOTED
def test_pictures_of_many_networks_are_cured_too():
    picture = Image.fromarray(PIXELS.numpy())
    with pytest.raises(ValueError, match=r'targets\[1\] must have .* give targets\[1\].convert\("L"\)'):
        inr.fit_many([network(3), network(1)], None, [picture, picture], steps=1)
