"""Batches are permutations that depend on the seed and the step alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.training.batches import Batches, _scrambled, permutations, seeds_on, step_seed

CPU = torch.device("cpu")


@given(n=st.integers(1, 300), seed=st.integers(0, 2**70), number=st.integers(0, 10**6))
def test_a_pass_is_a_permutation_of_its_own(n: int, seed: int, number: int) -> None:
    order = permutations(n, seeds_on([seed, seed + 1], CPU), number)
    assert torch.equal(order.sort(1).values, torch.arange(n).expand(2, -1))
    assert torch.equal(order, permutations(n, seeds_on([seed, seed + 1], CPU), number))
    if n > 20:
        assert not torch.equal(order[0], order[1])
        assert not torch.equal(order, permutations(n, seeds_on([seed, seed + 1], CPU), number + 1))


def test_permutations_are_uniform() -> None:
    """Each point comes equally often to each place: chi-squared over 4,000 permutations of 8 points."""
    orders = permutations(8, seeds_on(range(4000), CPU), 3)
    counts = torch.stack([(orders == point).sum(0) for point in range(8)]).double()
    chi2 = float(((counts - 500) ** 2 / 500).sum())
    assert chi2 < 85.4  # 49 degrees of freedom: exceeded with probability 1e-3
    pairs = torch.bincount(orders[:, 0] * 8 + orders[:, 1], minlength=64).reshape(8, 8)
    assert int(pairs.diagonal().sum()) == 0
    assert int(pairs.max()) < 120 and int(pairs[~torch.eye(8, dtype=torch.bool)].min()) > 40  # mean 71


@given(n=st.integers(1, 60), data=st.data())
def test_batches_cover_a_pass_and_can_be_asked_in_any_order(n: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n))
    batches = Batches(n, size, [3], CPU)
    if size == n:
        assert batches.rows(0) is None
        return
    a_pass = torch.cat([batches.rows(step)[0] for step in range(n // size)])
    assert len(a_pass.unique()) == len(a_pass) == n // size * size
    later = batches.rows(5 * (n // size))
    assert torch.equal(batches.rows(0)[0], a_pass[:size])
    assert torch.equal(Batches(n, size, [3], CPU).rows(5 * (n // size)), later)


def test_networks_with_one_seed_share_their_rows() -> None:
    assert Batches(50, 7, [2, 2, 2], CPU).rows(3).shape == (1, 7)
    own = Batches(50, 7, [2, 5, 2], CPU)
    rows = own.rows(3)
    assert rows.shape == (3, 7)
    assert torch.equal(rows[0], rows[2])
    own.keep([1, 2])
    assert torch.equal(own.rows(3), rows[1:])


def test_seeds_of_steps_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(40) for step in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_device_has_the_same_batches() -> None:
    orders = [permutations(999, seeds_on([1, 2], torch.device(name)), 3).cpu() for name in ("cpu", "cuda")]
    assert torch.equal(*orders)


@given(seed=st.integers(0, 2**64), step=st.integers(0, 10**9))
def test_seeds_of_steps_are_the_hash_of_the_permutations(seed: int, step: int) -> None:
    keys = _scrambled(torch.tensor([seed % 2**63], dtype=torch.int64))
    assert step_seed(seed, step) == int(_scrambled(keys + step + 1)) % 2**63
