"""Restored pictures keep what is known, join without a seam, and are better than what the classical methods leave."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.inverse.biharmonic import biharmonic
from inrfast.inverse.enlarging import area_means
from inrfast.inverse.holes import Ranges
from inrfast.inverse.restoring import Averaged, bounds_of, coordinates
from inrfast.metrics import psnr

QUICK = {"steps": 20, "progress": False}


def photograph(side: int) -> torch.Tensor:
    return area_means(torch.from_numpy(data.astronaut().copy()) / 255, (side, side)).float()


def draws(share: float, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < share


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean())


@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 1), (9, 13, 3), (9, 13, 2), (1, 12), (12, 1, 3), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_pixels_stay_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    known = draws(0.5, *shape[:2])
    known[0, 0], known[-1, -1] = True, False
    given = image.clone()
    given[~known] = math.nan
    found = inr.inpaint(given, known, **QUICK)
    assert (found.image.shape, found.image.dtype) == (shape, dtype)
    assert torch.equal(found.image[known], image[known])
    assert bool(torch.isfinite(found.image).all() & (found.image >= 0).all() & (found.image <= 1).all())
    assert (found.own.shape, found.classical.shape) == (shape, shape)
    assert torch.equal(given[known], image[known])
    assert bool(given[~known].isnan().all())  # what came in is as it was


def test_the_picture_is_the_classical_one_and_what_the_network_adds() -> None:
    image, known = photograph(24), draws(0.5, 24, 24)
    found = inr.inpaint(image, known, **QUICK)
    adds = found.own.double() - biharmonic(found.own, known)
    joined = Ranges(image, known).clipped(found.classical + found.share * adds)
    torch.testing.assert_close(found.image[~known].double(), joined[~known], atol=1e-6, rtol=0)
    values = found.net(coordinates((24, 24))).detach().view(24, 24, 3) + 0.5
    torch.testing.assert_close(found.own, values, atol=1e-5, rtol=0)
    mse = error(found.own[known], image[known])
    assert found.psnr == pytest.approx(-10 * math.log10(mse), abs=1e-6)


def test_no_seam_is_left_by_a_network_that_has_not_learned_yet() -> None:
    """A ramp with a hole: one step leaves the network far from it, and the picture joins all the same."""
    ramp = torch.linspace(0.1, 0.9, 32).expand(32, 32).contiguous()
    known = torch.ones(32, 32, dtype=torch.bool)
    known[10:22, 10:22] = False
    found = inr.inpaint(ramp, known, steps=1, progress=False)

    def jump(picture: torch.Tensor) -> float:
        pasted = torch.where(known, ramp, picture)
        return float((pasted.diff(dim=1) - ramp.diff(dim=1))[10:22, [9, 21]].abs().max())

    assert jump(found.own) > 0.2 > 5 * jump(found.image)


@pytest.fixture(scope="module")
def filled() -> tuple[torch.Tensor, torch.Tensor, inr.Restored]:
    """A photograph, the half of it that is known, and the rest filled in by a fit long enough to be of use."""
    image, known = photograph(72), draws(0.5, 72, 72)
    return image, known, inr.inpaint(image, known, steps=150, progress=False)


def test_half_of_the_pixels_are_filled_better_than_by_biharmonic_interpolation(filled) -> None:
    """The claim of the page at a tenth of the size: 0.1 dB at least, of the 0.5 that are measured."""
    image, known, found = filled
    classical, joined = error(found.classical[~known], image[~known]), error(found.image[~known], image[~known])
    assert joined < 10**-0.01 * classical


@pytest.mark.parametrize("factor", [2, 3, 1.5, 2.3])
@pytest.mark.parametrize("shape", [(12, 10), (9, 14, 3), (1, 7)])
def test_an_enlarged_picture_has_the_means_of_the_given_one(factor: float, shape: tuple[int, ...]) -> None:
    image = 0.2 + 0.6 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = inr.upscale(image, factor, **QUICK)
    large = (round(shape[0] * factor), round(shape[1] * factor))
    assert found.image.shape == (*large, *shape[2:])
    means = area_means(found.image if len(shape) == 3 else found.image[..., None], shape[:2]).view(shape)
    difference = float((means - image).abs().max())
    assert difference == pytest.approx(found.mean_difference, abs=1e-6)  # fp32
    assert difference < (2e-6 if factor == int(factor) else 0.05)


def test_black_and_white_drawings_keep_their_means() -> None:
    image = draws(0.5, 12, 10).float()
    found = inr.upscale(image, 3, **QUICK)
    assert float((area_means(found.image[..., None], (12, 10))[..., 0] - image).abs().max()) < 2e-6


@pytest.mark.parametrize("image", [torch.full((1, 1), 200 / 255), torch.full((16, 16, 3), 0.5), torch.tensor([[0.3]])])
def test_a_constant_picture_stays_constant(image: torch.Tensor) -> None:
    found = inr.upscale(image, 4, **QUICK)
    torch.testing.assert_close(found.image, image.mean().expand_as(found.image), atol=1e-6, rtol=0)
    assert found.share == 0


def test_nothing_is_drawn_into_flat_parts() -> None:
    """A disc on a flat ground: three pixels from its border and further, both stay as they are."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    image = torch.where((rows - 12) ** 2 + (columns - 12) ** 2 < 16, 0.8, 0.4)
    far = inr.upscale(image, 2, **QUICK).image[:8]
    assert float((far - 0.4).abs().max()) < 1 / 255


