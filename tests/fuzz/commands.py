"""Command lines: every option that the parser knows, with values that people and scripts get wrong."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import tempfile
import warnings
import wave
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import inrfast as inr
from fuzz.laws import ADDRESSES, LONGEST, Case, CommandRefused, LawBroken
from inrfast import cli
from inrfast.training.checkpoint import save_network

COMMANDS = cli.COMMANDS

NUMBERS = ["1", "2", "3", "8", "0", "-1", "1.5", "1e3", "nan", "inf", "-inf", "1e-300", "1e400", "0x8", "-0", "1_0"]
NUMBERS += ["", " ", "x", "é", "٣", "--", "100000000", "4294967296", "9223372036854775808", "9" * 40, "9" * 5000]
SIZES = ["4x4", "4", "5x3", "2x2x2", "1", "0x3", "-1", "x", "4x", "1e3", ""]
SIZES += ["100000x100000", "x".join("4" * 21), "9" * 30]
BYTES = ["1", "10K", "1M", "64M", "1G", "1T", "0", "-1", "1E400", "x", "1e-9G", "nanG", ""]
ENCODINGS = ["fourier", "fourier:4:1", "fourier:0", "fourier:4:nan", "fourier:4:1:1", "fourier:1e12", "none", ":"]
ENCODINGS += ["identity+hashgrid:2:2:16:2:5", "fourier:2:1:trainable,polynomial:2", "hashgrid:0", "+", ","]
ENCODINGS += ["polynomial:2", "polynomial:5000", "polynomial:99999999999"]
ENCODINGS += ["positional:2", "positional:-1", "positional:1000000000"]
NAMES = ["relu", "sine", "gaussian", "siren", "kaiming", "rank_expanding", "batch", "sphere", "full", "trace", "adam"]
NAMES += ["sgd", "cosine", "medium", "highest", "RELU", "relo", "low", "0", "", "é", "--json", "\x1b[31m", "x" * 3000]
SHARES = ["1e-2", "0.5", "1e-6", "1e-12", "1e-300", "1e300", *NUMBERS]
DEVICES = ["cpu", "cpu:0", "cpu:99", "cuda", "cuda:-1", "meta", "mps", "xla", "warp", ""]
PATHS = [
    "photo.png",
    "sound.wav",
    "cube.npy",
    "ball.obj",
    "cloud.xyz",
    "clip.gif",
    "net.safetensors",
    "mask.png",
    "text.txt",
    "empty.png",
]
PATHS += ["folder", "link.png", "loop.png", "pipe.png", "photo.PNG", "photo.png/x.png", "none.png", "none/none.png"]
PATHS += ["new.png", "new.obj", "new.wav", "new.npy", "new.safetensors", "", ".", "-", "--", "~/x.png"]
PATHS += ["/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "x" * 250 + ".png", "x" * 300 + ".png"]
PATHS += ["a\nb.png", "é.png", "\udcff.png", "nul\x00.png"]

VALUES: dict[str, Sequence[str]] = {
    "hidden_layers": (*NUMBERS, "100000"),
    "steps": ("1", "2", "3", "0", "-1", "1.5", "nan", "", "x", "1e3", "٣"),
    "lr": NUMBERS,
    "batch_size": ("all", *NUMBERS),
    "weight_decay": NUMBERS,
    "checkpoint_seconds": NUMBERS,
    "like": ("inlet-rank-collapse", *NAMES),
    "grid": SIZES,
    "factor": ("2", "1.5", "3", "4", "1.0001", *NUMBERS),
    "missing": ("black", "white", *NAMES),
    "size": SIZES,
    "memory_budget": BYTES,
    "encoding": ENCODINGS,
    "device": DEVICES,
    "rtols": SHARES,
    "levels": SHARES,
    "frames": ("0:2", ":1", "1:", "::2", "::0", "::-1", "5", "a:b", "9:9", ":", "1:2:3:4", "-1:"),
    "kind": ("image", "audio", "volume", "mesh", "sdf", "points", "video", *NAMES),
    "method": ("auto", "dense", "cholesky", "lanczos", "quadrature", "inertia", *NAMES),
}
"""Values by an option's name; others have numbers where they take numbers, paths where they take paths, or names."""

