"""Different seeds draw different numbers, everywhere, or are refused by name."""

import itertools
from contextlib import suppress

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st

import inrfast as inr
from inrfast.errors import check_seed
from inrfast.experiments import demo
from inrfast.signals.mesh import sample_occupancy
from inrfast.training.batches import permutations, seeds_on
from inrfast.training.callbacks import TrackNTK
from inrfast.training.checkpoint import load_network, save_network

SEEDS = sorted({0, *(2**bits + step for bits in (8, 16, 31, 32, 33, 62, 63, 64, 65) for step in (-1, 0, 1)), 10**30})
COORDS = inr.grid((6, 6))
FOURIER = inr.RandomFourier(4)
BALL = trimesh.creation.icosphere(1)


def network(**options):
    return inr.INR(2, 1, width=8, hidden_layers=1, **options)


def fitted(seed):
    net = network()
    inr.fit(net, COORDS, COORDS[:, :1] / 2, steps=2, batch_size=9, seed=seed, progress=False)
    return net.layers[0].weight


def fitted_beside(seed):
    nets = [network(), network(seed=1)]
    inr.fit_many(nets, COORDS, COORDS[:, :1] / 2, steps=2, batch_size=9, seed=[3, seed], progress=False)
    return nets[1].layers[0].weight


DRAWS = {
    "the weights of a network": lambda seed: network(seed=seed).layers[0].weight,
    "the frequencies of an encoding": lambda seed: network(seed=seed, encoding=FOURIER).encoding.frequencies,
    "the batches of a fit": fitted,
    "the batches of one of several fits": fitted_beside,
    "the points of a mesh": lambda seed: sample_occupancy(BALL, 20, seed=seed, progress=False)[0],
}
"""What is drawn, as a tensor, for a seed."""


@pytest.mark.parametrize("what", DRAWS)
def test_every_seed_draws_numbers_of_its_own_or_is_refused(what):
    drawn = {}
    for seed in SEEDS:
        with suppress(ValueError):
            drawn[seed] = DRAWS[what](seed)
    assert {0, 255, 2**31, 2**32 - 1} <= drawn.keys()
    assert all(not torch.equal(drawn[one], drawn[other]) for one, other in itertools.combinations(drawn, 2))


REFUSED = {
    "diagnose": lambda seed: inr.diagnose(network(), COORDS, seed=seed, progress=False),
    "spectrum": lambda seed: inr.ntk(network(), COORDS).spectrum(seed=seed),
    "solve": lambda seed: inr.ntk(network(), COORDS).solve(COORDS[:, 0], ridge=1.0, seed=seed),
    "factor": lambda seed: inr.ntk(network(), COORDS).factor(-1.0, seed=seed),
    "callback": lambda seed: TrackNTK(seed=seed),
    "demo": lambda seed: demo.run("/proc/nowhere", seed=seed),
}


@pytest.mark.parametrize("where", REFUSED)
@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 10**30])
def test_a_seed_of_which_only_a_part_would_count_is_refused(where, seed):
    with pytest.raises(ValueError, match=f"seed must be .* got {seed}"):
        REFUSED[where](seed)


@given(st.integers(-(2**70), 2**70), st.integers(1, 66))
def test_a_seed_has_as_many_bits_as_count(seed, bits):
    if 0 <= seed < 2**bits:
        assert check_seed("seed", seed, bits) == seed
    else:
        with pytest.raises(ValueError, match="seed must be"):
            check_seed("seed", seed, bits)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6, unique=True))
def test_batches_of_all_seeds_differ(seeds):
    orders = permutations(40, seeds_on(seeds, torch.device("cpu")), 0).tolist()
    assert len({tuple(order) for order in orders}) == len(seeds)


def test_a_network_of_an_old_file_keeps_the_seed_that_counted(tmp_path):
    net = network(seed=5)
    net.seed = 5 + 2**33  # as it could be once, with the same numbers
    save_network(net, tmp_path / "old.safetensors")
    assert load_network(tmp_path / "old.safetensors")[0].config() == network(seed=5).config()
