"""Fig. 3: the network is the paper's, and the numbers are those of its fitted values."""

import numpy as np

from inrfast.experiments.inr_dictionaries.networks import siren


def test_omega_acts_in_the_first_layer_alone_and_biases_have_the_bounds_of_the_weights():
    net = siren(1, 1, 64, 2, 300.0, seed=3)
    assert net.omegas == (300.0, 30.0)
    for index, (layer, bound) in enumerate(zip(net.layers[:-1], (1.0, (6 / 64) ** 0.5 / 30), strict=True)):
        for part in (layer.weight, layer.bias):
            most = part.detach().abs().max().item()
            assert 0.8 * bound < most <= bound * (1 + 1e-6), (index, np.shape(part))