USUAL = {
    "diagnose": ["--width", "4", "--hidden-layers", "2", "--grid", "4x4", "--ntk-points", "8"],
    "ntk": ["--width", "4", "--hidden-layers", "2", "--grid", "4x4"],
    "variance": ["--width", "4", "--hidden-layers", "2", "--grid", "4x4"],
    "choose": ["--width", "8", "--hidden-layers", "2", "--points", "80", "--candidate", "relu"],
    "fit": ["--width", "4", "--hidden-layers", "2", "--steps", "2"],
    "render": [],
    "inpaint": ["--steps", "2"],
    "upscale": ["--steps", "2"],
    "demo": ["--quick", "--image", "text.txt"],  # a valid demo takes a minute; what is refused is refused first
    "info": [],
}
"""Options that keep a command short; those that are drawn come after them and win."""

OPERANDS = {"model": ("net.safetensors",), "out": ("new.png",), "image": ("photo.png",), "mask": ("mask.png",)}
"""Files that a command usually takes where an operand stands; others are signals of every kind."""


@cache
def options_of(command: str) -> tuple[argparse.Action, ...]:
    """Return what the parser of a subcommand takes."""
    seen: list[argparse.ArgumentParser] = []

    def caught(parser: argparse.ArgumentParser, *given: object) -> None:
        seen.append(parser)
        raise SystemExit(0)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", caught):
        cli.main([command])  # a parser is made for the subcommand that is given alone
    (subparsers,) = (action for action in seen[0]._actions if isinstance(action, argparse._SubParsersAction))
    return tuple(subparsers.choices[command]._actions)


def _value(action: argparse.Action, rng: random.Random) -> str:
    if action.dest in VALUES:
        return rng.choice(VALUES[action.dest])
    if action.type in (int, float) or isinstance(action.default, (int, float)):
        return rng.choice(NUMBERS)
    if action.type is Path or action.dest in ("signal", "model", "out", "image", "mask", "truth", "report"):
        return rng.choice(PATHS)
    return rng.choice(NAMES)


def draw_command_line(command: str, rng: random.Random) -> list[str]:
    """Return the words of a command line: what it needs, and one to four options more with values of any kind."""
    words = [command, *USUAL.get(command, [])]
    actions = options_of(command)
    for action in (action for action in actions if not action.option_strings):
        usual = OPERANDS.get(action.dest, PATHS[:6])
        words.append(rng.choice(usual) if rng.random() < 0.75 else _value(action, rng))
    if command == "choose" and words[-1] == "ball.obj":
        words += ["--samples", "200"]
    if "fit" in words[:1] and words[-1] in ("photo.png", "ball.obj", "cloud.xyz"):
        words += ["--size", "4"] + ["--samples", "20"] * (words[-1] == "ball.obj")
    for action in rng.choices([action for action in actions if action.option_strings], k=rng.choice((0, 1, 1, 2, 4))):
        name = rng.choice(action.option_strings)
        values = [
            _value(action, rng) for _ in range(rng.choice((1, 1, 3)) if action.nargs == "+" else action.nargs != 0)
        ]
        words += [f"{name}={values[0]}"] if len(values) == 1 and rng.random() < 0.3 else [name, *values]
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice((*NAMES, *PATHS, "--help", "--nosuch", "-h", "--jso")))
    return words


