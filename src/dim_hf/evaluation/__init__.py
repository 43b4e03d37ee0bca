"""Trains classifiers on generated and real images, scores them and reports the results."""
