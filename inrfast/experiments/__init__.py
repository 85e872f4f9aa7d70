"""Experiments: one module each, from settings to a folder with numbers, text and figures."""

from inrfast.errors import needs

with needs("plots", "drawing the figures of inrfast demo and reproduce"):
    import matplotlib.figure  # noqa: F401
