"""The kernels of Jacobian rows and products against fp64 sums of the same numbers, for every factor that is absent."""

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from tensor_cores import truncating

from inrfast.kernels import rows as kernel

UNIT = {torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SPLIT = {torch.float32: 2.0**-21, torch.float64: 2.0**-53}
"""What one product of a matrix product may lose: three TF32 products make an fp32 one."""


def factors(n, a, b, outputs, with_features, identity, dtype, device, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def random(*shape):
        # A part of a larger tensor: rows are not next to each other, and their surroundings are poison.
        around = torch.full((*shape[:-1], shape[-1] + 3), float("nan"), dtype=dtype)
        around[..., 1:-2] = torch.randn(shape, generator=rng).to(dtype)
        return around.to(device)[..., 1:-2]

    features = random(n, a) if with_features else None
    return features, None if identity else random(n, outputs, b), random


def block(features, sensitivities, n, outputs, dtype=torch.float64, bias=False):
    """The rows in fp64, entry by entry."""
    some = features if features is not None else sensitivities
    device = some.device
    z = torch.ones(n, 1, dtype=dtype, device=device) if features is None else features.to(dtype)
    if bias and features is not None:
        z = torch.cat([z, torch.ones(n, 1, dtype=dtype, device=device)], 1)
    s = torch.eye(outputs, dtype=dtype, device=device).expand(n, -1, -1)
    s = s if sensitivities is None else sensitivities.to(dtype)
    return torch.einsum("nmb,na->nmba", s, z)


CASES = {
    "n": st.sampled_from([0, 1, 2, 17, 37]),
    "a": st.sampled_from([1, 2, 3, 31, 70]),
    "b": st.sampled_from([1, 5, 67]),
    "outputs": st.integers(1, 3),
    "absent": st.sampled_from(["none", "none", "features", "sensitivities"]),
}


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(**CASES, dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_rows_are_written_in_place_and_nothing_else_is(device, n, a, b, outputs, absent, dtype):
    with_features, identity = absent != "features", absent == "sensitivities"
    a, b = a if with_features else 1, outputs if identity else b
    z, s, _ = factors(n, a, b, outputs, with_features, identity, dtype, device)
    around = torch.full((n + 1, outputs + 1, b * a + 5), 7.0, dtype=dtype, device=device)
    out = around[:n, :outputs, 2 : 2 + b * a].unflatten(2, (b, a))
    kernel.launch_rows(out, z, s)
    exact = block(z, s, n, outputs)
    assert ((out.double() - exact).abs() <= UNIT[dtype] * exact.abs() + 2.0**-25).all()
    if dtype != torch.float16:  # one product, rounded once
        assert torch.equal(out, exact.to(dtype))
    out.fill_(7.0)
    assert (around == 7.0).all()


def test_rows_without_any_factor_are_the_identity(device):
    out = torch.full((3, 2, 2, 1), 7.0, device=device)
    kernel.launch_rows(out, None, None)
    assert torch.equal(out[..., 0], torch.eye(2, device=device).expand(3, 2, 2))


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(
    **CASES,
    k=st.integers(1, 3),
    models=st.integers(1, 2),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(n=131, a=70, b=67, outputs=2, absent="none", k=2, models=2, bias=True, dtype=torch.float32)
def test_products_against_fp64(device, n, a, b, outputs, absent, k, models, bias, dtype):
    with_features, identity = absent != "features", absent == "sensitivities"
    a, b = a if with_features else 0, outputs if identity else b
    bias = bias or not with_features
    z, s, random = factors(models * n, max(a, 1), b, outputs, with_features, identity, dtype, device)
    z, s = (None if t is None else t.unflatten(0, (models, n)) for t in (z, s))
    p, v = random(models, k, b, a + bias), random(models, n, outputs, k)
    product = torch.zeros(models, n, outputs, k, dtype=dtype, device=device)
    kernel.launch_product(product, z, s, p, bias)
    partial = kernel.launch_transposed_product(z, s, v, bias)
    transposed = partial.sum(2)
    for model in range(models):
        own = [None if t is None else t[model] for t in (z, s)]
        rows = block(*own, n, outputs, bias=bias)
        for found, formula, other in (
            (product, "nmba,kba->nmk", p),
            (transposed, "nmba,nmk->kba", v),
        ):
            exact = torch.einsum(formula, rows, other[model].double())
            size = torch.einsum(formula, rows.abs(), other[model].double().abs())
            terms = rows.shape[2] * rows.shape[3] if found is product else n * outputs
            bound = 4 * SPLIT[dtype] * (1 + terms) ** 0.5
            assert ((found[model] - exact).abs() <= bound * size + 1e-300).all()


def test_long_sums_keep_the_bound_on_cores_that_truncate(device):
    """1024 terms of one sign, over features one way and over points the other, are summed as in fp32 all the same."""
    terms, few = 1024, 8
    z, s, v = (torch.rand(1, terms, *rest, device=device) + 0.5 for rest in ((few,), (1, few), (1, 1)))
    wide, ones = torch.rand(1, few, terms, device=device) + 0.5, torch.ones(1, few, 1, 1, device=device)
    p = torch.rand(1, 1, 1, terms, device=device) + 0.5
    product = torch.zeros(1, few, 1, 1, device=device)
    with truncating():
        kernel.launch_product(product, wide, ones, p, False)
        transposed = kernel.launch_transposed_product(z, s, v, False).sum(2)
    exact = torch.einsum("gna,gnmb,gnmk->gkba", z.double(), s.double(), v.double())
    assert ((transposed - exact).abs() <= 12 * 2.0**-24 * exact).all()
    exact = torch.einsum("gna,gkba->gnk", wide.double(), p.double())[:, :, None]
    assert ((product - exact).abs() <= 12 * 2.0**-24 * exact).all()


def test_the_same_call_gives_the_same_bits(device):
    z, s, random = factors(300, 33, 70, 2, True, False, torch.float32, device)
    z, s, p, v = z[None], s[None], random(1, 2, 70, 34), random(1, 300, 2, 2)
    found = []
    for _ in range(2):
        out = torch.zeros(1, 300, 2, 2, device=device)
        kernel.launch_product(out, z, s, p, True)
        found.append((out, kernel.launch_transposed_product(z, s, v, True)))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("n", [1, 100, 65_536, 10_000_000])
@pytest.mark.parametrize("tiles", [1, 16, 5000])
def test_ranges_of_points_cover_them(n, tiles):
    tile = kernel.tile_of("jacobian_transposed_product", "fp32")
    splits, steps = kernel.splits_for(n, tiles, tile)
    blocks = -(-n // tile.points)
    assert (splits - 1) * steps < blocks <= splits * steps
    assert splits == 1 or splits * tiles <= kernel.PROGRAMS + tiles
