"""Batches of generated images, for a training loop of your own."""

import itertools
import math
from collections.abc import Iterator, Mapping

import torch

from ..arguments import check_integer
from ..models import DiMGenerator
from ..pipelines import DiMPipeline
from .dim_dataset import DiMDataset
from .real import BatchStream


# Images per block on a GPU, where launching the kernels of a small batch takes longer than running them. A CPU gains
# nothing from blocks of several batches.
_GPU_BLOCK = 1024


class GeneratedStream(BatchStream):
    """
    Shuffled batches of the images of a [`DiMDataset`] on the generator's device: the fast way to feed your own loop.

    Args:
        source ([`DiMPipeline`] or [`DiMGenerator`]), ipc, seed: See [`DiMDataset`].
        batch_size (`int`): Largest number of images in a batch. An epoch is split evenly.
        block_size (`int`, *optional*):
            Images per forward pass, rounded down to whole batches (at least one), which may belong to several epochs.
            The default is one batch on a CPU, and 1024 images elsewhere, since small batches do not fill a GPU. Only
            one block is kept; asking for the same or an earlier epoch again makes its images anew.
        soft_labels, max_attempts, min_confidence, choose_from, noise_scale: See [`DiMDataset`].
    """

    def __init__(
        self,
        source: DiMPipeline | DiMGenerator,
        ipc: int | Mapping[int | str, int],
        seed: int,
        batch_size: int,
        block_size: int | None = None,
        *,
        soft_labels: bool = False,
        max_attempts: int = 1,
        min_confidence: float = 0.0,
        choose_from: int = 1,
        noise_scale: float = 1.0,
    ):
        self.dataset = DiMDataset(
            source,
            ipc,
            seed,
            soft_labels=soft_labels,
            max_attempts=max_attempts,
            min_confidence=min_confidence,
            choose_from=choose_from,
            noise_scale=noise_scale,
        )
        device = self.dataset.generator.device
        super().__init__(self.dataset.num_classes, len(self.dataset), seed, batch_size, device)
        if block_size is None:
            block_size = batch_size if device.type == "cpu" else max(batch_size, _GPU_BLOCK)
        check_integer("block_size", block_size, least=1)
        largest_batch = math.ceil(self.length / self.steps_per_epoch)
        self.block_steps = max(1, block_size // largest_batch)
        self._epoch = self._number = -1
        self._block: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._order: tuple[int, tuple[torch.Tensor, ...]] = (-1, ())

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if epoch <= self._epoch:
            # Chosen anew too.
            self.dataset.forget_choice()
        if self.block_steps == 1:
            self._epoch = epoch
            for positions in self._shuffled(epoch):
                yield self.dataset.make(epoch, positions)
            return
        if epoch <= self._epoch:
            # Made anew, since the weights may have changed.
            self._number = -1
        self._epoch = epoch
        for step in range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch):
            number, offset = divmod(step, self.block_steps)
            if self._number != number:
                self._number, self._block = -1, []
                self._block = self._make_block(number)
                self._number = number
            images, labels = self._block[offset]
            # Copied, because a view that the caller keeps would hold the whole block in memory.
            yield images.clone(), labels.clone()

    def _shuffled(self, epoch: int) -> tuple[torch.Tensor, ...]:
        # Kept for all the blocks of an epoch.
        if self._order[0] != epoch:
            self._order = (epoch, super()._shuffled(epoch))
        return self._order[1]

    def _make_block(self, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Makes `block_steps` batches in one pass, from step `number * block_steps` counted through all epochs."""
        steps = range(number * self.block_steps, (number + 1) * self.block_steps)
        positions: list[torch.Tensor] = []
        epochs: list[torch.Tensor] = []
        for epoch, of_epoch in itertools.groupby(steps, lambda step: step // self.steps_per_epoch):
            batches = self._shuffled(epoch)
            positions += [batches[step % self.steps_per_epoch] for step in of_epoch]
            epochs += [torch.full_like(part, epoch) for part in positions[len(epochs) :]]
        images, labels = self.dataset.make(torch.cat(epochs), torch.cat(positions))
        sizes = [len(part) for part in positions]
        return list(zip(images.split(sizes), labels.split(sizes), strict=True))
