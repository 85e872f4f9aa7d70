"""Products in fp32 are those of the kernel, for every output and layer, or not offered."""

import pytest
import torch

import inrfast as inr
from inrfast.tangent.kernel_operator import KernelOperator


@pytest.mark.parametrize("output", ["trace", "full", 1])
@pytest.mark.parametrize("layer", [None, "layers.0", "layers.2"])
def test_products_of_every_output_and_layer(output, layer):
    net = inr.INR(2, 3, width=40, hidden_layers=2, activation="sine", seed=1)
    kernel = inr.ntk(net, torch.rand(1500, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1, output=output)
    kernel = (kernel if layer is None else kernel.layers[layer]).at_precision("highest")
    single = KernelOperator(kernel).single
    v = torch.randn(kernel.shape[0], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    exact = kernel @ v
    error = float((single @ v - exact).norm())
    largest = float(kernel.trace()) ** 0.5
    assert error <= 2 * single.noise * largest + single.noise**2
    assert error >= 1e-12 * float(exact.norm())  # fp32 indeed


def test_what_fp32_does_not_hold_is_not_offered():
    for scale, offered in ((1.0, True), (1e-16, False), (1e16, False)):
        net = inr.INR(2, 1, width=16, hidden_layers=1, seed=0, dtype=torch.float64)
        with torch.no_grad():
            net.layers[-1].weight *= scale  # so that the sensitivities are; features hold the 1 of the bias
        operator = KernelOperator(inr.ntk(net, inr.grid((8, 8)), precision="highest"))
        assert (operator.single is not None) == offered
