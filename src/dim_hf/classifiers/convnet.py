"""ConvNet-3, the standard network of data set distillation."""

import torch
from torch import nn

from .pooling import AveragePool


class ConvNet(nn.Sequential):
    """
    Three blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling, then a linear layer (arXiv
    2006.05929, section 4). For images larger than 32 pixels the last map is averaged down to 4x4, so that the linear
    layer keeps its size.

    Args:
        num_classes (`int`): Number of classes.
        channels (`int`): Channels of the images.
        size (`int`): Height and width of the images, at least 8.
        width (`int`, *optional*, defaults to 128): Channels of every block.
    """

    def __init__(self, num_classes: int, channels: int, size: int, width: int = 128):
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                AveragePool(),
            ]
            channels, size = width, size // 2
        if size > 4:
            layers.append(nn.AdaptiveAvgPool2d(4))
            size = 4
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * size**2, num_classes))
        self.feature_layers = ("3", "7", "11")  # The blocks' outputs.

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, channels, size, size)` in [-1, 1] to logits `(batch_size, num_classes)`."""
        return super().forward(images)
