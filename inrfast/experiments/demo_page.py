"""The demo's page: all that its Markdown says, with the figures inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrfast.pages import Page, Picture
from inrfast.pages.markdown import sections

ALTS = {
    "overview": "Ranks of each start's first layer and of its tangent kernel against the tolerance, and what the fits "
    "make of the photograph",
    "ranks": "Numerical ranks of each start's first layer and of its tangent kernel against the relative tolerance",
    "spectra": "Singular values of each start's first layer and eigenvalues of its tangent kernel",
    "reconstructions": "The photograph and what each fit makes of it",
}
"""What the figures show, for those who do not see them."""


def page(report: Mapping[str, Any], markdown: str, folder: Path) -> Page:
    """Return the page of a report, from its Markdown and the figures in its folder."""

    def picture(alt: str, name: str) -> Picture | None:
        file = folder / name
        return Picture(file.read_bytes(), ALTS.get(alt, alt), wide=True) if file.is_file() else None

    title, found = sections(markdown, picture)
    facts = {entry["name"]: f"{entry['fit']['psnr']:.2f} dB" for entry in report["starts"]}
    return Page(title, _lead(report), found, facts)


def _lead(report: Mapping[str, Any]) -> str:
    """Say which start reaches most, and what the first one reaches."""
    starts = report["starts"]
    best, first = max(starts, key=lambda entry: entry["fit"]["psnr"]), starts[0]
    lead = f"{len(starts)} starts of one network, fitted to {report['image']}: {best['name']} reaches most, "
    lead += f"{best['fit']['psnr']:.2f} dB after {best['fit']['steps']:,} steps"
    return f"{lead}." if best is first else f"{lead}, and {first['name']} {first['fit']['psnr']:.2f} dB."
