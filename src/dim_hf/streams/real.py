"""Streams of whole batches: what they have in common, and those of real images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from ..data.image_data import ImageData, normalise
from .randomness import ShuffledOrder, check_count, check_epoch, check_shuffled, epoch_order


class BatchStream(ABC):
    """`length` images in each epoch, shuffled and split evenly into `steps_per_epoch` batches."""

    def __init__(self, num_classes: int, length: int, seed: int, batch_size: int, device: torch.device):
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
        check_shuffled(length)
        self.num_classes, self.length, self.seed, self.device = num_classes, length, seed, device
        self.steps_per_epoch = math.ceil(length / batch_size)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        # Not in the generator function, which would not run before its first batch is asked for.
        check_epoch(epoch)
        return self._batches(int(epoch))

    @abstractmethod
    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def _shuffled(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """The positions of each batch; the order is a pure function of the seed and the epoch."""
        order = epoch_order(self.length, self.seed, epoch).to(self.device, non_blocking=True)
        return order.tensor_split(self.steps_per_epoch)


class RealStream(BatchStream):
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
        check_count("ipc", ipc, least=1)
        super().__init__(data.num_classes, data.num_classes * ipc, seed, batch_size, data.labels.device)
        self.data, self.ipc = data, ipc
        members = [torch.nonzero(data.labels == label).squeeze(1) for label in range(data.num_classes)]
        self.members = members
        self.orders = [
            ShuffledOrder(len(part), f"{seed}/{label}", data.labels.device) for label, part in enumerate(members)
        ]

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        chosen = torch.stack(
            [
                part[order.take(epoch * self.ipc, self.ipc)]
                for part, order in zip(self.members, self.orders, strict=True)
            ]
        )
        for positions in self._shuffled(epoch):
            images, labels = self.data.batch(chosen.flatten()[positions])
            yield normalise(images), labels


class WholeSetStream(BatchStream):
    """
    All real images in shuffled order, whatever their class, in as many and as large batches as a [`RealStream`].

    Args:
        data ([`ImageData`]): Where the images come from.
        ipc (`int`): As many images as `ipc` of every class are called an epoch.
        seed (`int`): Seeds the order.
        batch_size (`int`): At most so many images are read at once.
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        check_count("ipc", ipc, least=1)
        super().__init__(data.num_classes, data.num_classes * ipc, seed, batch_size, data.labels.device)
        self.data, self.ipc = data, ipc
        self.order = ShuffledOrder(len(data), seed, data.labels.device)

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in self.order.take(epoch * self.length, self.length).tensor_split(self.steps_per_epoch):
            images, labels = self.data.batch(indices)
            yield normalise(images), labels
