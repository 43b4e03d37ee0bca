"""The shadow runs of an audit: ordinary runs of train_dim.py on random halves of the images."""

import contextlib
import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import train_arguments
import train_dim
import train_labeler

from dim_hf.audit.lira import IN, NEITHER, OUT
from dim_hf.data import ImageData, holdout
from dim_hf.distillation.checkpointing import checkpoints
from dim_hf.files import replace_text, whole_file


# Options of a run that a shadow run does not have: its data are the half, and its files its own.
NOT_SHARED = {
    "dataset_name", "dataset_config_name", "train_data_dir", "revision", "train_split", "image_column", "label_column",
    "cache_dir", "dataloader_num_workers", "resolution", "max_train_samples", "output_dir", "report_to",
    "resume_from_checkpoint", "checkpoints_total_limit", "push_to_hub", "hub_model_id", "hub_token",
    "hub_private_repo", "num_train_epochs", "max_train_steps", "num_match_epochs", "max_match_steps",
    "rounded_steps", "seed", "validation_steps", "validation_epochs", "train_batch_size", "generator_config",
    "discriminator_config",
}  # fmt: skip


def save_half(data: ImageData, path: Path) -> None:
    """Writes images in memory as a parquet file that train_dim.py reads back pixel by pixel, in the same order."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(data.class_names))}
    )
    pixels = data.images.permute(0, 2, 3, 1)
    pixels = pixels.squeeze(3) if data.channels == 1 else pixels
    content = {"image": list(pixels.numpy()), "label": data.labels.tolist()}
    with whole_file(path) as aside:
        datasets.Dataset.from_dict(content, features=features).to_parquet(aside)


def train_words(
    options: dict[str, Any], folder: Path, *, adversarial: int, matching: int, seed: int, rounded: int = 0
) -> list[str]:
    """
    The arguments of train_dim.py for a run like another on other images.

    Args:
        options: The options.json of the run that is audited.
        folder (`Path`): Holds `images.parquet`; gets `run/` and `cache/`.
        adversarial (`int`), matching (`int`), rounded (`int`): Steps of the phases, and the last ones with rounding.
        seed (`int`): Of the run.
    """
    words = ["--dataset_name", str(folder / "images.parquet"), "--output_dir", str(folder / "run")]
    words += ["--cache_dir", str(folder / "cache"), "--dataloader_num_workers", "0"]
    words += ["--seed", str(seed), "--max_train_steps", str(adversarial)]
    words += ["--train_batch_size", str(options["train_batch_size"] * options["num_processes"])]
    words += ["--resume_from_checkpoint", "latest", "--checkpoints_total_limit", "1"]
    if not options.get("privacy"):
        words += ["--report_to", "none", "--max_match_steps", str(matching)]
        if rounded:
            words += ["--rounded_steps", str(rounded)]
        if "validation_epochs" in options.get("given", []):
            words += ["--validation_epochs", str(options["validation_epochs"])]
        for name in ("generator_config", "discriminator_config"):
            # As the run recorded it, with what its preset says.
            replace_text(folder / f"{name}.json", json.dumps(options[name]))
            words += [f"--{name}", str(folder / f"{name}.json")]
    known = {action.dest for action in train_arguments.make_parser()._actions}
    # Each kind of run refuses the flags of the other.
    known = known & train_arguments.PRIVATE_FLAGS if options.get("privacy") else known - {"privacy_delta"}
    for name, value in options.items():
        if name in known and name not in NOT_SHARED and value is not None:
            values = value if isinstance(value, list) else str(value).split() if name == "match_loss" else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def shadow_words(
    options: dict[str, Any], folder: Path, matching: int, share: float, number: int, seed: int
) -> list[str]:
    """[`train_words`] of shadow run `number` of an audit with this seed, of a share of the steps."""
    counts = (options["adversarial_steps"], matching, options.get("rounded_steps", 0))
    # Rounded up, whatever the last digits of a product.
    *steps, rounded = (math.ceil(share * count - 1e-9) for count in counts)
    own = random.Random(f"shadow/{seed}/{number}").getrandbits(31)
    return train_words(options, folder, adversarial=steps[0], matching=steps[1], seed=own, rounded=rounded)


def train_shadow(words: Sequence[str], folder: Path) -> None:
    """
    Runs train_dim.py, its messages into `log.txt`, and goes on with a run that was interrupted.

    Raises:
        KeyboardInterrupt: If it was interrupted; it has saved a checkpoint then.
    """
    _aside(lambda: train_dim.main(train_arguments.parse_args(list(words))), folder)


def add_teacher(folder: Path, recipe: dict[str, Any]) -> None:
    """Trains a teacher for the run in `folder` by train_labeler.py with these settings, of `TEACHER_SETTINGS`."""
    words = ["--pipeline", str(folder / "run"), "--dataset_name", str(folder / "images.parquet")]
    words += ["--cache_dir", str(folder / "cache"), "--dataloader_num_workers", "0"]
    for name, value in recipe.items():
        words += [f"--{name}", str(value)]
    _aside(lambda: train_labeler.main(train_labeler.parse_args(words)), folder)


def _aside(program: Any, folder: Path) -> None:
    # Else `datasets` would keep a copy of the private images in the user's cache.
    usual, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache" / "datasets"
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            program()
        except SystemExit as ended:
            if ended.code == 130:
                raise KeyboardInterrupt from None
            raise
        finally:
            datasets.config.HF_DATASETS_CACHE = usual


def membership(data: ImageData, positions: torch.Tensor, fraction: float, seed: int, total: int) -> torch.Tensor:
    """
    Which images a run was trained on.

    Args:
        data ([`ImageData`]): The half, in memory.
        positions (`torch.Tensor` of shape `(len(data),)`): Of its images among all.
        fraction (`float`), seed (`int`): Of the run, by which it holds a part out for its validations; a private run
            has no such part, 0.
        total (`int`): Number of all images.

    Returns:
        `torch.Tensor` of shape `(total,)`: `IN`, `OUT`, or `NEITHER` for those that only chose the pipeline.
    """
    if not fraction:
        return torch.full((total,), OUT).index_fill(0, positions, IN)
    trained, _ = holdout(replace(data, stored=data.images, rows=torch.arange(len(data))), fraction, seed)
    found = torch.full((total,), OUT)
    found[positions] = NEITHER
    assert trained.rows is not None
    found[positions[trained.rows]] = IN
    return found


def last_discriminator(folder: Path) -> Path:
    """That of the last checkpoint of the run in `folder`."""
    return checkpoints(folder / "run")[-1] / "discriminator"


def clear(folder: Path) -> None:
    """Removes what is large and has served: checkpoints, decoded images and the half itself."""
    for path in checkpoints(folder / "run"):
        shutil.rmtree(path)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "images.parquet").unlink(missing_ok=True)
