"""Regularisers for ``fit(regularizers=)``: kernel alignment, with what trains beside the network, and its rivals."""
