"""Signals in and out of files; every loader returns floating tensors on the CPU."""
