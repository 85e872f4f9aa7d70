"""Files are written whole or not at all, by one writer at a time, and nothing but files is read."""

import os
import random
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inrfast import files
from inrfast.files import opened, sole_writer, whole_file, write_whole

ROOT = str(Path(files.__file__).parents[1])

NAMES = st.binary(min_size=1, max_size=255).filter(lambda n: not {0, ord("/")} & set(n) and n not in (b".", b".."))

WRITER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from inrfast import files
if sys.argv[3] == "named": files._names_late = lambda *arguments: False
if sys.argv[3] == "lock":
    with files.sole_writer(sys.argv[2]):
        print("started", flush=True); sys.stdin.read()
print("started", flush=True)
for k in range(10**9):
    with files.whole_file(sys.argv[2], durable=k % 7 == 0) as file:
        for _ in range(1 + k % 50): file.write(bytes([k % 50]) * 3000)
"""
"""A process that writes a file again and again (importing nothing heavy), or that only locks it."""


@pytest.fixture(params=["nameless", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a new file can be kept: without a name until it is whole, and with a hidden one."""
    if request.param == "named":
        monkeypatch.setattr(files, "_names_late", lambda *arguments: False)
    return str(request.param)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def started(*arguments: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-S", "-c", WRITER, ROOT, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


@pytest.mark.usefixtures("way")
def test_files_are_replaced_whole_or_left_alone(tmp_path):
    path = tmp_path / "data"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert path.stat().st_mode == fresh.stat().st_mode
    for wrong in (tmp_path / "missing" / "data", path / "data"):
        with pytest.raises(OSError, match="cannot write"):
            write_whole(wrong, b"")
    with pytest.raises(OSError, match=r"cannot write .*: it is a folder"):
        write_whole(tmp_path, b"")
    assert names(tmp_path) == ["data", "fresh"]
    assert not [name for name in names(tmp_path.parent) if name.startswith(".inrfast")]


@pytest.mark.usefixtures("way")
def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "data"
    write_whole(path, b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(path) as file:  # noqa: PT012
            file.write(b"half")
            raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, links=st.integers(0, 3), mode=st.integers(0, 0o777), data=st.binary(max_size=20))
@pytest.mark.usefixtures("way")
def test_any_name_and_link_keeps_what_it_is(
    name: bytes, links: int, mode: int, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file written through links has its own name, mode and the new contents; the links stay links."""
    folder, elsewhere = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("links")
    path = target = folder / os.fsdecode(name)
    for number in range(links):
        (elsewhere / str(number)).symlink_to(path)
        path = elsewhere / str(number)
    write_whole(path, b"old")
    target.chmod(mode)
    write_whole(path, data)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    target.chmod(0o600)
    with opened(path) as file:
        assert file.read() == data
    assert names(folder) == [target.name]
    assert all(link.is_symlink() for link in elsewhere.iterdir())
    with pytest.raises(FileNotFoundError) as caught:
        opened(target.with_name(target.name[:200] + "-"))
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    pipe, loop, box = tmp_path / "pipe", tmp_path / "loop", tmp_path / "socket"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(box))
        before = {path: path.lstat() for path in (pipe, loop, box, tmp_path, Path(os.devnull))}
        for path in before:
            with pytest.raises(OSError, match=r"is a (named pipe|folder|socket|device)|cannot read"):
                opened(path)
            for writing in (files.check_writable, files.target_of, lambda path: write_whole(path, b"")):
                with pytest.raises(OSError, match=r"cannot write .*: it is a (named pipe|link|socket|folder|device)"):
                    writing(path)
        assert all(os.path.samestat(path.lstat(), old) for path, old in before.items())
    for name in ("", "a\0b", "\ud800"):
        for use in (opened, files.check_writable, lambda name: write_whole(name, b"")):
            with pytest.raises(ValueError, match="no file can have the name"):
                use(name)
    for name in ("a" * 256, "a" * 252 + ".npy"):
        with pytest.raises(OSError, match=r"cannot write .*name too long"):
            files.check_writable(tmp_path / name)
    assert names(tmp_path) == ["loop", "pipe", "socket"]


@pytest.mark.usefixtures("way")
def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    """The system's limit of a file's size stands for the disk's."""
    path, most = tmp_path / "data", 1 << 30
    write_whole(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*data: File too large"), whole_file(path) as file:  # noqa: PT012
            file.seek(most - 1)
            file.write(b"ab")
        with (
            pytest.raises(
                OSError,
                match=r"cannot write .*data: File too large: it takes 1,073,741,825 .* 1,073,741,824 .ulimit",
            ),
            whole_file(path, size=most + 1),
        ):
            raise AssertionError("began to write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    write_whole(tmp_path / "data", b"old")
    tmp_path.chmod(0o500)
    for writing in (files.check_writable, lambda path: write_whole(path, b"new")):
        with pytest.raises(PermissionError, match=r"cannot write .*data: Permission denied"):
            writing(tmp_path / "data")
    tmp_path.chmod(0o700)
    assert (tmp_path / "data").read_bytes() == b"old"


@pytest.mark.usefixtures("way")
def test_reserved_bytes_are_there_for_a_memory_map(tmp_path: Path) -> None:
    size = 3 << 20
    with whole_file(tmp_path / "map", size=size) as file:
        about = os.fstat(file.fileno())
        assert about.st_size == size
        assert about.st_blocks * 512 >= size
        np.memmap(file, np.uint8, "r+", shape=(size,))[-1] = 7
    data = (tmp_path / "map").read_bytes()
    assert (len(data), data[-1]) == (size, 7)


def test_a_killed_writer_leaves_a_whole_file_and_nothing_for_the_next(tmp_path: Path, way: str) -> None:
    path = tmp_path / "data"
    draw = random.Random(3)
    for _ in range(12):
        process = started(path, way)
        with process:
            try:
                process.wait(draw.uniform(0, 0.02))
            except subprocess.TimeoutExpired:
                process.kill()
        if path.exists():
            data = path.read_bytes()
            assert data == bytes([data[0]]) * 3000 * (1 + data[0])
    for name in (files._hidden("data", slot) for slot in range(3)):
        (tmp_path / name).touch()  # as of several writers
    write_whole(path, b"")
    assert names(tmp_path) == ["data"]


def test_leftovers_of_the_living_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_names_late", lambda *arguments: False)
    path = tmp_path / "data"
    with whole_file(path) as one:
        one.write(b"one")
        with whole_file(path) as other:
            other.write(b"other")
            assert len(names(tmp_path)) == 2
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["data"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Whatever way leads to the file; a lock ends with its process, and forked children do not keep it."""
    path, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(path)
    with sole_writer(path), sole_writer(tmp_path / "another"):
        for way in (path, link, tmp_path / "." / "data"):
            with pytest.raises(BlockingIOError, match="another fit of this process is writing it"), sole_writer(way):
                raise AssertionError("two writers")
    assert names(tmp_path) == ["link"]
    process = started(link, "lock")
    with process:
        with pytest.raises(BlockingIOError, match=rf"cannot write .*data: process {process.pid} on"), sole_writer(path):
            raise AssertionError("two writers")
        process.kill()
    with sole_writer(path):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:  # waits for the parent to have seen what it had to see
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
    with sole_writer(path):
        write_whole(path, b"new")
    os.close(writing)
    os.waitpid(child, 0)
    assert names(tmp_path) == ["data", "link"]
