"""
Protocol C, legacy: the deployment of DiM's released code, rewritten, for comparison with its own figures only.

It differs from protocol B in what makes it unfit for other comparisons: the best of five evaluations *on the test
split* counts; classifiers are never put in `eval()`, so that batch norm uses the statistics of test batches; labels
are drawn at random, unless a batch has as many images as there are classes, which then has one of each; the learning
rate is constant; and colours are augmented. Two of its defects are left out: zero steps where an epoch is smaller than
a batch, and test images that are normalised differently from those of train.
"""

import math
from abc import ABC
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..arguments import check_integer
from ..classifiers import build_classifier
from ..data import members_by_class
from ..data.image_data import ImageData, normalise
from ..models import DiMGenerator
from ..streams.randomness import ShuffledOrder, bits_of, check_count, seeded
from ..streams.real import BatchStream
from ..weights import is_finite
from .judges import Stream, evaluate_accuracy, random_crop
from .recipe import LEGACY_BATCH_SIZE


LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, EVALUATIONS = 0.01, 0.9, 5e-4, 5


class _WholeBatches(BatchStream, ABC):
    """`ipc * num_classes` images in each epoch, less what does not fill a batch, in one batch where it has fewer."""

    def __init__(self, num_classes: int, ipc: int, seed: int, batch_size: int, device: torch.device):
        check_count("ipc", ipc, least=1)
        check_integer("batch_size", batch_size, least=1)
        images = ipc * num_classes
        self.batch_size = min(batch_size, images)
        self.balanced = self.batch_size == num_classes
        super().__init__(num_classes, images // self.batch_size * self.batch_size, seed, self.batch_size, device)


class LegacyStream(_WholeBatches):
    """
    Generated images of random labels, or of one of each class in a batch of as many images.

    Args:
        generator ([`DiMGenerator`]): In `eval()`.
        ipc (`int`): An epoch has `ipc * num_classes` images, less what does not fill a batch.
        seed (`int`): Seeds noise and labels.
        batch_size (`int`, *optional*, defaults to 128): Images in a batch, or all of an epoch that has fewer.
    """

    def __init__(self, generator: DiMGenerator, ipc: int, seed: int, batch_size: int = LEGACY_BATCH_SIZE):
        super().__init__(generator.config.num_classes, ipc, seed, batch_size, generator.device)
        self.generator = generator

    @torch.no_grad()
    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = torch.Generator().manual_seed(bits_of((self.seed << 24) ^ epoch))
        for _ in range(self.steps_per_epoch):
            labels = torch.randint(self.num_classes, (self.batch_size,), generator=rng)
            labels = (torch.arange(self.num_classes) if self.balanced else labels).to(self.device)
            noise = torch.randn(self.batch_size, self.generator.config.latent_dim, generator=rng).to(self.device)
            yield self.generator(noise.to(self.generator.dtype), labels).sample.float(), labels


class LegacyRealStream(_WholeBatches):
    """
    Real images in the batches of a [`LegacyStream`]: shuffled without regard to class, or one of each class.

    Args:
        data ([`ImageData`]): The images; batches are on the device of its labels.
        ipc (`int`), seed (`int`), batch_size (`int`): See [`LegacyStream`].
    """

    def __init__(self, data: ImageData, ipc: int, seed: int, batch_size: int = LEGACY_BATCH_SIZE):
        super().__init__(data.num_classes, ipc, seed, batch_size, data.labels.device)
        self.data = data
        everything = [torch.arange(len(data), device=self.device)]
        self.parts = members_by_class(data.labels, data.num_classes) if self.balanced else everything
        self.orders = [ShuffledOrder(len(part), f"{seed}/{i}", self.device) for i, part in enumerate(self.parts)]

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        each = self.batch_size // len(self.parts)
        for step in range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch):
            rows = [part[order.take(step * each, each)] for part, order in zip(self.parts, self.orders, strict=True)]
            images, labels = self.data.batch(torch.cat(rows))
            yield normalise(images), labels


def legacy_figures(
    stream: Stream, name: str, test: ImageData, *, epochs: int, seed: int, colours: bool = True, progress: bool = False
) -> dict[str, Any]:
    """
    Trains a classifier as the released code does it, and scores it as that does and as it should be.

    Args:
        stream: What it is trained on, usually a [`LegacyStream`].
        name (`str`): A classifier that [`build_classifier`] knows.
        test ([`ImageData`]): Real images, on the stream's device.
        epochs (`int`): Of training; it is scored after every fifth part of them.
        seed (`int`): Seeds the weights, the augmentation and any dropout.
        colours (`bool`, *optional*, defaults to `True`): Whether colours are augmented, beside crops.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar over the epochs.

    Returns:
        JSON values, all in [0, 1]: `accuracy`, the best of `evaluations`, which are the accuracies in training mode
        after each fifth of the epochs; and `last_in_eval`, the last one in `eval()`.

    Raises:
        FloatingPointError: If the weights become NaN or infinite.
    """
    device = test.labels.device
    # Initial weights and dropout draw from the global generators.
    with seeded(seed, device):
        classifier = build_classifier(name, stream.num_classes, test.channels, test.size).to(device).train()
        optimizer = torch.optim.SGD(classifier.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        rng = torch.Generator(device).manual_seed(seed)
        evaluations = []
        evaluated = evaluated_epochs(epochs)
        for epoch in tqdm(range(1, epochs + 1), desc=name, unit="epoch", leave=False, disable=not progress):
            for images, labels in stream.batches(epoch - 1):
                images = change_colours(images, rng) if colours else images
                loss = F.cross_entropy(classifier(random_crop(images, rng)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch in evaluated:
                if not is_finite(classifier):
                    raise FloatingPointError(
                        f"the weights of {name} (seed {seed}) became NaN or infinite by epoch {epoch} of protocol C, "
                        f"whose learning rate is {LEARNING_RATE}."
                    )
                evaluations.append(batch_accuracy(classifier, test))
    last_in_eval = evaluate_accuracy(classifier, test)
    return {"accuracy": max(evaluations), "evaluations": evaluations, "last_in_eval": last_in_eval}


def evaluated_epochs(epochs: int) -> set[int]:
    """The epochs, counted from 1, after which a classifier is scored: five including the last, or all if fewer."""
    return {math.ceil(epochs * part / EVALUATIONS) for part in range(1, EVALUATIONS + 1)}


def change_colours(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """
    Brightness, saturation and contrast of each image, at the strengths of DSA (arXiv 2102.08259): plus -0.5 to 0.5,
    times 0 to 2 about the mean of the channels, times 0.5 to 1.5 about the mean of the image.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, size, size)`): In [-1, 1]; the result may leave it.
        rng (`torch.Generator`): On the device of the images.
    """
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, generator=rng, device=images.device)
    images = images + brightness - 0.5
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


@torch.no_grad()
def batch_accuracy(classifier: nn.Module, data: ImageData) -> float:
    """
    The accuracy of a classifier, in [0, 1], in its current mode, which may be training mode: batch norm then uses the
    statistics of each batch, but the running ones, which `eval()` uses, do not learn from these images.
    """
    before = [buffer.clone() for buffer in classifier.buffers()]
    right = 0
    batches = list(torch.arange(len(data), device=data.labels.device).split(LEGACY_BATCH_SIZE))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # A single image has no statistics.
        batches[-2:] = [torch.cat(batches[-2:])]
    for indices in batches:
        images, labels = data.batch(indices)
        right += int((classifier(normalise(images)).argmax(dim=1) == labels).sum())
    for buffer, value in zip(classifier.buffers(), before, strict=True):
        buffer.copy_(value)
    return right / len(data)
