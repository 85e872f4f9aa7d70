"""Blocks of candidates for pivots, and what a sequential acceptance must make of them."""

import numpy as np
import torch
from hypothesis import strategies as st

from inrfast.ops.pivots import LEAST_SHARE


def by_schur_complements(block, candidates, weights, lots, wanted):
    """The definition, with the whole residual after every candidate that is kept: places, and their shares left."""
    rest, kept, margin = block.numpy().copy(), [], np.inf
    for i in range(len(rest)):
        share = rest[i, i] / float(weights[i]) if weights[i] > 0 and candidates[i] not in candidates[kept] else 0.0
        margin = min(margin, abs(share - max(float(lots[i]), LEAST_SHARE)))
        if share > LEAST_SHARE and float(lots[i]) < share and len(kept) < wanted:
            kept.append(i)
            rest = rest - np.outer(rest[:, i], rest[:, i]) / rest[i, i]
    return kept, margin


@st.composite
def blocks(draw, most):
    """Candidates of a residual: of full or low rank, graded, some drawn twice, some without weight."""
    c = draw(st.integers(1, most))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows = draw(st.sampled_from([1, max(1, c // 2), 2 * c]))
    rank = draw(st.sampled_from([1, max(1, rows // 3), rows + 3]))
    sizes = torch.logspace(0, -draw(st.floats(0, 4)), rank, dtype=torch.float64)
    root = torch.randn(rows, rank, generator=rng, dtype=torch.float64) * sizes
    candidates = torch.randint(rows, (c,), generator=rng)
    block = (root @ root.t())[candidates][:, candidates] * 10.0 ** draw(st.integers(-12, 12))
    block = (block + block.t()) / 2
    weights = block.diagonal().clone()
    kind = draw(st.sampled_from(["as drawn", "as drawn", "some without", "all without", "lots too high"]))
    lots = torch.rand(c, generator=rng, dtype=torch.float64)
    if kind == "some without":
        weights[torch.rand(c, generator=rng) < 0.3] = 0
    elif kind == "all without":
        weights.zero_()
    elif kind == "lots too high":
        weights *= 2
        lots = 0.5 + lots / 2
    wanted = draw(st.integers(1, c + 2))
    return block, candidates, weights, lots, wanted


def check_acceptance(accept, case):
    """Assert that ``accept`` keeps the candidates of a case by the definition, and factors them."""
    block, candidates, weights, _, wanted = case
    places, factor, count = accept(*case)
    expected, margin = by_schur_complements(*case)
    count = int(count)
    if margin > 1e-10:  # no share is so near its lot that rounding decides
        assert places[:count].tolist() == expected
    assert places.shape == (wanted,)
    assert (places[count:] == places[0]).all()
    kept = places[:count]
    assert len(set(candidates[kept].tolist())) == count
    assert (weights[kept] > 0).all()
    inner = block[kept][:, kept]
    own = factor[:count, :count]
    assert ((own @ own.t() - inner).abs() <= 8 * (count + 2) * 2.0**-53 * block.diagonal().amax()).all()
    assert torch.equal(factor, factor.tril())
    assert torch.equal(factor[count:], torch.eye(wanted, dtype=torch.float64)[count:])


def shares_and_lots(count):
    """Independent candidates: every second lot is the share left itself, the others the next number below it."""
    shares = torch.linspace(1 / 64, 63 / 64, count, dtype=torch.float64).mul(64).round().div(64)
    even = torch.arange(count) % 2 == 0
    lots = torch.where(even, shares, torch.nextafter(shares, torch.zeros_like(shares)))
    return torch.diag(shares), torch.arange(count), torch.ones_like(shares), lots, count


def graded(rows, rank, wanted):
    """A case of several panels, with rows in every one of them."""
    rng = torch.Generator().manual_seed(3)
    root = torch.randn(rows, rank, generator=rng, dtype=torch.float64)
    root *= torch.logspace(0, -3, rank, dtype=torch.float64)
    block = root @ root.t()
    lots = torch.rand(rows, generator=rng, dtype=torch.float64)
    return block, torch.arange(rows), block.diagonal().clone(), lots, wanted
