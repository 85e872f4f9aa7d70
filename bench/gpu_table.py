"""What ``bench/gpu.py`` prints of each part, and at the end; from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT_QUIET = ("profile", "floor", "clocks", "clocks after")


def time_of(seconds: float) -> str:
    """Return a time with four figures, in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:8.2f} {unit}"
    return ""


def lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """Return a part's lines: its name with errors or what went wrong, then a line for each time and ratio."""
    if name == "environment":
        return []
    took = f"  [{found['took']} s]" if "took" in found else ""
    if "skipped" in found:
        return [f"{name:34} skipped: {found['skipped']}"]
    head = [str(found["summary"])] if "summary" in found else []
    if "error" in found:
        head.append("error " + ", ".join(f"{key} {_short(value)}" for key, value in found["error"].items()))
    if "failed" in found:
        head = [f"FAILED {found['failed'][:160]}", *head]
    result = [f"{name:34} {'; '.join(head) or 'done'}{took}"]
    result += [f"    {failure}" for failure in found.get("failures", [])]
    for key, value in found.items():
        if isinstance(value, dict) and "seconds" in value and key not in KEPT_QUIET:
            target = f"  (target {time_of(value['target']).strip()})" if "target" in value else ""
            low, high = value.get("quartiles", [value["seconds"]] * 2)
            rate = f"  {value['flops_per_second'] / 1e12:.1f} TFLOP/s" if "flops_per_second" in value else ""
            rate += f"  {value['bytes_per_second'] / 1e12:.2f} TB/s" if "bytes_per_second" in value else ""
            spread = f"  [{time_of(low).strip()}, {time_of(high).strip()}]"
            result.append(f"    {key:38} {time_of(value['seconds'])}{spread}{rate}{target}")
        elif isinstance(value, dict) and "failed" in value:
            result.append(f"    {key:38} failed: {value['failed'][:100]}")
        elif key.startswith(("ratio", "fraction")):
            ratio, target = value if isinstance(value, list | tuple) else (value, None)
            result.append(f"    {key:38} {ratio:8.2f}" + (f"     (target {target})" if target else ""))
        elif key == "stopped":
            result.append(f"    no time left for {', '.join(value)}")
        elif key == "rank":
            result.append(f"    {key:38} {value}")
    return result


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_short, value))
    return f"{value:.1e}" if isinstance(value, float) else str(value)


RATIOS = (
    ("dense relu high", "to_dense", "dense rival fp32", 2.5),
    ("dense relu medium", "to_dense", "dense rival compiled", 3.0),
    ("dense relu medium", "to_dense", "dense rival bf16", None),
)
"""How many times faster than the best tiling by PyTorch: ours, its figure, the rival, the target."""


def last(results: Mapping[str, Any], seconds: float) -> str:
    """Return the last lines: targets beside what was measured, ratios to the rivals, and what failed or was skipped."""
    environment = results.get("environment", {})
    rehearsed = bool(environment.get("rehearsal"))
    gpu = environment.get("gpu", "no GPU") + (", a REHEARSAL" if rehearsed else "")
    written = [f"== {gpu}, {environment.get('date', '')}, {seconds:.0f} s in all"]
    for name, entry in results.items():
        for key, value in entry.items():
            if isinstance(value, dict) and "target" in value and "seconds" in value:
                reached = "" if rehearsed else "reached" if value["seconds"] <= value["target"] else "MISSED"
                title = f"{name}: {key}"
                aim = time_of(value["target"]).strip()
                written.append(f"{title:48} {time_of(value['seconds'])}  target {aim}  {reached}")
    for ours, figure, rival, target in RATIOS:
        if figure in results.get(ours, {}) and "best" in results.get(rival, {}):
            ratio = results[rival]["best"]["seconds"] / results[ours][figure]["seconds"]
            written.append(f"{ours + ' against ' + rival:48} {ratio:8.2f}" + (f"  target {target}" if target else ""))
    for word in ("failed", "skipped"):
        names = [name for name, entry in results.items() if word in entry]
        if names:
            written.append(f"{word}: {', '.join(names)}")
    return "\n".join(written)
