"""Checks for authors of extensions: that a kind of thing of your own keeps what its users rely on."""

from inrfast.testing.activation import check_activation
from inrfast.testing.encoding import check_encoding
from inrfast.testing.layer import check_layer
from inrfast.testing.loss import check_loss
from inrfast.testing.modulation import check_modulation
from inrfast.testing.norm import check_norm

__all__ = ["check_activation", "check_encoding", "check_layer", "check_loss", "check_modulation", "check_norm"]
