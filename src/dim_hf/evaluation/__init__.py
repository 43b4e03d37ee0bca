"""Training classifiers on generated and on real images, and what is reported of it."""
