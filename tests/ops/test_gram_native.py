"""Native blocks of dense kernels against dense products in fp64, for every set of instructions of this machine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.ops import gram, gram_native, mlp_step
from inrfast.threads import cores

FOUND = mlp_step.instructions()
INSTRUCTIONS = {"avx512": ["avx512", "avx2"], "avx2": ["avx2"], "": []}[FOUND]

pytestmark = pytest.mark.skipif(not INSTRUCTIONS, reason="this processor, build or environment has no native step")


def random_factors(n, widths, outputs, seed):
    """Factors of layers of these widths (a, b), 0 for one that is constant."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, a, generator=generator) if a else None,
            torch.randn(n, outputs, b, generator=generator) if b else None,
        )
        for a, b in widths
    ]


def exact(rows, columns, output, outputs):
    """The kernel and the sizes ``sqrt(K_ii K_jj)`` of its entries in fp64."""
    total, left, right = 0.0, 0.0, 0.0
    for (z, s), (z2, s2) in zip(rows, columns, strict=True):
        parts = []
        for one, two in (((z, s), (z2, s2)), ((z, s), (z, s)), ((z2, s2), (z2, s2))):
            a = 1.0 if one[0] is None else one[0].double() @ two[0].double().t()
            if one[1] is None:
                b = outputs if output == "trace" else 1.0
            else:
                flat = [
                    s.double()[:, output] if isinstance(output, int) else s.double().flatten(1)
                    for s in (one[1], two[1])
                ]
                b = flat[0] @ flat[1].t()
            parts.append(a * b)
        total, left, right = total + parts[0], left + parts[1].diagonal(), right + parts[2].diagonal()
    return total, torch.outer(left.sqrt(), right.sqrt())


widths = st.lists(st.sampled_from([(3, 17), (0, 40), (25, 0), (65, 64), (1, 1), (300, 150)]), min_size=1, max_size=4)


@given(widths, st.integers(1, 300), st.integers(1, 130), st.integers(1, 3), st.sampled_from(["trace", 0]))
@settings(max_examples=40, deadline=None)
def test_kernels_are_those_in_fp64(layers, n, m, outputs, output):
    rows, columns = (random_factors(k, layers, outputs, seed) for seed, k in enumerate((n, m)))
    truth, size = exact(rows, columns, output, outputs)
    own, own_size = exact(rows, rows, output, outputs)
    for instructions in INSTRUCTIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("INRFAST_NATIVE", instructions)
            assert gram_native.reason_against(rows, columns, output, outputs, torch.empty(n, m)) is None
            found = gram_native.fill_(torch.empty(n, m), rows, columns, output, outputs)
            assert ((found - truth).abs() <= 8e-7 * size).all()
            symmetric = gram_native.fill_(torch.empty(n, n), rows, None, output, outputs)
            assert torch.equal(symmetric, symmetric.t())
            assert ((symmetric - own).abs() <= 8e-7 * own_size).all()
            # The same numbers beside other points, in any order and layout, on any number of threads.
            assert torch.equal(gram_native.fill_(torch.empty(n, n), rows, rows, output, outputs), symmetric)
            wide = torch.zeros(2 * n, 3 * m)
            gram_native.fill_(wide[::2, ::3], rows, columns, output, outputs)
            assert torch.equal(wide[::2, ::3], found)
            assert not wide[1::2].any()
            turned = gram_native.fill_(torch.empty(m, n).t(), rows, columns, output, outputs)
            assert torch.equal(turned, found)


def test_threads_do_not_change_the_numbers():
    rows = random_factors(1500, [(3, 64), (65, 64), (65, 0)], 1, 0)
    found = []
    for threads in (1, 2, 5):
        with cores(threads):
            found.append(gram_native.fill_(torch.empty(1500, 1500), rows, None, "trace", 1))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_long_sums_round_little():
    """Positive factors of 2,000 columns, whose sums in one piece would round several times as much."""
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.rand(100, 2000, generator=generator), torch.rand(100, 1, 2000, generator=generator))]
    truth, size = exact(rows, rows, "trace", 1)
    found = gram_native.fill_(torch.empty(100, 100), rows, None, "trace", 1)
    assert float(((found - truth).abs() / size).max()) <= 6e-7


def test_what_it_does_not_take_has_a_reason():
    rows, out = random_factors(9, [(3, 4)], 2, 0), torch.empty(9, 9)

    def reason(rows=rows, output="trace", out=out):
        return gram_native.reason_against(rows, None, output, 2, out)

    assert reason() is None
    assert "outputs" in reason(output="full")
    assert "float64" in reason(out=out.double())
    assert "float64" in reason([(rows[0][0].double(), rows[0][1].double())])
    assert "next to each other" in reason([(rows[0][0].t().contiguous().t(), rows[0][1])])
    assert "next to each other" in reason([(rows[0][0], torch.randn(9, 4, 4)[:, ::2])])
    # What it does not take goes by tiles of torch's products, to the same end.
    found = gram.fill_(torch.empty(9, 9).double(), [(z.double(), s.double()) for z, s in rows], None, "trace", 2)
    assert torch.allclose(found.float(), gram_native.fill_(out, rows, None, "trace", 2), rtol=1e-5, atol=1e-5)
