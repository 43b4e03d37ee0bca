"""A guarantee for private images: noisy statistics are released once, and a generator is trained to match them."""

from .features import RandomFeatures
from .matching import MeanMatching
from .mechanism import check_privacy, gaussian_noise_std
from .statistics import Guarantee, PrivateStatistics, guarantee_of, release_statistics


__all__ = [
    "Guarantee",
    "MeanMatching",
    "PrivateStatistics",
    "RandomFeatures",
    "check_privacy",
    "guarantee_of",
    "gaussian_noise_std",
    "release_statistics",
]
