"""The base of streams of whole batches, and streams of real images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch

from ..arguments import check_integer, check_seed, shown
from ..data import ImageData, members_by_class, normalise
from ..messages import listed
from .randomness import ShuffledOrder, check_count, check_epoch, check_shuffled, epoch_order


class BatchStream(ABC):
    """Epochs of `length` images, shuffled and split evenly into `steps_per_epoch` batches."""

    def __init__(self, num_classes: int, length: int, seed: int, batch_size: int, device: torch.device):
        check_seed(seed)
        check_integer("batch_size", batch_size, least=1)
        check_shuffled(length)
        self.num_classes, self.length, self.seed, self.device = num_classes, length, int(seed), device
        self.steps_per_epoch = math.ceil(length / batch_size)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(batch_size, channels, size, size)` in [-1, 1], and labels."""
        # Checked here, since a generator function does not run until its first batch is taken.
        check_epoch(epoch)
        return self._batches(int(epoch))

    @abstractmethod
    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def _shuffled(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """The positions of each batch; the order is a pure function of the seed and the epoch."""
        order = epoch_order(self.length, self.seed, epoch).to(self.device, non_blocking=True)
        return order.tensor_split(self.steps_per_epoch)


class _DataStream(BatchStream):
    """Real images, in epochs of the length of a [`GeneratedStream`]: `ipc` times the number of classes."""

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        if not isinstance(data, ImageData):
            raise ValueError(f"`data` is {shown(data)}; valid is an ImageData, as `load_image_data` returns it.")
        if len(data) == 0:
            raise ValueError("`data` holds no images; valid is at least one.")
        check_count("ipc", ipc, least=1)
        super().__init__(data.num_classes, data.num_classes * int(ipc), seed, batch_size, data.labels.device)
        self.data, self.ipc = data, int(ipc)

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self._rows(epoch):
            images, labels = self.data.batch(rows)
            yield normalise(images), labels

    @abstractmethod
    def _rows(self, epoch: int) -> Iterable[torch.Tensor]:
        """The row numbers of each batch of an epoch."""


class RealStream(_DataStream):
    """
    Class-balanced real images: `ipc` of every class in each epoch, and none repeated before all of its class are used.
    Over a subset of `ipc` images per class it is a fixed set.

    Args:
        data ([`ImageData`]): The images; batches are on the device of its labels.
        ipc (`int`): Images per class and epoch.
        seed (`int`): Seeds the order.
        batch_size (`int`): Largest number of images in a batch.
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        super().__init__(data, ipc, seed, batch_size)
        self.members = members_by_class(data.labels, data.num_classes)
        if empty := [name for name, part in zip(data.class_names, self.members, strict=True) if len(part) == 0]:
            raise ValueError(f"`data` holds no image of the class {listed(empty)}; valid is at least one of each.")
        self.orders = [
            ShuffledOrder(len(part), f"{seed}/{label}", self.device) for label, part in enumerate(self.members)
        ]

    def _rows(self, epoch: int) -> Iterable[torch.Tensor]:
        of_class = [
            part[order.take(epoch * self.ipc, self.ipc)] for part, order in zip(self.members, self.orders, strict=True)
        ]
        rows = torch.cat(of_class)
        return (rows[positions] for positions in self._shuffled(epoch))


class WholeSetStream(_DataStream):
    """
    All real images in shuffled order, whatever their class, in batches of the number and size of a [`RealStream`]'s.

    Args:
        data ([`ImageData`]), ipc (`int`), seed (`int`), batch_size (`int`): See [`RealStream`].
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int):
        super().__init__(data, ipc, seed, batch_size)
        self.order = ShuffledOrder(len(data), seed, self.device)

    def _rows(self, epoch: int) -> Iterable[torch.Tensor]:
        return self.order.take(epoch * self.length, self.length).tensor_split(self.steps_per_epoch)
