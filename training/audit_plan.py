"""How many shadow runs an audit trains, and for how many steps: what it costs, told before it starts."""

import argparse
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from audit_inputs import Audited
from audit_shadows import add_teacher, save_half, train_shadow, train_words

from dim_hf.audit.candidates import Union, half
from dim_hf.audit.copies import nearest_rows
from dim_hf.audit.signals import BATCH_SIZE, inversion
from dim_hf.evaluation.judges import train_classifier
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.files import read_json_lines
from dim_hf.streams.generated import GeneratedStream


# Runs of fewer steps than the pipeline's rather than fewer shadow runs than these; then fewer runs.
ENOUGH, MOST, LEAST = 8, 64, 2
LEAST_SHARE = 0.25
# Images per class and epoch of the classifiers.
IPC = 10
# Training steps that are timed, those of one record of the log: R1 comes every 16 steps.
TIMED = 16
# Of the training steps' time, for validations and pictures.
OVERHEAD = 1.15


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step of a shadow run, of all that is measured of a run, and of its start and end."""

    step: float
    measuring: float
    beginning: float


@dataclass(frozen=True)
class AuditPlan:
    """
    Args:
        shadows (`int`): Shadow runs, an even number.
        share (`float`): Their steps, relative to the run's.
        seconds (`float`): Of all of them, in one process.
    """

    shadows: int
    share: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"membership: {self.shadows} shadow runs of {100 * self.share:.0f} % of the run's steps, about "
            f"{minutes(self.seconds)} of one process; others with the same command share them"
        )


def minutes(seconds: float) -> str:
    count = max(1, math.ceil(seconds / 60))
    return f"{count:,} minute{'s' * (count > 1)}"


def choose(budget: float, speed: Speed, steps: int) -> AuditPlan:
    """
    As many shadow runs as a budget allows, up to 64; below eight of them shorter ones, down to a quarter of the steps.

    Args:
        budget (`float`): Seconds.
        steps (`int`): Training steps of the run that is audited.

    Raises:
        ValueError: If it does not allow two.
    """
    # The pipeline itself is measured, too.
    available, fixed, training = budget - speed.measuring, speed.measuring + speed.beginning, speed.step * steps
    count = 2 * int(available / (fixed + training) / 2)
    share = 1.0
    if count < ENOUGH:
        count = min(ENOUGH, 2 * int(available / (fixed + LEAST_SHARE * training) / 2))
        share = min(1.0, (available / count - fixed) / training) if count >= LEAST else 0.0
    if count < LEAST:
        needed = speed.measuring + LEAST * (fixed + LEAST_SHARE * training)
        raise ValueError(
            f"`--budget` is {budget / 60:g} minutes, and two shadow runs of a quarter of the steps take about "
            f"{math.ceil(needed / 60)}; valid is that or more, or --tests copies."
        )
    count = min(count, MOST)
    return AuditPlan(count, share, speed.measuring + count * (fixed + share * training))


def extend(recorded: dict[str, Any], budget: float, steps: int) -> AuditPlan:
    """The plan of an audit that has begun: runs of as many steps as before, and not fewer of them."""
    speed, share = Speed(**recorded["speed"]), recorded["share"]
    each = speed.measuring + speed.beginning + share * speed.step * steps
    count = 2 * int((budget - speed.measuring) / each / 2)
    count = max(recorded["shadows"], min(count, MOST))
    return AuditPlan(count, share, speed.measuring + count * each)


def measure_speed(args: argparse.Namespace, audited: Audited, union: Union, count: int, folder: Path) -> Speed:
    """Times some steps of everything, in a folder that is removed afterwards."""
    options = audited.options
    assert options is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    save_half(union.data.select(half(union, 0, args.seed)), folder / "images.parquet")
    words = train_words(options, folder, adversarial=3 * TIMED, matching=0, seed=args.seed)
    # A private run has no validation.
    words += [] if options.get("privacy") else ["--validation_epochs", "1"]
    train_shadow([*words, "--logging_steps", str(TIMED)], folder)
    total = time.perf_counter() - began
    seconds = {record["step"]: record["seconds"] for record in read_json_lines(folder / "run" / "metrics.jsonl")}
    step = (seconds[2 * TIMED] - seconds[TIMED]) / TIMED
    beginning = total - 3 * TIMED * step
    if options_match_steps(options, len(audited.train)):
        # A step with matching takes at most as long again.
        step *= 2
        beginning += time_pool(options, folder, args.seed)
    if audited.pipeline.labeler is not None:
        one, two = (time_teacher(folder, audited.teacher | {"num_train_epochs": epochs}) for epochs in (1, 2))
        beginning += one + (audited.teacher["num_train_epochs"] - 1) * max(0.0, two - one)
    measuring = time_measuring(args, audited, count)
    shutil.rmtree(folder)
    return Speed(OVERHEAD * step, measuring, max(0.0, beginning))


def time_pool(options: dict[str, Any], folder: Path, seed: int) -> float:
    """Seconds to train the pool of a shadow run, which is its own, from two short ones."""
    seconds = []
    for steps in (TIMED, 3 * TIMED):
        part = folder / f"pool_of_{steps}"
        part.mkdir()
        shutil.copy(folder / "images.parquet", part)
        words = train_words(
            options | {"pool_steps": steps, "pool_snapshots": 1}, part, adversarial=1, matching=1, seed=seed
        )
        began = time.perf_counter()
        train_shadow([*words, "--validation_epochs", "1"], part)
        seconds.append(time.perf_counter() - began)
    return max(0.0, seconds[1] - seconds[0]) / (2 * TIMED) * options["pool_steps"]


def time_teacher(folder: Path, recipe: dict[str, Any]) -> float:
    """Seconds to train and save the teacher of a shadow run."""
    began = time.perf_counter()
    add_teacher(folder, recipe)
    return time.perf_counter() - began


def time_measuring(args: argparse.Namespace, audited: Audited, count: int) -> float:
    """Seconds to train a classifier and to optimise the latents of `count` candidates, from a few steps of each."""
    epoch = time_epoch(args, audited)
    generator = audited.pipeline.generator
    batch = min(BATCH_SIZE, count)
    labels = torch.zeros(batch, dtype=torch.int64)
    images = audited.train.batch(torch.zeros(batch, dtype=torch.int64, device=audited.train.labels.device))[0].cpu()
    began = time.perf_counter()
    inversion(audited.pipeline, images, labels, torch.zeros(batch, generator.config.latent_dim), steps=4)
    step = (time.perf_counter() - began) / 5
    return args.epochs * epoch + math.ceil(count / batch) * (args.inversion_steps + 1) * step


def time_epoch(args: argparse.Namespace, audited: Audited) -> float:
    """Seconds of an epoch of the classifier."""
    began = time.perf_counter()
    fresh_classifier(args, audited.pipeline, epochs=2)
    return (time.perf_counter() - began) / 2


def copies_seconds(args: argparse.Namespace, audited: Audited) -> float:
    """Seconds to train the classifier and to compare all images of each class in pixels, as often as is done."""
    train, held_out = audited.train, audited.held_out
    compared = args.samples * train.num_classes * (len(train) + len(held_out))
    # Held-out images, and the training images that are someone's neighbours, are compared with training images, too.
    compared += 2 * min(len(held_out) + args.samples * train.num_classes, len(train)) * len(train)
    rows = torch.zeros(256, train.stored[0].numel())
    nearest_rows(rows, rows)
    began = time.perf_counter()
    nearest_rows(rows, rows)
    each = (time.perf_counter() - began) / len(rows) ** 2
    # Features take a forward pass of each image, a third of a training step, and have about as many dimensions.
    passes = (len(train) + len(held_out)) / (3 * IPC * train.num_classes)
    return (args.epochs + passes) * time_epoch(args, audited) + 2 * compared * each / train.num_classes


def fresh_classifier(args: argparse.Namespace, pipeline: Any, epochs: int) -> torch.nn.Module:
    """A classifier that is trained on fresh images of a pipeline."""
    recipe = DeploymentRecipe(epochs=epochs)
    config = pipeline.generator.config
    return train_classifier(
        GeneratedStream(pipeline, IPC, args.seed, recipe.batch_size),
        args.classifier,
        recipe,
        channels=config.out_channels,
        size=config.sample_size,
        seed=args.seed,
        device=pipeline.generator.device,
    )


def options_match_steps(options: dict[str, Any], num_train: int) -> int:
    """Steps of phase 2 of a run."""
    if options["max_match_steps"] is not None:
        return options["max_match_steps"]
    batch = options["train_batch_size"] * options["gradient_accumulation_steps"] * options["num_processes"]
    return options["num_match_epochs"] * math.ceil(num_train / batch)


def as_json(plan: AuditPlan, speed: Speed) -> dict[str, Any]:
    return asdict(plan) | {"speed": asdict(speed)}
