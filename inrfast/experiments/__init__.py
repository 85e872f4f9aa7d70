"""Experiments: one module each, from settings to a folder with numbers, text and figures."""
