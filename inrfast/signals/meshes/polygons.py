"""Polygons of mesh files, checked and cut into triangles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Polygons:
    """Faces as a file states them, gathered a block at a time."""

    def __init__(self) -> None:
        self._corners: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []

    def add(self, corners: np.ndarray, sizes: Sequence[int] | np.ndarray, lines: Sequence[int] = ()) -> None:
        """Add faces.

        Parameters
        ----------
        corners
            Vertices of all of them, counted from 0, int64 (sum of the sizes,).
        sizes
            How many corners each has.
        lines
            On which each stands, if the file is text.
        """
        self._corners.append(corners)
        self._sizes.append(np.asarray(sizes, dtype=np.int64))
        self._lines.append(np.asarray(lines, dtype=np.int64))

    def triangles(self, vertices: int, first: int = 0) -> np.ndarray:
        """Return all faces as fans of triangles, int64 (m, 3), in the file's order.

        Faces of one or two corners, which are points and lines, have none.

        Parameters
        ----------
        vertices
            How many there are.
        first
            Number of the first one in the file, for the message.

        Raises
        ------
        ValueError
            A face has no corners, or names a vertex that is not there.
        """
        if not self._sizes:
            return np.empty((0, 3), dtype=np.int64)
        corners, sizes = np.concatenate(self._corners), np.concatenate(self._sizes)
        if (empty := sizes < 1).any():
            raise ValueError(f"{self._place(int(empty.argmax()))} is a face without corners")
        if (absent := (corners < 0) | (corners >= vertices)).any():
            corner = int(absent.argmax())
            face = int(np.searchsorted(sizes.cumsum(), corner, side="right"))
            raise ValueError(
                f"{self._place(face)} names vertex {corners[corner] + first}, and the file's {vertices} vertices count "
                f"from {first}"
            )
        if (sizes == 3).all():
            return corners.reshape(-1, 3)
        if (flat := sizes < 3).any():
            corners, sizes = corners[np.repeat(~flat, sizes)], sizes[~flat]
        return _fans(corners, sizes)

    def last_size(self) -> int:
        """Return how many corners the last face has, 0 without any."""
        return int(self._sizes[-1][-1]) if self._sizes and len(self._sizes[-1]) else 0

    def _place(self, face: int) -> str:
        lines = np.concatenate(self._lines)
        return f"line {lines[face]}" if len(lines) else f"face {face}"


def _fans(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cut each face into triangles that share its first corner."""
    counts = sizes - 2
    places = np.repeat(sizes.cumsum() - sizes, counts)
    triangles = np.empty((len(places), 3), dtype=np.int64)
    triangles[:, 0] = corners[places]
    places += np.arange(1, len(places) + 1)
    places -= np.repeat(counts.cumsum() - counts, counts)
    triangles[:, 1] = corners[places]
    triangles[:, 2] = corners[places + 1]
    return triangles
