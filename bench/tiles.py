"""Write the fastest tiles of a GPU's run into the table: ``python bench/tiles.py bench/results/gpu.json``.

A row of a table in ``kernels/tiles.py`` changes where another one was timed, gave the right result, and took less than
the one in use, their quartiles apart; its origin then says on which GPU and when. All else in the file stays as it is.
Status 1: the results are a rehearsal's, or hold no candidates.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "kernels" / "tiles.py"

REWRITTEN = ("TILES", "TANGENTS", "LAYERS", "STEPS")
"""The tables of which the benchmark times candidates; a key is in one of them."""


def timed(results: Mapping[str, Any]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Return what was timed, by key of the table; the row in use comes first."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for name, part in results.items():
        for entry in part.values() if name.startswith("candidates") else ():
            if isinstance(entry, dict) and "key" in entry and "seconds" in entry:
                found.setdefault(tuple(entry["key"]), []).append(entry)
    return found


def fastest(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest entry, or the first, which is in use, where it is as fast but for noise.

    Where what is in use was not timed there is nothing to compare with: the first again.
    """
    if not entries[0].get("in_use", True):
        return entries[0]
    best = min(entries, key=lambda entry: entry["seconds"])
    return best if best["quartiles"][1] < entries[0]["quartiles"][0] else entries[0]


def places(text: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return where the value of each key of the tables stands in the text, in bytes."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for node in ast.parse(text).body:
        named = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if isinstance(named, ast.Name) and named.id in REWRITTEN and isinstance(node.value, ast.Dict):  # type: ignore
            for key, value in zip(node.value.keys, node.value.values, strict=True):  # type: ignore
                begin = starts[value.lineno - 1] + value.col_offset
                found[ast.literal_eval(key)] = begin, starts[value.end_lineno - 1] + value.end_col_offset
    if not found:
        raise ValueError(f"none of {', '.join(REWRITTEN)} in the table")
    return found


def literal(value: Any) -> str:
    """Return a row as the table writes it."""
    return "(" + ", ".join(json.dumps(x) if isinstance(x, str) else repr(x) for x in value) + ")"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the table and say what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="gpu.json of a run on a GPU")
    parser.add_argument("--table", type=Path, default=TABLE)
    chosen = parser.parse_args(arguments)
    results = json.loads(chosen.results.read_text())
    environment, found = results.get("environment", {}), timed(results)
    if environment.get("rehearsal") or not found:
        print("nothing was timed on a GPU here", file=sys.stderr)
        return 1
    origin = f"measured: {environment['gpu']}, {environment['date'][:10]}"
    text = chosen.table.read_text()
    where = places(text)
    data = text.encode()
    for key, entries in sorted(found.items(), key=lambda item: -where.get(item[0], (0, 0))[0]):
        best = fastest(entries)
        if key not in where:
            print(f"{key}: not in the table, left out", file=sys.stderr)
        elif best is not entries[0]:
            begin, end = where[key]
            data = data[:begin] + literal([*best["row"][:-1], origin]).encode() + data[end:]
            print(f"{key}: {best['row'][:-1]}, {entries[0]['seconds'] / best['seconds']:.2f} times as fast")
    chosen.table.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
