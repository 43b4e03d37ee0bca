"""One step of `train_dim.py`: what it is made of, the discriminator's update and the generator's."""

import argparse
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from preparation import Networks, Plan
from torch import nn

from dim_hf.data import ImageData, normalise
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.averages import RunningMeans
from dim_hf.distillation.losses import (
    R1_INTERVAL,
    class_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    matching_loss,
    r1_penalty,
    wasserstein_discriminator_loss,
)
from dim_hf.distillation.processes import gather
from dim_hf.distillation.rounding import rounded_weights
from dim_hf.streams.randomness import ShuffledOrder


@dataclass
class Batch:
    """What a process sees at once: its part of a step's images, or one of its parts with gradient accumulation."""

    images: torch.Tensor
    labels: torch.Tensor
    latents: torch.Tensor
    # Weights of the gradient penalty's points.
    mix: torch.Tensor | None
    fake_images: torch.Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """
    What is random in a step, a function of the seed and the step only. All processes draw the same for the whole
    global batch, so that it does not matter how it is divided among processes and accumulated batches.
    """

    batches: list[Batch]
    augment: Callable[[torch.Tensor], torch.Tensor]
    classifier: nn.Module | None


class TrainingStep:
    """
    Takes the steps of a run.

    Args:
        images: The training images.
        pool: The networks that a matching loss draws from.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        images: ImageData,
        networks: Networks,
        plan: Plan,
        pool: Sequence[nn.Module],
    ):
        self.args, self.accelerator, self.images, self.networks = args, accelerator, images, networks
        self.plan, self.pool = plan, pool
        self.order = ShuffledOrder(len(images), args.seed, accelerator.device)
        self.noise = torch.Generator(accelerator.device)
        self.gather = gather if accelerator.num_processes > 1 else lambda values: values

    def take(self, step: int, means: RunningMeans) -> None:
        """Updates both networks, and adds the losses of step number `step`, from 0, to the means."""
        args, plan, networks = self.args, self.plan, self.networks
        matching = step >= plan.adversarial_steps
        set_rate(networks.generator_optimizer, args.match_learning_rate if matching else args.learning_rate)
        set_rate(networks.discriminator_optimizer, args.match_learning_rate if matching else args.discr_learning_rate)
        draws = self.draw(step, matching and step % args.match_interval == 0)
        rounding: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if plan.rounded_from is not None and step >= plan.rounded_from:
            rounding = rounded_weights(networks.plain_generator, args.storage)
        with rounding:
            self.train_discriminator(draws, means, penalty=args.r1_weight and step % R1_INTERVAL == 0)
            networks.plain_discriminator.requires_grad_(False)
            self.train_generator(draws, means)
            networks.plain_discriminator.requires_grad_(True)
        networks.generator_optimizer.step()
        networks.generator_optimizer.zero_grad()

    def draw(self, step: int, matched: bool) -> Draws:
        args, accelerator, count = self.args, self.accelerator, self.plan.global_batch_size
        # Of process 0: what one process saw before the draws of several were parts of one.
        rng = random.Random(f"{args.seed}/{step}/0")
        self.noise.manual_seed(rng.getrandbits(63))
        size = self.networks.plain_generator.config.latent_dim
        latents = torch.randn(count, size, generator=self.noise, device=accelerator.device)
        mix = None
        if args.adversarial_loss == "wgan-gp":
            mix = torch.rand(count, 1, 1, 1, generator=self.noise, device=accelerator.device)
        augment = draw_augmentation(args.augmentation, self.images.size, rng)
        classifier = rng.choice(self.pool) if matched else None
        batches = []
        for number in range(args.gradient_accumulation_steps):
            start = (number * accelerator.num_processes + accelerator.process_index) * args.train_batch_size
            own = slice(start, start + args.train_batch_size)
            pixels, labels = self.images.batch(self.order.take(step * count + start, args.train_batch_size))
            batches.append(Batch(normalise(pixels), labels, latents[own], None if mix is None else mix[own]))
        return Draws(batches, augment, classifier)

    def train_discriminator(self, draws: Draws, means: RunningMeans, penalty: bool) -> None:
        args, accelerator, networks, augment = self.args, self.accelerator, self.networks, draws.augment
        for batch in draws.batches:
            labels = batch.labels

            def critic(images: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                return networks.plain_discriminator(images, labels).logits

            losses = {}
            # The graph of a single batch serves the generator's update too; those of several would not fit in memory.
            with torch.set_grad_enabled(len(draws.batches) == 1):
                batch.fake_images = networks.generator(batch.latents, labels).sample
            with accelerator.accumulate(networks.discriminator):
                critic_images = torch.cat([augment(batch.images), augment(batch.fake_images.detach())])
                output = networks.discriminator(critic_images, labels.repeat(2), num_batches=2)
                real_logits, fake_logits = output.logits.float().chunk(2)
                if batch.mix is None:
                    losses["discriminator"] = hinge_discriminator_loss(real_logits, fake_logits)
                else:
                    real, fake = critic_images.chunk(2)
                    losses["discriminator"] = wasserstein_discriminator_loss(real_logits, fake_logits) + 10 * (
                        gradient_penalty(critic, real, fake, batch.mix)
                    )
                total_loss = losses["discriminator"]
                if args.class_loss_weight:
                    losses["class_real"] = class_loss(output.class_logits.float().chunk(2)[0], labels)
                    total_loss = total_loss + args.class_loss_weight * losses["class_real"]
                if penalty:
                    losses["r1"] = r1_penalty(critic, augment(batch.images))
                    total_loss = total_loss + args.r1_weight * R1_INTERVAL * losses["r1"]
                accelerator.backward(total_loss)
            means.add(losses)
        networks.discriminator_optimizer.step()
        networks.discriminator_optimizer.zero_grad()

    def train_generator(self, draws: Draws, means: RunningMeans) -> None:
        """Judged by the discriminator as it is after its own update with all batches of the step."""
        args, accelerator, networks, augment = self.args, self.accelerator, self.networks, draws.augment
        for batch in draws.batches:
            labels, losses = batch.labels, {}
            with accelerator.accumulate(networks.generator):
                fake_images = batch.fake_images
                if fake_images is None or not fake_images.requires_grad:
                    fake_images = networks.generator(batch.latents, labels).sample
                output = networks.plain_discriminator(augment(fake_images), labels)
                losses["generator"] = generator_loss(output.logits.float())
                total_loss = losses["generator"]
                if args.class_loss_weight:
                    losses["class_fake"] = class_loss(output.class_logits.float(), labels)
                    total_loss = total_loss + args.class_loss_weight * losses["class_fake"]
                if draws.classifier is not None:
                    with accelerator.autocast():
                        losses["matching"] = matching_loss(
                            args.match_loss,
                            draws.classifier,
                            augment(batch.images),
                            augment(fake_images),
                            labels,
                            self.gather,
                        )
                    total_loss = total_loss + losses["matching"]
                accelerator.backward(total_loss)
            means.add(losses)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
