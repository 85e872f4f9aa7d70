"""Fitting networks to signals."""