def test_an_enlarged_photograph_is_better_than_bicubic() -> None:
    truth = photograph(64)
    small = area_means(truth, (32, 32)).float()
    found = inr.upscale(small, 2, steps=60, progress=False)
    from inrfast.inverse.enlarging import bicubic

    plain, classical, joined = (error(own, truth) for own in (bicubic(small, (64, 64)), found.classical, found.image))
    assert joined < 10**-0.01 * classical < 10**-0.03 * plain


def test_held_out_pixels_say_what_a_network_is_worth(filled) -> None:
    """A network that was not trained does no harm; of one that was, they say what to expect of the missing pixels."""
    image, known, useful = filled
    useless = inr.inpaint(image, known, lr=1e-9, steps=1, progress=False)
    assert useful.share > 0.4
    assert error(useless.image[~known], image[~known]) < 10**0.01 * error(useless.classical[~known], image[~known])
    missing = -10 * math.log10(error(useful.image[~known], image[~known]))
    # Held-out pixels have fewer known ones around them; their sample of 260 is good for 1 dB.
    assert missing - 1.5 < useful.held_out_psnr < missing + 1.0


def test_means_of_a_network_are_those_of_its_samples() -> None:
    net = inr.INR(2, 3, width=8, hidden_layers=1, seed=0, dtype=torch.float64)
    coords = coordinates((5, 4)).double()
    fine = net(coordinates((15, 12)).double()).view(15, 12, 3)
    got = Averaged(net, 2 / 5, 3)(coords).view(5, 4, 3)
    torch.testing.assert_close(got, area_means(fine.detach(), (5, 4)), atol=1e-6, rtol=0)


def test_pixels_are_squares() -> None:
    assert bounds_of((4, 8)) == [(-0.5, 0.5), (-1.0, 1.0)]
    rows, columns = coordinates((4, 8)).view(4, 8, 2).unbind(-1)
    assert float(rows.diff(dim=0).mean()) == pytest.approx(0.25)
    assert float(columns.diff(dim=1).mean()) == pytest.approx(0.25)


