"""Meta-learning: weights from which any signal of a set is fitted in a few steps, and these steps."""
