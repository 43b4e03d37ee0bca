"""The discriminator: scores how real an image is for its class, and which class it shows."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from .convolution import PenalisedConv2d
from .generator_dim import MOST_IN_CONFIG, MOST_LAYERS, check_entry, check_list, check_network_size


@dataclass
class DiMDiscriminatorOutput(BaseOutput):
    """
    Output of [`DiMDiscriminator`].

    Args:
        logits (`torch.Tensor` of shape `(batch_size,)`): Larger means more real.
        class_logits (`torch.Tensor` of shape `(batch_size, num_classes)`, *optional*):
            Unnormalised class scores; `None` without the auxiliary head.
    """

    logits: torch.Tensor
    class_logits: torch.Tensor | None = None


class DiMDiscriminator(ModelMixin, ConfigMixin):
    """
    Convolutions that halve the size block by block, then a real/fake head, conditioned by projection
    (arXiv 1802.05637), with an auxiliary classifier (arXiv 1610.09585), or both.

    Args:
        num_classes (`int`): Number of classes.
        sample_size (`int`): Height and width of the images in pixels.
        in_channels (`int`, *optional*, defaults to 3): 1 (grey) or 3 (RGB).
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 128)`):
            Channels of each block, from the finest. Every block halves the size, except the first where
            `downsample_input` is `False`.
        layers_per_block (`tuple[int, ...]`, *optional*, defaults to `(0, 0)`):
            3x3 convolutions that follow in each block at its own size.
        downsample_input (`bool`, *optional*, defaults to `True`): Whether the first block halves the size too.
        kernel_size (`int`, *optional*, defaults to 4): Kernel of the halving convolutions, 3 or 4.
        norm (`str`, *optional*, defaults to `"spectral"`):
            `"spectral"`: spectral norm of every weight (arXiv 1802.05957); `"layer"`: layer norm of every activation
            (what a gradient penalty allows); `"none"`.
        pool_features (`bool`, *optional*, defaults to `False`):
            Whether the heads see only the largest activation of each channel.
        batch_std (`bool`, *optional*, defaults to `False`):
            Whether the heads see how much the images of a class differ within the batch: their standard deviation
            (arXiv 1710.10196, here within each class) is appended to the last maps as a channel, followed by one more
            3x3 convolution. This exposes a generator that makes a class too uniform.
        projection (`bool`, *optional*, defaults to `True`): Whether the real/fake head sees the label.
        auxiliary (`bool`, *optional*, defaults to `True`): Whether there is a class head.
    """

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        sample_size: int,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: tuple[int, ...] = (0, 0),
        downsample_input: bool = True,
        kernel_size: int = 4,
        norm: str = "spectral",
        pool_features: bool = False,
        batch_std: bool = False,
        projection: bool = True,
        auxiliary: bool = True,
    ):
        super().__init__()
        check_entry("num_classes", num_classes, 1)
        check_entry("sample_size", sample_size, 1)
        check_entry("in_channels", in_channels, 1)
        check_list("block_out_channels", block_out_channels, 1, MOST_IN_CONFIG)
        check_list("layers_per_block", layers_per_block, 0, MOST_LAYERS)
        if len(layers_per_block) != len(block_out_channels):
            raise ValueError(
                f"`layers_per_block` {tuple(layers_per_block)} must have one entry per block of `block_out_channels` "
                f"{tuple(block_out_channels)}."
            )
        if norm not in ("spectral", "layer", "none"):
            raise ValueError(f"`norm` is {norm!r}; valid are 'spectral', 'layer' and 'none'.")
        if kernel_size not in (3, 4):
            raise ValueError(f"`kernel_size` is {kernel_size}; valid are 3 and 4.")
        halvings = len(block_out_channels) - 1 + int(downsample_input)
        size, remainder = divmod(sample_size, 2**halvings)
        if remainder or size < 1:
            raise ValueError(f"`sample_size` {sample_size} cannot be halved {halvings} times.")
        check_network_size(
            sum(
                9 * layers * channels**2 for channels, layers in zip(block_out_channels, layers_per_block, strict=True)
            )
            + sum(9 * before * after for before, after in pairwise((in_channels, *block_out_channels))),
            block_out_channels[0] * (sample_size // (2 if downsample_input else 1)) ** 2,
        )

        def weight_norm(module: nn.Module) -> nn.Module:
            return spectral_norm(module) if norm == "spectral" else module

        layers: list[nn.Module] = []
        channels_in = in_channels
        size = sample_size
        for i, (channels, extra) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            halve = i > 0 or downsample_input
            for layer in range(1 + extra):
                if layer == 0 and halve:
                    conv = PenalisedConv2d(channels_in, channels, kernel_size, stride=2, padding=1)
                    size //= 2
                else:
                    conv = PenalisedConv2d(channels_in, channels, kernel_size=3, padding=1)
                layers.append(weight_norm(conv))
                if norm == "layer":
                    layers.append(MapsNorm([channels, size, size]))
                layers.append(nn.LeakyReLU(0.2))
                channels_in = channels
        self.features = nn.Sequential(*layers)
        self.class_std = ClassStd(num_classes)
        self.batch_layer = None
        if batch_std:
            conv = PenalisedConv2d(channels_in + 1, channels_in, kernel_size=3, padding=1)
            self.batch_layer = nn.Sequential(weight_norm(conv), nn.LeakyReLU(0.2))
        self.pool = nn.Sequential(*([nn.AdaptiveMaxPool2d(1)] if pool_features else []), nn.Flatten())
        num_features = channels_in * (1 if pool_features else size**2)
        self.adversarial_head = weight_norm(nn.Linear(num_features, 1))
        self.label_projection = weight_norm(nn.Embedding(num_classes, num_features)) if projection else None
        self.class_head = weight_norm(nn.Linear(num_features, num_classes)) if auxiliary else None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # ModelMixin warns about layers to keep in float32 at every change of dtype, even if there are none.
        changes_dtype = any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))
        return nn.Module.to(self, *args, **kwargs) if changes_dtype else super().to(*args, **kwargs)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor, num_batches: int = 1, return_dict: bool = True
    ) -> DiMDiscriminatorOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, sample_size, sample_size)`): Images in [-1, 1].
            class_labels (`torch.Tensor` of shape `(batch_size,)`): Integer labels.
            num_batches (`int`, *optional*, defaults to 1):
                Number of equal batches concatenated in `sample`, such as 2 for real images followed by generated
                ones; `batch_std` is computed within each.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`DiMDiscriminatorOutput`].

        Returns:
            [`DiMDiscriminatorOutput`], or the tuple `(logits, class_logits)` when `return_dict` is `False`.
        """
        maps = self.features(sample)
        if self.batch_layer is not None:
            parts = zip(maps.chunk(num_batches), class_labels.chunk(num_batches), strict=True)
            std = torch.cat([self.class_std(part, labels) for part, labels in parts])
            channel = std.to(maps.dtype)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
            maps = self.batch_layer(torch.cat([maps, channel], dim=1))
        features = self.pool(maps)
        logits = self.adversarial_head(features).squeeze(1)
        if self.label_projection is not None:
            logits = logits + (self.label_projection(class_labels) * features).sum(dim=1)
        class_logits = self.class_head(features) if self.class_head is not None else None
        if not return_dict:
            return logits, class_logits
        return DiMDiscriminatorOutput(logits=logits, class_logits=class_logits)


class MapsNorm(nn.LayerNorm):
    """`nn.LayerNorm` of whole maps `(channels, height, width)` that keeps them channels-last where they are."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch_size, channels, height, width)` to the same shape."""
        if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
            return super().forward(maps)
        weight, bias = self.weight.permute(1, 2, 0), self.bias.permute(1, 2, 0)
        rows = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), list(weight.shape), weight, bias, self.eps)
        return rows.permute(0, 3, 1, 2)


class ClassStd(nn.Module):
    """
    The standard deviation of each activation over the images of a class, averaged over the activations.

    Args:
        num_classes (`int`): Number of classes.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, maps: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Activations.
            class_labels (`torch.Tensor` of shape `(batch_size,)`): The labels of the images.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, float32: for each image the value of its class, which is 0.01 if
            it is the only one.
        """
        same = (class_labels[:, None] == class_labels[None, :]).float()
        weights = same / same.sum(dim=1, keepdim=True)
        with torch.autocast(maps.device.type, enabled=False):
            flat = maps.float().flatten(1)
            variance = weights @ (flat - weights @ flat).square()
        # The constant keeps the gradient of the square root finite.
        return (variance + 1e-4).sqrt().mean(dim=1)
