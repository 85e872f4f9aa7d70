"""Paths of the command line: what cannot be read or written is refused before the work, and what can be is written."""

import json
import os
import resource
import socket
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inrfast.cli import main
from inrfast.cli.output import check_target, make_folder
from inrfast.training import fit as fitting

SMALL = ["--width", "4", "--hidden-layers", "1", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    for name in ("photo.png", "model.png"):
        Image.fromarray(pixels).save(name)
    assert main(["fit", "photo.png", "--size", "4", "--steps", "1", "--out", "model.png", *SMALL]) == 0
    return tmp_path


def tree(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def make(kind, name):
    """Make something of a kind that is no file to read or write, and return its path."""
    path = Path(name)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(name)
    elif kind == "link to a fifo":
        os.mkfifo("fifo")
        path.symlink_to("fifo")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "below a file":
        path = Path("photo.png") / name
    elif kind == "long":
        path = Path("n" * 252 + path.suffix)
    elif kind == "longer than any path":
        path = Path("d/" * 2500 + name)
    elif kind == "impossible":
        path = Path("\ud800" + name)
    return path


KINDS = ["fifo", "socket", "folder", "loop", "link to a fifo", "device", "below a file", "long", "longer than any path"]
KINDS += ["impossible"]

COMMANDS = {
    "fit signal": (["fit", "ODD.png", *SMALL], "read"),
    "fit --weight": (["fit", "photo.png", "--weight", "ODD.png", *SMALL], "read"),
    "render model": (["render", "ODD.safetensors", "new.png"], "read"),
    "demo --image": (["demo", "--quick", "--quiet", "--image", "ODD.png"], "read"),
    "fit --out": (["fit", "photo.png", "--out", "ODD.png", *SMALL], "written"),
    "fit --checkpoint": (["fit", "photo.png", "--checkpoint", "ODD.ckpt", *SMALL], "written"),
    "render out": (["render", "model.safetensors", "ODD.png"], "written"),
    "ntk --out": (["ntk", "--grid", "3x3", "--out", "ODD.npy", *SMALL], "written"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_refused_before_the_work(folder, monkeypatch, capfd, command, kind):
    words, _ = COMMANDS[command]
    (odd,) = (word for word in words if word.startswith("ODD"))
    path = make(kind, odd)
    before = tree(folder)
    for work in ("inrfast.training.fit.fit", "inrfast.tangent.local.NTK.trace", "inrfast.signals.render.render"):
        monkeypatch.setattr(work, lambda *arguments, **options: pytest.fail("the work began"))
    assert main([str(path) if word == odd else word for word in words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("inrfast: error: ") and len(err.splitlines()) == 1 and len(err) < 330
    assert kind in ("impossible", "longer than any path", "long", "below a file") or "ODD" in err
    assert tree(folder) == before


@pytest.mark.parametrize(
    "name", ["n" * 243, os.fsdecode(b"\xff\xfe\xe9"), "a\nb", " ", "-", "é\u202eü", "a" * 200 + "\udc80"]
)
def test_every_name_that_a_file_can_have_is_written_and_read(folder, capfd, name):
    signal, out = f"in/{name}.png", f"out/{name}.npy"
    Path("in").mkdir()
    Path("photo.png").rename(signal)
    fitted = f"out/{name}.png"
    assert main(["fit", signal, "--size", "4", "--steps", "1", "--out", fitted, *SMALL, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["out"] == fitted
    model = fitted.removesuffix("png") + "safetensors"
    assert main(["render", model, f"again/{name}.png", "--quiet"]) == 0
    assert Path(f"again/{name}.png").read_bytes() == Path(fitted).read_bytes()
    assert main(["ntk", "--grid", "3x3", "--out", out, *SMALL]) == 0
    assert np.load(out).shape == (9, 9)
    assert not list(folder.rglob(".*"))


def test_links_are_followed_and_modes_are_kept(folder):
    Path("kept").mkdir()
    Path("kept/real.npy").write_bytes(b"former")
    Path("kept/real.npy").chmod(0o640)
    Path("link.npy").symlink_to("kept/real.npy")
    Path("dangling.npy").symlink_to("kept/new.npy")
    for name in ("link.npy", "dangling.npy"):
        assert main(["ntk", "--grid", "3x3", "--out", name, *SMALL]) == 0
        assert Path(name).is_symlink() and np.load(name).shape == (9, 9)
    assert stat.S_IMODE(Path("kept/real.npy").stat().st_mode) == 0o640


@pytest.mark.parametrize("options", [["--steps", "0"], ["--lr", "-1"], ["--out", "a/" + "n" * 247 + ".png"]])
def test_a_refused_command_makes_no_folder(folder, options):
    before = sorted(folder.rglob("*"))
    out = ["--out", "a/b/new.png", "--checkpoint", "c/d/state"]
    assert main(["fit", "photo.png", "--size", "4", "--steps", "1", *SMALL, *out, *options]) == 2
    assert sorted(path for path in folder.rglob("*") if path.name not in ("c", "d")) == before


NAMES = st.binary(min_size=1, max_size=9) | st.builds(lambda n: b"n" * n, st.integers(250, 260))


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_path_passes_the_check_if_it_can_be_written(tmp_path_factory, names):
    top = tmp_path_factory.getbasetemp() / "checked"
    top.mkdir(exist_ok=True)
    path = top / Path(*(os.fsdecode(name.replace(b"/", b"_")) for name in names))
    refused = None
    try:
        check_target("--out", path)
    except (OSError, ValueError) as error:
        refused = str(error)
    try:
        make_folder(path)
        path.write_bytes(b"content")
        written = True
    except (OSError, ValueError):
        written = False
    assert written == (refused is None)
    assert written or str(refused).startswith("--out: ")


# ---- disks that are full or read-only ----------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """Mount a file system of a few kilobytes, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_kernel_for_which_the_disk_has_no_room_is_refused(mounted, capsys, monkeypatch):
    disk = mounted("-o", "size=64k")
    words = ["ntk", "--grid", "12x12", "--out", str(disk / "kernel.npy"), *SMALL]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "kernel.npy" in err and "are free there" in err
    # Free when it was looked at, and full when it came to writing.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and len(err.splitlines()) == 1
    assert os.listdir(disk) == []


def test_a_read_only_folder_is_refused_before_the_work(mounted, folder, capsys, monkeypatch):
    disk = mounted("-o", "ro")
    monkeypatch.setattr(fitting, "fit", lambda *arguments, **options: pytest.fail("the fit began"))
    for words in (
        ["fit", "photo.png", "--size", "4", "--out", f"{disk}/new.png", *SMALL],
        ["fit", "photo.png", "--size", "4", "--checkpoint", f"{disk}/below/state", *SMALL],
        ["render", "model.safetensors", f"{disk}/new.png"],
        ["ntk", "--grid", "3x3", "--out", f"{disk}/new.npy", *SMALL],
        ["diagnose", "--grid", "3x3", "--out", f"{disk}/new", *SMALL],
        ["demo", "--quick", "--out", f"{disk}/new"],
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "Read-only file system" in err and str(disk) in err and len(err.splitlines()) == 1


def test_a_file_larger_than_the_process_may_write_is_refused(folder, capsys):
    before = tree(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        assert main(["ntk", "--grid", "10x10", "--out", "kernel.npy", *SMALL]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert "kernel.npy" in err and "File too large" in err and len(err.splitlines()) == 1
    assert tree(folder) == before
