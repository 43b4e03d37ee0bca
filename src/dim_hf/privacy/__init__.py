"""A guarantee for private images: noisy statistics are released once, and a generator is trained to match them."""

from .features import RandomFeatures
from .matching import matching_distance
from .mechanism import check_privacy, noise_scale
from .statistics import Guarantee, PrivateStatistics, guarantee_of, release_statistics


__all__ = [
    "Guarantee",
    "PrivateStatistics",
    "RandomFeatures",
    "check_privacy",
    "guarantee_of",
    "matching_distance",
    "noise_scale",
    "release_statistics",
]
