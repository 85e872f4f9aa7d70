"""Volumes survive the way to a file and back; dtypes whose range is not stated are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

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
    np.savez(tmp_path / "archive.npz", a=np.zeros((2, 2, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(ValueError, match=r"archive of arrays"):
        load_volume(tmp_path / "archive.npy")
    (tmp_path / "whole.npz").write_bytes(content)
    with pytest.raises(ValueError, match="suffix"):
        load_volume(tmp_path / "whole.npz")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for bad in (torch.zeros(4, 4), torch.zeros(2, 2, 2, 5), torch.full((2, 2, 2), 1e200, dtype=torch.float64)):
        with pytest.raises(ValueError, match="values"):
            save_volume(bad, tmp_path / "a.npy")
    with pytest.raises(TypeError, match="floating"):
        save_volume(torch.zeros(2, 2, 2, dtype=torch.int32), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="suffix"):
        save_volume(torch.zeros(2, 2, 2), tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
