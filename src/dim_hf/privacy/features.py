"""Features that never saw private images: random Fourier features of pixels and of edges."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..arguments import check_integer, check_seed
from ..data import normalise


# (descriptor, bandwidth, number of frequencies, share of the squared norm) of each kernel. The bandwidth is the root
# mean square difference between the entries of two descriptors at which the kernel is exp(-1/2).
KERNELS = (
    ("pixels", 0.12, 1000, 1 / 3),
    ("pixels", 0.25, 500, 1 / 6),
    ("edges", 0.03, 1000, 1 / 3),
    ("edges", 0.06, 500, 1 / 6),
)
_DIRECTIONS = 8
# With 14 in place of 28, clothes came out with a pattern of dots, which the average does not see.
_PIXELS = 32


class RandomFeatures(nn.Module):
    """
    Random Fourier features (Rahimi and Recht, 2007) of two descriptors of an image: its pixels, averaged down to at
    most 32x32, and the strength of its edges in eight directions, averaged down to at most 7x7. Each has two Gaussian
    kernels. The inner product of two images' features approximates the weighted mean of the kernels, so the distance
    between mean features is the maximum mean discrepancy (arXiv 2002.11603). The norm of an image's features is 1.

    Args:
        channels (`int`): Channels of the images, 1 (grey) or 3 (RGB).
        size (`int`): Height and width of the images, at least 8.
        seed (`int`, *optional*, defaults to 0): Draws the frequencies; public.
    """

    def __init__(self, channels: int, size: int, seed: int = 0):
        super().__init__()
        check_integer("channels", channels, least=1, most=3)
        check_integer("size", size, least=8)
        check_seed(seed)
        self.channels, self.size, self.seed = channels, size, seed
        lengths = {"pixels": channels * min(size, _PIXELS) ** 2, "edges": _DIRECTIONS * min(size // 4, 7) ** 2}
        rng = torch.Generator().manual_seed(seed)
        self.kernels = nn.ParameterList()
        for descriptor, bandwidth, count, _ in KERNELS:
            length = lengths[descriptor]
            frequencies = torch.randn(length, count, generator=rng) / (bandwidth * math.sqrt(length))
            self.kernels.append(nn.Parameter(frequencies, requires_grad=False))

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(2 * count for _, _, count, _ in KERNELS)

    def config(self) -> dict[str, Any]:
        """The arguments that make the same features again."""
        return {"channels": self.channels, "size": self.size, "seed": self.seed}

    def of_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """[`forward`] for uint8 images."""
        weights = self.kernels[0]
        return self(normalise(images.to(weights.device)).to(weights.dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, channels, size, size)` in [-1, 1] to features `(batch_size, width)`."""
        images = (images + 1) / 2
        descriptors = {"pixels": small_pixels(images), "edges": edge_strengths(images)}
        parts = []
        for (descriptor, _, count, share), frequencies in zip(KERNELS, self.kernels, strict=True):
            angles = descriptors[descriptor] @ frequencies
            parts.append(torch.cat([angles.cos(), angles.sin()], dim=1) * math.sqrt(share / count))
        return torch.cat(parts, dim=1)


def small_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1], averaged down to at most 32x32: `(batch_size, channels * size**2)`."""
    return F.adaptive_avg_pool2d(images, min(images.shape[-1], _PIXELS)).flatten(1)


def edge_strengths(images: torch.Tensor) -> torch.Tensor:
    """
    The square root of the positive part of the derivative of the grey image in eight directions, averaged down to at
    most 7x7. The derivative is that of Sobel's 5x5 filter. Images in [0, 1] to `(batch_size, 8 * places**2)`.
    """
    grey = F.pad(images.mean(dim=1, keepdim=True), (2, 2, 2, 2), mode="replicate")
    smooth = grey.new_tensor([1, 4, 6, 4, 1]) / 16
    slope = grey.new_tensor([-1, -2, 0, 2, 1]) / 8
    derivatives = F.conv2d(grey, torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None])
    turns = torch.arange(_DIRECTIONS, dtype=grey.dtype, device=grey.device) * (2 * math.pi / _DIRECTIONS)
    directions = torch.stack([turns.cos(), turns.sin()], dim=1)
    strengths = F.adaptive_avg_pool2d(
        F.conv2d(derivatives, directions[:, :, None, None]).relu(), min(images.shape[-1] // 4, 7)
    )
    # The root's slope is infinite at 0.
    return ((strengths + 1e-3).sqrt() - 1e-3**0.5).flatten(1)
