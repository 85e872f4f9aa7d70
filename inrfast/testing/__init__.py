"""Checks for authors of extensions: that a kind of thing of your own keeps what its users rely on."""

from inrfast.testing.activation import check_activation

__all__ = ["check_activation"]
