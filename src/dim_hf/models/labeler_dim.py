"""A classifier of the real images that is saved with a generator as the teacher of its images.

A distilled repository on the Hub holds this file, so it imports only torch and diffusers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DiMLabelerOutput(BaseOutput):
    """
    Output of [`DiMLabeler`].

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): Class scores before softmax.
    """

    logits: torch.Tensor


class DiMLabeler(ModelMixin, ConfigMixin):
    """
    ConvNet-3 as a component of a pipeline: three blocks of 3x3 convolution, instance norm, ReLU and 2x2 average
    pooling, then a linear layer (arXiv 2006.05929, section 4).

    Args:
        num_classes (`int`): Number of classes.
        sample_size (`int`): Height and width of the images in pixels, at least 8.
        in_channels (`int`, *optional*, defaults to 3): 1 (grey) or 3 (RGB).
        width (`int`, *optional*, defaults to 128): Channels of every block.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(self, num_classes: int, sample_size: int, in_channels: int = 3, width: int = 128):
        super().__init__()
        if sample_size < 8:
            raise ValueError(f"`sample_size` is {sample_size}; it must be at least 8.")
        layers: list[nn.Module] = []
        channels, size = in_channels, sample_size
        for _ in range(3):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels, size = width, size // 2
        if size > 4:
            layers.append(nn.AdaptiveAvgPool2d(4))
            size = 4
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, num_classes))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # Ignoring an entry would build a different network.
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config_dict if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"the labeler's {cls.config_name} has the unknown entries {', '.join(unknown)}; valid are "
                f"{', '.join(sorted(valid))}."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # ModelMixin warns about layers to keep in float32 at every change of dtype, even if there are none.
        changes_dtype = any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))
        return nn.Module.to(self, *args, **kwargs) if changes_dtype else super().to(*args, **kwargs)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DiMLabelerOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, sample_size, sample_size)`): Images in [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`DiMLabelerOutput`].

        Returns:
            [`DiMLabelerOutput`], or a tuple with the logits when `return_dict` is `False`.
        """
        logits = self.network(sample)
        if not return_dict:
            return (logits,)
        return DiMLabelerOutput(logits=logits)
