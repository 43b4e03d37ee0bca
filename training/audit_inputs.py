"""What audit_dim.py checks and reads before it measures anything: settings, folders, the pipeline and its images."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from command_line import check_pipeline, data_flag, load_pipeline, overlap, trained_on
from evaluate_inputs import load_splits, read_training
from train_labeler import TEACHER_SETTINGS
from train_labeler import parse_args as parse_labeler_args

from dim_hf.arguments import shown
from dim_hf.audit.candidates import Union, draw_candidates, smallest_half, unite
from dim_hf.audit.folder import look_around
from dim_hf.classifiers import check_classifier
from dim_hf.data import ImageData, holdout
from dim_hf.data.folders import refuse_data_folder
from dim_hf.data.image_data import copies_among
from dim_hf.files import check_output_dir, read_json, refuse_foreign_files
from dim_hf.hub.push import check_export, check_token
from dim_hf.messages import listed
from dim_hf.models import DiMDiscriminator
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_digest, weights_digest


# What options.json must say for a run to be repeated.
REPEATED = (
    "adversarial_steps", "max_match_steps", "num_match_epochs", "train_batch_size", "gradient_accumulation_steps",
    "num_processes", "generator_config", "discriminator_config",
)  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """
    What is audited.

    Args:
        pipeline ([`DiMPipeline`]): On the device of the audit.
        options: Of the run that made it, if its folder has them.
        train ([`ImageData`]): The images that its generator was trained on.
        distinct ([`ImageData`]): Those of them that are not among the other images too, which copies are told by.
        held_out ([`ImageData`]): Images that it was not trained on.
        overlap (`int`): Held-out images that were left out, since they equal a training image in every pixel.
        folder: What lies in its folder, see [`look_around`]; `None` for a pipeline of the Hub.
        discriminator ([`DiMDiscriminator`], *optional*): One that lies there.
        teacher: The settings of the teacher's training, those on record or the usual ones.
        teacher_known: Whether they are on record; `None` without a teacher.
    """

    pipeline: DiMPipeline
    options: dict[str, Any] | None
    train: ImageData
    distinct: ImageData
    held_out: ImageData
    overlap: int
    folder: dict[str, Any] | None
    discriminator: DiMDiscriminator | None
    teacher: dict[str, Any]
    teacher_known: bool | None


def check(args: argparse.Namespace) -> tuple[Path, dict[str, Any] | None]:
    """
    Refuses, from the arguments and files only, what cannot be audited or written.

    Returns:
        The output folder, and the options of the training run in `--pipeline`, if there are any.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "audit_dim.py runs in one process; start it several times with the same arguments, and they share the "
            "shadow runs."
        )
    if len(set(args.tests)) != len(args.tests):
        raise ValueError(f"`--tests` names {listed(args.tests)}; each must be given once.")
    check_classifier(args.classifier)
    if not Path(args.pipeline).exists() and not args.output_dir:
        raise FileNotFoundError(
            f"`--pipeline` {args.pipeline} is not a local folder; for a pipeline on the Hub, `--output_dir` must be "
            "given."
        )
    check_pipeline("pipeline", args.pipeline)
    path = Path(args.pipeline) / "options.json"
    needed_by = "`--validation`" if args.validation else "an audit of a run"
    options = read_private_run(path)
    if options is not None and args.validation:
        raise ValueError(
            f"`--validation` has no images: the run in `--pipeline` {args.pipeline} is private and held none out; "
            "valid is --test_split."
        )
    if options is None and (path.is_file() or args.validation):
        options = read_training(args.pipeline, needed_by)
    if "membership" in args.tests and options is None:
        raise FileNotFoundError(
            f"`--tests` membership needs options.json in `--pipeline` {args.pipeline}, to train shadow runs like it; "
            "valid without it is copies."
        )
    if "membership" in args.tests and (missing := lacking(options)):
        raise ValueError(
            f"`--tests` membership needs {path} as train_dim.py writes it; this one lacks {listed(missing)}."
        )
    if options is None and not args.validation and overlap(args.train_split, args.test_split):
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, the split that the pipeline was trained on; valid is one that it "
            "was not."
        )
    if options is not None and not args.validation and overlap(options["train_split"], args.test_split):
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, which the pipeline was trained on (options.json in "
            f"`--pipeline`); valid is another split, or --validation for what training held out of it."
        )
    for name in ("train_split", "max_train_samples"):
        if options is not None and name in args.given and getattr(args, name) != options.get(name):
            raise ValueError(
                f"`--{name}` is {getattr(args, name)}, and the run in `--pipeline` {args.pipeline} had "
                f"{options.get(name)} (options.json); leave the flag out."
            )
    output = Path(args.output_dir or Path(args.pipeline) / "audit")
    refuse_data_folder(output, args.dataset_name, args.train_data_dir)
    refuse_foreign_files(output, "audit_dim.py")
    check_output_dir(output, 2**20, resuming=True)
    if args.export_dir:
        check_export(args.export_dir, output)
    if args.push_to_hub:
        check_token(args.hub_token, "`--push_to_hub`", "--hub_token")
    return output, options


