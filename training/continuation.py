"""The settings of a run of `train_dim.py` as its folder records them, and which of them a continuation may change."""

import argparse
import math
from collections.abc import Collection
from typing import Any

from train_arguments import STRUCTURED


# Settings that may differ between a run and its continuation, because they do not change what is trained. The number
# of adversarial steps and the first of the rounded ones are compared in place of what they were computed from.
FREE_ON_RESUME = {
    "output_dir", "report_to", "resume_from_checkpoint", "checkpointing_steps", "given",
    "checkpoints_total_limit", "cache_dir", "dataloader_num_workers", "dataset_name", "train_data_dir", "push_to_hub",
    "hub_model_id", "hub_private_repo", "num_train_epochs", "max_train_steps", "num_match_epochs", "max_match_steps",
    "logging_steps", "rounded_steps", "validation_steps",
}  # fmt: skip
# These too, until phase 2 begins.
MATCHING_SETTINGS = {"match_learning_rate", "match_loss", "match_interval", "pool", "pool_steps", "pool_snapshots"}


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """Every argument but the token, in the form that it has on the command line."""
    settings = {name: value for name, value in vars(args).items() if name != "hub_token"}
    # `energy=1` is `energy`.
    losses = (name if weight == 1 else f"{name}={weight!r}" for name, weight in args.match_loss.items())
    return settings | {"match_loss": " ".join(losses), "pool": [str(entry) for entry in args.pool]}


# Where a process finds its files, which may be on another machine.
OF_A_MACHINE = {"output_dir", "cache_dir", "dataset_name", "train_data_dir", "dataloader_num_workers", "given"}


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that all processes of a run must have in common."""
    return {name: value for name, value in recorded(args).items() if name not in OF_A_MACHINE}


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options that decide what is trained."""
    return {name: value for name, value in options.items() if name not in FREE_ON_RESUME}


def may_still_change(
    step: int, then: dict[str, Any], now: dict[str, Any], given: Collection[str] = (), branched: bool = False
) -> set[str]:
    """
    The settings that differ only in form, or have decided nothing when a checkpoint is taken after `step` steps; and
    the precision, where a flag asks for another.

    Args:
        given: The flags of the present command line.
        branched: Whether the run goes on in another folder, where the best pipeline is selected anew.

    Raises:
        ValueError: If other processes than before would not see the same images in a step.
    """
    same = {"mixed_precision"}.intersection(given)
    # However the images of a step are divided among processes, they are the same.
    batch, batch_now = (each["train_batch_size"] * each["num_processes"] for each in (then, now))
    if batch == batch_now:
        same |= {"train_batch_size", "num_processes"}
    elif then["num_processes"] != now["num_processes"]:
        fitting, left = divmod(batch, now["num_processes"])
        valid = f"a number of processes that divides {batch}" if left else f"{fitting}, for the same {batch} images"
        raise ValueError(
            f"the checkpoint is of {then['num_processes']} processes with `--train_batch_size` "
            f"{then['train_batch_size']}, and now there are {now['num_processes']} with {now['train_batch_size']}; "
            f"valid is {valid}."
        )
    same |= {name for name, read in STRUCTURED.items() if name in then and read(then[name]) == read(now[name])}
    borders = [border for border in (then.get("rounded_from"), now["rounded_from"]) if border is not None]
    if step <= min(borders, default=math.inf):
        same.add("rounded_from")
        if branched:
            same.add("storage")
    if branched:
        same |= {"validation_classifier", "validation_epochs"}
    if step > min(then.get("adversarial_steps", 0), now["adversarial_steps"]):
        return same
    return same | MATCHING_SETTINGS | {"adversarial_steps"}
