"""Videos: frames survive the way to files and back, whatever the format; damage is refused; a clip is fitted."""

import importlib
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import inrfast as inr
from inrfast.cli import main
from inrfast.errors import MemoryBudgetError, MissingLibraryError
from inrfast.metrics import psnr
from inrfast.signals.image import load_image, save_image
from inrfast.signals.kinds import SIGNALS, kind_of
from inrfast.signals.video import frame_range, images_in, load_video, save_video

FILMS = importlib.util.find_spec("av") is not None
QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def clip(count: int = 5, height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Random pixels of 8 bits."""
    shape = (count, height, width, channels)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def moving(count: int = 12, side: int = 32) -> torch.Tensor:
    """A smooth blob that moves, which lossy codecs keep."""
    t, y, x = inr.grid((count, side, side)).view(count, side, side, 3).unbind(-1)
    blob = torch.exp(-4 * ((x - 0.5 * t) ** 2 + (y + 0.3 * t) ** 2))
    return torch.stack([blob, 0.5 + 0.3 * x, 0.5 + 0.3 * y], -1).clamp(0, 1)


# ---- there and back ----------------------------------------------------------------------------------------------


@settings(max_examples=25, **QUICK)
@given(
    st.sampled_from([".webp", ".png", ".apng", ""]),
    st.integers(2, 6),
    st.sampled_from([1, 3]),
    st.sampled_from([5.0, 10.0, 12.5, 25.0, 50.0]),
    st.integers(0, 10**6),
)
def test_lossless_files_give_back_every_pixel(
    tmp_path_factory, suffix: str, count: int, channels: int, rate: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("clip") / f"clip{suffix}"
    values = clip(count, channels=channels, seed=seed)
    save_video(values.double(), path, rate)
    found, own = load_video(path)
    assert found.dtype == torch.float32
    assert torch.equal(found, values)
    assert own == pytest.approx(24.0 if not suffix else rate, rel=0.02)
    some, slower = load_video(path, frames=slice(1, None, 2))
    assert torch.equal(some, values[1::2])
    assert slower == pytest.approx(own / 2)


def test_a_gif_keeps_what_its_colours_allow(tmp_path: Path) -> None:
    values = (clip(4) * 3).round() / 3  # 64 colours
    save_video(values, tmp_path / "a.gif", 20.0)
    found, rate = load_video(tmp_path / "a.gif")
    assert torch.equal((found * 255).round(), (values * 255).round())
    assert rate == pytest.approx(20)


@pytest.mark.skipif(not FILMS, reason="needs PyAV")
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv"])
@pytest.mark.parametrize("sides", [(32, 32), (31, 27)])
def test_films_come_back_nearly(tmp_path: Path, suffix: str, sides: tuple[int, int]) -> None:
    values = moving()[:, : sides[0], : sides[1]]
    save_video(values, tmp_path / f"a{suffix}", 12.5)
    found, rate = load_video(tmp_path / f"a{suffix}")
    assert found.shape == values.shape
    assert rate == pytest.approx(12.5, rel=1e-3)
    assert psnr(found, values) > 32
    some, _ = load_video(tmp_path / f"a{suffix}", frames=slice(2, 9, 3))
    assert torch.equal(some, found[2:9:3])


def varying(path: Path, times: list[int], unit: Fraction, codec: str = "libx264", options: dict | None = None) -> None:
    """Write a film whose frames are shown at these multiples of a unit."""
    av = importlib.import_module("av")
    with av.open(str(path), "w") as container:
        out = container.add_stream(codec, rate=24, options=options or {})
        out.width = out.height = 32
        out.pix_fmt, out.codec_context.time_base = "yuv420p", unit
        for pixels, time in zip((moving(len(times)) * 255).byte().numpy(), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, unit
            container.mux(out.encode(frame))
        container.mux(out.encode(None))


@pytest.mark.skipif(not FILMS, reason="needs PyAV")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_films_of_varying_rates_have_all_frames_and_the_rate_of_their_times(tmp_path: Path, suffix: str) -> None:
    path, times = tmp_path / f"a{suffix}", [0, 1, 2, 10, 11, 12, 30, 31, 32, 33, 34, 60]
    varying(path, times, Fraction(1, 24))
    found, rate = load_video(path)
    assert found.shape == (12, 32, 32, 3)
    assert rate == pytest.approx(24 * 11 / 60, rel=1e-3)
    for part in (slice(2, None, 3), slice(-4, None), slice(0, 3)):
        some, own = load_video(path, frames=part)
        assert torch.equal(some, found[part])
        assert own == pytest.approx(24 * (len(times[part]) - 1) / (times[part][-1] - times[part][0]), rel=0.02)
    assert load_video(path, frames=slice(1))[1] > 0  # one frame has the rate that the file states


@pytest.mark.skipif(not FILMS, reason="needs PyAV")
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_film_that_lacks_its_last_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_video(moving(), path)
    content = path.read_bytes()
    for lost in (1, 40):
        path.write_bytes(content[:-lost])
        with pytest.raises(ValueError, match=rf"states {len(content)} bytes and has {len(content) - lost}"):
            load_video(path)
    path.write_bytes(content + b"what a camera adds behind")
    assert len(load_video(path)[0]) == 12


def test_frames_are_those_that_pillow_shows(tmp_path: Path) -> None:
    """Partial frames, disposal and palettes of a GIF, as Pillow composes them frame by frame."""
    pictures = [Image.new("RGB", (8, 6), (10 * k, 0, 200)) for k in range(4)]
    for k, picture in enumerate(pictures):
        picture.putpixel((k, k), (255, 255, 0))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[40, 80, 40, 80])
    found, rate = load_video(tmp_path / "a.gif")
    truth = np.stack([np.asarray(picture) for picture in pictures])
    np.testing.assert_array_equal((found * 255).round().byte().numpy(), truth)
    assert rate == pytest.approx(1000 / 60)


def test_a_picture_beside_an_animation_is_no_frame_of_it(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 6), (20 * k, 0, 0)) for k in range(5)]
    pictures[4].save(
        tmp_path / "a.png", save_all=True, append_images=pictures[:4], default_image=True, duration=[40, 80, 40, 80]
    )
    found, rate = load_video(tmp_path / "a.png")
    assert [round(float(frame[..., 0].mean() * 255)) for frame in found] == [0, 20, 40, 60]
    assert rate == pytest.approx(1000 / 60)
    assert torch.equal(load_video(tmp_path / "a.png", frames=slice(-1, None))[0], found[3:])


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
@pytest.mark.parametrize("times", [[0, 0, 0, 0], [40, 0, 80, 20], [0, 50, 50, 50]])
def test_a_frame_without_a_time_counts_as_a_tenth_of_a_second(tmp_path: Path, suffix: str, times: list[int]) -> None:
    pictures = [Image.new("RGB", (8, 6), (20 * k, 0, 0)) for k in range(4)]
    pictures[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=pictures[1:], duration=times, lossless=True)
    assert load_video(tmp_path / f"a{suffix}")[1] == pytest.approx(4000 / sum(time or 100 for time in times))


def test_folders_are_read_in_natural_order_and_of_one_size(tmp_path: Path) -> None:
    values = clip(12)
    for number, frame in enumerate(values):
        save_image(frame, tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".hidden.png").write_bytes(b"no frame either")
    assert [path.name for path in images_in(tmp_path)] == [f"frame{k}.png" for k in range(12)]
    found, rate = load_video(tmp_path)
    assert torch.equal(found, values)
    assert rate == 24
    save_image(clip(1, 5, 8)[0], tmp_path / "frame7.png")
    with pytest.raises(ValueError, match=r"one size: frame0\.png has 6x8 pixels, frame7\.png 5x8"):
        load_video(tmp_path)


def test_sizes_and_grey_are_those_of_images(tmp_path: Path) -> None:
    values = clip(3, 12, 16)
    save_video(values, tmp_path / "frames")
    for options in ({"size": (6, 8)}, {"size": 4}, {"grey": True}, {"size": (4, 4), "grey": True}):
        found, _ = load_video(tmp_path / "frames", **options)
        each = [load_image(tmp_path / "frames" / f"{k:04}.png", **options) for k in range(3)]
        torch.testing.assert_close(found, torch.stack(each), atol=1e-6, rtol=0)


def test_transparency_is_seen_on_black_with_a_warning(tmp_path: Path) -> None:
    pictures = [Image.new("RGBA", (4, 4), (200, 100, 50, 255 * (k % 2))) for k in range(3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True, exact=True)
    with pytest.warns(RuntimeWarning, match=r"a\.webp is transparent in places"):
        found, _ = load_video(tmp_path / "a.webp")
    assert found[::2].abs().max() == 0
    assert torch.allclose(found[1], torch.tensor([200, 100, 50]) / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_frames_of_a_folder_are_seen_on_black_too(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (6, 4), (200, 200, 200, 128))
    picture.putpixel((0, 0), (200, 200, 200, 255))
    for number in range(2):
        if mode == "P":
            indexed = Image.new("P", (6, 4), 1)
            indexed.putpalette([0, 0, 0, 200, 200, 200])
            indexed.putpixel((0, 0), 0)
            indexed.save(tmp_path / f"{number}.png", transparency=bytes([255, 128]))
        else:
            picture.convert(mode).save(tmp_path / f"{number}.png")
    with pytest.warns(RuntimeWarning, match="is transparent in places") as told:
        found, _ = load_video(tmp_path)
    assert len(told) == 1
    torch.testing.assert_close(found[:, 1:], torch.full((2, 3, 6, 1), 200 / 255 * 128 / 255))
    assert found[0, 0, 0] == pytest.approx(0 if mode == "P" else 200 / 255)


def test_folders_that_hold_more_than_frames(tmp_path: Path) -> None:
    save_video(clip(2), tmp_path / "frames")
    (tmp_path / "frames" / "0002.png").mkdir()
    assert len(load_video(tmp_path / "frames")[0]) == 2
    for name, words in (
        ("3.gif", r"3\.gif holds 5 pages or frames, and each image"),
        ("3.tif", r"3\.tif holds 2 pages"),
    ):
        if name.endswith("gif"):
            save_video(clip(), tmp_path / "frames" / name)
        else:
            Image.new("L", (8, 6)).save(
                tmp_path / "frames" / name, save_all=True, append_images=[Image.new("L", (8, 6))]
            )
        with pytest.raises(ValueError, match=words):
            load_video(tmp_path / "frames")
        (tmp_path / "frames" / name).unlink()
    (tmp_path / "frames" / "4.png").symlink_to("none.png")
    with pytest.raises(FileNotFoundError, match=r"4\.png is a link to a file that is not there"):
        load_video(tmp_path / "frames")


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", *([".mp4", ".webm"] if FILMS else [])])
def test_cut_files_are_refused_with_their_names(tmp_path: Path, suffix: str) -> None:
    path, values = tmp_path / f"a{suffix}", moving()
    save_video(values, path)
    content, whole = path.read_bytes(), load_video(path)[0]
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(content[: max(int(share * len(content)), 1)])
        with pytest.raises(ValueError, match=rf"a\{suffix}"):
            load_video(path)
    path.write_bytes(content)
    assert torch.equal(load_video(path)[0], whole)


@settings(max_examples=60, **QUICK)
@given(st.sampled_from([".gif", ".webp", ".png"]), st.integers(0, 10**6))
def test_damage_is_refused_or_leaves_a_video(tmp_path_factory, suffix: str, seed: int) -> None:
    path, draw = tmp_path_factory.mktemp("bad") / f"a{suffix}", np.random.default_rng(seed)
    save_video(clip(3), path)
    content = bytearray(path.read_bytes())
    for _ in range(int(draw.integers(1, 4))):
        content[int(draw.integers(len(content)))] = int(draw.integers(256))
    path.write_bytes(content)
    try:
        found, rate = load_video(path, memory_budget=2**28)
    except (ValueError, MemoryBudgetError):
        return
    assert found.ndim == 4
    assert bool(((found >= 0) & (found <= 1)).all())
    assert rate > 0


def test_bad_requests_are_refused_by_name(tmp_path: Path) -> None:
    save_video(clip(), tmp_path / "a.webp")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gif").write_text("GIF of nothing")
    for call, error, words in (
        (lambda: load_video(tmp_path / "a.webp", frames=slice(9, 12)), ValueError, "some of the 5 .*none by 9:12"),
        (lambda: load_video(tmp_path / "a.webp", frames=slice(5, None, 2)), ValueError, "none by 5::2"),
        (lambda: load_video(tmp_path / "a.webp", frames=slice(None, None, -1)), ValueError, "step of at least 1"),
        (lambda: load_video(tmp_path / "a.webp", frames=3), TypeError, "slice"),
        (lambda: load_video(tmp_path / "a.webp", size=0), ValueError, "size"),
        (lambda: load_video(tmp_path / "a.webp", size=(1, 2, 3)), ValueError, "size"),
        (lambda: load_video(tmp_path / "empty"), ValueError, "folder without images"),
        (lambda: load_video(tmp_path / "text.gif"), ValueError, r"text\.gif"),
        (lambda: load_video(tmp_path / "none.gif"), FileNotFoundError, "none"),
        (lambda: load_video(tmp_path / "a.avi"), ValueError, r"suffix|\.avi|No such"),
        (lambda: save_video(clip()[0, 0], tmp_path / "b.webp"), ValueError, "shape"),
        (lambda: save_video(clip(channels=2), tmp_path / "b.webp"), ValueError, "shape"),
        (lambda: save_video(clip(), tmp_path / "b.webp", 0.0), ValueError, "rate"),
        (lambda: save_video(clip() / 0, tmp_path / "b.webp"), ValueError, "finite"),
        (lambda: save_video(clip(), tmp_path / "b.avi"), ValueError, "suffix"),
        (lambda: save_video(clip(), tmp_path), FileExistsError, "no empty folder"),
        (lambda: save_video(clip(), tmp_path / "none" / "frames"), FileNotFoundError, "existing folder"),
    ):
        with pytest.raises((error, FileNotFoundError) if "avi" in words else error, match=words):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.webp", "empty", "text.gif"]


def test_memory_is_checked_before_frames_are_decoded(tmp_path: Path) -> None:
    values = torch.zeros(40, 64, 64)  # few bytes, many pixels
    values[torch.arange(40), torch.arange(40), 0] = 1
    save_video(values, tmp_path / "a.webp")
    assert (tmp_path / "a.webp").stat().st_size < 2**15
    with pytest.raises(MemoryBudgetError, match=r"40 frames of 64x64 pixels.*frames fit"):
        load_video(tmp_path / "a.webp", memory_budget=2**20)
    assert load_video(tmp_path / "a.webp", frames=slice(2), memory_budget=2**20)[0].shape == (2, 64, 64, 1)


def test_films_say_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"film")
    for call in (lambda: load_video(tmp_path / "a.mp4"), lambda: save_video(clip(), tmp_path / "b.mp4")):
        with pytest.raises(MissingLibraryError, match=r"pip install 'inrfast\[video\]'"):
            call()


def test_ranges_are_read_as_python_slices() -> None:
    assert frame_range("0:100:2") == slice(0, 100, 2)
    assert frame_range(":5") == slice(None, 5, None)
    for bad in ("5", "a:b", "::0", "::-1", "1:2:3:4", "", "1_0:"):
        with pytest.raises(Exception, match="start:stop"):
            frame_range(bad)


# ---- the command line --------------------------------------------------------------------------------------------


def test_the_content_tells_a_video_from_an_image(tmp_path: Path) -> None:
    save_video(clip(), tmp_path / "moving.gif")
    save_image(clip()[0], tmp_path / "still.gif")
    save_video(clip(), tmp_path / "moving.png")
    save_video(clip(), tmp_path / "frames")
    (tmp_path / "empty").mkdir()
    names = {"moving.gif": "video", "still.gif": "image", "moving.png": "video", "frames": "video", "empty": "image"}
    assert {name: kind_of(tmp_path / name) for name in names} == names
    assert kind_of(tmp_path / "moving.gif", "image") == "image"


def test_a_clip_is_fitted_and_rendered_at_other_sizes_and_rates(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = moving(8, 24)
    save_video(values, "clip.webp", 10.0)
    save_video(values, "frames")
    words = ["--activation", "sine", "--init", "siren", "--omega", "6", "--width", "32", "--hidden-layers", "2"]
    words += ["--steps", "150", "--lr", "3e-3", "--batch-size", "1024", "--quiet", "--json"]
    psnrs = []
    for source in ("clip.webp", "frames"):
        assert main(["fit", source, *words, "--out", "again.webp"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["kind"], found["size"]) == ("video", [8, 24, 24, 3])
        psnrs.append(found["psnr"])
    assert min(psnrs) > 28
    again, rate = load_video("again.webp")
    assert (again.shape, rate) == (values.shape, pytest.approx(24, rel=0.02))  # a folder states no rate
    assert float((again - values).abs().mean()) < 0.05
    assert main(["render", "again.safetensors", "fine", "--size", "30x40", "--rate", "48"]) == 0
    assert load_video("fine")[0].shape == (15, 30, 40, 3)
    capsys.readouterr()
    words[words.index("1024")] = "100"
    assert main(["fit", "clip.webp", "--size", "12x24", *words, "--out", "wide.webp"]) == 0
    assert main(["render", "wide.safetensors", "wider", "--size", "36"]) == 0
    assert load_video("wider")[0].shape[1:3] == (18, 36)
    capsys.readouterr()
    few = ["--frames", "1:6:2", "--size", "12", "--grey"]
    assert main(["fit", "clip.webp", *few, *words, "--out", "small.gif"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [3, 12, 12, 1]
    assert main(["fit", "clip.webp", "--page", "2", *words, "--size", "12", "--out", "one.png"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "image"
    for bad, told in (
        (["fit", "clip.webp", "--size", "2x2x2"], "one size or two"),
        (["fit", "clip.webp", "--frames", "7"], "start:stop"),
        (["fit", "clip.webp", "--out", "a.obj"], ".webp"),
        (["render", "again.safetensors", "b.gif", "--rate", "0"], "above 0"),
    ):
        assert main(bad) == 2
        assert told in capsys.readouterr().err


def test_a_large_clip_is_judged_on_some_pixels_and_in_the_end_on_all(tmp_path: Path) -> None:
    save_video(moving(6, 120), tmp_path / "clip.webp")
    signal = SIGNALS["video"].load(tmp_path / "clip.webp", seed=0, memory_budget=None, progress=False)
    assert signal.judged < len(signal.coords)
    found = signal.measure(torch.nn.Identity(), signal.target + 0.1)
    assert found["whole_psnr"] == pytest.approx(20, abs=1e-3)
