"""Attention in tiles against the whole matrix in fp64, with its gradient, its memory, and logits out of range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inrfast.training.regularizers.attention import KEPT, attend, attend_bytes

WIDE = torch.float64
TILES = [None, (1, 1), (7, 5), (64, 1024)]


def operands(rows: int, keys: int, features: int, outputs: int, seed: int = 0, dtype=WIDE, size: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, features), (keys, features), (keys, outputs))
    return [(size * torch.randn(shape, generator=generator, dtype=WIDE)).to(dtype).requires_grad_() for shape in shapes]


def dense(q: Tensor, k: Tensor, v: Tensor, left_out=None) -> Tensor:
    """The whole matrix, in fp64; a row without a key is 0."""
    logits = q.to(WIDE) @ k.to(WIDE).t()
    if left_out is not None:
        hidden = torch.zeros(logits.shape, dtype=torch.bool)
        hidden[left_out] = True
        logits = logits.masked_fill(hidden, -math.inf)
    empty = (logits == -math.inf).all(1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(empty, 0.0), 1).masked_fill(empty, 0.0)
    return weights @ v.to(WIDE)


@st.composite
def cases(draw):
    rows, keys = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    pairs = draw(st.sets(st.tuples(st.integers(0, rows - 1), st.integers(0, keys - 1)), max_size=rows * keys))
    left_out = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).unbind(1) if pairs else None
    return rows, keys, left_out, draw(st.sampled_from(TILES)), draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_values_and_gradients_are_those_of_the_whole_matrix(case):
    rows, keys, left_out, tile, seed = case
    given_ = operands(rows, keys, 3, 2, seed)
    out, found = attend(*given_, left_out, tile)
    wanted = dense(*given_, left_out)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-12)
    hidden = torch.zeros(rows, keys, dtype=torch.bool)
    if left_out is not None:
        hidden[left_out] = True
    assert torch.equal(found, ~hidden.all(1))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)
    mine = torch.autograd.grad((weight * out).sum(), given_)
    theirs = torch.autograd.grad((weight * wanted).sum(), given_)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("tile", TILES)
def test_weights_are_those_of_a_mean(tile):
    """With the values 1 a row gives the sum of its weights; with those of a unit basis, the weights themselves."""
    q, k, _ = operands(20, 30, 5, 1)
    weights, _ = attend(q, k, torch.eye(30, dtype=WIDE), None, tile)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=WIDE), atol=1e-13, rtol=0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    values = torch.randn(30, 2, dtype=WIDE, generator=torch.Generator().manual_seed(2))
    one, other = attend(q, k, values, None, tile)[0], attend(q, k[order], values[order], None, tile)[0]
    torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("tile", [None, (7, 5)])
def test_gradcheck_and_no_second_derivative(tile):
    given_ = operands(9, 8, 3, 2, 3)
    left_out = torch.tensor([0, 4, 4]), torch.tensor([2, 0, 7])
    assert torch.autograd.gradcheck(lambda *own: attend(*own, left_out, tile)[0], given_)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        torch.autograd.grad(attend(*given_, None, tile)[0].sum(), given_, create_graph=True)
    q, k, v = given_
    (alone,) = torch.autograd.grad(attend(q.detach(), k.detach(), v, None, tile)[0].sum(), v)
    torch.testing.assert_close(alone, torch.autograd.grad(attend(q, k, v, None, tile)[0].sum(), v)[0])


@pytest.mark.parametrize("tile", [None, (64, 100)])
@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_fp32_is_within_its_bound(tile, size):
    """A logit of r products is off by at most (r + 2) u |q| |k|, a weight by the factor e^(twice that), and a sum of K
    weighted values adds K u: together at most ``(e^(2 d) - 1 + 4 (K + 2) u) max |v|``."""
    q, k, v = operands(150, 260, 40, 3, 5, torch.float32, size)
    out, _ = attend(q, k, v, None, tile)
    unit = 2.0**-24
    lengths = (q.detach().double().norm(dim=1), k.detach().double().norm(dim=1).max())
    logit = (40 + 2) * unit * lengths[0] * lengths[1]
    bound = (torch.expm1(2 * logit) + 4 * (260 + 2) * unit) * float(v.detach().abs().max())
    assert bool(((out.double() - dense(q, k, v)).abs() <= bound.unsqueeze(1)).all())


@pytest.mark.parametrize("tile", [None, (7, 5)])
@pytest.mark.parametrize("size", [1e10, 1e18, 1e30])
def test_logits_beyond_the_dtype_choose_the_largest(tile, size):
    q, k, v = operands(20, 30, 6, 2, 7, torch.float32)
    large = [(own.detach() * size).requires_grad_() for own in (q, k)]
    out, _ = attend(*large, v, None, tile)
    first = (q.detach().double() @ k.detach().double().t()).argmax(1)
    assert torch.equal(out, v.detach()[first])
    (grad,) = torch.autograd.grad(out.sum(), v)
    assert torch.equal(grad[:, 0], torch.bincount(first, minlength=30).float())


def test_large_matrices_are_never_whole():
    """Their weights alone would be 256 MiB; what is kept, and made at a time, is what is stated."""
    q, k, v = operands(2**13, 2**13, 2, 1, 0, torch.float32)
    assert len(q) * len(k) > KEPT
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: saved.append(own.nbytes) or own, lambda own: own):
        out, _ = attend(q, k, v)
    assert sum(saved) < 20 * q.nbytes
    assert attend_bytes(2**13, 2**13, 2, 1, 4, None) < 2**23
    block = attend(q[-64:], k, v)[0]  # rows do not hang on others; blocks round in their own order
    torch.testing.assert_close(out[-64:], block, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[-64:].double(), dense(q[-64:], k, v), atol=1e-5, rtol=1e-5)
