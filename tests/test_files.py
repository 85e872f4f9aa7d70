"""Files are written whole or not at all."""

import pytest

from inrfast.files import whole_file, write_whole


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
    with pytest.raises(OSError, match="cannot write"):
        write_whole(tmp_path, b"")  # a folder
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "fresh"]
    assert not [p for p in tmp_path.parent.iterdir() if p.name.startswith(f".{tmp_path.name}")]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "data"
    write_whole(path, b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(path) as file:  # noqa: PT012
            file.write(b"half")
            raise error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