def read_private_run(path: Path) -> dict[str, Any] | None:
    """
    The options of a run with `--privacy_epsilon`, completed by what is the same for all of them; `None` if the run was
    another one. Such a run records nothing of its images, so that these cannot be compared with what is given here.
    """
    options = read_json(path)
    if not isinstance(options, dict) or not options.get("privacy"):
        return None
    kinds = {"train_split": str, "seed": int, "train_batch_size": int, "max_train_steps": int, "dataset_name": str}
    if wrong := sorted(name for name, kind in kinds.items() if not isinstance(options.get(name), kind)):
        raise ValueError(f"{path} is not as train_dim.py writes it; {listed(wrong)} is missing or of another kind.")
    return options | {
        "adversarial_steps": options["max_train_steps"], "max_match_steps": 0, "num_match_epochs": None,
        "gradient_accumulation_steps": 1, "num_processes": 1, "max_train_samples": None, "validation_fraction": 0.0,
        "generator_config": None, "discriminator_config": None, "data_fingerprint": None,
    }  # fmt: skip


def lacking(options: dict[str, Any] | None) -> list[str]:
    """What options.json does not say of a run that is to be repeated."""
    return sorted(set(REPEATED) - (options or {}).keys())


def load(args: argparse.Namespace, options: dict[str, Any] | None, accelerator: Accelerator) -> Audited:
    """Loads the pipeline and its images, and refuses those that do not belong together."""
    pipeline = load_pipeline("pipeline", args.pipeline)
    pipeline.to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    if args.validation:
        train, held_out = load_splits(args, pipeline, accelerator, options)
    else:
        if options is not None:
            args.train_split, args.max_train_samples = options["train_split"], options["max_train_samples"]
        train, held_out = load_splits(args, pipeline, accelerator, None)
        if options is not None:
            train = trained_part(args, train, options)
    check_classifier(args.classifier, train.channels, train.size, features=True)
    copies = copies_among(held_out, train)
    others, held_out = held_out, held_out.select(torch.nonzero(~copies).squeeze(1)) if copies.any() else held_out
    overlap, distinct = len(others) - len(held_out), train
    if len(held_out) == 0:
        raise ValueError(
            f"all {overlap:,} images of `--test_split` {args.test_split} are among the training images; valid is a "
            "split of others."
        )
    if overlap:
        distinct = train.select(torch.nonzero(~copies_among(train, others)).squeeze(1))
    check_counts(args, distinct, held_out, overlap)
    folder = look_around(args.pipeline) if Path(args.pipeline).is_dir() else None
    discriminator = None
    # A private run has none that could be its own.
    if folder and folder["discriminator"] and not (options and options.get("privacy")):
        try:
            discriminator = DiMDiscriminator.from_pretrained(Path(args.pipeline) / folder["discriminator"])
        except (OSError, ValueError):
            # That it lies there is told all the same.
            discriminator = None
        fits = discriminator is not None and discriminator.config.sample_size == train.size
        discriminator = discriminator.to(accelerator.device) if fits and discriminator is not None else None
    teacher, known = read_teacher_settings(args.pipeline, pipeline)
    return Audited(pipeline, options, train, distinct, held_out, overlap, folder, discriminator, teacher, known)


