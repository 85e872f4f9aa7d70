"""Arrays of NumPy and of libraries with DLPack become tensors of the same numbers, without a copy where torch can."""

import numpy as np
import pytest
import torch

from inrfast.arrays import as_tensor, like


class Exported:
    """An array of another library: nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Frame:
    """What pandas calls a table."""

    def to_numpy(self):
        return np.ones((2, 2))


BASE = np.random.default_rng(0).standard_normal((6, 4))


def read_only():
    array = BASE.copy()
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("array", "shares"),
    [
        (BASE, True),
        (BASE.astype(np.float32), True),
        (BASE.astype(np.float16), True),
        (BASE.T, True),
        (BASE[::2, 1:], True),
        (BASE[::-1], False),
        (BASE.astype(">f8"), False),
        (BASE.astype("<f4"), True),
        (read_only(), False),
        (np.arange(6).reshape(2, 3), True),
        (BASE > 0, True),
        (BASE + 1j, True),
        (np.zeros((6, 4), dtype=[("a", np.int8), ("b", np.float64)])["b"], False),  # strides of 9 bytes
    ],
)
def test_numpy_arrays_keep_their_numbers(array, shares):
    tensor = as_tensor("x", array)
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")
    assert np.shares_memory(tensor.numpy(), array) == shares
    exported = as_tensor("x", Exported(tensor))
    assert torch.equal(exported, tensor) and exported.data_ptr() == tensor.data_ptr()
    assert as_tensor("x", tensor) is tensor
    elsewhere = torch.device("meta")  # NumPy has no devices; other libraries have
    assert as_tensor("x", array, elsewhere).device == elsewhere
    assert as_tensor("x", Exported(tensor), elsewhere).device == tensor.device
    assert np.array_equal(like(array, tensor), array) and like(tensor, tensor) is tensor


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "x must be a torch.Tensor, a NumPy array or an object with __dlpack__, got list"),
        (1.0, "got float"),
        ("text", "got str"),
        (None, "got NoneType"),
        (Frame(), "got Frame; .to_numpy"),
        (torch.Tensor, "got _TensorMeta"),
        (np.array(["a"]), "x must hold numbers, got a NumPy array of dtype <U1"),
        (np.array([1.0], dtype=object), "must hold numbers, got a NumPy array of dtype object"),
        (np.zeros(2, dtype=[("a", float)]), "must hold numbers"),
        (np.zeros(2, dtype="M8[s]"), "must hold numbers"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "must be a plain array, got one with masked"),
        (Exported(np.zeros(2, dtype="U1")), "torch does not take the memory of this Exported"),
    ],
)
def test_what_holds_no_numbers_is_refused_by_name(given, message):
    with pytest.raises(TypeError, match=message):
        as_tensor("x", given)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is fp64 here")
def test_long_double_would_be_rounded():
    with pytest.raises(TypeError, match="x must be fp64 or narrower"):
        as_tensor("x", np.ones(2, dtype=np.longdouble))
