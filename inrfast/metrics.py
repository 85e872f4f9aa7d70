"""How close a reconstruction is to its signal: PSNR, SSIM, the IoU of occupancies and the distance of surfaces."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import check_float, check_tensor, needs
from inrfast.pixels import WHITE, range_of_pixels

SSIM_WINDOW = 11

LEAST_SPREAD = 0.5
"""Smallest range of values in [-1, 1] for which the PSNR is stated with data_range 1."""


def _check_pair(pred: Any, target: Any, *, floating: bool = True) -> tuple[Tensor, Tensor]:
    """Return two finite tensors of one shape."""
    pred = check_tensor("pred", pred, floating=floating)
    target = check_tensor("target", target, floating=floating)
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    return pred.detach(), target.detach().to(pred.device)


def _check_images(pred: Any, target: Any, data_range: Any) -> tuple[Tensor, Tensor, Any]:
    """Return two tensors of one shape and their range; pixels of 8 or 16 bits, both, as their share of white."""
    pred, target = as_tensor("pred", pred), as_tensor("target", target)
    whites = [WHITE.get(own.dtype, 1) for own in (pred, target)]
    if max(whites) == 1:
        return *_check_pair(pred, target), data_range
    if pred.dtype != target.dtype:
        raise TypeError(
            f"pred and target must both be pixels of one dtype or both floating-point values, got {pred.dtype} and "
            f"{target.dtype}; the values of pixels are their .float() / {max(whites)}"
        )
    pred, target = _check_pair(pred, target, floating=False)
    white = whites[0]
    return pred.double() / white, target.double() / white, range_of_pixels(data_range, white)


def mse_to_psnr(mse: float, data_range: float = 1.0) -> float:
    """Return ``10 log10(data_range^2 / mse)`` in dB; infinite at ``mse = 0``."""
    return math.inf if mse == 0 else 20 * math.log10(data_range) - 10 * math.log10(mse)


def data_range_of(target: ArrayLike) -> float:
    """Return the data range of a signal's PSNR where the caller names none.

    1 for values that lie in [-1, 1] and span at least 0.5: an image in [0, 1] as
    :func:`inrfast.signals.image.load_image` gives it, the same minus mid-grey, or a sound or wave in [-1, 1], for which
    the field states ``-10 log10(mse)`` as well. Else the largest minus the smallest value: 0.02 for a signal of that
    height, 7 for one from 0 to 7. A constant has no range of its own: 1.
    """
    low, high = (float(value) for value in torch.aminmax(as_tensor("target", target).detach()))
    spread = high - low
    scaled = low >= -1 and high <= 1 and spread >= LEAST_SPREAD
    return 1.0 if spread == 0 or scaled else spread


def _range(data_range: Any, target: Tensor) -> float:
    """Return the range that is given, or the target's own."""
    if data_range is None:
        return data_range_of(target)
    return check_float("data_range", data_range, minimum=0.0, exclusive=True)


def psnr(pred: ArrayLike, target: ArrayLike, data_range: float | None = 1.0) -> float:
    """Return the peak signal-to-noise ratio in dB, ``10 log10(data_range^2 / mean((pred - target)^2))``.

    Parameters
    ----------
    pred, target
        Floating tensors of one shape, any layout, or pixels of 8 or 16 bits (uint8, uint16), which count as their share
        of white; the mean is taken over all entries, in fp64.
    data_range
        Largest minus smallest value the signal can take; 1 for images in [0, 1]. None takes :func:`data_range_of` the
        target, and 1 of pixels, as :func:`inrfast.fit` does. Of pixels, 255 (65535) is the same as 1.

    Raises
    ------
    ValueError, TypeError
        Unequal shapes, empty or non-finite tensors, ``data_range <= 0``.

    Examples
    --------
    >>> round(psnr(torch.zeros(4), torch.full((4,), 0.1)), 4)
    20.0
    """
    pred, target, data_range = _check_images(pred, target, data_range)
    data_range = _range(data_range, target)
    return mse_to_psnr(float((pred.double() - target.double()).square().mean()), data_range)


