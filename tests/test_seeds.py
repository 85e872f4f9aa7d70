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


# ---- none given --------------------------------------------------------------------------------------------------


def drawn_by_a_fit():
    net = network(seed=0)
    result = inr.fit(net, COORDS, COORDS[:, :1] / 2, steps=2, batch_size=9, progress=False)
    return net.layers[0].weight, result.config["seed"]


def drawn_by_several():
    nets = [network(seed=0), network(seed=0)]
    results = inr.fit_many(nets, COORDS, COORDS[:, :1] / 2, steps=2, batch_size=9, progress=False)
    assert torch.equal(nets[0].layers[0].weight, nets[1].layers[0].weight)  # one seed, and the same batches
    return nets[0].layers[0].weight, results[0].config["seed"]


def drawn_by_meta_learning():
    net = network(seed=0)
    signals = torch.stack([COORDS[:, :1] * own for own in (-1.0, 0.1, 0.5, 0.9)])
    result = inr.meta_learn(net, COORDS, signals, steps=3, lr=1e-2, batch=1, progress=False)
    return net.layers[0].weight, result.config["seed"]


def drawn_in_place():
    net = network(seed=0)
    inr.init.apply_(net, "siren")
    return net.layers[0].weight


UNSEEDED = {
    "a network": lambda: ((net := network()).layers[0].weight, net.config()["seed"]),
    "an encoding": lambda: ((net := network(encoding=FOURIER)).encoding.frequencies, net.seed),
    "a radiance field": lambda: (inr.scenes.RadianceField(width=4).geometry.layers[0].weight, 0),
    "an initialisation": lambda: (drawn_in_place(), 0),
    "a fit": drawn_by_a_fit,
    "several fits": drawn_by_several,
    "meta-learning": drawn_by_meta_learning,
}
"""What draws its own seed where none is given: a tensor of what it drew, and the seed that it kept (0: none kept)."""


@pytest.mark.parametrize("what", UNSEEDED)
def test_without_a_seed_the_global_generator_decides(what, drawn_seeds):
    torch.manual_seed(7)
    first, again = UNSEEDED[what](), UNSEEDED[what]()
    assert not torch.equal(first[0], again[0])
    torch.manual_seed(7)
    assert torch.equal(UNSEEDED[what]()[0], first[0])


@pytest.mark.parametrize("what", ["a network", "a fit", "several fits", "meta-learning"])
def test_a_drawn_seed_is_kept_and_gives_the_same_again(what, drawn_seeds, monkeypatch):
    numbers, seed = UNSEEDED[what]()
    monkeypatch.setattr("inrfast.seeds.drawn", lambda: seed)  # as if it had been given
    assert torch.equal(UNSEEDED[what]()[0], numbers)
    assert seed > 0


def test_with_a_seed_the_global_generator_is_left_alone(drawn_seeds):
    before = torch.get_rng_state()
    net = network(seed=3)
    inr.fit(net, COORDS, COORDS[:, :1] / 2, steps=2, batch_size=9, seed=3, progress=False)
    inr.diagnose(net, COORDS, progress=False)  # analysis has seed 0 by default
    inr.ntk(net, COORDS).spectrum(progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_analysis_and_sampling_stay_the_same_without_a_seed(drawn_seeds):
    for call in (
        lambda: inr.diagnose(network(seed=0), COORDS, jacobian_pixels=5, progress=False).to_json(),
        lambda: sample_occupancy(BALL, 20, progress=False)[0].tolist(),
        lambda: inr.watch(network(seed=0), COORDS, points=7).points.tolist(),
    ):
        torch.manual_seed(1)
        first = call()
        torch.manual_seed(2)
        assert call() == first


def test_a_resumed_fit_takes_the_seed_of_its_checkpoint(drawn_seeds, tmp_path):
    def fit_to(file, steps, **options):
        net = network(seed=0)
        given = {"schedule": "constant", "batch_size": 9, "checkpoint": tmp_path / file, "progress": False}
        result = inr.fit(net, COORDS, COORDS[:, :1] / 2, steps=steps, **given, **options)
        return net.layers[0].weight, result.config["seed"]

    _, seed = fit_to("fit", 3)
    other = network()  # of a drawn seed, which is not that of the checkpoint's network
    with pytest.raises(ValueError, match="nets"):
        inr.fit(network(seed=1), COORDS, COORDS[:, :1] / 2, steps=7, schedule="constant", batch_size=9,
                checkpoint=tmp_path / "fit", resume=True, progress=False)  # fmt: skip
    inr.fit(other, COORDS, COORDS[:, :1] / 2, steps=5, schedule="constant", batch_size=9,
            checkpoint=tmp_path / "fit", resume=True, progress=False)  # fmt: skip
    assert other.seed == 0
    resumed, kept = fit_to("fit", 7, resume=True)
    whole, _ = fit_to("other", 7, seed=seed)
    assert kept == seed and torch.equal(resumed, whole)
    with pytest.raises(ValueError, match=r"of another fit, with other .*seed"):
        fit_to("fit", 7, resume=True, seed=seed + 1)


def test_resumed_meta_learning_takes_the_seed_of_its_checkpoint(drawn_seeds, tmp_path):
    signals = torch.stack([COORDS[:, :1] * own for own in (-1.0, 0.1, 0.5, 0.9)])

    def learn(file, steps, **options):
        net = network(seed=0)
        given = {"lr": 1e-2, "batch": 1, "checkpoint": tmp_path / file, "progress": False}
        result = inr.meta_learn(net, COORDS, signals, steps=steps, **given, **options)
        return net.layers[0].weight, result.config["seed"]

    _, seed = learn("meta", 2)
    resumed, kept = learn("meta", 6, resume=True)
    whole, _ = learn("other", 6, seed=seed)
    assert kept == seed and torch.equal(resumed, whole)
