"""Volume rendering against closed forms, an fp64 integral, and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from inrfast.scenes.volume import composite, stratified, weights


def rays(seed: int, n: int = 6, m: int = 9, largest: float = 5.0) -> tuple[torch.Tensor, ...]:
    """Random densities, values, ascending edges and a background, fp64."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    edges = 0.5 + rand(n, m + 1).cumsum(1) / m
    return largest * rand(n, m) * (rand(n, m) > 0.3), rand(n, m, 3), edges, rand(3)


def plain(densities, values, edges, background):
    """The sums as the paper writes them, one interval at a time, for autograd."""
    passes, colours = torch.ones(len(densities), dtype=densities.dtype), 0.0
    depth = torch.zeros(len(densities), dtype=densities.dtype)
    for i in range(densities.shape[1]):
        clear = torch.exp(-densities[:, i] * (edges[:, i + 1] - edges[:, i]))
        weight = passes * (1 - clear)
        colours = colours + weight.unsqueeze(1) * values[:, i]
        depth = depth + weight * (edges[:, i] + edges[:, i + 1]) / 2
        passes = passes * clear
    return colours + passes.unsqueeze(1) * background, 1 - passes, depth


@given(seed=st.integers(0, 2**31), largest=st.sampled_from([1e-6, 1.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_it_is_the_papers_sum_and_light_is_kept(seed, largest):
    densities, values, edges, background = rays(seed, largest=largest)
    found = composite(densities, values, edges, background)
    for own, wanted in zip((found.colours, found.opacity, found.depth), plain(densities, values, edges, background),
                           strict=True):  # fmt: skip
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    weight, passes = weights(densities, edges)
    torch.testing.assert_close(weight.sum(1) + passes, torch.ones(6, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    assert bool((weight >= 0).all())


def test_a_homogeneous_medium_has_the_closed_form():
    """I = c (1 - exp(-s L)) + b exp(-s L), however it is cut."""
    edges = stratified(torch.full((4,), 2.0).double(), torch.full((4,), 3.5).double(), 37)
    colour, background = torch.tensor([0.2, 0.5, 0.9]).double(), torch.ones(3).double()
    densities = torch.tensor([1e-9, 0.1, 2.0, 80.0]).double()
    found = composite(densities[:, None].expand(4, 37), colour.expand(4, 37, 3), edges, background)
    passes = torch.exp(-densities * 1.5).unsqueeze(1)
    torch.testing.assert_close(found.colours, colour * (1 - passes) + background * passes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.opacity, -torch.expm1(-densities * 1.5), rtol=1e-6, atol=1e-15)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_cutting_an_interval_in_two_changes_nothing(seed):
    densities, values, edges, background = rays(seed)
    cut = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = edges[:, 3:4] + cut * (edges[:, 4:5] - edges[:, 3:4])
    finer = composite(
        torch.cat([densities[:, :4], densities[:, 3:]], 1), torch.cat([values[:, :4], values[:, 3:]], 1),
        torch.cat([edges[:, :4], at, edges[:, 4:]], 1), background,
    )  # fmt: skip
    whole = composite(densities, values, edges, background)
    torch.testing.assert_close(finer.colours, whole.colours, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(finer.opacity, whole.opacity, rtol=1e-12, atol=1e-12)


def test_fine_intervals_approach_the_integral():
    """dI/dt of emission and absorption by scipy, for a smooth density and colour along one ray."""
    density, colour = lambda t: 3 * np.exp(-8 * (t - 1) ** 2), lambda t: 0.5 + 0.4 * np.sin(5 * t)
    path = solve_ivp(lambda t, y: [y[1] * density(t) * colour(t), -density(t) * y[1]], (0, 2), [0.0, 1.0],
                     rtol=1e-11, atol=1e-13)  # fmt: skip
    wanted = path.y[0, -1] + 1.0 * path.y[1, -1]
    errors = []
    for count in (50, 100, 200):
        edges = stratified(torch.zeros(1).double(), torch.full((1,), 2.0).double(), count, jitter=False)
        middles = ((edges[:, 1:] + edges[:, :-1]) / 2).numpy()
        found = composite(torch.from_numpy(density(middles)), torch.from_numpy(colour(middles))[..., None], edges,
                          torch.ones(1).double())  # fmt: skip
        errors.append(abs(float(found.colours[0, 0]) - wanted))
    assert errors[2] < 1e-4 and errors[0] > 3.5 * errors[1] > 12 * errors[2]  # second order


def test_the_gradient_is_that_of_autograd():
    densities, values, edges, background = (own.requires_grad_(i != 2) for i, own in enumerate(rays(1)))
    seed = torch.Generator().manual_seed(2)
    parts = [torch.randn(6, 3, generator=seed).double(), *torch.randn(2, 6, generator=seed).double()]

    def gradient(function):
        found = function(densities, values, edges, background)
        outputs = found if isinstance(found, tuple) else (found.colours, found.opacity, found.depth)
        total = sum((own * part).sum() for own, part in zip(outputs, parts, strict=True))
        return torch.autograd.grad(total, (densities, values, background))

    for own, wanted in zip(gradient(composite), gradient(plain), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    # gradcheck takes steps of 1e-6 to either side
    few = [own[:2, :4].detach().add(0.01).requires_grad_() for own in (densities, values)]
    few_edges, plain_background = edges[:2, :5], background.detach()
    assert torch.autograd.gradcheck(
        lambda a, b: composite(a, b, few_edges, plain_background).colours, few, check_batched_grad=False
    )


def test_opaque_and_empty_rays_have_finite_gradients():
    densities = torch.tensor([[0.0, 0.0, 0.0], [1e30, 1e30, 1e30], [0.0, 1e30, 5.0]], requires_grad=True)
    values = torch.rand(3, 3, 3, requires_grad=True)
    edges = torch.linspace(0, 1, 4).expand(3, 4)
    found = composite(densities, values, edges, torch.ones(3))
    found.colours.sum().backward()
    assert bool(torch.isfinite(densities.grad).all() and torch.isfinite(values.grad).all())
    torch.testing.assert_close(found.colours[1], values[1, 0])
    torch.testing.assert_close(found.colours[0], torch.ones(3))


def test_stratified_edges_ascend_and_cover_the_ray():
    near, far = torch.rand(50), 1 + torch.rand(50)
    edges = stratified(near, far, 16)
    assert bool((edges.diff(dim=1) >= 0).all())
    torch.testing.assert_close(edges[:, 0], near)
    torch.testing.assert_close(edges[:, -1], far)
    bins = near[:, None] + (far - near)[:, None] * torch.arange(17) / 16
    half = (far - near)[:, None] / 32 + 1e-6
    assert bool(((edges - bins).abs() <= half).all())


def test_shapes_that_do_not_belong_together_are_refused():
    densities, values, edges, background = rays(0)
    with pytest.raises(ValueError, match="edges must have shape"):
        composite(densities, values, edges[:, 1:], background)
    with pytest.raises(ValueError, match="background must have shape"):
        composite(densities, values, edges, background[:2])
    with pytest.raises(ValueError, match="no gradient"):
        composite(densities, values, edges.clone().requires_grad_(), background)
    with pytest.raises(TypeError, match="values must have the dtype of densities"):
        composite(densities, values.half(), edges, background)


def test_negative_densities_and_descending_edges_are_refused_and_nan_is_left_to_the_fit():
    densities, values, edges, background = rays(0)
    less, back, lost = densities.clone(), edges.clone(), densities.clone()
    less[2, 3], lost[2, 3] = -1e-3, torch.nan
    back[1, 4] = back[1, 3] - 1e-3
    for call in (lambda a, b: composite(a, values, b, background), weights):
        with pytest.raises(ValueError, match="densities must not be negative"):
            call(less, edges)
        with pytest.raises(ValueError, match="edges must ascend"):
            call(densities, back)
        call(lost, edges)
        call(densities, edges[:, :1].expand_as(edges))  # rays that miss have no length
