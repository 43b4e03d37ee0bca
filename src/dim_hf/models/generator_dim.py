"""The class-conditional generator that stores a distilled data set.

This file is also what a distilled repository on the Hub holds, so it needs torch and diffusers and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DiMGeneratorOutput(BaseOutput):
    """
    Output of [`DiMGenerator`].

    Args:
        sample (`torch.Tensor` of shape `(batch_size, out_channels, sample_size, sample_size)`):
            Generated images in [-1, 1].
    """

    sample: torch.Tensor


class DiMGenerator(ModelMixin, ConfigMixin):
    """
    Maps standard normal noise and a class to an image: linear layer, then blocks that double the size with transposed
    convolutions, batch norm and ReLU, then tanh. The network of the DiM paper (arXiv 2303.04707) and smaller ones of
    the DCGAN family (arXiv 1511.06434) are settings of it.

    Args:
        num_classes (`int`): Number of classes; labels are `0 .. num_classes - 1`.
        sample_size (`int`): Height and width of the images in pixels.
        out_channels (`int`, *optional*, defaults to 3): 1 (grey) or 3 (RGB).
        latent_dim (`int`, *optional*, defaults to 100): Length of the noise vector.
        class_embed_dim (`int`, *optional*, defaults to 64):
            Length of the class embedding that is joined to the noise. `0` overwrites the first `num_classes` entries
            of the noise with the one-hot label instead, as the paper's released network does.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(128, 64)`):
            Channels of each block, from the coarsest; every block has twice the size of the one before it.
        layers_per_block (`tuple[int, ...]`, *optional*, defaults to `(0, 0)`):
            3x3 convolutions that follow in each block at its own size.
        residual (`bool`, *optional*, defaults to `False`): Whether those 3x3 convolutions are added to their input.
        upsample_output (`bool`, *optional*, defaults to `True`):
            Whether the output layer is a transposed convolution that doubles the size once more; otherwise it is a
            3x3 convolution at the size of the last block.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        sample_size: int,
        out_channels: int = 3,
        latent_dim: int = 100,
        class_embed_dim: int = 64,
        block_out_channels: tuple[int, ...] = (128, 64),
        layers_per_block: tuple[int, ...] = (0, 0),
        residual: bool = False,
        upsample_output: bool = True,
    ):
        super().__init__()
        if len(layers_per_block) != len(block_out_channels):
            raise ValueError(
                f"`layers_per_block` {tuple(layers_per_block)} must have one entry per block of `block_out_channels` "
                f"{tuple(block_out_channels)}."
            )
        if out_channels not in (1, 3):
            raise ValueError(f"`out_channels` is {out_channels}; valid are 1 (grey) and 3 (RGB).")
        if class_embed_dim == 0 and num_classes > latent_dim:
            raise ValueError(
                f"`class_embed_dim` 0 writes the label into the noise, so `num_classes` ({num_classes}) can be at "
                f"most `latent_dim` ({latent_dim}); use a class embedding for more classes."
            )
        doublings = len(block_out_channels) - 1 + int(upsample_output)
        self.bottom_size, remainder = divmod(sample_size, 2**doublings)
        if remainder or self.bottom_size < 1:
            raise ValueError(
                f"`sample_size` {sample_size} cannot be reached by {doublings} doublings of a whole number of pixels; "
                f"it must be a multiple of {2**doublings}."
            )

        self.class_embedding = nn.Embedding(num_classes, class_embed_dim) if class_embed_dim else None
        self.proj_in = nn.Linear(latent_dim + class_embed_dim, block_out_channels[0] * self.bottom_size**2)
        self.blocks = nn.ModuleList()
        in_channels = block_out_channels[0]
        for i, (channels, layers) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            self.blocks.append(GeneratorBlock(in_channels, channels, layers, residual, upsample=i > 0))
            in_channels = channels
        self.conv_out: nn.Module
        if upsample_output:
            self.conv_out = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        else:
            self.conv_out = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # An entry that is left out would be another network than the one that was saved.
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config_dict if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"the generator's {cls.config_name} has the unknown entries {', '.join(unknown)}; valid are "
                f"{', '.join(sorted(valid))}."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # ModelMixin warns at every change of dtype of the layers to keep in float32, even where there are none.
        changes_dtype = any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))
        return nn.Module.to(self, *args, **kwargs) if changes_dtype else super().to(*args, **kwargs)

    def forward(
        self, latents: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = True
    ) -> DiMGeneratorOutput | tuple[torch.Tensor]:
        """
        Args:
            latents (`torch.Tensor` of shape `(batch_size, latent_dim)`): Standard normal noise.
            class_labels (`torch.Tensor` of shape `(batch_size,)`): Integer labels.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`DiMGeneratorOutput`].

        Returns:
            [`DiMGeneratorOutput`], or a tuple with the images in [-1, 1] when `return_dict` is `False`.
        """
        if self.class_embedding is not None:
            hidden = torch.cat([latents, self.class_embedding(class_labels).to(latents.dtype)], dim=1)
        else:
            one_hot = nn.functional.one_hot(class_labels, self.config.num_classes).to(latents.dtype)
            hidden = torch.cat([one_hot, latents[:, self.config.num_classes :]], dim=1)
        hidden = self.proj_in(hidden).unflatten(1, (-1, self.bottom_size, self.bottom_size))
        for block in self.blocks:
            hidden = block(hidden)
        sample = self.conv_out(hidden).tanh()
        if not return_dict:
            return (sample,)
        return DiMGeneratorOutput(sample=sample)


class GeneratorBlock(nn.Module):
    """Batch norm and ReLU at one size, reached by a transposed convolution unless it is the coarsest."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, residual: bool, upsample: bool):
        super().__init__()
        self.residual = residual
        self.upsample = (
            nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
            if upsample
            else nn.Identity()
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            for _ in range(layers)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.upsample(hidden)).relu()
        for layer in self.layers:
            update = layer(hidden)
            hidden = (hidden + update if self.residual else update).relu()
        return hidden
