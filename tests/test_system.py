"""What other operating systems lack: the ways around it, and the whole package on what those systems have.

Nothing here ran on a real macOS or Windows: Linux without their missing parts stands in for them.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrfast import system
from inrfast.files import sole_writer

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys, pretend_systems
pretend_systems.become(sys.argv[1])
import importlib, os, pkgutil, threading
import numpy as np, torch
import inrfast as inr

needing = ("inrfast.kernels", "inrfast.__main__", "inrfast.cli.__main__", "inrfast.testing", "inrfast._C")
for module in pkgutil.walk_packages(inr.__path__, "inrfast."):
    if not module.name.startswith(needing):
        importlib.import_module(module.name)

from inrfast import files, memory, system
from inrfast.cli import main
from inrfast.signals.image import load_image, save_image
from inrfast.training.checkpoint import load_network, save_network

assert memory.available_bytes() == pretend_systems.FREE
assert system.cores() >= 1
torch.manual_seed(0)

# a fit that goes on from its checkpoint ends where one without a break ends
coords, target = inr.grid((8, 8)), torch.rand(64, 1)
nets = [inr.INR(2, 1, width=8, hidden_layers=2, seed=1) for _ in range(2)]
inr.fit(nets[0], coords, target, steps=6, lr=1e-2, schedule="constant")
inr.fit(nets[1], coords, target, steps=3, lr=1e-2, schedule="constant", checkpoint="fit.safetensors")
inr.fit(nets[1], coords, target, steps=6, lr=1e-2, schedule="constant", checkpoint="fit.safetensors", resume=True)
assert torch.equal(nets[0](coords), nets[1](coords))

save_network(nets[0], "net.safetensors")
assert torch.equal(load_network("net.safetensors")[0](coords), nets[0](coords))
assert str(inr.diagnose(nets[0], coords))
inr.diagnose(nets[0], coords).plot("report.svg")

# a factor in a file, written, and read again
kernel = inr.ntk(nets[0].double(), coords.double(), precision="highest")
right = torch.rand(64, 2, dtype=torch.float64)
solved = [kernel.factor(-1e-2, out="factor.bin").solve(right) for _ in range(2)]
assert torch.equal(*solved)
assert torch.allclose(kernel @ solved[0] + 1e-2 * solved[0], right, atol=1e-6)

# whole or not at all; one writer at a time; leftovers of killed writers
files.write_whole("data", b"old\\r\\n\\x1a")
try:
    with files.whole_file("data", size=1 << 21, durable=True) as file:
        file.write(b"half")
        raise RuntimeError
except RuntimeError:
    pass
assert open("data", "rb").read() == b"old\\r\\n\\x1a"
with files.whole_file("data", size=5) as file:
    file.write(b"12345")
assert open("data", "rb").read() == b"12345"
with files.sole_writer("data"):
    try:
        with files.sole_writer("data"):
            raise AssertionError("two writers")
    except BlockingIOError as error:
        assert "another fit of this process" in str(error), error
left = files._hidden("data", 0)
open(left, "wb").close()
os.utime(left, (1, 1))
files.write_whole("data", b"new")
for wrong in (".", "missing/data"):
    try:
        files.write_whole(wrong, b"")
        raise AssertionError(wrong)
    except (FileNotFoundError, IsADirectoryError):
        pass
try:
    files.opened(".")
except IsADirectoryError:
    pass

# commands
save_image(torch.rand(8, 8, 3), "photo.png")
small = ["--width", "8", "--hidden-layers", "1", "--quiet"]
assert main(["fit", "photo.png", "--steps", "3", "--checkpoint", "photo.ckpt", "--out", "out/photo.png", *small]) == 0
assert main(["render", "out/photo.safetensors", "large.png", "--size", "16"]) == 0
assert main(["ntk", "--grid", "4x4", "--json", "--out", "kernel.npy", *small]) == 0
assert main(["info"]) == 0
assert main(["fit", "nothing.png"]) == 2
assert load_image("large.png").shape == (16, 16, 3)
hidden = [name for name in os.listdir(".") if name.startswith(".inrfast")]
print("left:", hidden)
"""


@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_everything_runs_on_what_other_systems_have(name, tmp_path):
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "left: []"


@given(data=st.data())
def test_files_are_read_and_written_at_a_place_without_moving(data):
    """With and without ``pread`` and ``pwrite``, which are the truth."""
    content = data.draw(st.binary(min_size=1, max_size=50))
    place, size = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 60))
    patched = pytest.MonkeyPatch()
    descriptor = os.memfd_create("test")
    try:
        assert system.write_at(descriptor, content, 3) == len(content)
        os.lseek(descriptor, 7, os.SEEK_SET)
        true = os.pread(descriptor, size, place)
        assert system.read_at(descriptor, size, place) == true
        patched.delattr(os, "pread")
        patched.delattr(os, "pwrite")
        assert system.read_at(descriptor, size, place) == true
        assert system.write_at(descriptor, content, place) == len(content)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
    finally:
        patched.undo()
    assert os.pread(descriptor, len(content), place) == content
    os.close(descriptor)


def test_a_system_without_locks_refuses_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "fcntl", None)
    with sole_writer(tmp_path / "data"), sole_writer(tmp_path / "data"):
        pass
    with pytest.raises(OSError, match="no locks"):
        system.lock(0)


def test_the_disk_is_waited_for_by_what_the_system_has(tmp_path, monkeypatch):
    asked = []
    fake = type("fcntl", (), {"F_FULLFSYNC": 51, "fcntl": staticmethod(lambda *given: asked.append(given))})
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append("fsync"))
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: asked.append("fdatasync"))
    system.sync(1)
    system.sync(1, data=True)
    monkeypatch.delattr(os, "fdatasync")
    system.sync(1, data=True)
    monkeypatch.setattr(system, "fcntl", fake)
    system.sync(1)

    def refused(*given):
        raise OSError(errno.ENOTSUP, "")

    fake.fcntl = staticmethod(refused)
    system.sync(1)
    assert asked == ["fsync", "fdatasync", "fsync", (1, 51), "fsync"]
