"""Endless streams of generated and real images, and their randomness."""
