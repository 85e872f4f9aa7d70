"""A batch of torch.vmap as more models: every model of every element once, in order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.ops.batching import as_models, points_of_models


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([None, 0, 1, 2]))
def test_every_model_of_every_element_stands_once(size, models, dim):
    whole = torch.rand(size, models, 5)
    given_tensor = whole[0] if dim is None else whole.movedim(0, dim)
    found, nothing = as_models(size, (dim, None), (given_tensor, None))
    assert nothing is None
    expected = whole[:1].expand(size, -1, -1) if dim is None else whole
    assert torch.equal(found.unflatten(0, (size, models)), expected)


@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.sampled_from([None, 0, 1, 2]))
def test_points_go_to_every_model_of_their_element(size, models, own, dim):
    whole = torch.rand(size, models if own else 1, 5, 2)
    points = whole[0] if dim is None else whole.movedim(0, dim)
    found = points_of_models(size, dim, points, models)
    if dim is None and len(points) == 1:
        assert found is points  # shared: nothing is copied
    else:
        expected = (whole[:1] if dim is None else whole).expand(size, models, 5, 2)
        assert torch.equal(found.unflatten(0, (size, models)), expected)
