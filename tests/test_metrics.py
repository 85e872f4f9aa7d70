"""Laws of the metrics, against NumPy and scikit-image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inrfast.metrics import chamfer, data_range_of, iou, mse_to_psnr, psnr, ssim, to_8bit
from inrfast.signals.image import load_image, save_image


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), data_range=st.floats(0.1, 300), scale=st.floats(1e-4, 10))
def test_psnr_is_that_of_scikit_image(seed: int, data_range: float, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(7, 5, 3, generator=rng, dtype=torch.float64)
    pred = target + scale * torch.randn(7, 5, 3, generator=rng, dtype=torch.float64)
    expected = peak_signal_noise_ratio(target.numpy(), pred.numpy(), data_range=data_range)
    assert psnr(pred, target, data_range) == pytest.approx(expected, abs=1e-9)
    assert psnr(target, pred, data_range) == psnr(pred, target, data_range)


def test_psnr_of_equal_signals_is_infinite_and_a_tenth_off_is_20_db() -> None:
    signal = torch.rand(100, dtype=torch.float64)
    assert psnr(signal, signal) == math.inf == mse_to_psnr(0.0)
    assert psnr(signal + 0.1, signal) == pytest.approx(20.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_the_range_is_one_for_images_and_the_spread_of_all_else(seed: int, scale: float, shift: float) -> None:
    image = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image[:2] = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert data_range_of(image) == data_range_of(image - 0.5) == data_range_of(2 * image - 1) == 1.0
    signal = scale * image + shift
    spread = float(signal.max() - signal.min())
    known = spread >= 0.5 and bool((signal.abs() <= 1).all())
    assert data_range_of(signal) == (1.0 if known else spread)
    noisy = signal + 0.01 * scale * torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert psnr(noisy, signal, None) == psnr(noisy, signal, data_range_of(signal))
    assert data_range_of(torch.full((3,), shift)) == 1.0


@pytest.mark.parametrize("shape", [(16, 20), (16, 20, 3), (11, 11, 1)])
def test_ssim_is_symmetric_bounded_and_one_on_equal_images(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(1)
    a, b = torch.rand(shape, generator=rng), torch.rand(shape, generator=rng)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b) == pytest.approx(ssim(b, a))
    assert -1 <= ssim(a, b) < 0.9
    by_channel = [(a, b)] if a.ndim == 2 else [(a[..., c], b[..., c]) for c in range(a.shape[2])]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = np.mean(
        [structural_similarity(x.double().numpy(), y.double().numpy(), **options) for x, y in by_channel]
    )
    assert ssim(a, b) == pytest.approx(expected)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_8_bits_are_those_of_a_file_measured_by_scikit_image(tmp_path_factory, seed: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(13, 12, 3, generator=rng, dtype=torch.float64).to(dtype)
    pred = (target + torch.randn(13, 12, 3, generator=rng, dtype=torch.float64)).to(dtype)
    folder, (a, b) = tmp_path_factory.mktemp("image"), (to_8bit(pred), to_8bit(target))
    bytes_ = [np.rint(np.clip(image.double().numpy(), 0, 1) * 255).astype(np.uint8) for image in (pred, target)]
    save_image(pred, folder / "pred.png")
    assert torch.equal(a.float(), load_image(folder / "pred.png"))
    assert torch.equal(to_8bit(a), a)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(bytes_[1], bytes_[0], data_range=255), abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    assert ssim(a, b) == pytest.approx(structural_similarity(*bytes_, data_range=255, **options), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(bits=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_iou_counts_sets(bits: list[tuple[bool, bool]]) -> None:
    a, b = {i for i, pair in enumerate(bits) if pair[0]}, {i for i, pair in enumerate(bits) if pair[1]}
    pred, target = (torch.tensor([pair[k] for pair in bits]) for k in range(2))
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert iou(pred, target) == iou(target, pred) == expected
    assert iou(pred * 0.8, target.float()) == expected  # 0.8 is inside at the threshold of 0.5
    assert iou(pred * 0.4, target) == (0.0 if b else 1.0)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), m=st.integers(1, 30), d=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_chamfer_distances_are_those_of_all_pairs(n: int, m: int, d: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, d, generator=rng, dtype=torch.float64) for count in (n, m))
    pairs = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    expected = float(pairs.amin(1).mean() + pairs.amin(0).mean()) / 2
    assert chamfer(a, b) == pytest.approx(expected) == pytest.approx(chamfer(b, a))
    assert chamfer(a, a[torch.randperm(n, generator=rng)]) == 0
    assert chamfer(3 * a, 3 * b) == pytest.approx(3 * expected)
    for bad, words in ((a[:0], "empty"), (a * math.nan, "finite"), (torch.zeros(2, d + 1), "one dimension")):
        with pytest.raises(ValueError, match=words):
            chamfer(bad, b)


def test_bad_input_is_refused_by_name() -> None:
    good = torch.zeros(16, 16)
    for metric in (psnr, ssim, iou):
        with pytest.raises(ValueError, match="one shape"):
            metric(good, good[:8])
        with pytest.raises(TypeError, match="pred"):
            metric([0.0], good)
        with pytest.raises(ValueError, match="target must be finite"):
            metric(good, good + math.nan)
        with pytest.raises(ValueError, match="empty"):
            metric(good[:0], good[:0])
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="data_range"):
            metric(good, good, data_range=0)
        with pytest.raises(TypeError, match="floating"):
            metric(good.int(), good)
    for bad, error in ((good.int(), TypeError), (good / 0, ValueError), (good[:0], ValueError), ([0.5], TypeError)):
        with pytest.raises(error, match="image"):
            to_8bit(bad)
    with pytest.raises(ValueError, match="11x11"):
        ssim(good[:10], good[:10])


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_pixels_count_as_their_share_of_white(dtype, white):
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randint(0, white + 1, (16, 12, 3), generator=generator).to(dtype) for _ in range(2))
    values = [own.double() / white for own in (pred, target)]
    for measure in (psnr, ssim):
        for data_range in (1.0, white):
            for pair in ((pred, target), (pred.numpy(), target.numpy())):
                assert abs(measure(*pair, data_range=data_range) - measure(*values, data_range=1.0)) < 1e-9
    wanted = peak_signal_noise_ratio(target.numpy(), pred.numpy(), data_range=white)
    assert abs(psnr(pred, target, data_range=white) - wanted) < 1e-9
    with pytest.raises(TypeError, match=rf"both be pixels of one dtype .* \.float\(\) / {white}"):
        psnr(values[0], target)
    with pytest.raises(ValueError, match=rf"data_range must be {white} for pixels"):
        psnr(pred, target, data_range=2.0)
