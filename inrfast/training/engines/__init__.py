"""The ways to take the gradient of a fit, from the fastest to the most general."""