def test_a_seed_decides_all_and_another_differs() -> None:
    image, known = photograph(16), draws(0.5, 16, 16)
    first, again, other = (inr.inpaint(image, known, seed=seed, **QUICK).image for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_networks_and_regularisers_of_ones_own_are_used() -> None:
    image, known, asked = photograph(16), draws(0.5, 16, 16), []
    net = inr.INR(2, 3, width=8, hidden_layers=1, activation="sine", init="siren", omega=10.0)
    before = [own.clone() for own in net.parameters()]

    def small(net):
        asked.append(net)
        return sum(own.square().sum() for own in net.parameters())

    found = inr.inpaint(image, known, net=net, lr=1e-3, regularizers=[(small, 1e-3)], **QUICK)
    assert found.net is net
    assert len(asked) >= 20
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_time_ends_a_fit() -> None:
    image, known = photograph(32), draws(0.5, 32, 32)
    found = inr.inpaint(image, known, steps=10**6, seconds=0.3, progress=False)
    assert (found.stopped, found.interrupted) == ("seconds", False)
    assert 0 < found.steps < 10**6
    assert torch.equal(found.image[known], image[known])


def test_an_interrupt_keeps_what_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    image, known = photograph(16), draws(0.5, 16, 16)
    calls = []

    def interrupts(net):
        calls.append(net)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return 0 * next(net.parameters()).sum()

    found = inr.inpaint(image, known, regularizers=[interrupts], **QUICK)
    assert found.interrupted
    assert 0 < found.steps < 20
    assert torch.equal(found.image[known], image[known])


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (
            torch.zeros(4, 5),
            torch.ones(5, 4) > 0,
            r"mask must have the size of the image, \(4, 5\), got shape \(5, 4\)",
        ),
        (torch.zeros(4, 5), torch.zeros(4, 5) > 0, "every pixel is missing"),
        (torch.zeros(4, 5), torch.ones(4, 5) > 0, "no pixel is missing"),
        (torch.zeros(4, 5), torch.full((4, 5), 0.5), "mask must be boolean"),
        (torch.zeros(4), torch.ones(4) > 0, r"image must have shape \(H, W\)"),
        (torch.full((4, 5), 2.0), torch.eye(4, 5) > 0, "at known pixels, got values from 2 to 2"),
        (torch.full((4, 5), math.nan), torch.eye(4, 5) > 0, "image"),
    ],
)
def test_bad_masks_and_images_are_named(image: torch.Tensor, mask: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inr.inpaint(image, mask)


def test_bad_numbers_are_named() -> None:
    image, known = torch.zeros(4, 5), torch.eye(4, 5) > 0
    for name, value in (("steps", 0), ("lr", 0.0), ("seconds", -1.0), ("seed", -1), ("memory_budget", 0)):
        with pytest.raises(ValueError, match=name):
            inr.inpaint(image, known, **{name: value})
    for factor in (1, 0.5, -2, math.nan):
        with pytest.raises(ValueError, match="factor"):
            inr.upscale(image, factor)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 0 to 255"):
        inr.upscale(torch.arange(256.0).view(16, 16), 2)
    with pytest.raises(TypeError, match="image"):
        inr.upscale(np.zeros((4, 4), np.int32), 2)
    for restore in (lambda net: inr.inpaint(image, known, net=net), lambda net: inr.upscale(image, 2, net=net)):
        with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got function"):
            restore(lambda x: x)
        with pytest.raises(ValueError, match="net has no trainable parameter"):
            restore(torch.nn.Identity())
    with pytest.raises(MemoryBudgetError, match=r"a picture of 4,000,000 pixels needs .* take a smaller picture"):
        inr.upscale(torch.zeros(1000, 1000), 2, memory_budget=2**22)


def test_means_of_a_clipped_picture_come_back():
    given = torch.rand(13, 17, generator=torch.Generator().manual_seed(0)).clamp(0.1, 0.9)
    found = inr.upscale(given, 2, steps=20, progress=False).image
    means = found.unflatten(0, (13, 2)).unflatten(2, (17, 2)).mean((1, 3))
    assert float((means - given).abs().max()) < 2 / 255


def test_networks_of_few_steps_add_little_to_an_enlarged_picture():
    axis = torch.linspace(-1, 1, 64)
    disc = 0.3 + 0.4 * torch.sigmoid(40 * (0.6 - torch.hypot(axis[:, None] - 0.1, axis[None] + 0.05)))
    small = disc.unflatten(0, (32, 2)).unflatten(2, (32, 2)).mean((1, 3))
    for steps in (1, 5):
        found = inr.upscale(small, 2, steps=steps, progress=False)
        assert found.share == pytest.approx(0.75 * steps / 250)
        assert psnr(found.image, disc) > psnr(found.classical, disc) - 0.05


@pytest.mark.filterwarnings("ignore:.*pixels of")
def test_pictures_and_pixels_are_their_values():
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12) * 2
    usual = inr.upscale(torch.from_numpy(pixels) / 255, 2, steps=2, progress=False).image
    for given in (pixels, Image.fromarray(pixels)):
        assert torch.equal(inr.upscale(given, 2, steps=2, progress=False).image, usual)
    known = torch.rand(8, 12) < 0.6
    found = [inr.inpaint(given, known, steps=2, progress=False).image for given in (pixels / 255, pixels)]
    assert torch.allclose(found[0].float(), found[1].float(), atol=1e-5)
