"""Choosing a network for a signal before training it: candidates, samples, what kernels predict."""
