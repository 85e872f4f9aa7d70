"""Volumes survive the way to a file and back; dtypes whose range is not stated are refused, and so is damage."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from inrfast.errors import MemoryBudgetError
from inrfast.signals.volume import load_volume, save_volume


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u4", "u8", "?", "f2", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 2)])
def test_arrays_are_read_by_what_their_dtype_means(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    kind = np.dtype(dtype)
    largest = {"u": np.iinfo(kind).max if kind.kind == "u" else 1, "b": 1, "f": 1}[kind.kind]
    array = (random.standard_normal(shape) if kind.kind == "f" else random.random(shape) * largest).astype(kind)
    array[0, 0, 0] = largest
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    got = load_volume(tmp_path / "a.npy")
    assert got.dtype == torch.float32
    assert got.shape == (3, 4, 5, shape[3] if len(shape) == 4 else 1)
    expected = array.astype(np.float64).reshape(got.shape) / largest
    np.testing.assert_array_equal(got.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1), (2, 3, 4, 4)])
def test_round_trip_is_exact(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_volume(values.double(), tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").dtype == np.float32
    assert np.load(tmp_path / "a.npy").shape == shape
    assert torch.equal(load_volume(tmp_path / "a.npy"), values.reshape(2, 3, 4, -1))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4)), "shape"),
        (np.zeros((4, 4, 4, 5)), "C <= 4"),
        (np.zeros((0, 4, 4)), "shape"),
        (np.zeros((2, 2, 2), dtype=np.int16), "signed integers .int16.*convert"),
        (np.zeros((2, 2, 2), dtype=complex), "complex"),
        (np.full((2, 2, 2), "a"), "real numbers"),
        (np.full((2, 2, 2), np.nan), "NaN"),
        (np.full((2, 2, 2), 1e200), "beyond fp32"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy .*{words}"):
        load_volume(tmp_path / "a.npy")


def test_bad_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.zeros((3, 4, 5)))
    content = (tmp_path / "whole.npy").read_bytes()
    for kept in range(1, len(content), 13):
        (tmp_path / "cut.npy").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"cut\.npy is not a NumPy array"):
            load_volume(tmp_path / "cut.npy")
    np.save(tmp_path / "pickled.npy", np.array([[[{}]]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pickled\.npy"):
        load_volume(tmp_path / "pickled.npy")
    np.savez(tmp_path / "several.npz", first=np.zeros((2, 2, 2)), second=np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"several\.npz holds 2 arrays \(first, second\)"):
        load_volume(tmp_path / "several.npz")
    np.savez(tmp_path / "pickled.npz", np.array([[[{}]]]))
    with pytest.raises(ValueError, match=r"pickled\.npz holds object"):
        load_volume(tmp_path / "pickled.npz")
    (tmp_path / "zip.npy").write_bytes(b"PK" + content)
    with pytest.raises(ValueError, match=r"zip\.npy is not a NumPy array"):
        load_volume(tmp_path / "zip.npy")
    with pytest.raises(ValueError, match="suffix"):
        load_volume((tmp_path / "whole.npy").rename(tmp_path / "whole.txt"))


SAVERS = {
    "npy": np.save,
    "npz": np.savez,
    "packed": np.savez_compressed,
    "old": lambda file, array: np.lib.format.write_array(file, array, version=(1, 0)),
    "long": lambda file, array: np.lib.format.write_array(file, array, version=(2, 0)),
}


def saved(saver: str, array: np.ndarray) -> bytes:
    file = io.BytesIO()
    SAVERS[saver](file, array)
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(SAVERS)),
    arrays(np.dtype("<i8"), st.tuples(*[st.integers(1, 4)] * 4), elements=st.integers(-(2**40), 2**40)),
    st.sampled_from(["<f4", ">f8", "=f8"]),
    st.permutations(range(4)),
    st.sampled_from(["a.npy", "a.npz"]),
)
def test_every_layout_is_read(
    tmp_path_factory: pytest.TempPathFactory, saver: str, array: np.ndarray, dtype: str, axes: list[int], name: str
) -> None:
    array = array.astype(dtype).transpose(axes)  # in some order of the memory
    path = tmp_path_factory.mktemp("volume") / name  # the content decides which it is
    path.write_bytes(saved(saver, array))
    np.testing.assert_array_equal(load_volume(path).numpy(), array.astype(np.float32))


@pytest.mark.parametrize("saver", sorted(SAVERS))
def test_damage_is_refused_or_read_as_numpy_reads_it(tmp_path: Path, saver: str) -> None:
    array, path = np.random.default_rng(1).random((4, 3, 5)), tmp_path / "a.npz"
    content, random = saved(saver, array), np.random.default_rng(0)
    for number in range(120):
        altered = bytearray(content)
        if number % 3 == 0:
            del altered[int(random.integers(1, len(content))) :]
        elif number % 3 == 1:
            altered += random.bytes(int(random.integers(1, 99)))
        for _ in range(int(random.integers(1, 4)) * (number % 3 == 2)):
            where = int(random.integers(min(len(content), (200, len(content))[number % 2])))
            altered[where] = random.choice([altered[where] ^ 1 << int(random.integers(8)), 0, 255])
        path.write_bytes(altered)
        try:
            got = load_volume(path).numpy()
        except (ValueError, MemoryBudgetError):
            continue
        expected = np.load(path)
        expected = expected if isinstance(expected, np.ndarray) else expected[expected.files[0]]
        np.testing.assert_array_equal(got.reshape(expected.shape), expected.astype(np.float32))
        if zipfile.is_zipfile(path):  # which states a checksum
            np.testing.assert_array_equal(expected, array)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    content = saved("npy", np.zeros((2, 3, 4)))
    huge = content[:128].replace(b"(2, 3, 4), }     ", b"(2000, 30000, 4) }")[:128] + content[128:]
    for longer, words in ((content + b"x", "longer"), (content[:-1], "truncated"), (huge, "truncated")):
        (tmp_path / "a.npy").write_bytes(longer)
        with pytest.raises(ValueError, match=rf"a\.npy is not a NumPy array.*{words}"):
            load_volume(tmp_path / "a.npy")
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", longer)
        with pytest.raises(ValueError, match=r"a\.npz is not a NumPy array.*states"):
            load_volume(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "zeros.npz", np.zeros((100, 100, 400)))  # 1000 to 1
    np.save(tmp_path / "zeros.npy", np.zeros((100, 100, 400)))
    for name in ("zeros.npz", "zeros.npy"):
        with pytest.raises(MemoryBudgetError, match=r"voxels fit"):
            load_volume(tmp_path / name, memory_budget=2**24)
        assert load_volume(tmp_path / name, memory_budget=2**26).shape == (100, 100, 400, 1)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for bad in (torch.zeros(4, 4), torch.zeros(2, 2, 2, 5), torch.full((2, 2, 2), 1e200, dtype=torch.float64)):
        with pytest.raises(ValueError, match="values"):
            save_volume(bad, tmp_path / "a.npy")
    with pytest.raises(TypeError, match="floating"):
        save_volume(torch.zeros(2, 2, 2, dtype=torch.int32), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="suffix"):
        save_volume(torch.zeros(2, 2, 2), tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_headers_of_older_programs_are_read_without_a_word(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", values)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(2, 3, 4), }   ", b"(2L, 3L, 4L), }"))  # of Python 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_volume(tmp_path / "a.npy").numpy()[..., 0], values)
