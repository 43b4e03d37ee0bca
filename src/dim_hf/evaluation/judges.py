"""
Deployment, protocol B: a fresh classifier is trained on a stream and scored once, after its last epoch.

One recipe serves every row of a comparison: generated images, real images streamed at the same rate, fixed subsets.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..arguments import check_flag, check_integer, check_seed, reason, shown
from ..classifiers import build_classifier
from ..data.image_data import ImageData, normalise
from ..streams.randomness import bits_of, seeded
from ..weights import is_finite
from .recipe import DeploymentRecipe


@runtime_checkable
class Stream(Protocol):
    """What a classifier is trained on; see [`GeneratedStream`] and [`RealStream`]."""

    num_classes: int
    steps_per_epoch: int

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


class Judge(Protocol):
    """How the classifiers of a row are trained and scored; see `protocols.py`."""

    @property
    def recipe(self) -> DeploymentRecipe: ...

    def train(
        self, stream: Stream, classifier: str, test: ImageData, *, seed: int, augment: bool, progress: bool
    ) -> dict[str, Any]:
        """
        Trains a fresh classifier on a stream and scores it on `test`.

        Returns:
            JSON values: `accuracy` in [0, 1], and other figures where there are any.
        """


def train_classifier(
    stream: Stream,
    name: str,
    recipe: DeploymentRecipe,
    *,
    channels: int,
    size: int,
    seed: int,
    device: torch.device | str,
    augment: bool = True,
    progress: bool = False,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """
    Trains a fresh classifier on a stream.

    Args:
        stream: Gives `batches(epoch)` of images in [-1, 1] and labels, hard ones or probabilities.
        name (`str`): A classifier that [`build_classifier`] knows.
        recipe ([`DeploymentRecipe`]): How it is trained.
        channels (`int`), size (`int`): Of the images.
        seed (`int`): Seeds the weights, the crops and any dropout; with the stream it decides the result.
        device (`torch.device` or `str`): Where the classifier is trained.
        augment (`bool`, *optional*, defaults to `True`): Whether images are moved by [`random_crop`].
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar over the epochs.
        on_epoch (`Callable`, *optional*): Called after each epoch with its number, from 0, and the classifier in
            `eval()`; does not affect the result.

    Returns:
        The classifier after the last epoch, in `eval()`.

    Raises:
        ValueError: If an argument is not valid.
        FloatingPointError: If the weights become NaN or infinite.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"`stream` is {shown(stream)}; valid are a GeneratedStream, a RealStream and their like.")
    if not isinstance(recipe, DeploymentRecipe):
        raise ValueError(f"`recipe` is {shown(recipe)}; valid is a DeploymentRecipe.")
    check_seed(seed)
    check_flag("augment", augment)
    check_flag("progress", progress)
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(
            f"`on_epoch` is {shown(on_epoch)}; valid is a function of an epoch and a classifier, or None."
        )
    device, seed = _checked_device(device), int(seed)
    with seeded(bits_of(seed), device):
        classifier = build_classifier(name, stream.num_classes, channels, size)
        if device.type == "cpu" and name != "convnet3":
            # Up to a fifth less time (docs/performance.md); the group norm of ConvNet-3 is slow on that layout.
            classifier.to(memory_format=torch.channels_last)
        classifier.to(device).train()
        optimizer = torch.optim.SGD(
            classifier.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=recipe.learning_rate,
            # A single step has the rate of the first of two; a cycle of one would be over before it.
            total_steps=max(2, recipe.epochs * stream.steps_per_epoch),
            cycle_momentum=False,
        )
        rng = torch.Generator(device).manual_seed(bits_of(seed))
        for epoch in tqdm(range(recipe.epochs), desc=name, unit="epoch", leave=False, disable=not progress):
            for images, labels in stream.batches(epoch):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
                    logits = classifier(random_crop(images, rng) if augment else images)
                    # Soft labels already carry uncertainty, so they are not smoothed.
                    smoothing = recipe.label_smoothing if labels.ndim == 1 else 0.0
                    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
                loss.backward()
                optimizer.step()
                schedule.step()
            if on_epoch is not None:
                on_epoch(epoch, classifier.eval())
                classifier.train()
    # Scored all the same, such a classifier would put every image into the first class.
    if not is_finite(classifier):
        raise FloatingPointError(
            f"the weights of {name} (seed {seed}) became NaN or infinite in training; lower `learning_rate`, which is "
            f"{recipe.learning_rate:g}."
        )
    # Safetensors saves only ordinary strides.
    return classifier.to(memory_format=torch.contiguous_format).eval()


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device if device is not None else torch.device("")
    # PyTorch that was built without CUDA fails an assertion.
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"`device` is {shown(device)}, which cannot be used: {reason(error)}") from error


def random_crop(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """
    Moves each image by up to an eighth of its size in both directions, edges repeated.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, size, size)`): Any values.
        rng (`torch.Generator`): On the device of the images.
    """
    count, channels, size, _ = images.shape
    reach = max(1, size // 8)
    shifts = torch.randint(-reach, reach + 1, (2, count, 1), generator=rng, device=images.device)
    rows, columns = (torch.arange(size, device=images.device) + shifts).clamp(0, size - 1)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    # Indexing all four axes gives ordinary strides. Those of a permuted single channel also pass for channels-last,
    # which convolutions then follow, more slowly on a CPU.
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def evaluate_accuracy(classifier: nn.Module, data: ImageData, batch_size: int = 512) -> float:
    """
    The accuracy of a classifier on real images, in [0, 1]; it is scored in `eval()`.

    Args:
        classifier, data, batch_size: As in [`predict`].
    """
    return (predict(classifier, data, batch_size) == data.labels).sum().item() / len(data)


@torch.no_grad()
def predict(classifier: nn.Module, data: ImageData, batch_size: int = 512) -> torch.Tensor:
    """
    The predictions of a classifier in `eval()`.

    Args:
        classifier: Maps images in [-1, 1] to logits.
        data ([`ImageData`]): Real images.
        batch_size (`int`, *optional*, defaults to 512): Images per forward pass.

    Returns:
        `torch.Tensor` of shape `(len(data),)`: int64, on the device of the data's labels.

    Raises:
        ValueError: If an argument is not valid.
    """
    if not isinstance(classifier, nn.Module):
        raise ValueError(f"`classifier` is {shown(classifier)}; valid is a `torch.nn.Module`.")
    if not isinstance(data, ImageData) or len(data) == 0:
        raise ValueError(f"`data` is {shown(data)}; valid is an ImageData of one image or more.")
    check_integer("batch_size", batch_size, least=1)
    classifier.eval()
    batches = torch.arange(len(data), device=data.labels.device).split(batch_size)
    return torch.cat([classifier(normalise(data.batch(indices)[0])).argmax(dim=1) for indices in batches])
