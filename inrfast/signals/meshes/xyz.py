"""Clouds of points as text (.xyz) or as an array (.npy): points, and normals of length 1."""

from __future__ import annotations

import io

import numpy as np

from inrfast.signals.meshes.text import floats, open_word, plain_text, rows_of, shown

UNIT = 0.01
"""Largest deviation of a normal's length from 1: other numbers are no normals, but colours or intensities."""

Cloud = tuple[np.ndarray, np.ndarray | None]


def read_xyz(content: bytes) -> Cloud:
    """Return points, fp64 (n, 3), and normals, if a line has six numbers.

    Raises
    ------
    ValueError
        With the line: words that are no numbers, lines of other lengths; six numbers that end in no normal.
    """
    parts = [np.empty((0, 3))]
    text = plain_text(content)
    for rows in rows_of(text, comments=True):
        if not rows.words:
            continue
        width = parts[-1].shape[1] if len(parts) > 1 else len(rows.words[0])
        if width not in (3, 6):
            raise ValueError(f"line {rows.numbers[0]} has {width} numbers, not 3 or, with a normal, 6")
        for number, row in zip(rows.numbers, rows.words, strict=True):
            if len(row) != width:
                raise ValueError(f"line {number} has {len(row)} numbers where others have {width}: {shown(row)}")
        parts.append(floats(rows, range(width)))
    if open_word(text, comments=True):
        raise ValueError("its last line has no line end and may have gone on; end it with a line end if it is whole")
    return _split(np.concatenate(parts[1:]) if len(parts) > 1 else parts[0])


def read_npy(content: bytes) -> Cloud:
    """Return points, fp64 (n, 3), and normals, if the array has six columns.

    Raises
    ------
    ValueError
        It is no array (n, 3) or (n, 6) of floating or whole numbers, or six columns end in no normals.
    """
    stream = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # of a damaged header, NumPy raises all kinds
        raise ValueError(f"it is not a NumPy array that can be read: {error}") from error
    if stream.read(1):
        raise ValueError("it is longer than it states, damaged or overwritten")
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] not in (3, 6):
        raise ValueError(f"it holds {array.dtype} of shape {array.shape}, not real numbers (n, 3) or (n, 6)")
    return _split(array.astype(np.float64))


def _split(rows: np.ndarray) -> Cloud:
    """Return points and normals, if these are any."""
    if rows.shape[1] == 3:
        return rows, None
    lengths = np.linalg.norm(rows[:, 3:], axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT))
    if len(wrong):
        raise ValueError(
            f"numbers 4 to 6 of point {wrong[0] + 1} have length {lengths[wrong[0]]:.4g}, and a normal has 1; leave "
            "out colours or intensities"
        )
    return rows[:, :3], rows[:, 3:]
