"""One differentiable augmentation, shared by a real and a generated batch."""

import random
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from ..choices import AUGMENTATIONS


def draw_augmentation(names: Sequence[str], size: int, rng: random.Random) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Draws the parameters of one augmentation and returns the function that applies it, the same way to every image of
    every batch it is given: the siamese augmentation of DSA (arXiv 2102.08259). The parameters are Python numbers,
    so nothing is copied between host and device.

    Args:
        names: Any of `"shift"` (by up to an eighth of the size, edges repeated), `"cutout"` (a square of half the
            size set to 0), `"flip"` (left to right) and `"color"` (brightness and contrast).
        size (`int`): Height and width of the images.
        rng: Where the parameters are drawn from.

    Returns:
        A differentiable function from images `(batch_size, channels, size, size)` in [-1, 1] to the same shape.
    """
    unknown = set(names) - set(AUGMENTATIONS)
    if unknown:
        raise ValueError(f"`augmentation` has {sorted(unknown)}; valid are {', '.join(AUGMENTATIONS)}.")
    reach = max(1, size // 8)
    dx, dy = rng.randint(-reach, reach), rng.randint(-reach, reach)
    side = size // 2
    left, top = rng.randint(-side // 2, size - side // 2), rng.randint(-side // 2, size - side // 2)
    flip = rng.random() < 0.5
    brightness, contrast = rng.uniform(-0.3, 0.3), rng.uniform(0.7, 1.3)

    def augment(images: torch.Tensor) -> torch.Tensor:
        if "color" in names:
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            images = (images - mean) * contrast + mean + brightness
        if "flip" in names and flip:
            images = images.flip(3)
        if "shift" in names and (dx or dy):
            padded = F.pad(images, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
            images = padded[:, :, max(-dy, 0) : max(-dy, 0) + size, max(-dx, 0) : max(-dx, 0) + size]
        if "cutout" in names:
            keep = torch.ones(size, size, dtype=images.dtype, device=images.device)
            keep[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
            images = images * keep
        return images

    return augment
