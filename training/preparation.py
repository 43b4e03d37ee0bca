"""The stages of `train_dim.py` that come before any file is written: checks, data, networks and the plan."""

import argparse
import copy
import json
import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from checks import (
    build_networks,
    check_accelerator,
    check_args,
    check_batch_memory,
    check_classifiers,
    check_precision,
    check_rounded_steps,
    read_config,
)
from command_line import check_processes
from continuation import shared
from presets import default_augmentation, doublings, network_configs
from run_folder import check_folder, is_branch, refuse_private_run
from torch import nn
from validation import MOST_IPC, ValidationPlan, count_operations, plan_validations, recorded_settings

from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.data.folders import refuse_data_folder
from dim_hf.distillation.checkpointing import find_checkpoint
from dim_hf.distillation.processes import check_same
from dim_hf.machine import bfloat16_unit, check_bfloat16, choose_precision
from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.pipelines.pipeline_dim import checked_names


@dataclass(frozen=True)
class Start:
    """
    What is known before any data is read.

    Args:
        configs: Entries of the generator's and the discriminator's config that the user sets.
        checkpoint: The checkpoint to resume from, if any.
        branched: Whether the checkpoint belongs to another folder.
        goes_on: Whether the run continues in its own folder.
    """

    accelerator: Accelerator
    output_dir: Path
    configs: tuple[dict[str, Any], dict[str, Any]]
    checkpoint: Path | None
    branched: bool
    goes_on: bool


@dataclass(frozen=True)
class Data:
    """The training part and the held-out part, on the device, and the fingerprint of the whole data set."""

    train: ImageData
    validation: ImageData
    fingerprint: str