def ssim(pred: ArrayLike, target: ArrayLike, data_range: float | None = 1.0) -> float:
    """Return the structural similarity of two images, with the Gaussian window (sigma 1.5) of its authors.

    Parameters
    ----------
    pred, target
        Floating tensors of one shape, or pixels as in :func:`psnr`, (H, W) or (H, W, C), both sides at least 11 (the
        window); channels are averaged.
    data_range
        Largest minus smallest value an image can take; 1 for images in [0, 1]. None takes :func:`data_range_of` the
        target, and 1 of pixels.

    Raises
    ------
    ValueError, TypeError
        Unequal shapes, other dimensions, images smaller than the window, non-finite values, ``data_range <= 0``.

    Source: Wang, Bovik, Sheikh, Simoncelli, Image quality assessment: from error visibility to structural similarity,
    IEEE TIP 2004.
    """
    pred, target, data_range = _check_images(pred, target, data_range)
    if pred.ndim not in (2, 3) or min(pred.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"pred must be an image (H, W) or (H, W, C) of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"got shape {tuple(pred.shape)}"
        )
    with needs("images", "the structural similarity"):
        from skimage.metrics import structural_similarity  # slow to import, and not needed by fits

    return float(
        structural_similarity(
            pred.double().cpu().numpy(),
            target.double().cpu().numpy(),
            data_range=_range(data_range, target),
            channel_axis=-1 if pred.ndim == 3 else None,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def to_8bit(image: ArrayLike) -> Tensor:
    """Return an image as a file with 8 bits per channel holds it: clipped to [0, 1], rounded to multiples of 1/255.

    Of both sides, before :func:`psnr` or :func:`ssim`, it gives the numbers that are measured on saved files.

    Parameters
    ----------
    image
        A floating tensor of any layout, on any device.

    Returns
    -------
    Tensor
        The same values as :func:`inrfast.signals.image.save_image` writes, in the dtype of ``image``, fp32 at least.

    Raises
    ------
    ValueError, TypeError
        An empty or non-finite tensor, or one that is not floating.

    Examples
    --------
    >>> (255 * to_8bit(torch.tensor([-0.2, 0.5, 0.501, 1.3]))).tolist()
    [0.0, 128.0, 128.0, 255.0]
    """
    image = check_tensor("image", image).detach()
    dtype = torch.promote_types(image.dtype, torch.float32)
    return (image.double().clamp(0, 1) * 255).round().to(dtype) / 255


def iou(pred: ArrayLike, target: ArrayLike, threshold: float = 0.5) -> float:
    """Return intersection over union of two occupancies; two empty ones agree, which is 1.

    Parameters
    ----------
    pred, target
        Tensors of one shape, any layout: boolean, or real values that mean "inside" above ``threshold``.
    threshold
        0.5, halfway between outside (0) and inside (1).

    Raises
    ------
    ValueError, TypeError
        Unequal shapes, empty or non-finite tensors.
    """
    pred, target = _check_pair(pred, target, floating=False)
    threshold = check_float("threshold", threshold)
    inside_pred, inside_target = (t if t.dtype == torch.bool else t > threshold for t in (pred, target))
    union = int((inside_pred | inside_target).sum())
    return int((inside_pred & inside_target).sum()) / union if union else 1.0


def chamfer(pred: ArrayLike, target: ArrayLike) -> float:
    """Return the chamfer distance of two sets of points: the mean of both mean distances to the nearest other point.

    ``(mean_p min_t |p - t| + mean_t min_p |t - p|) / 2``, in the units of the points; 0 for sets of the same points.
    Of samples of one surface it is about half of their spacing, not 0: state how many were taken.

    Parameters
    ----------
    pred, target
        Floating tensors (n, d) and (m, d), such as points sampled on two surfaces.

    Raises
    ------
    ValueError, TypeError
        Other shapes, empty or non-finite tensors.

    Examples
    --------
    >>> chamfer(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    1.25
    """
    points = [
        check_tensor(name, given, ndim=2).detach().double().cpu()
        for name, given in (("pred", pred), ("target", target))
    ]
    if points[0].shape[1] != points[1].shape[1]:
        raise ValueError(
            f"pred and target must have points of one dimension, got {tuple(points[0].shape)} and "
            f"{tuple(points[1].shape)}"
        )
    from scipy.spatial import cKDTree  # slow to import, and not needed by fits

    trees = [cKDTree(own.numpy()) for own in points]
    return float(sum(trees[1 - i].query(own.numpy())[0].mean() for i, own in enumerate(points)) / 2)
