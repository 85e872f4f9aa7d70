"""Numerical linear algebra: spectra and ranks with stated errors, of any matrix or operator."""
