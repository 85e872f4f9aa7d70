"""Image and sound formats: decoders, and what headers state that the libraries behind them pass over."""
