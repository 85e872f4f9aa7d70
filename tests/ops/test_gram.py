"""Tiles of the Gram product: every entry of the kernel once, for every kind of layer and output."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.ops import gram


@st.composite
def layers(draw):
    """Widths (a, b) of the layers' factors, 0 for one that is not there, and the number of outputs."""
    pairs = draw(st.lists(st.sampled_from([(3, 4), (5, 2), (4, 0), (0, 3)]), min_size=1, max_size=4))
    return pairs, draw(st.integers(1, 3))


def factors(widths, outputs, n, seed):
    rng = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, a, generator=rng, dtype=torch.float64) if a else None,
            torch.randn(n, outputs, b, generator=rng, dtype=torch.float64) if b else None,
        )
        for a, b in widths
    ]


def kernel(rows, columns, output, outputs):
    """The formula entry by entry: rows of the Jacobian are Kronecker products, an absent S is the identity."""
    total = 0
    for (z, s), (z2, s2) in zip(rows, columns, strict=True):
        left = 1.0 if z is None else (z @ z2.t())[:, None, :, None]
        if s is None:
            right = torch.eye(outputs, dtype=torch.float64)[None, :, None, :].expand(len(z), -1, len(z2), -1)
        else:
            right = torch.einsum("nmb,pqb->nmpq", s, s2)
        total = total + left * right
    n, m = total.shape[0], total.shape[2]
    if output == "full":
        return total.reshape(n * outputs, m * outputs)
    return total.diagonal(dim1=1, dim2=3).sum(-1) if output == "trace" else total[:, output, :, output]


@given(layers(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 8, 64]), st.booleans(), st.integers(0, 99))
def test_tiles_cover_the_kernel_once(shape, n, m, tile, in_order, seed):
    widths, outputs = shape
    rows, columns = factors(widths, outputs, n, seed), factors(widths, outputs, m, seed + 1)
    for output in ("trace", "full", outputs - 1):
        for other in (None, columns):
            truth = kernel(rows, rows if other is None else other, output, outputs)
            found, visits = torch.zeros_like(truth), torch.zeros_like(truth)

            def visit(i, j, part, found=found, visits=visits):
                found[i, j] += part
                visits[i, j] += 1

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gram, "TILE", tile)
                gram.for_each_tile(rows, other, output, outputs, torch.float64, visit, in_order)
            if other is None:  # the upper tiles stand for the whole
                twice = (visits > 0) & (visits.t() > 0)
                assert torch.equal(visits + visits.t() - visits * twice, torch.ones_like(visits))
                assert torch.equal(found * twice, (found * twice).t())
                found = torch.where(visits > 0, found, found.t())
            else:
                assert (visits == 1).all()
            torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