@dataclass
class Networks:
    """Both networks and their optimisers, the averaged generator, and the average that validated best so far."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Any
    discriminator_optimizer: Any
    ema_generator: DiMGenerator
    best_generator: DiMGenerator
    # The first two without Accelerate's wrappers, and the configs they were built from.
    plain_generator: DiMGenerator
    plain_discriminator: DiMDiscriminator
    configs: dict[str, dict[str, Any]]
    # The teacher in the folder of a run that goes on.
    labeler: DiMLabeler | None = None

    @property
    def saved(self) -> dict[str, Any]:
        """The networks in a checkpoint, by subfolder."""
        return {
            "generator": self.plain_generator,
            "discriminator": self.plain_discriminator,
            "ema_generator": self.ema_generator,
        }


@dataclass(frozen=True)
class Plan:
    """How long a run takes, in optimiser steps of `global_batch_size` images, and how it is validated."""

    global_batch_size: int
    adversarial_steps: int
    match_steps: int
    validation: ValidationPlan
    # The step from which the generator's weights are rounded as they will be stored; `None`: never.
    rounded_from: int | None

    @property
    def total_steps(self) -> int:
        return self.adversarial_steps + self.match_steps


def check(args: argparse.Namespace) -> Start:
    check_args(args)
    configs = (
        read_config("generator_config", args.generator_config, DiMGenerator),
        read_config("discriminator_config", args.discriminator_config, DiMDiscriminator),
    )
    check_precision(args.mixed_precision)
    output_dir, resume = Path(args.output_dir), args.resume_from_checkpoint
    checkpoint, damaged = find_checkpoint(output_dir, resume) if resume else (None, [])
    refuse_private_run(output_dir, checkpoint)
    begun = None
    if checkpoint:
        begun = json.loads((checkpoint / "progress.json").read_text())["options"].get("mixed_precision")
    precision, chosen = choose_precision(args.mixed_precision, begun, bfloat16_unit())
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir / "logs",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # Processes wait for the first one to decode, to train a pool and to validate, longer than usual.
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
        ],
    )
    check_processes(accelerator.num_processes)
    check_accelerator(accelerator, args)
    check_same(accelerator, shared(args) | {"resume_from_checkpoint": checkpoint and checkpoint.name})
    branched = is_branch(checkpoint, output_dir)
    goes_on = bool(resume) and not branched
    if accelerator.is_main_process:
        if checkpoint is None or branched:
            refuse_data_folder(output_dir, args.dataset_name, args.train_data_dir)
        check_folder(output_dir, checkpoint, goes_on)
        for reason in damaged:
            print(f"{reason}; going on from {checkpoint}.")
        if resume and checkpoint is None:
            print(f"`--output_dir` {output_dir} has no checkpoint yet; the run begins.")
        check_bfloat16(accelerator.mixed_precision, accelerator.device)
        if chosen:
            print(chosen)
    return Start(accelerator, output_dir, configs, checkpoint, branched, goes_on)


def read_data(args: argparse.Namespace, accelerator: Accelerator) -> Data:
    with accelerator.main_process_first():
        data = load_image_data(
            args.dataset_name,
            args.train_split,
            dataset_config_name=args.dataset_config_name,
            train_data_dir=args.train_data_dir,
            image_column=args.image_column,
            label_column=args.label_column,
            resolution=args.resolution,
            cache_dir=args.cache_dir,
            num_workers=args.dataloader_num_workers,
            max_samples=args.max_train_samples,
            revision=args.revision,
            # One of them is held out.
            least_per_class=2,
        )
    accelerator.print(data.describe())
    # Here, and not when the pipeline is saved.
    checked_names(data.class_names, data.num_classes)
    doublings(data.size)
    check_classifiers(args, data)
    check_batch_memory(args.train_batch_size, data, accelerator.device)
    train, validation = (part.to(accelerator.device) for part in holdout(data, args.validation_fraction, args.seed))
    if accelerator.num_processes > len(train):
        raise ValueError(
            f"accelerate's `--num_processes` is {accelerator.num_processes}, and there are {len(train)} images to "
            f"train on; valid are at most as many processes as images."
        )
    if args.augmentation is None:
        args.augmentation = default_augmentation(len(train), train.channels)
    return Data(train, validation, data.fingerprint)


def make_networks(args: argparse.Namespace, start: Start, data: Data) -> Networks:
    # The initial weights are the first draw from the global generator.
    set_seed(args.seed)
    images, device = data.train, start.accelerator.device
    generator_config, discriminator_config = network_configs(
        args.preset, images.size, images.channels, images.num_classes
    )
    generator_config |= start.configs[0]
    discriminator_config |= {"auxiliary": args.class_loss_weight > 0} | start.configs[1]
    generator, discriminator = build_networks(args, generator_config, discriminator_config, images, device)
    if device.type == "cpu":
        # A step takes an eighth less time (docs/performance.md). Saved weights have ordinary strides.
        generator.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
    ema_generator = copy.deepcopy(generator).to(device).eval().requires_grad_(False)
    betas = (args.adam_beta1, args.adam_beta2)
    return Networks(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), lr=args.learning_rate, betas=betas),
        torch.optim.Adam(discriminator.parameters(), lr=args.discr_learning_rate, betas=betas),
        ema_generator,
        copy.deepcopy(ema_generator),
        generator,
        discriminator,
        {"generator_config": generator_config, "discriminator_config": discriminator_config},
    )


def make_plan(args: argparse.Namespace, start: Start, data: Data, networks: Networks) -> Plan:
    images_per_process = args.train_batch_size * args.gradient_accumulation_steps
    global_batch_size = images_per_process * start.accelerator.num_processes
    steps_per_epoch = math.ceil(len(data.train) / global_batch_size)
    adversarial_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    match_steps = args.num_match_epochs * steps_per_epoch if args.max_match_steps is None else args.max_match_steps
    check_rounded_steps(args, adversarial_steps + match_steps)
    rounded_from = adversarial_steps + match_steps - args.rounded_steps if args.rounded_steps else None
    held_out, settings = len(data.validation), None
    if start.checkpoint:
        # Scores are compared, so their classifiers must be trained alike, however long the run is now.
        settings = recorded_settings(json.loads((start.checkpoint / "progress.json").read_text()), held_out)
    if args.validation_epochs and (start.branched or settings is None or settings[0] != args.validation_epochs):
        settings = (args.validation_epochs, MOST_IPC, held_out)
    validation = plan_validations(
        count_operations(networks.ema_generator, networks.plain_discriminator, args.validation_classifier, data.train),
        images_trained=(adversarial_steps + match_steps) * images_per_process,
        phases=(adversarial_steps, match_steps),
        num_classes=data.train.num_classes,
        held_out=held_out,
        steps=args.validation_steps,
        settings=settings,
        again=args.storage not in (None, "float32"),
    )
    return Plan(global_batch_size, adversarial_steps, match_steps, validation, rounded_from)
