"""Whatever ends a command, its process leaves one line and a documented code: signals, pipes, full streams, errors."""

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inrfast.memory  # noqa: F401  (as in every command that computes)
from inrfast.cli import main
from inrfast.cli.shell import Interrupts, orderly

MODULE = ["-m", "inrfast.cli"]
PRINTS = ["-c", "from inrfast.cli.shell import *; sys.exit(orderly(lambda _: print_out('result') or 0, True))"]
SCRIPT = [str(Path(sys.executable).with_name("inrfast"))]  # what pip has written into bin

FIT = "fit photo.png --size 8 --width 16 --steps 100000 --lr 1e-6 --checkpoint state --checkpoint-seconds 0.2 --resume"


ENVIRONMENT = os.environ | {"INRFAST_GEMM": "torch", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def started(words, folder, how=MODULE, closing=None, env=ENVIRONMENT, **streams):
    """Start a command; ``closing`` is the number of a stream that its shell closes before."""
    command = [sys.executable, *how, *words.split()]
    if closing is not None:
        command = ["sh", "-c", f'exec "$@" {closing}>&-', "sh", *command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(command, cwd=folder, env=env, text=True, **streams)


def listens(process):
    """Wait until the command handles SIGTERM, which is the first that it does."""
    while process.poll() is None:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "how", "words"),
    [
        (signal.SIGTERM, SCRIPT, "ntk --grid 60x60 --rtols 1e-4 --out kernel.npy"),
        (signal.SIGHUP, SCRIPT, "demo --quick --out demo"),
        (signal.SIGINT, MODULE, FIT),
    ],
)
def test_a_signal_in_the_first_second_leaves_one_line_and_no_file(folder, number, how, words):
    before = sorted(path.name for path in folder.iterdir())
    process = started(words, folder, how)
    listens(process)
    time.sleep(random.Random(words).random() / 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "")
    assert re.fullmatch(r"inrfast: interrupted.*\n", err)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_terminated_fit_keeps_what_it_has_and_goes_on_to_the_end_of_one_that_was_not(folder):
    words = FIT.replace("100000", "700")
    whole = started(words.replace("state", "other") + " --out whole.png", folder)
    # Once when it has written its state, and once at any moment of the one that goes on from there.
    first = started(words + " --out parts.png", folder)
    while not (folder / "state").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    first.terminate()
    out, err = first.communicate(timeout=60)
    if first.returncode not in (0, -signal.SIGTERM):  # it may have been at its end
        assert first.returncode == 143
        assert out.startswith("photo.png: ") and err.startswith("inrfast: interrupted; kept the result so far")
    second = started(words + " --out parts.png", folder)
    listens(second)
    with contextlib.suppress(subprocess.TimeoutExpired):
        second.wait(random.Random(0).uniform(1, 3))
    second.terminate()
    assert "Traceback" not in second.communicate(timeout=60)[1]
    assert second.returncode in (0, 143, -signal.SIGTERM)  # the last where it had said all, and was on its way out
    third = started(words + " --out parts.png", folder)
    for process in (third, whole):
        assert "Traceback" not in process.communicate(timeout=60)[1]
        assert process.returncode == 0
    for ending in ("png", "safetensors"):
        assert (folder / f"whole.{ending}").read_bytes() == (folder / f"parts.{ending}").read_bytes()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_keyboard_interrupt_with_its_own_code_and_its_handler_comes_back(number, capsys):
    before = signal.getsignal(number)

    def work(interrupts: Interrupts) -> int:
        interrupts.begin()
        signal.raise_signal(number)
        raise AssertionError("it went on")

    assert orderly(work, own=False) == 128 + number
    assert capsys.readouterr().err == "inrfast: interrupted; no file is left half-written\n"
    assert signal.getsignal(number) is before


def test_an_interrupt_that_a_library_swallows_comes_again(capsys):
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)

    def work(interrupts: Interrupts) -> int:
        interrupts.begin()
        swallows = Swallows()
        del swallows
        time.sleep(5)
        return 0

    assert orderly(work, own=False) == 143
    assert capsys.readouterr().err == "inrfast: interrupted; no file is left half-written\n"


# ---- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_is_no_error(tmp_path, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    process = started("", tmp_path, PRINTS, stdout=writer, env=ENVIRONMENT | {"PYTHONUNBUFFERED": buffered})
    os.close(writer)
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_stdout_is_one_clear_line(tmp_path, buffered):
    with open("/dev/full", "w") as full:
        process = started("", tmp_path, PRINTS, stdout=full, env=ENVIRONMENT | {"PYTHONUNBUFFERED": buffered})
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert re.fullmatch(r"inrfast: error: stdout takes no more of the results: No space left on device\n", err)


