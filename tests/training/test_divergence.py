"""The culprit of a NaN is the first place where it shows."""

import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.divergence import first_nonfinite


def finite_net() -> inr.INR:
    return inr.INR(2, 1, width=4, hidden_layers=2)


def test_the_first_place_is_named() -> None:
    coords = inr.grid((3, 3))
    net = finite_net()
    assert first_nonfinite(net, coords) == "the loss"

    net.layers[1].weight.grad = torch.full_like(net.layers[1].weight, float("nan"))
    assert first_nonfinite(net, coords) == "the gradient of layers.1.weight"

    with torch.no_grad():
        net.layers[1].weight.fill_(3e38)
    assert first_nonfinite(net, 1e3 * coords + 1e3) == "the output of layers.1"

    with torch.no_grad():
        net.layers[0].bias[1] = float("inf")
    assert first_nonfinite(net, coords) == "the weights of layers.0.bias"
    assert not any(module._forward_hooks for module in net.modules())


def test_an_operation_between_modules_shows_in_the_predictions() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, coords: Tensor) -> Tensor:
            return torch.log(-self.layer(coords).abs() - 1)

    assert first_nonfinite(Logarithm(), inr.grid((3, 3))) in ("the predictions", "the output of the network")
