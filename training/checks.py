"""What `train_dim.py` refuses before any work: invalid settings, network configs, trackers and precisions."""

import argparse
import copy
import inspect
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DynamoBackend, LoggerType
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from presets import doublings

from dim_hf.classifiers import check_classifier
from dim_hf.data import ImageData
from dim_hf.data.image_data import free_memory
from dim_hf.distillation.losses import FEATURE_LOSSES
from dim_hf.hub.push import check_token
from dim_hf.messages import listed
from dim_hf.models import DiMDiscriminator, DiMGenerator


# No sensible network has larger numbers in its config; the number of weights is checked separately.
MOST_IN_CONFIG = 2**16


def check_args(args: argparse.Namespace) -> None:
    """Refuses settings that no data set could make valid."""
    if args.resolution is not None:
        doublings(args.resolution)
    if args.max_train_steps and args.max_match_steps is not None:
        check_rounded_steps(args, args.max_train_steps + args.max_match_steps)
    check_classifiers(args)
    check_report_to(args.report_to)
    check_hub(args)


def check_rounded_steps(args: argparse.Namespace, total_steps: int) -> None:
    if args.rounded_steps > total_steps:
        raise ValueError(
            f"`--rounded_steps` is {args.rounded_steps:,}; valid are 0 to {total_steps:,}, the steps of the run."
        )


def check_classifiers(args: argparse.Namespace, data: ImageData | None = None) -> None:
    """Refuses classifiers by their names only, or, where the data is known, by what images they take."""
    shape = (data.channels, data.size) if data else ()
    features = bool(FEATURE_LOSSES.keys() & args.match_loss.keys())
    names = [("pool", entry.classifier, features) for entry in args.pool]
    for flag, name, with_features in [*names, ("validation_classifier", args.validation_classifier, False)]:
        try:
            check_classifier(name, *shape, features=with_features)
        except ValueError as error:
            raise ValueError(f"`--{flag}`: {error}") from error


def check_report_to(tracker: str) -> None:
    """Refuses a tracker that accelerate does not know or that is not installed; accelerate would go on without one."""
    installed = sorted(str(each) for each in get_available_trackers())
    if tracker in ("none", "all", *installed):
        return
    known = sorted(str(each) for each in LoggerType.list() if str(each) != "all")
    problem = "a tracker that is not installed" if tracker in known else "not a tracker that accelerate knows"
    raise ValueError(
        f"`--report_to` {listed([repr(tracker)])} is {problem}; valid are {', '.join(installed)} (installed), all and "
        f"none."
    )


def check_hub(args: argparse.Namespace) -> None:
    """Refuses a push that cannot succeed, as far as that is known without asking the Hub."""
    if not args.push_to_hub:
        return
    check_token(args.hub_token, "`--push_to_hub`", "--hub_token")
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`--hub_model_id` is not valid: {error}") from error


def check_precision(mixed_precision: str | None) -> None:
    """Refuses a precision in accelerate's configuration that this script does not support."""
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise ValueError(
            f"accelerate's configuration asks for the precision {listed([repr(precision)])}; valid are no, fp16 and "
            f"bf16 (--mixed_precision)."
        )


def check_accelerator(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Refuses settings that the device or accelerate's configuration would silently change."""
    device = accelerator.device.type
    if accelerator.mixed_precision == "fp16" and device == "cpu":
        configured = os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16"
        whose = "accelerate's configuration" if configured else "the checkpoint"
        whose = "`--mixed_precision`" if args.mixed_precision else whose
        raise ValueError(f"{whose} asks for fp16, which a CPU does not train in; valid here are no and bf16.")
    if accelerator.gradient_accumulation_steps != args.gradient_accumulation_steps:
        raise ValueError(
            f"`--gradient_accumulation_steps` is {args.gradient_accumulation_steps}, and accelerate's configuration "
            f"asks for {accelerator.gradient_accumulation_steps}; they must be equal."
        )
    compilers = needed_compilers(device)
    if accelerator.state.dynamo_plugin.backend == DynamoBackend.INDUCTOR and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"accelerate's `--dynamo_backend` is inductor, which needs the compiler {' or '.join(compilers)}, and it "
            f"is not there; valid without one is no."
        )


def needed_compilers(device: str) -> list[str]:
    """What Inductor compiles with, on a CPU, or Triton, on a GPU; any of them will do."""
    if device != "cpu":
        return [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return [os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))]


