"""Random command lines, from sensible to hostile, and the law that each of them keeps.

``workplace`` makes a folder of small files of every kind, ``command_line`` draws words that ask for little work, and
``kept`` runs them in this process and raises AssertionError where the law is broken: a documented exit code, at most
one line of error on stderr, no traceback, and an end in time. ``kept_by_a_child`` does so in a process of its own,
which has to end whatever it waits for.
"""

import contextlib
import io
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.io import wavfile

from inrfast.cli import COMMANDS, EXIT_CODES, main

CODES = {0, 1, 2, 129, 130, 141, 143}
assert all(str(code) in EXIT_CODES for code in CODES)

MOST = 340
"""Characters of a line of error: 300 of the message, and what stands before it."""

SECONDS, MEMORY = 20.0, 8 * 2**30

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "1.5",
    "1e-3",
    "-0.0",
    "1e3",
    "1e8",
    "1e30",
    "1e400",
    "-1e400",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "0x10",
    "1_0",
    "½",
    "1,5",
    "one",
    "--",
]
NUMBERS += ["", " ", "3 ", "٣", "\n", "\0", "\udcff", "9" * 400, "9" * 5000, "-" + "9" * 30, "1e" + "9" * 30]
NUMBERS += [str(base + step) for base in (2**31, 2**32, 2**53, 2**63, 2**64) for step in (-1, 0, 1)]
NAMES = [
    "",
    "relu",
    "RELU",
    "relo",
    "none",
    "None",
    "0",
    "\n",
    "\0",
    "\udcff",
    "é",
    "x" * 5000,
    "--",
    "a b",
    "a:b",
    "{}",
]
SIZES = ["4x4", "5x3", "4", "4x", "x", "4x4x4", "0x4", "-1x4", "4X4", "4x4.5", "100000x100000", "1x1"]
SIZES += ["9" * 30 + "x2"]
SIZES += ["x".join(["2"] * 8), "x".join(["2"] * 400), f"{2**62}x4", "4×4", "infxinf", "1000000000"]
DEVICES = [
    "cpu",
    "cpu:0",
    "cpu:7",
    "meta",
    "mps",
    "cuda:99",
    "xla",
    "hpu",
    "lazy",
    "privateuseone",
    "",
    "cpu:-1",
    "warp",
]
ENCODINGS = ["fourier:4:1", "fourier", "fourier:0", "fourier:1e12", f"fourier:{10**12}", "fourier:4:nan", "fourier:4:0"]
ENCODINGS += [
    "fourier:4:1e300",
    "positional:2",
    "positional:0",
    "positional:1000000000",
    "positional:2000",
    "positional:x",
]
ENCODINGS += [
    "polynomial:3",
    "polynomial:5000",
    "polynomial:20",
    "polynomial:-1",
    f"polynomial:{2**70}",
    "polynomial:",
]
ENCODINGS += ["hashgrid:2:2:16:2:5", "hashgrid:2:2:15", f"hashgrid:64:99:{2**24}:{2**20}:{2**20}", "identity:1"]
ENCODINGS += ["identity+fourier:4:1e+0:trainable", "fourier:2,polynomial:2:trainable", "identity:trainable", "+", ","]
ENCODINGS += [",".join(["polynomial:900"] * 5), "+".join(["identity"] * 500)]
ENCODINGS += ["fourier:4:1:1", ":", "polynomial:", "positional:x", "", "fourier:" + "9" * 5000, "\udcff:1"]

KINDS = ["image", "audio", "volume", "mesh", "sdf", "points", "video"]
RANGES = ["0:2", ":1", "1:", "::2", "::0", "::-1", "5", "a:b", "9:9", ":", "1:2:3:4", "-1:", f"{2**70}:"]

