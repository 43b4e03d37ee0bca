"""What an attacker measures of candidate images on a shared pipeline; larger values speak for a member."""

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..data.image_data import normalise
from ..evaluation.coverage import last_features
from ..models import DiMDiscriminator
from ..streams.randomness import latents_at
from .copies import nearest_in_class


BATCH_SIZE = 256
# Adam's rate for latents.
LATENT_RATE = 0.05


@dataclass(frozen=True)
class Made:
    """
    Generated images, equally many of each class.

    Args:
        pixels (`torch.Tensor` of shape `(n, channels, size, size)`): uint8, on the CPU.
        labels (`torch.Tensor` of shape `(n,)`): int64.
        latents (`torch.Tensor` of shape `(n, latent_dim)`): float32.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    latents: torch.Tensor


@torch.no_grad()
def make_images(pipeline: DiffusionPipeline, per_class: int, seed: int) -> Made:
    """Generates `per_class` images of each class."""
    config, generator = pipeline.generator.config, pipeline.generator.eval()
    labels = torch.arange(config.num_classes).repeat_interleave(per_class)
    indices = torch.arange(per_class).repeat(config.num_classes)
    latents = latents_at(seed, 0, labels, indices, config.latent_dim)
    pixels = []
    for latent, label in zip(latents.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        images = generator(latent.to(generator.device, generator.dtype), label.to(generator.device)).sample
        pixels.append(((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return Made(torch.cat(pixels), labels, latents)


def pixel_rows(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as rows of float32, in grey levels."""
    return images.flatten(1).float()


def feature_rows(classifier: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 images as rows of the last features of a classifier, float32, on the CPU."""
    device = next(classifier.parameters()).device
    return last_features(classifier, (normalise(batch.to(device)) for batch in images.split(BATCH_SIZE)))


@torch.no_grad()
def confidence(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The logit of the probability of each image's label, log(p / (1 - p)) (arXiv 2112.03570, section VI-B), float32 of
    shape `(n,)`, computed from the logits so that it does not overflow.

    Args:
        classifier: In `eval()`; maps images in [-1, 1] to logits, or is a [`DiMLabeler`].
    """
    device = next(classifier.parameters()).device
    found = []
    for image, label in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        output = classifier(normalise(image.to(device)))
        logits = (output if isinstance(output, torch.Tensor) else output.logits).double().cpu()
        own = logits.gather(1, label[:, None])
        others = logits.scatter(1, label[:, None], -torch.inf)
        found.append((own.squeeze(1) - others.logsumexp(dim=1)).float())
    return torch.cat(found)


def inversion(
    pipeline: DiffusionPipeline, images: torch.Tensor, labels: torch.Tensor, starts: torch.Tensor, steps: int
) -> torch.Tensor:
    """
    How closely a latent that is optimised for it reproduces each image: the smallest root mean square difference in
    grey levels, float32 of shape `(n,)`.

    Args:
        starts (`torch.Tensor` of shape `(n, latent_dim)`): Where the latents begin.
        steps (`int`): Steps of Adam.
    """
    generator = pipeline.generator.eval()
    asked = [parameter.requires_grad for parameter in generator.parameters()]
    generator.requires_grad_(False)
    found = []
    for wanted, label, start in zip(*(each.split(BATCH_SIZE) for each in (images, labels, starts)), strict=True):
        target, label = normalise(wanted.to(generator.device)), label.to(generator.device)
        latents = start.to(generator.device).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([latents], lr=LATENT_RATE)
        best = torch.full((len(target),), torch.inf, device=generator.device)
        for step in range(steps + 1):
            with torch.enable_grad():
                made = generator(latents.to(generator.dtype), label).sample.float()
                error = (made - target).square().flatten(1).mean(dim=1)
            best = torch.minimum(best, error.detach())
            if step < steps:
                optimizer.zero_grad()
                error.sum().backward()
                optimizer.step()
        found.append((best.sqrt() * 127.5).cpu())
    for parameter, value in zip(generator.parameters(), asked, strict=True):
        parameter.requires_grad_(value)
    return torch.cat(found)


@torch.no_grad()
def realism(discriminator: DiMDiscriminator, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The discriminator's logit of each image, float32 of shape `(n,)`."""
    device = next(discriminator.parameters()).device
    discriminator.eval()
    found = torch.zeros(len(images))
    # What it says of an image may depend on the others of a batch, so members and non-members are mixed.
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(64):
        found[rows] = discriminator(normalise(images[rows].to(device)), labels[rows].to(device)).logits.float().cpu()
    return found


def measure(
    pipeline: DiffusionPipeline,
    classifier: nn.Module,
    features_of: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    per_class: int,
    inversion_steps: int,
    seed: int,
    discriminator: DiMDiscriminator | None = None,
) -> dict[str, torch.Tensor]:
    """
    All signals of candidate images on one pipeline.

    Args:
        classifier: Trained on the images of this pipeline.
        features_of: The network of the features, the same for all pipelines.
        images (`torch.Tensor` of shape `(n, channels, size, size)`), labels (`torch.Tensor` of shape `(n,)`):
            The candidates, uint8 and int64, on the CPU.
        per_class (`int`): Generated images of each class that candidates are compared with.
        inversion_steps (`int`): See [`inversion`].
        seed (`int`): Seeds the generated images.
        discriminator: That of the pipeline, where one is shared.

    Returns:
        For each attack of `ATTACKS` that there is something for, float32 of shape `(n,)`.
    """
    made = make_images(pipeline, per_class, seed)
    nearest, distance = nearest_in_class(pixel_rows(images), labels, pixel_rows(made.pixels), made.labels)
    _, apart = nearest_in_class(
        feature_rows(features_of, images), labels, feature_rows(features_of, made.pixels), made.labels
    )
    signals = {
        "classifier": confidence(classifier, images, labels),
        # Ratios of distances matter, and a distance may be 0.
        "nearest_pixels": -(distance + 1e-3).log(),
        "nearest_features": -(apart + 1e-6).log(),
        "inversion": -(inversion(pipeline, images, labels, made.latents[nearest], inversion_steps) + 1e-3).log(),
    }
    if pipeline.labeler is not None:
        signals["labeler"] = confidence(pipeline.labeler, images, labels)
    if discriminator is not None:
        signals["discriminator"] = realism(discriminator, images, labels)
    return signals
