"""The layouts of weights, one file each."""
