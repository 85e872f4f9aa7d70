"""Sound survives the way to a file and back; every width of PCM has the value it stands for; damage is refused.

The truth is what other programs write and read: libsndfile by soundfile, SciPy, the standard library.
"""

import io
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from inrfast.errors import MemoryBudgetError
from inrfast.signals.audio import load_audio, save_audio

RATE = 8000

FORMATS = [
    *(
        (kind, width)
        for kind in ("WAV", "WAVEX", "RF64")
        for width in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT")
    ),
    *(("FLAC", width) for width in ("PCM_S8", "PCM_16", "PCM_24")),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def written(kind: str, width: str, channels: int, endian: str = "FILE", frames: int = 300, seed: int = 0) -> bytes:
    """Return the file that libsndfile makes of a noisy tone."""
    random = np.random.default_rng(seed)
    tone = np.sin(np.arange(frames) / 9)[:, None] * 0.7 + random.standard_normal((frames, channels)) * 0.05
    file = io.BytesIO()
    soundfile.write(file, tone, RATE, format=kind, subtype=width, endian=endian)
    return file.getvalue()


def by_libsndfile(content: bytes) -> tuple[np.ndarray, int]:
    """Return samples in fp32 and rate; integers come in the upper bits of 32."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.subtype.startswith("PCM"):
            return (file.read(dtype="int32", always_2d=True) / 2**31).astype(np.float32), file.samplerate
        return file.read(dtype="float64", always_2d=True).astype(np.float32), file.samplerate


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """Return a RIFF file of chunks with their padding."""
    body = b"WAVE" + b"".join(n + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for n, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


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


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 5),
    st.sampled_from(["FILE", "BIG"]),
    st.integers(1, 700),
    st.integers(0, 99),
)
def test_what_another_program_writes_is_read_as_it_reads_it(
    tmp_path_factory: pytest.TempPathFactory, form: tuple[str, str], channels: int, endian: str, frames: int, seed: int
) -> None:
    content = written(*form, channels, endian if form[0] == "WAV" else "FILE", frames, seed)
    path = tmp_path_factory.mktemp("sound") / "a.sound"  # the content decides, not the name
    path.write_bytes(content)
    expected, expected_rate = by_libsndfile(content)
    got, rate = load_audio(path)
    assert rate == expected_rate
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"LIST", b"note", b"bext"]), st.binary(max_size=9)), max_size=3),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.lists(st.integers(-(2**23), 2**23 - 1), min_size=1, max_size=9),
    st.binary(max_size=11),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    st.sampled_from([None, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x7FFFF000]),
)
def test_what_stands_around_the_samples_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[bytes, bytes]],
    width: int,
    channels: int,
    values: list[int],
    after: bytes,
    whole: int | None,
    piped: int | None,
) -> None:
    numbers = [v >> (24 - 8 * width) for v in values for _ in range(channels)]
    stored = b"".join((v + 128 * (width == 1)).to_bytes(width, "little", signed=width > 1) for v in numbers)
    head = struct.pack("<HHIIHH", 1, channels, RATE, RATE * channels * width, channels * width, 8 * width)
    content = riff((b"fmt ", head), *before, size=whole) + b"data" + struct.pack("<I", piped or len(stored)) + stored
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    path.write_bytes(content + (b"" if piped else after))  # of unknown size, they reach to the end
    expected = torch.tensor(numbers, dtype=torch.float64).div(2 ** (8 * width - 1)).float().view(-1, channels)
    assert torch.equal(load_audio(path)[0], expected)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_refused_or_read_as_another_program_reads_it(tmp_path: Path, form: tuple[str, str]) -> None:
    content, path = written(*form, channels=2), tmp_path / "a.sound"
    whole = by_libsndfile(content)[0]
    random = np.random.default_rng(0)
    for number in range(45):
        altered = bytearray(content)
        if cut := number % 3 == 0:
            del altered[int(random.integers(len(content))) :]
        for _ in range(0 if cut else int(random.integers(1, 4))):
            where = int(random.integers(min(len(content), (100, len(content))[number % 2])))
            altered[where] = random.choice([altered[where] ^ 1 << int(random.integers(8)), 0, 255])
        path.write_bytes(altered or b"\0")
        try:
            got, rate = load_audio(path)
        except (ValueError, MemoryBudgetError):
            continue
        assert not cut
        expected, expected_rate = by_libsndfile(bytes(altered))
        assert rate == expected_rate
        np.testing.assert_array_equal(got.numpy(), expected)
        if form[0] in ("FLAC", "OGG"):  # they state checksums of their samples
            np.testing.assert_array_equal(got.numpy(), whole)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    head = (b"fmt ", struct.pack("<HHIIHH", 1, 2, RATE, 4 * RATE, 4, 16))
    for stated, words in ((2**31 - 8, "truncated"), (0, "0 samples"), (3, "frames of 4")):
        (tmp_path / "a.wav").write_bytes(riff(head) + b"data" + struct.pack("<I", stated) + bytes(8))
        with pytest.raises(ValueError, match=words):
            load_audio(tmp_path / "a.wav")
    flac = bytearray(written("FLAC", "PCM_16", 1))
    flac[21:26] = b"\xff" * 5  # of 2^36 samples, and 16 bits
    (tmp_path / "a.flac").write_bytes(flac)
    with pytest.raises((MemoryBudgetError, ValueError), match=r"a\.flac"):
        load_audio(tmp_path / "a.flac", memory_budget=2**30)
    write_pcm(tmp_path / "b.wav", [1] * 2**20, 2, 1)
    with pytest.raises(MemoryBudgetError, match=r"1048576 samples of 1 channels.* samples fit"):
        load_audio(tmp_path / "b.wav", memory_budget=2**23)
    assert load_audio(tmp_path / "b.wav", memory_budget=2**24)[0].shape == (2**20, 1)


@pytest.mark.parametrize("channels", [1, 8])
def test_flac_survives_a_round_trip(tmp_path: Path, channels: int) -> None:
    values = torch.randint(-(2**15), 2**15, (500, channels), generator=torch.Generator().manual_seed(0)).float() / 2**15
    save_audio(values, tmp_path / "a.flac", 44100)
    assert soundfile.info(tmp_path / "a.flac").format == "FLAC"
    got, rate = load_audio(tmp_path / "a.flac")
    assert rate == 44100
    assert torch.equal(got, values)


def test_bad_files_are_named(tmp_path: Path) -> None:
    write_pcm(tmp_path / "whole.wav", list(range(100)), 2, 2)
    content = (tmp_path / "whole.wav").read_bytes()
    for kept in range(1, len(content), 9):
        (tmp_path / "cut.wav").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"cut\.wav is"):
            load_audio(tmp_path / "cut.wav")
    (tmp_path / "text.wav").write_text("this is no sound at all")
    with pytest.raises(ValueError, match=r"text\.wav is not a WAV, FLAC or Ogg"):
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
    with pytest.raises(ValueError, match="channels in a FLAC"):
        save_audio(torch.zeros(4, 9), tmp_path / "a.flac", RATE)
    with pytest.raises(ValueError, match="rate"):
        save_audio(torch.zeros(4), tmp_path / "a.flac", 2**20)
    for rate in (0, -1, 2**31):
        with pytest.raises(ValueError, match="rate"):
            save_audio(torch.zeros(4), tmp_path / "a.wav", rate)
    with pytest.raises(TypeError, match="rate"):
        save_audio(torch.zeros(4), tmp_path / "a.wav", 44.1)
    with pytest.raises(ValueError, match="suffix"):
        save_audio(torch.zeros(4), tmp_path / "a.mp3", RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tail", ["000000001000800000aa00389b71", "00002107d3118644c8c1ca000000"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_byte_that_fills_up_may_be_counted_and_other_parts_of_a_frame_may_not(
    tmp_path: Path, tail: str, channels: int
) -> None:
    path, frame = tmp_path / "a.wav", 3 * channels
    fields = (0xFFFE, channels, RATE, frame * RATE, frame, 24, 22, 24, 0, 1)
    head = struct.pack("<HHIIHHHHIH", *fields) + bytes.fromhex(tail)
    for size in range(9 * frame, 11 * frame + 1):
        content = riff((b"fmt ", head), (b"data", np.random.default_rng(0).bytes(size)))
        path.write_bytes(content)
        if size % frame == 0 or (size % frame == 1 and size % 2 == 0):
            np.testing.assert_array_equal(load_audio(path)[0].numpy(), by_libsndfile(content)[0])
            continue
        with pytest.raises(ValueError, match="truncated or damaged"):
            load_audio(path)


@pytest.mark.parametrize("between", [(), ((b"LIST", b"abc"),)])
def test_samples_in_several_chunks_are_refused(tmp_path: Path, between: tuple[tuple[bytes, bytes], ...]) -> None:
    head = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    (tmp_path / "a.wav").write_bytes(riff((b"fmt ", head), (b"data", bytes(20)), *between, (b"data", bytes(20))))
    with pytest.raises(ValueError, match="several chunks"):
        load_audio(tmp_path / "a.wav")


def test_what_keeps_a_sound_from_being_read_is_named(tmp_path: Path) -> None:
    content = bytearray(written("FLAC", "PCM_16", 1))
    (tmp_path / "a.flac").write_bytes(b"ID3\x04" + bytes(6) + content)
    with pytest.raises(ValueError, match="ID3 tag"):
        load_audio(tmp_path / "a.flac")
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(ValueError, match="does not state how many samples"):
        load_audio(tmp_path / "a.flac")
