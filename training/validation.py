"""The validations of a run of `train_dim.py`: a short deployment, scored on the part held out of the train split."""

import argparse
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from dim_hf.data import ImageData
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream


# Images per class and epoch of the classifier of a validation.
VALIDATION_IPC = 10


class ValidationInterrupted(Exception):
    """A signal came during validation, which takes too long to wait for."""


def validate(
    generator: DiMGenerator,
    validation: ImageData,
    args: argparse.Namespace,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> float:
    """Accuracy on held-out real images of a classifier trained for a short while on generated ones."""

    def leave(epoch: int, classifier: nn.Module) -> None:
        # Other processes would not know of it.
        if accelerator.num_processes == 1 and stop():
            raise ValidationInterrupted

    # The classifier needs no loss scaling: where the run is in fp16 it is trained in float32.
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "no"
    recipe = DeploymentRecipe(epochs=args.validation_epochs, mixed_precision=precision)
    stream = GeneratedStream(generator, VALIDATION_IPC, seed=args.seed, batch_size=recipe.batch_size)
    classifier = train_classifier(
        stream,
        args.validation_classifier,
        recipe,
        channels=validation.channels,
        size=validation.size,
        seed=args.seed,
        device=validation.labels.device,
        on_epoch=leave,
    )
    return evaluate_accuracy(classifier, validation)


@torch.no_grad()
def makes_finite_images(generator: DiMGenerator) -> bool:
    """Whether the images of a generator in `eval()`, one of each class up to 64, are numbers."""
    config = generator.config
    labels = torch.arange(min(64, config.num_classes), device=generator.device)
    latents = torch.randn(len(labels), config.latent_dim, generator=torch.Generator().manual_seed(0))
    return bool(generator(latents.to(generator.device), labels).sample.isfinite().all())
