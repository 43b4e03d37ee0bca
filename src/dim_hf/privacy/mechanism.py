"""
The Gaussian mechanism, the only code that sees private images in a private run.

The unit of the guarantee is one image with its label. Each image adds one vector to the row of its class: its
features, clipped to the norm `CLIP`, and `COUNT_WEIGHT` for the count. As `CLIP**2 + COUNT_WEIGHT**2 = 1`, adding or
removing an image moves all sums together by at most 1 (L2); that is the neighbouring relation of epsilon and delta.
Replacing an image by another moves them by at most `2 * CLIP` (same class) or `sqrt(2)` (another class).

The number of classes and their names, and the size and channels of the images, are taken to be public: neighbouring
data sets have them in common.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..arguments import check_number
from ..data import ImageData


COUNT_WEIGHT = 0.1
CLIP = math.sqrt(1 - COUNT_WEIGHT**2)
# Largest change of the sums when one image is added or removed, and when one is replaced.
SENSITIVITY = 1.0
SENSITIVITY_REPLACE = 2 * CLIP

# Sums are whole multiples of this, so that they are exact and do not depend on the order of the images.
_UNIT = 2.0**-32
# Images of up to 64 pixels; of larger ones fewer, in the same memory.
_IMAGES_AT_ONCE = 500
# Features of an image depend a little on its place in a batch, which a neighbour shifts. In float64 the sums of a
# million images move by less than 1e-7 through that.
_MARGIN = 1 + 1e-6


def check_privacy(epsilon: float, delta: float) -> None:
    """
    Raises a `ValueError` unless epsilon is between 0 and 100 and delta between 0 and 0.01, or if the accountant is not
    installed.
    """
    check_number("privacy_epsilon", epsilon, above=0, below=100)
    check_number("privacy_delta", delta, above=0, below=0.01)
    _accountant()


def gaussian_noise_std(epsilon: float, delta: float) -> float:
    """
    The standard deviation of the noise with which a release of sensitivity 1 is (epsilon, delta)-differentially
    private: the smallest that suffices (arXiv 1805.06530), from Google's accountant.
    """
    check_privacy(epsilon, delta)
    # The margin also covers the tolerance of the search.
    return float(_accountant().get_sigma_gaussian(epsilon, delta)) * _MARGIN


def epsilon_for_replacement(noise_std: float, delta: float) -> float:
    """The epsilon of the same release where neighbours differ by the replacement of one image."""
    return float(_accountant().get_epsilon_gaussian(noise_std / SENSITIVITY_REPLACE, delta))


def clipped_sums(data: ImageData, features: Callable[[torch.Tensor], torch.Tensor], width: int) -> torch.Tensor:
    """
    The sums of what each image adds to its class; private.

    Args:
        data ([`ImageData`]): The private images.
        features (`Callable`):
            Maps uint8 images `(batch_size, channels, size, size)` to float64 `(batch_size, width)`, each image by
            itself.
        width (`int`): Number of features.

    Returns:
        `torch.Tensor` of shape `(num_classes, width + 1)`, float64, on the CPU: the features, then the count times
        `COUNT_WEIGHT`. Sums of less than 2**20 in each entry are exact.

    Raises:
        TypeError: If the features are not in float64.
    """
    sums = torch.zeros(data.num_classes, width + 1, dtype=torch.int64)
    at_once = max(1, _IMAGES_AT_ONCE * 64**2 // max(64, data.size) ** 2)
    for rows in torch.arange(len(data), device=data.labels.device).split(at_once):
        images, labels = data.batch(rows)
        with torch.no_grad():
            values = features(images).cpu()
        if values.dtype != torch.float64:
            raise TypeError(f"the features are in {values.dtype}; the sensitivity holds for torch.float64.")
        # An error about one image would tell of it, so what is not finite counts as 0.
        values = values.nan_to_num(0.0, 0.0, 0.0)
        norms = values.norm(dim=1, keepdim=True)
        # A little below the bound, for the rounding of the norm; cutting off digits can only shorten a vector.
        values = values * (CLIP * (1 - 1e-12) / norms.clamp(min=CLIP))
        values = torch.cat([values, torch.full_like(norms, COUNT_WEIGHT)], dim=1)
        sums.index_add_(0, labels.cpu(), (values / _UNIT).trunc().long())
    return sums.double() * _UNIT


def gaussian_noise(shape: torch.Size, std: float) -> torch.Tensor:
    """
    Gaussian noise straight from the operating system's secure random bytes (Box-Muller with 53 bits): there is no seed
    that could be stored, guessed or set. It ends at 8.6 standard deviations, beyond which a number lies with a
    probability of less than 1e-17.

    Returns:
        `torch.Tensor` of this shape, float64, on the CPU.
    """
    count = math.prod(shape)
    numbers = np.frombuffer(os.urandom(16 * count), dtype=np.uint64).reshape(2, count)
    first, second = ((numbers >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    noise = std * np.sqrt(-2 * np.log(first)) * np.cos(2 * math.pi * second)
    return torch.from_numpy(noise).reshape(shape)


def noisy_sums(sums: torch.Tensor, std: float) -> torch.Tensor:
    """
    The release: sums and noise, rounded to multiples of about `std / 65536`.

    Floating-point noise does not take every value, and which ones it takes can betray the exact sum (Mironov, CCS
    2012). The rounding is far coarser than the steps between those values. This closes the known attack; it is not a
    proof for floating-point numbers, and neither is there protection against measuring the time it takes.
    """
    grid = 2.0 ** (math.floor(math.log2(std)) - 16)
    return ((sums + gaussian_noise(sums.shape, std)) / grid).round() * grid


def _accountant() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            "`privacy_epsilon` needs the package dp-accounting, which is not installed; "
            "install it with `pip install dp-accounting`."
        ) from error
    return dp_accounting
