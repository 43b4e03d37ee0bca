"""The arguments of `train_dim.py`. This module loads no library, so that `--help` and a wrong flag answer at once."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from command_line import (
    MOST_FLOAT,
    Parser,
    add_data_arguments,
    add_hub_arguments,
    below_one,
    check_once,
    fraction,
    given_flags,
    idle_data_flags,
    local_path,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_idle_flags,
    seed,
)
from presets import PRESETS, PRIVATE

from dim_hf.choices import AUGMENTATIONS, CLASSIFIERS, MATCHING_LOSSES, STORAGE_FORMS
from dim_hf.distillation.pool_recipe import pool_entry
from dim_hf.messages import listed


# The flags that `--privacy_epsilon` leaves in effect. Others would read the images again, or are of another step.
PRIVATE_FLAGS = {
    "dataset_name", "dataset_config_name", "train_data_dir", "revision", "train_split", "image_column",
    "label_column", "cache_dir", "dataloader_num_workers", "resolution", "preset", "output_dir", "storage", "seed",
    "train_batch_size", "max_train_steps", "logging_steps", "checkpointing_steps", "checkpoints_total_limit",
    "resume_from_checkpoint", "learning_rate", "adam_beta1", "adam_beta2", "ema_decay", "privacy_epsilon",
    "privacy_delta", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo",
}  # fmt: skip


def make_parser() -> Parser:
    parser = Parser("Distil a labelled image data set into a class-conditional generator.")

    data = parser.add_argument_group("data")
    add_data_arguments(data, "train", "the split that is trained on", "decoded images and the pool's networks")
    data.add_argument(
        "--resolution", type=positive_int, help="height and width in pixels; default: that of the images"
    )
    data.add_argument("--max_train_samples", type=positive_int, help="train on this many images, stratified")
    data.add_argument("--validation_fraction", type=fraction, default=0.1, help="share of the train split held out")

    networks = parser.add_argument_group("networks")
    networks.add_argument("--preset", default="base", choices=sorted(PRESETS), help="networks and defaults below")
    networks.add_argument(
        "--generator_config", type=local_path, help="JSON file of a DiMGenerator config, over the preset's"
    )
    networks.add_argument(
        "--discriminator_config", type=local_path, help="JSON file of a DiMDiscriminator config, over the preset's"
    )

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=local_path, default="out/digits", help="the folder of the run")
    run.add_argument(
        "--storage", choices=STORAGE_FORMS, help="how weights are stored and scored; float32 unless the preset sets it"
    )
    run.add_argument(
        "--rounded_steps",
        type=non_negative_int,
        default=0,
        help="last steps in which the generator's weights are rounded to the int8 to int2 of `--storage`",
    )
    run.add_argument("--seed", type=seed, default=0, help="of weights, noise, order, augmentation and holdout")
    run.add_argument("--train_batch_size", type=positive_int, help="images per process and step")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--num_train_epochs", type=positive_int, help="length of phase 1")
    length.add_argument("--max_train_steps", type=positive_int, help="length of phase 1, instead of epochs")
    run.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=1, help="batches of one optimiser step"
    )
    run.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="default: accelerate's configuration, or bf16 on a CPU that has AMX or AVX512-BF16",
    )
    run.add_argument("--logging_steps", type=positive_int, default=50, help="steps between records of the log")
    run.add_argument("--report_to", default="tensorboard", help="a tracker that accelerate knows, 'all' or 'none'")
    run.add_argument("--checkpointing_steps", type=positive_int, default=1000, help="steps between checkpoints")
    run.add_argument("--checkpoints_total_limit", type=positive_int, default=2, help="how many checkpoints are kept")
    run.add_argument("--resume_from_checkpoint", type=local_path, help="'latest', a checkpoint's name, or its path")

    adversarial = parser.add_argument_group("adversarial step")
    adversarial.add_argument(
        "--adversarial_loss",
        choices=["hinge", "wgan-gp", "relativistic"],
        help="of both networks",
    )
    adversarial.add_argument(
        "--class_loss_weight", type=non_negative_float, help="auxiliary class loss of both networks; 0: none"
    )
    adversarial.add_argument(
        "--r1_weight",
        type=non_negative_float,
        help="gradient penalty of the discriminator at real images, for the relativistic loss at generated ones too",
    )
    adversarial.add_argument(
        "--augmentation",
        nargs="*",
        choices=AUGMENTATIONS,
        help="of real and generated images; base preset: shift for colour and for fewer than 10,000 images, else none",
    )
    adversarial.add_argument("--ema_decay", type=below_one, help="of the average of the generator's weights; 0: none")
    adversarial.add_argument("--learning_rate", type=positive_float, help="of the generator, in phase 1")
    adversarial.add_argument("--discr_learning_rate", type=positive_float, help="of the discriminator, in phase 1")
    adversarial.add_argument("--adam_beta1", type=below_one, help="of both networks' Adam")
    adversarial.add_argument("--adam_beta2", type=below_one, help="of both networks' Adam")

    matching = parser.add_argument_group("matching (phase 2)")
    length = matching.add_mutually_exclusive_group()
    length.add_argument(
        "--num_match_epochs", type=non_negative_int, help="length of phase 2 in epochs; 0: no matching"
    )
    length.add_argument("--max_match_steps", type=non_negative_int, help="length of phase 2, instead of epochs")
    matching.add_argument("--match_learning_rate", type=positive_float, help="of both networks in phase 2")
    matching.add_argument(
        "--match_loss",
        nargs="+",
        metavar="LOSS[=WEIGHT]",
        help=f"any of {', '.join(MATCHING_LOSSES)}, as in: energy=1 features=0.1",
    )
    matching.add_argument("--match_interval", type=positive_int, help="apply the matching loss in every N-th step")
    matching.add_argument(
        "--pool",
        nargs="+",
        metavar="CLASSIFIER[@WEIGHT]",
        help=f"any of {', '.join(CLASSIFIERS)}, timm/<model>, transformers/<config class, hub id or folder>; one with "
        f"@2 is drawn twice as often",
    )
    matching.add_argument(
        "--pool_steps", type=positive_int, help="training steps of a network until its last snapshot"
    )
    matching.add_argument(
        "--pool_snapshots", type=positive_int, help="snapshots of a network during its training; 1: only the last"
    )

    validation = parser.add_argument_group("validation (a short deployment, scored on the part held out of train)")
    validation.add_argument(
        "--validation_steps",
        type=positive_int,
        help="steps between validations; default: up to eight in a run, one after the adversarial phase, for a tenth "
        "of its operations together",
    )
    validation.add_argument("--validation_classifier", default="convnet3", help="as in --pool, without a weight")
    validation.add_argument(
        "--validation_epochs",
        type=positive_int,
        help="of 10 images per class; default: up to 100, for a tenth of the operations of the run together",
    )

    privacy = parser.add_argument_group("privacy (docs/privacy.md; the pip extra dim_hf[privacy])")
    privacy.add_argument(
        "--privacy_epsilon",
        type=positive_float,
        help="train only on noisy statistics of the images, with this much differential privacy of each image",
    )
    privacy.add_argument(
        "--privacy_delta",
        type=fraction,
        help="probability with which the bound may fail; should be well below 1 / number of images; default: 1e-5",
    )

    hub = parser.add_argument_group("Hugging Face Hub")
    add_hub_arguments(
        hub, "the pipeline with its card when it is done", "hub_model_id",
        "the name of the output folder, in your namespace",
    )  # fmt: skip
    return parser


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    """
    The arguments, those of the preset where they are not given.

    Returns:
        A namespace in which `match_loss` is a `dict` of losses and their weights, `pool` a list of `PoolEntry`, and
        `given` the names of the arguments that were given.

    Raises:
        SystemExit: If one is not valid, with status 2 after a message, as argparse has it.
        ValueError: If one has no effect beside the others, or an augmentation is given twice.
    """
    parser = make_parser()
    # The defaults of a preset are those of the flags, in --help too. Epochs that are asked for win over its steps.
    first = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for name in ("preset", "num_train_epochs", "num_match_epochs", "privacy_epsilon"):
        first.add_argument(f"--{name}")
    given, _ = first.parse_known_args(input_args)
    defaults = dict(PRESETS.get(getattr(given, "preset", "base"), {}))
    if "privacy_epsilon" in given:
        defaults |= PRIVATE
    for epochs, steps in (("num_train_epochs", "max_train_steps"), ("num_match_epochs", "max_match_steps")):
        if epochs in given:
            defaults.pop(steps, None)
    parser.set_defaults(**defaults)
    args = parser.parse_args(input_args)
    for name, read in STRUCTURED.items():
        try:
            setattr(args, name, read(getattr(args, name)))
        except ValueError as error:
            parser.error(f"argument --{name}: {error}")
    idle = [
        (not args.push_to_hub, ("hub_model_id", "hub_token", "hub_private_repo"), "without `--push_to_hub`"),
        (
            not (args.storage or "").startswith("int"),
            ("rounded_steps",),
            "without int8, int7 ... int2 as `--storage`",
        ),
    ]
    args.given = sorted(given_flags(parser, input_args))
    private = args.privacy_epsilon is not None
    # Steps of 0 that are asked for are those of a run that others branch off, with the same flags.
    steps_of_matching = ("max_match_steps", "num_match_epochs")
    matches = any(getattr(args, name) or name in args.given for name in steps_of_matching)
    idle += [
        idle_data_flags(args.given),
        (private, tuple(name for name in args.given if name not in PRIVATE_FLAGS), "with `--privacy_epsilon`"),
        (not private, ("privacy_delta",), "without `--privacy_epsilon`"),
        (
            not matches,
            ("match_learning_rate", "match_loss", "match_interval", "pool", "pool_steps", "pool_snapshots"),
            "without `--max_match_steps` or `--num_match_epochs`",
        ),
    ]
    refuse_idle_flags(args.given, idle)
    if args.augmentation:
        check_once(args, ("augmentation",))
    return args


def matching_weights(losses: str | list[str]) -> dict[str, float]:
    """
    The weights of losses, from texts of `loss` or `loss=weight` separated by spaces.

    Raises:
        ValueError: If there is none, one is given twice, is unknown, or its weight is not a number above 0.
    """
    weights: dict[str, float] = {}
    for part in losses.split() if isinstance(losses, str) else " ".join(losses).split():
        name, equals, number = part.partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = math.nan
        if name not in MATCHING_LOSSES:
            raise ValueError(f"{listed([repr(name)])} is not a loss; valid are {', '.join(MATCHING_LOSSES)}")
        if not 0 < weight <= MOST_FLOAT:
            raise ValueError(f"the weight in {listed([repr(part)])} is not a number above 0, up to 1e30")
        if name in weights:
            raise ValueError(f"{name!r} is given twice")
        weights[name] = weight
    if not weights:
        raise ValueError(f"no loss is given; valid are {', '.join(MATCHING_LOSSES)}")
    return weights


# What the text of an argument stands for.
STRUCTURED: dict[str, Callable[[Any], Any]] = {
    "match_loss": matching_weights,
    "pool": lambda entries: [pool_entry(text) for text in entries],
}
