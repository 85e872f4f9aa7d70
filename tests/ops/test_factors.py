"""The factor pass: a room that is used again changes nothing. (The kernel's tests hold its numbers to autodiff.)"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks, random_coords

from inrfast.capture import Capture
from inrfast.ops.factors import Room


@settings(max_examples=40)
@given(networks(max_width=20, max_depth=3), st.lists(st.integers(1, 30), min_size=2, max_size=4))
def test_a_room_can_be_used_again(net, sizes):
    capture, room = Capture(net, random_coords(5, net.in_features, 0)), Room()
    for seed, n in enumerate(sizes):
        coords = random_coords(n, net.in_features, seed)
        before = coords.clone()
        reused, fresh = capture.exact(coords, room), capture.exact(coords)
        for one, other in zip(reused, fresh, strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        assert torch.equal(coords, before)


def test_memory_of_a_room_grows_and_stays():
    room, like = Room(), torch.zeros((), dtype=torch.float64)
    large = room.take("x", (4, 3), like)
    assert room.take("x", (2, 3), like).data_ptr() == large.data_ptr()
    assert room.take("y", (2, 3), like).data_ptr() != large.data_ptr()
    assert room.take("x", (9, 9), like).shape == (9, 9)
