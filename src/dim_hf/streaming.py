"""
Streams of labelled images for classifiers to be trained on: generated ones, and real ones at the same rate.

Every generated image is a pure function of (weights, seed, epoch, class, index), whatever the batch it is made in.
"""

import math
from collections.abc import Iterator

import torch

from .data import ImageData, normalise
from .models import DiMGenerator


_MASK = 0xFFFFFFFF


def _mix(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer finaliser (two rounds of xor-shift and multiply), in int64 so that nothing overflows."""
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
    key = torch.zeros_like(labels)
    for part in (seed & _MASK, seed >> 32, epoch, labels, indices):
        key = _mix((key + 0x9E3779B9 + part) & _MASK)
    pairs = torch.arange((latent_dim + 1) // 2, device=labels.device)
    first = _mix((key[:, None] + _mix(2 * pairs)[None, :]) & _MASK)
    second = _mix((key[:, None] ^ _mix(2 * pairs + 1)[None, :]) & _MASK)
    # Half a step away from 0, where the logarithm ends.
    radius = (-2 * ((first.double() + 0.5) / 2**32).log()).sqrt()
    angle = 2 * math.pi * (second.double() / 2**32)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :latent_dim].float()


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
        rng = torch.Generator().manual_seed((self.seed << 24) ^ epoch)
        order = torch.randperm(self.num_classes * self.ipc, generator=rng).to(self.device)
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
        self.members = [torch.nonzero(data.labels == label).squeeze(1) for label in range(data.num_classes)]

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        chosen = torch.stack([self._chosen(label, epoch) for label in range(self.num_classes)])
        for labels, indices in self._shuffled(epoch):
            images, labels = self.data.batch(chosen[labels, indices])
            yield normalise(images), labels

    def _chosen(self, label: int, epoch: int) -> torch.Tensor:
        """The epoch's images of a class: the next `ipc` of an endless row of permutations of its images."""
        members = self.members[label]
        start = epoch * self.ipc
        rounds = range(start // len(members), (start + self.ipc - 1) // len(members) + 1)
        row = torch.cat([members[self._permutation(label, number)] for number in rounds])
        return row[start % len(members) :][: self.ipc]

    def _permutation(self, label: int, number: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed((self.seed << 40) ^ (label << 24) ^ number)
        return torch.randperm(len(self.members[label]), generator=rng).to(self.device)
