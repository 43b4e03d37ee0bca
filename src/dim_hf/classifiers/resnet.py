"""ResNet-10 and ResNet-18 as DiM uses them: narrow, for small images, strided or with average pooling."""

import torch
from torch import nn
from torch.nn import functional as F

from .pooling import AveragePool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (arXiv 1512.03385, figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, average_pool: bool):
        super().__init__()
        conv_stride = 1 if average_pool else stride
        pool: list[nn.Module] = [AveragePool()] if average_pool and stride == 2 else []
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=conv_stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.pool = nn.Sequential(*pool)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=conv_stride, bias=False),
                nn.BatchNorm2d(out_channels),
                *pool,
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.pool(F.relu(self.norm1(self.conv1(hidden))))
        return F.relu(self.norm2(self.conv2(update)) + self.shortcut(hidden))


class ResNet(nn.Sequential):
    """
    A 3x3 stem and four stages of widths 32 to 256, batch norm, global average pooling, a linear layer.

    Args:
        num_classes (`int`): Number of classes.
        channels (`int`): Channels of the images.
        blocks_per_stage (`int`): 1 for ResNet-10, 2 for ResNet-18.
        average_pool (`bool`): Whether sizes are halved by average pooling ("AP") instead of strided convolutions.
    """

    def __init__(self, num_classes: int, channels: int, blocks_per_stage: int, average_pool: bool):
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        stage_ends = []
        in_channels = 32
        for stage, width in enumerate((32, 64, 128, 256)):
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(in_channels, width, stride, average_pool))
                in_channels = width
            stage_ends.append(str(len(layers) - 1))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
        self.feature_layers = tuple(stage_ends)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, channels, size, size)` in [-1, 1] to logits `(batch_size, num_classes)`."""
        return super().forward(images)
