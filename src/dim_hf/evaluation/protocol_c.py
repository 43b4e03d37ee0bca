"""
Protocol C, legacy: the deployment of DiM's released code, rewritten, for comparison with its own figures only.

It differs from protocol B in what makes it unfit for other comparisons: the best of five evaluations *on the test
split* counts; classifiers are never put in `eval()`, so that batch norm uses the statistics of test batches; labels
are drawn at random; the learning rate is constant; and colours are augmented. Two of its defects are left out: zero
steps where an epoch is smaller than a batch, and test images that are normalised differently from those of train.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..classifiers import build_classifier
from ..data.image_data import ImageData, normalise
from ..models import DiMGenerator
from ..streams.randomness import check_count
from ..streams.real import BatchStream
from .judges import Stream, random_crop


BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, EVALUATIONS = 128, 0.01, 0.9, 5e-4, 5


class LegacyStream(BatchStream):
    """
    Generated images of random labels, in whole batches of 128 images, or in one batch where an epoch has fewer.

    Args:
        generator ([`DiMGenerator`]): In `eval()`.
        ipc (`int`): An epoch has `ipc * num_classes` images, less what does not fill a batch.
        seed (`int`): Seeds noise and labels.
    """

    def __init__(self, generator: DiMGenerator, ipc: int, seed: int):
        check_count("ipc", ipc, least=1)
        images = ipc * generator.config.num_classes
        self.generator, self.batch_size = generator, min(BATCH_SIZE, images)
        whole_batches = images // self.batch_size * self.batch_size
        super().__init__(generator.config.num_classes, whole_batches, seed, self.batch_size, generator.device)

    @torch.no_grad()
    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = torch.Generator().manual_seed(((self.seed << 24) ^ epoch) & (2**63 - 1))
        for _ in range(self.steps_per_epoch):
            labels = torch.randint(self.num_classes, (self.batch_size,), generator=rng).to(self.device)
            noise = torch.randn(self.batch_size, self.generator.config.latent_dim, generator=rng).to(self.device)
            yield self.generator(noise.to(self.generator.dtype), labels).sample.float(), labels


@torch.random.fork_rng(devices=[])
def legacy_accuracy(
    stream: Stream, name: str, test: ImageData, *, epochs: int, seed: int, progress: bool = False
) -> float:
    """
    The best of five test accuracies of a classifier that is trained as the released code does it.

    Args:
        stream: What it is trained on, usually a [`LegacyStream`].
        name (`str`): A classifier that [`build_classifier`] knows.
        test ([`ImageData`]): Real images, on the stream's device.
        epochs (`int`): Of training; it is scored after every fifth part of them.
        seed (`int`): Seeds the weights, the augmentation and any dropout.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar over the epochs.

    Returns:
        `float`: In [0, 1].
    """
    torch.manual_seed(seed)
    device = test.labels.device
    classifier = build_classifier(name, stream.num_classes, test.channels, test.size).to(device).train()
    optimizer = torch.optim.SGD(classifier.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    rng = torch.Generator(device).manual_seed(seed)
    best = 0.0
    evaluated = evaluated_epochs(epochs)
    for epoch in tqdm(range(1, epochs + 1), desc=name, unit="epoch", leave=False, disable=not progress):
        for images, labels in stream.batches(epoch - 1):
            loss = F.cross_entropy(classifier(random_crop(change_colours(images, rng), rng)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in evaluated:
            best = max(best, batch_accuracy(classifier, test))
    return best


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
    """The accuracy of a classifier, in [0, 1], in its current mode, which may be training mode."""
    right = 0
    for indices in torch.arange(len(data), device=data.labels.device).split(BATCH_SIZE):
        images, labels = data.batch(indices)
        right += int((classifier(normalise(images)).argmax(dim=1) == labels).sum())
    return right / len(data)
