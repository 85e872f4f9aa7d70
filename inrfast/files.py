"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty file beside ``path`` that takes its name in the end, and goes if there is no such end.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written; nothing is left behind.
    """
    target, temporary = Path(path), None
    try:
        # A name of its own, since another process may be writing the same file.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        yield Path(temporary)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # as any new file; temporary ones are private
        os.replace(temporary, target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Give an open file that becomes ``path`` as in :func:`whole_path`."""
    with whole_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` as :func:`whole_file` does."""
    with whole_file(path) as file:
        file.write(data)
