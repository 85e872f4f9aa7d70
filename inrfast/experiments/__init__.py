"""Experiments: one module each, from settings to a folder with numbers, text and figures."""

from inrfast.errors import needs

with needs("plots", "inrfast.experiments"):
    import matplotlib.figure  # noqa: F401