def test_closed_streams_are_told_and_no_file_takes_their_place(tmp_path):
    opens = ["-c", PRINTS[1].replace("print_out", "0 * open('file', 'w').write")]
    for words, number, code, told in ((PRINTS, 1, 2, "stdout is closed"), (opens, 1, 2, "stdout"), (opens, 2, 0, "")):
        process = started("", tmp_path, words, closing=number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (code, "")
        assert told in err and len(err.splitlines()) == (number == 1)
        assert (tmp_path / "file").exists() == (number == 2)  # without stdout nothing is worked out
    assert (tmp_path / "file").read_text() == "result"


def test_commands_end_as_their_stdout_does(tmp_path):
    reader, pipe = os.pipe()
    os.close(reader)
    with open(pipe, "w") as stdout:
        process = started("ntk --grid 3x3 --width 4 --json --quiet", tmp_path, stdout=stdout)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["info"], ["info", "--json"]])
@pytest.mark.parametrize("buffering", [1, -1])
def test_whatever_prints_tells_of_a_full_stdout(words, buffering, capsys):
    suppressed = contextlib.suppress(OSError)  # closing it fails, too
    with suppressed, open("/dev/full", "w", buffering=buffering) as full, contextlib.redirect_stdout(full):
        assert main(words) == 2
    assert "stdout takes no more of the results: No space left" in capsys.readouterr().err


def test_names_leave_through_an_encoding_that_lacks_their_letters(folder, monkeypatch):
    name = os.fsdecode("grün".encode() + b"\xff.png")
    (folder / "photo.png").rename(folder / name)
    monkeypatch.chdir(folder)
    words = ["fit", name, "--size", "4", "--width", "4", "--steps", "1", "--quiet", "--out", f"new/out-{name}"]
    for encoding in ("ascii", "utf-8", "latin-1"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            assert main(words) == 0
            assert main(["fit", f"absent-{name}"]) == 2
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        letter = "\\xfc" if encoding == "ascii" else "ü"
        assert out.startswith(f"gr{letter}n\\xff.png: ") and len(out.splitlines()) == 2
        assert err == f"inrfast: error: there is no file absent-gr{letter}n\\xff.png\n"
    assert sorted(path.suffix for path in (folder / "new").iterdir()) == [".html", ".json", ".png", ".safetensors"]


# ---- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 2, "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 2, "memory"),
        (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError"),
        (OverflowError("int too large\nto convert"), 1, "INRFAST_TRACEBACK"),
        (RuntimeError("[enforce fail]\nException raised from\nframe #0"), 1, "unforeseen RuntimeError"),
        (KeyError("name"), 1, "KeyError"),
        (AssertionError(), 1, "AssertionError"),
        (ImportError("no module"), 1, "ImportError"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (UnicodeDecodeError("utf-8", b"\xff" * 9999, 0, 1, "invalid"), 2, "utf-8"),
    ],
)
def test_every_error_is_one_line_and_shows_its_origin_on_demand(error, code, words, capsys, monkeypatch):
    def work(interrupts: Interrupts) -> int:
        raise error

    assert orderly(work, own=False) == code
    err = capsys.readouterr().err
    assert re.fullmatch(r"inrfast: error: .{1,300}\n", err) and words in err
    monkeypatch.setenv("INRFAST_TRACEBACK", "1")
    assert orderly(work, own=False) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "in work" in err


def test_warnings_are_single_lines(capsys):
    import warnings

    def work(interrupts: Interrupts) -> int:
        warnings.warn("it\nis " + "long " * 200, RuntimeWarning, stacklevel=1)
        return 0

    assert orderly(work, own=False) == 0
    assert re.fullmatch(r"inrfast: warning: it\\nis .{200,300}\n", capsys.readouterr().err)


def test_what_takes_long_says_so_unless_it_is_to_be_quiet(capsys, monkeypatch):
    from inrfast.cli import shell

    monkeypatch.setattr(shell, "WORD_SECONDS", 0.01)
    for quiet in (True, False):
        with shell.at_work("building the network", quiet):
            time.sleep(0.2)
        assert ("building the network takes long" in capsys.readouterr().err) is not quiet


def test_help_is_quick():
    begun = time.process_time()
    assert main(["--help"]) == 0
    assert time.process_time() - begun < 5