def read_config(argument: str, path: str | None, network: type[ModelMixin]) -> dict[str, Any]:
    """
    The entries of a network's config that a JSON file gives, if there is one.

    Raises:
        ValueError: If it is not JSON, an entry is unknown, or a value is not of the entry's type or range.
        OSError: If it cannot be read.
    """
    if path is None:
        return {}
    try:
        entries = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise OSError(f"`--{argument}` {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`--{argument}` {path} is not JSON: {listed([error])}.") from error
    parameters = inspect.signature(network).parameters
    valid = ", ".join(parameters)
    if not isinstance(entries, dict) or (unknown := [name for name in entries if name not in parameters]):
        wrong = f"the unknown {listed(unknown)}" if isinstance(entries, dict) else listed([repr(entries)])
        raise ValueError(f"`--{argument}` {path} has {wrong}; valid is an object with any of {valid}.")
    for name, value in entries.items():
        # A class embedding, and the extra layers of a block, may be left out.
        least = 0 if name in ("class_embed_dim", "layers_per_block") else 1
        most = 64 if name == "layers_per_block" else MOST_IN_CONFIG
        kind = parameters[name].annotation
        if kind in (bool, str):
            fits, what = isinstance(value, kind), "true or false" if kind is bool else "a word"
        elif kind is int:
            fits, what = is_whole(value, least, most), f"a whole number from {least} to {most:,}"
        else:
            fits = isinstance(value, list) and len(value) > 0 and all(is_whole(each, least, most) for each in value)
            what = f"a list of whole numbers from {least} to {most:,}"
        if not fits:
            raise ValueError(f"`--{argument}` {path}: `{name}` is {listed([repr(value)])}; it must be {what}.")
    return entries


def is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def build_networks(
    args: argparse.Namespace,
    generator_config: dict[str, Any],
    discriminator_config: dict[str, Any],
    data: ImageData,
    device: torch.device,
) -> tuple[DiMGenerator, DiMDiscriminator]:
    """
    The two networks, on the CPU, with weights drawn from the global generator; they are known to fit the data, each
    other, and the free memory of the device that will train them.

    Raises:
        ValueError: If a config cannot be built, its network is larger than memory, or does not fit.
    """
    parts = (
        ("generator_config", args.generator_config, generator_config, DiMGenerator, "out_channels"),
        ("discriminator_config", args.discriminator_config, discriminator_config, DiMDiscriminator, "in_channels"),
    )
    for argument, path, config, network, channels in parts:
        origin = f"`--{argument}` {path}" if path else f"the {argument} of `--preset` {args.preset}"
        of_data = {"num_classes": data.num_classes, "sample_size": data.size, channels: data.channels}
        if other := [name for name in of_data if config[name] != of_data[name]]:
            name = other[0]
            raise ValueError(f"{origin}: `{name}` is {config[name]}, but that of the images is {of_data[name]}.")
        try:
            # Allocates no weights and draws no random numbers.
            with torch.device("meta"):
                size = 4 * network(**config).num_parameters()
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error
        # Weights, gradients, two moments, and the average.
        if 4 * size > (memory := free_memory(device)):
            raise ValueError(
                f"{origin} has {size // 4:,} weights, which take {4 * size / 2**30:.1f} GiB to train; "
                f"{memory / 2**30:.1f} GiB are free."
            )
    generator, discriminator = DiMGenerator(**generator_config), DiMDiscriminator(**discriminator_config)
    if args.class_loss_weight and discriminator.class_head is None:
        raise ValueError(
            f"`--class_loss_weight` is {args.class_loss_weight}, but `--discriminator_config` "
            f"{args.discriminator_config} leaves out the class head (`auxiliary`)."
        )
    if discriminator.class_head is not None and not args.class_loss_weight:
        raise ValueError(
            f"`--discriminator_config` {args.discriminator_config} adds a class head (`auxiliary`), but "
            f"`--class_loss_weight` is 0, so nothing would train it; give a weight above 0, or leave it out."
        )
    try:
        try_networks(generator, discriminator, data, min(2, args.train_batch_size))
    except (ValueError, RuntimeError) as error:
        # The configs of a preset fit, so this would be a bug of ours.
        given = [f"`--{argument}` {path}" for argument, path, *_ in parts if path]
        if not given:
            raise
        raise ValueError(f"{' and '.join(given)} cannot be trained: {listed([error])}.") from error
    return generator, discriminator


def try_networks(generator: DiMGenerator, discriminator: DiMDiscriminator, data: ImageData, count: int) -> None:
    """A forward pass of both networks on a few images, as in a step, that leaves their state as it is."""
    labels = torch.arange(count) % data.num_classes
    with torch.no_grad():
        images = copy.deepcopy(generator)(torch.zeros(count, generator.config.latent_dim), labels).sample
        expected = (count, data.channels, data.size, data.size)
        if images.shape != expected:
            raise ValueError(f"images have the shape {tuple(images.shape)} in place of {expected}")
        critic = copy.deepcopy(discriminator)
        logits = critic(images.repeat(2, 1, 1, 1), labels.repeat(2), num_batches=2).logits
        if logits.shape != (2 * count,):
            raise ValueError(f"logits have the shape {tuple(logits.shape)} in place of {(2 * count,)}")


def check_batch_memory(train_batch_size: int, data: ImageData, device: torch.device) -> None:
    """Refuses a batch whose images (real, generated and concatenated) would not fit in a device's free memory."""
    needed = train_batch_size * data.channels * data.size**2 * 4 * 4
    if needed > (memory := free_memory(device)):
        raise ValueError(
            f"`--train_batch_size` is {train_batch_size}, whose images take {needed / 2**30:.1f} GiB; "
            f"{memory / 2**30:.1f} GiB are free."
        )
