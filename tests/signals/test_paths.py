"""Every path that cannot be read or written is named, with what was expected there."""

from pathlib import Path

import pytest

from inrfast.signals.paths import readable, writable


def test_what_can_be_read_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a.WAV").write_text("content")
    assert readable(str(tmp_path / "a.WAV"), "a WAV", [".wav"]) == tmp_path / "a.WAV"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "a.vaw").write_text("content")
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.wav"):
        readable(tmp_path / "absent.wav", "a WAV")
    with pytest.raises(IsADirectoryError, match="folder, not a WAV file"):
        readable(tmp_path, "a WAV")
    with pytest.raises(ValueError, match=r"empty\.wav is empty .*not a WAV"):
        readable(tmp_path / "empty.wav", "a WAV")
    with pytest.raises(ValueError, match=r"a WAV \(\.wav\), got .*a\.vaw.*Did you mean '\.wav'"):
        readable(tmp_path / "a.vaw", "a WAV", [".wav"])
    with pytest.raises(TypeError, match="path must be a path, got int"):
        readable(3, "a WAV")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    assert writable(tmp_path / "new.WAV", "a WAV", [".wav"]) == tmp_path / "new.WAV"
    with pytest.raises(ValueError, match="suffix of a WAV"):
        writable(tmp_path / "new", "a WAV", [".wav"])
    with pytest.raises(FileNotFoundError, match="nowhere is not an existing folder"):
        writable(tmp_path / "nowhere" / "a.wav", "a WAV", [".wav"])
    with pytest.raises(NotADirectoryError, match="file is not an existing folder"):
        writable(tmp_path / "file" / "a.wav", "a WAV", [".wav"])
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        writable(tmp_path / "folder.wav", "a WAV", [".wav"])
    with pytest.raises(TypeError, match="path must be a path"):
        writable(None, "a WAV", [".wav"])
