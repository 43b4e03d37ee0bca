"""Endless streams of generated and of real images, and the randomness behind them."""
