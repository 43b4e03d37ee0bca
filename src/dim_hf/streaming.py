"""
Streams of labelled images for classifiers to be trained on: generated ones, and real ones at the same rate.

Every generated image is a pure function of (weights, seed, epoch, class, index), whatever the batch it is made in.
"""

import math
import random
from collections.abc import Iterator

import torch

from .data import ImageData, normalise
from .models import DiMGenerator


_MASK = 0xFFFFFFFF


def _mix(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer finaliser (two rounds of xor-shift and multiply), in the low 32 bits of int64."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK
    return value ^ (value >> 16)


def latents_at(seed: int, epoch: int, labels: torch.Tensor, indices: torch.Tensor, latent_dim: int) -> torch.Tensor:
    """
    Standard normal noise as a pure function of (seed, epoch, class, index): a counter-based hash and the Box-Muller
    transform, so that any image can be made alone, in any batch and on any device.

    Args:
        seed (`int`), epoch (`int`): Not negative.
        labels, indices (`torch.Tensor` of shape `(batch_size,)`): Class and running number of each image, int64.
        latent_dim (`int`): Length of each noise vector.

    Returns:
        `torch.Tensor` of shape `(batch_size, latent_dim)`, float32, on the device of `labels`; equal between devices
        within rounding.
    """
    # Two keys of 32 bits each: among a million images, one key alone would be the same for a hundred pairs.
    keys = [torch.zeros_like(labels), torch.full_like(labels, _MASK)]
    for part in (seed & _MASK, seed >> 32, epoch, labels, indices):
        keys = [_mix((key + 0x9E3779B9 + part) & _MASK) for key in keys]
    pairs = torch.arange((latent_dim + 1) // 2, device=labels.device)
    first = _mix((keys[0][:, None] + _mix(2 * pairs)) & _MASK)
    second = _mix((keys[1][:, None] + _mix(2 * pairs + 1)) & _MASK)
    # Half a step away from 0, where the logarithm ends.
    radius = (-2 * ((first.double() + 0.5) / 2**32).log()).sqrt()
    angle = 2 * math.pi * (second.double() / 2**32)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :latent_dim].float()


class ShuffledOrder:
    """
    An endless row of permutations of `range(length)`. Any stretch of it depends on the seed and its position alone,
    so that what was interrupted can go on, and processes can share it.

    Args:
        length (`int`): Numbers per permutation.
        seed (`int` or `str`): Seeds the permutations.
        device (`torch.device`): Where the numbers are given.
    """

    def __init__(self, length: int, seed: int | str, device: torch.device):
        self.length, self.seed, self.device = length, seed, device
        self.epochs: dict[int, torch.Tensor] = {}

    def take(self, start: int, count: int) -> torch.Tensor:
        """The `count` numbers from position `start`, as an int64 tensor of shape `(count,)`."""
        needed = range(start // self.length, (start + count - 1) // self.length + 1)
        self.epochs = {e: self.epochs[e] if e in self.epochs else self._permutation(e) for e in needed}
        return torch.cat(list(self.epochs.values()))[start % self.length :][:count]

    def _permutation(self, epoch: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(random.Random(f"{self.seed}/order/{epoch}").getrandbits(63))
        return torch.randperm(self.length, generator=rng).to(self.device, non_blocking=True)


class _Stream:
    """`ipc` images of every class in each epoch, shuffled and split evenly into `steps_per_epoch` batches."""

    def __init__(self, num_classes: int, ipc: int, seed: int, batch_size: int, device: torch.device):
        if ipc < 1:
            raise ValueError(f"`ipc` is {ipc}; it must be at least 1.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.num_classes, self.ipc, self.seed, self.device = num_classes, ipc, seed, device
        self.steps_per_epoch = math.ceil(num_classes * ipc / batch_size)

    def _shuffled(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Labels and indices of each batch; the order is a pure function of the seed and the epoch."""
        rng = torch.Generator().manual_seed(((self.seed << 24) ^ epoch) & (2**63 - 1))
        order = torch.randperm(self.num_classes * self.ipc, generator=rng).to(self.device, non_blocking=True)
        for part in order.tensor_split(self.steps_per_epoch):
            yield part // self.ipc, part % self.ipc


class GeneratedStream(_Stream):
    """
    Fresh generated images in every epoch.

    Args:
        generator ([`DiMGenerator`]): Put into `eval()`; its device is where images are made.
        ipc (`int`): Images per class and epoch.
        seed (`int`): Seeds the noise and the order.
        batch_size (`int`): At most so many images are made at once.
    """

    def __init__(self, generator: DiMGenerator, ipc: int, seed: int, batch_size: int):
        super().__init__(generator.config.num_classes, ipc, seed, batch_size, generator.device)
        self.generator = generator.eval()

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        for labels, indices in self._shuffled(epoch):
            latents = latents_at(self.seed, epoch, labels, indices, self.generator.config.latent_dim)
            with torch.no_grad():
                images = self.generator(latents.to(self.generator.dtype), labels).sample.float()
            yield images, labels


class RealStream(_Stream):
    """
    Real images at the rate of a [`GeneratedStream`]: `ipc` of every class in each epoch, none twice before all of its
    class were used. Over a subset of `ipc` images per class it is a fixed set.

    Args:
        data ([`ImageData`]): Where the images come from; its labels' device is where batches are given.
        ipc (`int`): Images per class and epoch.
        seed (`int`): Seeds the order.
        batch_size (`int`): At most so many images are read at once.
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        super().__init__(data.num_classes, ipc, seed, batch_size, data.labels.device)
        self.data = data
        members = [torch.nonzero(data.labels == label).squeeze(1) for label in range(data.num_classes)]
        self.members = members
        self.orders = [
            ShuffledOrder(len(part), f"{seed}/{label}", data.labels.device) for label, part in enumerate(members)
        ]

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        chosen = torch.stack(
            [
                part[order.take(epoch * self.ipc, self.ipc)]
                for part, order in zip(self.members, self.orders, strict=True)
            ]
        )
        for labels, indices in self._shuffled(epoch):
            images, labels = self.data.batch(chosen[labels, indices])
            yield normalise(images), labels


class WholeSetStream(_Stream):
    """
    All real images in shuffled order, whatever their class, in as many and as large batches as a [`RealStream`].

    Args:
        data ([`ImageData`]): Where the images come from.
        ipc (`int`): As many images as `ipc` of every class are called an epoch.
        seed (`int`): Seeds the order.
        batch_size (`int`): At most so many images are read at once.
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        super().__init__(data.num_classes, ipc, seed, batch_size, data.labels.device)
        self.data = data
        self.order = ShuffledOrder(len(data), seed, data.labels.device)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        count = self.num_classes * self.ipc
        for indices in self.order.take(epoch * count, count).tensor_split(self.steps_per_epoch):
            images, labels = self.data.batch(indices)
            yield normalise(images), labels
