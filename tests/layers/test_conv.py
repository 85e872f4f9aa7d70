"""Convolutions as linear maps on patches, against automatic differentiation."""

import pytest
import torch
from captured_layers import agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inrfast.layers.conv import Conv, ConvPositions, patches
from inrfast.testing import check_layer

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@st.composite
def convolutions(draw):
    """A convolution of any kind, and inputs (n, C, ...) for it."""
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, dilation, mode = per_axis(1, 3), per_axis(1, 2), draw(st.sampled_from(["zeros", "reflect", "circular"]))
    some = tuple(
        min(side, size - 1) for side, size in zip(per_axis(0, 1), kernel, strict=True)
    )  # or zeros alone are seen
    padding, stride = draw(st.sampled_from(["same", "valid", some])), per_axis(1, 3)
    torch.manual_seed(draw(st.integers(0, 10**6)))
    conv = KINDS[axes - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    # Reflected and circular sides are no longer than the axis.
    sizes = [
        d * (k - 1) + 1 + draw(st.integers(0, 2)) + (mode != "zeros") for d, k in zip(dilation, kernel, strict=True)
    ]
    return conv, torch.randn(4, conv.in_channels, *sizes)


@settings(max_examples=25)
@given(convolutions())
def test_any_convolution_of_the_features_of_a_point(case):
    """Patches times the weight are its output, and all that ``check_layer`` asks of rows and blocks holds."""
    conv, inputs = case
    found = torch.einsum(
        "npga,gba->ngbp", patches(conv, inputs), conv.weight.view(conv.groups, -1, conv.weight[0].numel())
    )
    plain = conv(inputs) if conv.bias is None else conv(inputs) - conv.bias.view(-1, *[1] * (inputs.ndim - 2))
    torch.testing.assert_close(found.reshape(plain.shape), plain, rtol=1e-4, atol=1e-5)
    check_layer(conv, inputs, ConvPositions)
    if plain[0, 0].numel() == 1 and conv.groups == 1:
        check_layer(conv, inputs, Conv)


@settings(max_examples=10)
@given(st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_one_position_per_point_has_two_factors(axes, bias, frozen, seed):
    torch.manual_seed(seed)
    kernel = (3, 2, 1)[:axes]
    conv = KINDS[axes - 1](2, 4, kernel, bias=bias)
    conv.weight.requires_grad_(not frozen or not bias)
    size = 2 * torch.Size(kernel).numel()
    net = nn.Sequential(
        nn.Linear(2, size), nn.Tanh(), nn.Unflatten(1, (2, *kernel)), conv, nn.Flatten(), nn.Linear(4, 2)
    )
    agrees(
        net, {"3": "conv"}, {"3": (size * conv.weight.requires_grad + bias, 4) if conv.weight.requires_grad else (0, 4)}
    )


class Image(nn.Module):
    """An image model: 1 x 1 convolutions on coordinates as the pixels of one picture."""

    def __init__(self, axes, width, bias):
        super().__init__()
        self.axes = axes
        kind = KINDS[axes - 1]
        self.layers = nn.Sequential(
            kind(2, width, 1, bias=bias), nn.Tanh(), kind(width, width, 1), nn.Tanh(), kind(width, 3, 1)
        )

    def forward(self, coords):
        pixels = coords.t().reshape(1, 2, -1, *[1] * (self.axes - 1))
        return self.layers(pixels).reshape(3, -1).t()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_points_as_the_pixels_of_one_picture(axes, bias):
    net = Image(axes, 5, bias)
    agrees(net, dict.fromkeys(("layers.0", "layers.2", "layers.4"), "conv"), {"layers.0": (2 + bias, 5)})


def test_a_picture_without_a_batch_axis():
    class Unbatched(Image):
        def forward(self, coords):
            return self.layers(coords.t()).t()

    agrees(Unbatched(1, 4, True), {"layers.2": "conv"}, {"layers.2": (5, 4)})
