"""Names of tests and attacks of an audit. This module loads no library, so that `--help` answers at once."""

TESTS = ("copies", "membership")
# What an attacker measures of a candidate image; larger means "more like a member". See `signals.py`.
ATTACKS = {
    "classifier": "a classifier trained on its images, by its confidence in the label",
    "nearest_pixels": "its images, by the distance to the nearest one in pixels",
    "nearest_features": "its images, by the distance to the nearest one in features",
    "inversion": "its weights, by how closely the best latent reproduces an image",
    "labeler": "its teacher, by its confidence in the label",
    "discriminator": "its discriminator, which should not be shared",
}
# Images that are planted in shadow runs.
CANARIES = {
    "mislabelled": "real images under the label of another class",
    "rare": "negatives of real images",
}
# The largest false-positive rates at which the attacks are told.
RATES = (0.001, 0.01)
# An effect as large is found by chance in one audit of a hundred, all its tests taken together.
SIGNIFICANCE = 0.01