COMMON = {"--device": DEVICES, "--quiet": None, "--json": None}
NETWORK = {
    "--seed": [*NUMBERS, "5"],
    "--width": [*NUMBERS, "8", "16"],
    "--hidden-layers": [*NUMBERS, "2", "100000"],
    "--activation": [*NAMES, "sine", "gaussian:2", "finer:0", "sine:x", "tanh:1"],
    "--first-activation": ["sine:60", "relu", *NAMES],
    "--omega": NUMBERS,
    "--init": [*NAMES, "siren", "kaiming", "rank_expanding"],
    "--hidden-init": [*NAMES, "siren", "kaiming"],
    "--norm": [*NAMES, "batch", "sphere", "topk", "topk:3", "topk_sphere:k=1", "topk:0", "topk:1e3", "sphere:1"],
    "--first-norm": ["batch", "none", "topk:2", *NAMES],
    "--modulation": ["none", "fourier", "fourier:16", "gabor:scale=4", "gabor:16:6:1", "fourier:-1", "gabor:0", *NAMES],
    "--first-modulation": ["none", "fourier:8", *NAMES],
    "--norm-position": ["pre", "post", *NAMES],
    "--encoding": ENCODINGS,
}
OPTIONS = {
    "info": {"--json": None},
    "demo": {**COMMON, "--seed": NUMBERS, "--image": "file", "--out": "out"},
    "reproduce": {
        **COMMON,
        "--seed": NUMBERS,
        "--images": "file",
        "--mesh": "file",
        "--weights": "file",
        "--masks": "file",
        "--scene": "file",
        "--preset": NAMES,
        "--runs": NUMBERS,
        "--out": "out",
    },
    "diagnose": {
        **COMMON,
        **NETWORK,
        "--grid": SIZES,
        "--outputs": NUMBERS,
        "--rtols": NUMBERS,
        "--ntk-points": NUMBERS,
        "--jacobian-pixels": NUMBERS,
        "--html": "out",
        "--out": "out",
    },
    "ntk": {
        **COMMON,
        **NETWORK,
        "--grid": SIZES,
        "--outputs": NUMBERS,
        "--output": [*NUMBERS, "trace", "full"],
        "--precision": ["high", "highest", "medium", *NAMES],
        "--rtols": NUMBERS,
        "--levels": [*NUMBERS, "0.5"],
        "--method": ["inertia", "dense", "lanczos", "quadrature", *NAMES],
        "--out": "out",
    },
    "variance": {
        **COMMON,
        **NETWORK,
        "--grid": SIZES,
        "--outputs": NUMBERS,
        "--precision": ["high", "highest", "medium", *NAMES],
        "--method": ["exact", "estimate", *NAMES],
        "--rtol": NUMBERS,
        "--memory-budget": [*NUMBERS, "64M", "1K"],
    },
    "choose": {
        "--as": [*KINDS, *NAMES],
        "--frames": RANGES,
        "--json": None,
        "--quiet": None,
        "--seed": NUMBERS,
        "--width": [*NUMBERS, "8"],
        "--hidden-layers": [*NUMBERS, "2", "100000"],
        "--size": SIZES,
        "--grey": None,
        "--page": NUMBERS,
        "--weight": "file",
        "--samples": NUMBERS,
        "--eikonal": NUMBERS,
        "--candidate": [
            "sine:30 siren",
            "fourier:4:1 rank_expanding",
            "relu relu",
            "init=siren omega=1e9",
            *NAMES,
            *ENCODINGS,
        ],
        "--points": [*NUMBERS, "100"],
        "--check": ["0", "1", "-1", "x"],
        "--seconds": NUMBERS,
        "--memory-budget": [*NUMBERS, "64M", "1K"],
        "--out": "out",
    },
    "fit": {
        **COMMON,
        **NETWORK,
        "--network": NAMES,
        "--as": [*KINDS, *NAMES],
        "--frames": RANGES,
        "--like": ["inlet-rank-collapse", *NAMES],
        "--size": SIZES,
        "--grey": None,
        "--page": NUMBERS,
        "--weight": "file",
        "--samples": NUMBERS,
        "--eikonal": NUMBERS,
        "--lr": NUMBERS,
        "--schedule": ["constant", "cosine", *NAMES],
        "--batch-size": ["all", *NUMBERS],
        "--optimizer": ["sgd", "adamw", *NAMES],
        "--loss": ["l1", "huber:0.1", "huber:0", "huber:x", "bce", *NAMES],
        "--weight-decay": NUMBERS,
        "--precision": ["high", "highest", "medium", *NAMES],
        "--target-psnr": NUMBERS,
        "--patience": NUMBERS,
        "--checkpoint": "out",
        "--checkpoint-seconds": NUMBERS,
        "--resume": None,
        "--memory-budget": [*NUMBERS, "64M", "1K", "1e400G", "nanM", "-1G"],
        "--out": "out",
    },
    "inpaint": {
        **COMMON,
        "--seed": NUMBERS,
        "--missing": ["black", "white", *NAMES],
        "--truth": "file",
        "--everywhere": None,
        "--report": "out",
        "--page": NUMBERS,
        "--seconds": NUMBERS,
        "--memory-budget": [*NUMBERS, "64M", "1K"],
        "--out": "out",
    },
    "upscale": {
        **COMMON,
        "--seed": NUMBERS,
        "--factor": ["2", "1.5", "3", "1e8", *NUMBERS],
        "--truth": "file",
        "--report": "out",
        "--page": NUMBERS,
        "--seconds": NUMBERS,
        "--memory-budget": [*NUMBERS, "64M", "1K"],
        "--out": "out",
    },
    "render": {**COMMON, "--size": SIZES, "--rate": [*NUMBERS, "4000"], "--memory-budget": [*NUMBERS, "64M", "1K"]},
}
"""The options of every command with values to draw from; None for those that take none, a word for paths."""

