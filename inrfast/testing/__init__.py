"""Checks for authors of extensions: that a kind of thing of your own keeps what its users rely on."""

from inrfast.testing.encoding import check_encoding

__all__ = ["check_encoding"]