def read_teacher_settings(folder: str, pipeline: DiMPipeline) -> tuple[dict[str, Any], bool | None]:
    """How the pipeline's teacher was trained, if its folder says so, and whether it does."""
    # Older teachers were trained in float32, and their records do not say so.
    usual = vars(parse_labeler_args([])) | {"mixed_precision": "no"}
    settings: dict[str, Any] = {name: usual[name] for name in TEACHER_SETTINGS}
    if pipeline.labeler is None:
        return settings, None
    path = Path(folder) / "labeler.json"
    recorded = read_json(path)
    if not isinstance(recorded, dict) or recorded.get("weights") != module_digest(pipeline.labeler):
        return settings, False
    precision = recorded.get("mixed_precision", settings["mixed_precision"])
    found = {name: recorded.get(name) for name in settings} | {"mixed_precision": precision}
    numbers = {name: value for name, value in found.items() if name != "mixed_precision"}
    if wrong := [name for name, value in numbers.items() if not isinstance(value, int | float) or value <= 0]:
        raise ValueError(f"{path} is not as train_labeler.py writes it; {listed(wrong)} is missing or not above 0.")
    if precision not in ("no", "bf16"):
        raise ValueError(f"{path} has the precision {shown(precision)}; valid are 'no' and 'bf16'.")
    return found, True


def trained_part(args: argparse.Namespace, train: ImageData, options: dict[str, Any]) -> ImageData:
    """What a run trained on, of the split that it read."""
    if options.get("privacy"):
        return train
    if train.fingerprint != options["data_fingerprint"]:
        raise ValueError(
            f"{data_flag(args)} is not the data that `--pipeline` {args.pipeline} was trained on, "
            f"{trained_on(options)}."
        )
    return holdout(train, options["validation_fraction"], options["seed"])[0]


def check_counts(args: argparse.Namespace, train: ImageData, held_out: ImageData, overlap: int) -> None:
    """Refuses classes with too few images to compare, or to halve for shadow runs."""
    left_out = f", without the {overlap:,} that are on both sides" if overlap else ""
    for what, data, least in (("training", train, 2), ("held-out", held_out, 1)):
        counts = torch.bincount(data.labels.cpu(), minlength=data.num_classes).tolist()
        if few := [name for name, count in zip(data.class_names, counts, strict=True) if count < least]:
            raise ValueError(
                f"an audit compares with {least} {what} image{'s' * (least > 1)} of each class or more; {listed(few)} "
                f"ha{'ve' if len(few) > 1 else 's'} fewer{left_out}."
            )
    if "membership" not in args.tests:
        return
    if len(held_out) < 20:
        raise ValueError(f"`--tests` membership takes 20 held-out images or more; there are {len(held_out)}.")


def prepare_candidates(args: argparse.Namespace, audited: Audited) -> tuple[Union, torch.Tensor]:
    """The images that shadow runs share out, and the positions of those that are attacked."""
    union = unite(audited.train, audited.held_out, args.seed)
    counts = smallest_half(union)
    if few := [name for name, count in zip(union.data.class_names, counts.tolist(), strict=True) if count < 2]:
        raise ValueError(
            f"shadow runs are trained on halves of the images, with 2 of each class or more; {listed(few)} has too "
            "few images for that. Valid is --tests copies."
        )
    return union, draw_candidates(union, args.candidates, args.seed)


def identity(args: argparse.Namespace, audited: Audited) -> dict[str, Any]:
    """What decides the figures of an output folder, which holds those of one audit."""
    names = ("seed", "samples", "classifier", "epochs")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"weights": weights_digest(audited.pipeline), "train": audited.train.fingerprint}
    # A network that came to lie in the folder later has not been measured on earlier shadow runs.
    networks = {"labeler": audited.pipeline.labeler, "discriminator": audited.discriminator}
    settings |= {name: network and module_digest(network) for name, network in networks.items()}
    return settings | {"held_out": audited.held_out.fingerprint}


def check_identity(args: argparse.Namespace, output: Path, settings: dict[str, Any]) -> None:
    """
    Raises:
        FileExistsError: If the folder holds another audit, naming what differs.
    """
    plan = read_json(output / "plan.json")
    if plan is None:
        return
    found = plan.get("settings", {}) if isinstance(plan, dict) else {}
    if "membership" in args.tests and "membership" in found:
        settings = settings | {"membership": membership_settings(args)}
    different = [name for name, value in settings.items() if found.get(name) != value]
    if different:
        told = (f"{name} {found.get(name)!r}, now {settings[name]!r}" for name in different)
        raise FileExistsError(f"`--output_dir` {output} holds another audit ({listed(told, 3)}); name another folder.")


def membership_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("candidates", "inversion_steps")}