SMALL = {
    "diagnose": ["--grid", "4x4", "--width", "8", "--hidden-layers", "2"],
    "ntk": ["--grid", "4x4", "--width", "8", "--hidden-layers", "2"],
    "variance": ["--grid", "4x4", "--width", "8", "--hidden-layers", "2"],
    "choose": ["--width", "8", "--hidden-layers", "2", "--points", "80", "--candidate", "relu"],
    "fit": ["--width", "8", "--hidden-layers", "2"],
}
"""What asks for little work, before what is drawn; steps are never drawn, for many of them are nobody's mistake."""


def workplace(folder: Path) -> Path:
    """Make small files of every kind, good ones and others that are no files, and return the folder."""
    draws = np.random.default_rng(0)
    Image.fromarray(draws.integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(folder / "photo.png")
    Image.fromarray(draws.integers(0, 2, (8, 9), dtype=np.uint8) * 255).save(folder / "mask.png")
    (folder / os.fsdecode(b"\xff\xe9.png")).write_bytes((folder / "photo.png").read_bytes())
    wavfile.write(folder / "sound.wav", 8000, draws.integers(-9999, 9999, (40, 2)).astype(np.int16))
    np.save(folder / "cube.npy", draws.random((4, 5, 6), dtype=np.float32))
    trimesh.creation.icosphere(1).export(folder / "ball.obj")
    np.savetxt(folder / "cloud.xyz", draws.standard_normal((40, 3)))
    frames = [Image.fromarray(pixels) for pixels in draws.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    (folder / "empty.png").touch()
    (folder / "noise.png").write_bytes(draws.bytes(300))
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:90])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as end, _inside(folder):
        end.bind("socket.png")
    (folder / "link.png").symlink_to("photo.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    with _inside(folder):
        made = "fit photo.png --size 4 --width 8 --steps 2 --quiet --json --out model.png --checkpoint state"
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(made.split()) == 0
    return folder


def command_line(draws: random.Random, folder: Path) -> list[str]:
    """Return the words of one command line, without the program's name."""
    command = draws.choice([*[*COMMANDS][1:], "fit", "fit", "ntk", "render"])
    if draws.random() < 0.02:
        return [draws.choice([*NAMES, command, "--help", "-h", "--", "demo"]), draws.choice(NAMES)]
    words = [command, *SMALL.get(command, [])]
    if command in ("choose", "fit"):
        given = _read(draws, folder)
        words += [given]
        words += ["--steps", draws.choice(["1", "2", "2", "0", "-1", "nan", "1.5"])] if command == "fit" else []
        words += (
            ["--size", "9" if command == "choose" else "4"] if given.endswith(".png") and draws.random() < 0.8 else []
        )
        if command == "fit" and draws.random() < 0.15:  # of so few pixels, for a search takes its time
            words += ["--network", "auto", "--size", "9"]
    if command in ("inpaint", "upscale"):
        words += [_read(draws, folder), *([_read(draws, folder, "mask.png")] if command == "inpaint" else [])]
        words += ["--steps", draws.choice(["1", "2", "2", "0", "-1", "nan"])]
    if command == "reproduce":
        words += [draws.choice(["inlet-rank-collapse"] * 30 + NAMES), draws.choice(["fig5"] * 30 + NAMES)]
    if command == "render":
        words += [_read(draws, folder, "model.safetensors"), _written(draws, folder)]
    for option in draws.sample(sorted(OPTIONS[command]), draws.randint(0, min(3, len(OPTIONS[command])))):
        values = OPTIONS[command][option]
        if values is None:
            words.append(option)
            continue
        value = {"file": _read, "out": _written}[values](draws, folder) if isinstance(values, str) else None
        value = draws.choice(values) if value is None else value
        words += [f"{option}={value}"] if draws.random() < 0.5 else [option, value]
    return words


def _read(draws: random.Random, folder: Path, usual: str = "photo.png") -> str:
    names = [usual] * 8 + sorted(path.name for path in folder.iterdir())
    odd = [
        "",
        ".",
        "/",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/proc/self/mem",
        "n" * 256 + ".png",
        "nul\0.png",
        "\n.png",
    ]
    odd += [
        "missing.png",
        "photo.png/below.png",
        "d/" * 3000 + "a.png",
        "\ud800.png",
        "-",
        "photo",
        "photo.mp3",
        "https://a/b.png",
    ]
    name = draws.choice(names) if draws.random() < 0.7 else draws.choice(odd)
    return name if os.path.isabs(name) else f"{folder}/{name}" if name else name


def _written(draws: random.Random, folder: Path) -> str:
    endings = [".png", ".png", ".wav", ".npy", ".obj", ".stl", ".jpg", ".safetensors", "", ".txt", ".PNG"]
    stems = ["new", "new", "photo", "folder", "pipe", "socket", "link", "dangling", "loop", "missing/new", "n" * 251]
    stems += ["n" * 256, "\udcff", "\udcfe/\udcff", "photo.png/new", "a\nb", "nul\0", "\ud800", "..", "d/" * 3000 + "n"]
    path = draws.choice(stems) + draws.choice(endings)
    odd = ["", ".", "/", "/dev/null", "/dev/full", "/proc/new.png", "/proc/sys/new.npy", "--", "/dev/full/new.png"]
    return draws.choice(odd) if draws.random() < 0.15 else f"{folder}/{path}"


# ---- the law -----------------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """A command line that does not end."""


def kept(words: Sequence[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Run a command line in this process, and return its exit code, stdout and stderr if it keeps the law."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    torch.manual_seed(0)
    begun = time.monotonic()
    with _ended_after(seconds), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]
    check(words, code, told[1], time.monotonic() - begun, seconds)
    return code, *told


def check(words: Sequence[str], code: int, err: str, took: float, seconds: float = SECONDS) -> None:
    """Raise AssertionError if what a command line left breaks the law."""
    what = f"inrfast {' '.join(map(ascii, words))[:2000]}\ncode {code} after {took:.1f} s, stderr:\n{err[:3000]}"
    errors = [line for line in err.splitlines() if line.startswith("inrfast: error: ")]
    others = [line for line in err.splitlines() if not line.startswith("inrfast: ")]
    assert code in CODES, what
    assert len(errors) == (code in (1, 2)), what
    assert all(len(line) <= MOST for line in errors), what
    assert not any("unforeseen" in line or "Traceback" in line for line in (*errors, *others)), what
    assert code == 0 or not any(line.startswith(("  File", "Exception")) for line in others), what
    assert took <= seconds, what


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TooLong(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def kept_by_a_child(words: Sequence[str], seconds: float = SECONDS, memory: int = MEMORY) -> None:
    """Run a command line as :func:`kept` does, in a forked child with so many bytes of addresses."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            kept(words, seconds)
        except BaseException as error:
            os.write(writer, str(error).encode(errors="backslashreplace")[:60000] or b"?")
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], seconds + 5)
        if not ready:
            os.kill(child, signal.SIGKILL)
        told = pipe.read().decode() if ready else f"no end: {ascii(words)[:2000]}"
    _, status = os.waitpid(child, 0)
    if told or status:
        raise AssertionError(told or f"died with the status {status}: {ascii(words)[:2000]}")


if __name__ == "__main__":  # command_lines.py FOLDER COUNT [SEED]
    place, count = workplace(Path(sys.argv[1])), int(sys.argv[2])
    source = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    os.chdir(place)
    for _ in range(count):
        try:
            kept_by_a_child(command_line(source, place))
        except AssertionError as broken:
            print(broken, end="\n\n", flush=True)
