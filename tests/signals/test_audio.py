"""Sound survives the way to a file and back; every width of PCM has the value it stands for."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from inrfast.signals.audio import load_audio, save_audio

RATE = 8000


def write_pcm(path: Path, samples: list[int], width: int, channels: int) -> None:
    """Write integers by the standard library, which knows nothing of ours."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, RATE, 0, "NONE", ""))
        file.writeframes(b"".join(s.to_bytes(width, "little", signed=width > 1) for s in samples))


@pytest.mark.parametrize(("width", "bits"), [(1, 8), (2, 16), (3, 24), (4, 32)])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_of_every_width_is_divided_by_its_full_scale(tmp_path: Path, width: int, bits: int, channels: int) -> None:
    full = 2 ** (bits - 1)
    values = [-full, full - 1, 0, 1, -1, full // 2]
    write_pcm(tmp_path / "a.wav", [v + 128 * (width == 1) for v in values], width, channels)
    got, rate = load_audio(tmp_path / "a.wav")
    expected = torch.tensor(values, dtype=torch.float64).div(full).float().view(-1, channels)
    assert rate == RATE
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_samples_stay_as_they_are(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0.1, -1.5], [1.0, 1e-20]], dtype=dtype)
    wavfile.write(tmp_path / "a.wav", RATE, values)
    assert np.array_equal(load_audio(tmp_path / "a.wav")[0].numpy(), values.astype(np.float32))


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3)])
def test_sixteen_bits_survive_a_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = torch.randint(-(2**15), 2**15, shape, generator=torch.Generator().manual_seed(0)).float() / 2**15
    save_audio(values, tmp_path / "a.wav", 44100)
    got, rate = load_audio(tmp_path / "a.wav")
    assert rate == 44100
    assert torch.equal(got, values.reshape(50, -1))
    save_audio(3 * values, tmp_path / "b.wav", RATE)
    clipped = (3 * values).clamp(-1, 1 - 2**-15).reshape(50, -1)
    assert torch.allclose(load_audio(tmp_path / "b.wav")[0], clipped, atol=2**-16, rtol=0)


def test_titles_are_passed_over(tmp_path: Path) -> None:
    write_pcm(tmp_path / "a.wav", [1, 2, 3], 2, 1)
    content = (tmp_path / "a.wav").read_bytes()
    titled = content[:36] + b"note" + (4).to_bytes(4, "little") + b"abcd" + content[36:]
    (tmp_path / "b.wav").write_bytes(titled[:4] + (len(titled) - 8).to_bytes(4, "little") + titled[8:])
    assert torch.equal(load_audio(tmp_path / "b.wav")[0], load_audio(tmp_path / "a.wav")[0])


def test_bad_files_are_named(tmp_path: Path) -> None:
    write_pcm(tmp_path / "whole.wav", list(range(100)), 2, 2)
    content = (tmp_path / "whole.wav").read_bytes()
    for kept in range(1, len(content), 9):
        (tmp_path / "cut.wav").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"cut\.wav is"):
            load_audio(tmp_path / "cut.wav")
    (tmp_path / "text.wav").write_text("this is no sound at all")
    with pytest.raises(ValueError, match=r"text\.wav is not a WAV"):
        load_audio(tmp_path / "text.wav")
    wavfile.write(tmp_path / "nan.wav", RATE, np.array([0.0, np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        load_audio(tmp_path / "nan.wav")
    write_pcm(tmp_path / "silent.wav", [], 2, 1)
    with pytest.raises(ValueError, match=r"silent\.wav"):
        load_audio(tmp_path / "silent.wav")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_audio(tmp_path / "absent.wav")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for bad in (torch.zeros(2, 3, 4), torch.zeros(4, 40000), torch.full((4,), float("nan")), torch.zeros(0)):
        with pytest.raises(ValueError, match="values"):
            save_audio(bad, tmp_path / "a.wav", RATE)
    for rate in (0, -1, 2**31):
        with pytest.raises(ValueError, match="rate"):
            save_audio(torch.zeros(4), tmp_path / "a.wav", rate)
    with pytest.raises(TypeError, match="rate"):
        save_audio(torch.zeros(4), tmp_path / "a.wav", 44.1)
    with pytest.raises(ValueError, match="suffix"):
        save_audio(torch.zeros(4), tmp_path / "a.mp3", RATE)
    assert list(tmp_path.iterdir()) == []
