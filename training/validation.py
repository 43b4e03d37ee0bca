"""
The validations of a run of `train_dim.py`: a classifier is trained for a short while on generated images and scored on
the part held out of the train split. All of them together take about a tenth of the operations of the training.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, stratified_order
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.streams.generated import GeneratedStream


# Of the operations of the training, for all validations together.
SHARE = 0.1
# Upper bounds: validations in a run, epochs of a classifier, images per class and epoch.
MOST_VALIDATIONS, MOST_EPOCHS, MOST_IPC = 8, 100, 10
# A classifier that sees fewer images, unless the most is less than twice as many, ranks generators too poorly: rather
# fewer of them are trained.
LEAST_IMAGES = 5000
# Held-out images that a classifier is scored on at least, where there are as many.
LEAST_SCORED = 1000


@dataclass(frozen=True)
class ValidationPlan:
    """
    When and how a run is validated.

    Args:
        steps (`int`): From one validation to the next; there is one at the end of each phase, too.
        epochs (`int`), ipc (`int`): Those of the classifier, and the images per class in each.
        images (`int`): Held-out images that it is scored on.
        times (`int`): Validations in the whole run.
        share (`float`): Operations of all of them, relative to those of the training.
    """

    steps: int
    epochs: int
    ipc: int
    images: int
    times: int
    share: float

    def __str__(self) -> str:
        times = f"{self.times} time{'s' * (self.times > 1)}"
        return (
            f"validation: {times}, {self.epochs:,} epochs of {self.ipc} images per class, scored on {self.images:,} "
            f"held-out images; {self.share:.0%} of the operations of the training"
        )


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions per image: of a training step, of a classifier's step, and of scoring it."""

    step: float
    generated: float
    scored: float


def count_operations(
    generator: DiMGenerator, discriminator: DiMDiscriminator, classifier: str, data: ImageData
) -> Operations:
    """
    Counts convolutions and products of forward passes; backward passes count twice.

    Penalties and the matching loss do not count, so that a run with them is validated for less than a tenth of it.
    """
    labels = torch.zeros(2, dtype=torch.long, device=generator.device)
    latents = torch.zeros(2, generator.config.latent_dim, device=generator.device)
    images = torch.zeros(2, data.channels, data.size, data.size)
    with torch.random.fork_rng(devices=[]):
        judge = build_classifier(classifier, data.num_classes, data.channels, data.size)
    # On copies and in `eval()`, so that no batch-norm statistic or spectral-norm vector changes.
    make = _forward(copy.deepcopy(generator), latents, labels)
    look = _forward(copy.deepcopy(discriminator), images.to(discriminator.device), labels.to(discriminator.device))
    judged = _forward(judge, images)
    # The discriminator sees two images forward and backward, and one forward and back to the image.
    return Operations(step=3 * make + 8 * look, generated=make + 3 * judged, scored=judged)


@torch.no_grad()
def _forward(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counted:
        network.eval()(*inputs)
    return counted.get_total_flops() / len(inputs[0])


def plan_validations(
    operations: Operations,
    *,
    images_trained: int,
    phases: tuple[int, int],
    num_classes: int,
    held_out: int,
    steps: int | None = None,
    settings: tuple[int, int, int] | None = None,
    again: int = 0,
) -> ValidationPlan:
    """
    As many validations as the share of the training allows, of as much as it allows; a function of its arguments only.

    Args:
        images_trained: Images that a process trains on in the whole run.
        phases: Steps of both phases.
        held_out: Images that there are to score on.
        steps: From one validation to the next, where that is given.
        settings: Epochs, images per class and images to score on, where those are given.
        again: Validations that come on top.
    """
    total, budget = sum(phases), SHARE * images_trained * operations.step

    def planned(count: int) -> ValidationPlan:
        interval = steps or math.ceil(total / count)
        times = len({*range(interval, total + 1, interval), *(end for end in (phases[0], total) if end)}) + again
        epochs, ipc, images = settings or affordable(budget / times)
        each = epochs * ipc * num_classes * operations.generated + images * operations.scored
        return ValidationPlan(interval, epochs, ipc, images, times, SHARE * times * each / budget)

    def affordable(each: float) -> tuple[int, int, int]:
        images = min(held_out, max(LEAST_SCORED, int(each / 4 / operations.scored)))
        per_class = int((each - images * operations.scored) / operations.generated / num_classes)
        ipc = min(max(per_class, 1), MOST_IPC)
        return min(max(per_class // ipc, 1), MOST_EPOCHS), ipc, images

    least = min(LEAST_IMAGES, MOST_EPOCHS * MOST_IPC * num_classes // 2)
    for count in (MOST_VALIDATIONS, 4, 2):
        plan = planned(count)
        # Given settings leave nothing to choose.
        enough = settings is not None or plan.epochs * plan.ipc * num_classes >= least
        if steps or (enough and plan.share <= 1.01 * SHARE):
            return plan
    return planned(1)


class ValidationInterrupted(Exception):
    """A signal came during validation, which takes too long to wait for."""


class Heeding:
    """A stream that raises [`ValidationInterrupted`] before its next batch once a signal has come."""

    def __init__(self, stream: GeneratedStream, stop: Callable[[], bool]):
        self.stream, self.stop = stream, stop
        self.num_classes, self.steps_per_epoch = stream.num_classes, stream.steps_per_epoch

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.stream.batches(epoch):
            raise_if(self.stop)
            yield batch


def raise_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise ValidationInterrupted


def validate(
    generator: DiMGenerator,
    validation: ImageData,
    plan: ValidationPlan,
    args: argparse.Namespace,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> float:
    """
    Accuracy on held-out real images of a classifier trained for a short while on generated ones.

    Raises:
        ValidationInterrupted: Within a step of a classifier, or a batch that it is scored on, once `stop()` is true.
    """
    # The classifier needs no loss scaling: where the run is in fp16 it is trained in float32.
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "no"
    recipe = DeploymentRecipe(epochs=plan.epochs, mixed_precision=precision)
    stream = GeneratedStream(generator, plan.ipc, seed=args.seed, batch_size=recipe.batch_size)
    classifier = train_classifier(
        Heeding(stream, stop),
        args.validation_classifier,
        recipe,
        channels=validation.channels,
        size=validation.size,
        seed=args.seed,
        device=validation.labels.device,
    )
    classifier.register_forward_pre_hook(lambda *_: raise_if(stop))
    return evaluate_accuracy(classifier, validation)


def scored_part(held_out: ImageData, plan: ValidationPlan, seed: int) -> ImageData:
    """The images that validations are scored on: all that are held out, or a stratified part."""
    if plan.images == len(held_out):
        return held_out
    order = stratified_order(held_out.labels.cpu(), seed)[: plan.images]
    return held_out.select(order.to(held_out.labels.device))


def recorded_settings(progress: dict[str, Any], held_out: int) -> tuple[int, int, int]:
    """Epochs, images per class and images to score on of the validations that a checkpoint has behind it."""
    found = progress["validation"]
    return progress["options"]["validation_epochs"], found["ipc"], min(found["images"], held_out)


@torch.no_grad()
def makes_finite_images(generator: DiMGenerator) -> bool:
    """Whether the images of a generator in `eval()`, one of each class up to 64, are numbers."""
    config = generator.config
    labels = torch.arange(min(64, config.num_classes), device=generator.device)
    latents = torch.randn(len(labels), config.latent_dim, generator=torch.Generator().manual_seed(0))
    return bool(generator(latents.to(generator.device), labels).sample.isfinite().all())
