"""Image and sound formats: decoders, and checks of headers that the decoding libraries skip."""