@cache
def _samples() -> Path:
    """Return a folder with a file of every kind."""
    folder = Path(tempfile.mkdtemp(prefix="inrfast-samples-"))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(pixels[..., 0]).save(folder / "mask.png")
    with wave.open(str(folder / "sound.wav"), "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(pixels.tobytes())
    np.save(folder / "cube.npy", pixels[:4, :4].copy())
    corners = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
    (folder / "ball.obj").write_text(corners + "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n")
    np.savetxt(folder / "cloud.xyz", np.random.default_rng(1).standard_normal((40, 3)))
    frames = [Image.fromarray(part) for part in pixels.reshape(3, 2, 7, 3)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    about = {"kind": "image", "shape": [4, 4], "offset": 0.5, "scale": 1.0}
    save_network(inr.INR(2, 3, width=4, hidden_layers=1), folder / "net.safetensors", about)
    (folder / "text.txt").write_text("nothing of the kind\n")
    (folder / "empty.png").touch()
    (folder / "folder").mkdir()
    (folder / "link.png").symlink_to("photo.png")
    (folder / "loop.png").symlink_to("loop.png")
    _warm_up(folder)
    return folder


def _warm_up(folder: Path) -> None:
    """Run every command once, so that what is loaded or asked of the system at first use does not count."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, place, symlinks=True, dirs_exist_ok=True)
        os.chdir(place)
        try:
            for words in ("diagnose --out new", "ntk --rtols 1e-2", "fit photo.png --size 4", "info"):
                run_command([words.split()[0], *USUAL[words.split()[0]], *words.split()[1:]])
            run_command(["fit", *USUAL["fit"], "ball.obj", "--size", "4", "--samples", "20"])
            run_command(["fit", *USUAL["fit"], "ball.obj", "--as", "sdf", "--size", "4", "--samples", "20"])
            run_command(["fit", *USUAL["fit"], "cloud.xyz", "--size", "4"])
            run_command(["fit", *USUAL["fit"], "clip.gif"])
            run_command(["inpaint", *USUAL["inpaint"], "photo.png", "mask.png"])
            run_command(["upscale", *USUAL["upscale"], "photo.png"])
        except (LawBroken, CommandRefused):
            pass
        finally:
            os.chdir(before)


def command_maker(command: str) -> Callable[[random.Random, Path], Case]:
    """Return what makes the cases of one subcommand."""

    def make(rng: random.Random, folder: Path) -> Case:
        words = draw_command_line(command, rng)
        shutil.copytree(_samples(), folder, symlinks=True, dirs_exist_ok=True)
        os.mkfifo(folder / "pipe.png")
        return Case(
            lambda: run_command(words), folder=folder, growth=ADDRESSES, words=f"inrfast {words!r}", refusals=()
        )

    return make


def run_command(words: Sequence[str]) -> str:
    """Run a command line; return what it printed, or raise :class:`CommandRefused` with the one line that it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        code = cli.main(list(words))
    wrong = wrong_ending(words, code, out.getvalue(), err.getvalue())
    if wrong is not None:
        raise LawBroken(f"{wrong}; it said {err.getvalue()[-3000:]!r}")
    if code != 0:
        raise CommandRefused(error_lines(err.getvalue())[0])
    return out.getvalue()


def error_lines(said: str) -> list[str]:
    """Return the lines on stderr that tell of an error."""
    return [line for line in said.splitlines() if re.match(r"inrfast[^:]*: error: ", line)]


def wrong_ending(words: Sequence[str], code: int, out: str, said: str) -> str | None:
    """Return what is wrong with how a command ended, None if nothing."""
    errors = error_lines(said)
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in said or "unforeseen" in said or re.search(r"\w+(Warning|Error|Exception): ", said):
        return "raw words of Python on stderr"
    if len(errors) != (code != 0):
        return f"exit code {code} with {len(errors)} lines of errors"
    longest = max(map(len, said.splitlines()), default=0)
    if longest > LONGEST + max(map(len, words)):
        return f"a line of {longest} characters"
    if code == 0 and "--json" in words and "--help" not in words and "-h" not in words:
        try:
            json.loads(out)
        except ValueError:
            return "its output is no JSON"
    return None
