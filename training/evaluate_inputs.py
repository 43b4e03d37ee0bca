"""What evaluate_dim.py checks and reads before it trains anything: settings, folders, pipelines and images."""

import argparse
import itertools
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from command_line import check_once, check_pipeline, data_flag, load_pipeline, overlap, trained_on

from dim_hf.audit.report import read_audit
from dim_hf.classifiers import build_classifier, check_classifier
from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.data.folders import refuse_data_folder
from dim_hf.data.image_data import copies_among
from dim_hf.data.images import fingerprint_of_sample
from dim_hf.evaluation.codecs import CODECS, MISSING_FORMATS
from dim_hf.evaluation.results import read_results
from dim_hf.evaluation.sources import Draw
from dim_hf.files import check_output_dir, read_json, refuse_foreign_files
from dim_hf.hub.card import local_or_hub, read_options
from dim_hf.hub.push import check_export, check_token
from dim_hf.messages import listed
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.dim_dataset import MOST_CHOOSE_FROM
from dim_hf.streams.randomness import check_shuffled
from dim_hf.weights import stored_form


# Images of a fixed set, and samples of a class that k-means or herding choose among.
MOST_IN_SET = 1_000_000


def check_args(args: argparse.Namespace) -> None:
    """Refuses settings that no pipeline and no data set could make valid."""
    for name in args.classifiers:
        check_classifier(name)
    if max(args.choose_from) > MOST_CHOOSE_FROM:
        raise ValueError(f"`--choose_from` is {max(args.choose_from)}; valid are 1 to {MOST_CHOOSE_FROM}.")
    several = ("ipc", "seeds", "classifiers", "protocols", "selection", "latent_steps", "controls")
    check_once(args, (*several, "noise_scale", "max_attempts", "min_confidence", "choose_from"))
    tuned = [draw for draw in list_draws(args) if draw != Draw()]
    if len(tuned) > 1 and not args.validation:
        raise ValueError(
            f"`--noise_scale`, `--max_attempts`, `--min_confidence` and `--choose_from` ask for "
            f"{listed(draw.title for draw in tuned)} on a test split; valid are at most one besides the usual draw, "
            "or --validation to choose among them."
        )
    for name, _ in args.pool:
        try:
            check_classifier(name)
        except ValueError as error:
            raise ValueError(f"`--pool`: {error}") from error
    if len(args.epochs) not in (1, len(args.ipc)):
        raise ValueError(
            f"`--epochs` has {len(args.epochs)} numbers, {listed(args.epochs)}, and `--ipc` {len(args.ipc)}, "
            f"{listed(args.ipc)}; valid is one number for all, or one for each ipc in the same order."
        )
    if args.codec and args.codec not in CODECS:
        without = f" (Pillow was built without {' and '.join(MISSING_FORMATS)} here)" if MISSING_FORMATS else ""
        raise ValueError(f"`--codec` is {listed([repr(args.codec)])}; valid are {', '.join(CODECS)}{without}.")
    if args.codec and "equal_bytes_lossy" not in args.controls:
        raise ValueError(
            f"`--codec` is {args.codec!r}, that of the control equal_bytes_lossy; `--controls` names "
            f"{', '.join(args.controls) or 'none'}."
        )
    if overlap(args.test_split, args.train_split) and not args.validation:
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, and `--train_split`, of the real controls, {args.train_split!r}; "
            "valid is one that nothing is trained on, or --validation for what training held out."
        )
    if args.push_to_hub:
        check_token(args.hub_token, "`--push_to_hub`", "--hub_token")


def read_training(pipeline: str, needed_by: str = "`--validation`") -> dict[str, Any]:
    """The options of the run that made a pipeline's folder, such as to score what it held out."""
    path = Path(pipeline) / "options.json"
    options = read_json(path)
    if options is None:
        raise FileNotFoundError(
            f"{needed_by} needs options.json in `--pipeline` {pipeline}, which says what training held out."
        )
    needed = {"train_split", "max_train_samples", "data_fingerprint", "validation_fraction", "seed", "dataset_name"}
    if not isinstance(options, dict) or (needed := needed - options.keys()):
        raise ValueError(
            f"{needed_by} needs {path} as train_dim.py writes it; this one lacks {listed(sorted(needed))}."
        )
    kinds: dict[str, Any] = {"train_split": str, "max_train_samples": int | None, "data_fingerprint": str}
    kinds |= {"validation_fraction": float, "seed": int, "dataset_name": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(options[name], kind)]:
        raise ValueError(
            f"{needed_by} needs {path} as train_dim.py writes it; its {wrong[0]} is "
            f"{listed([repr(options[wrong[0]])])}."
        )
    return options


def list_draws(args: argparse.Namespace) -> list[Draw]:
    """The draws of protocol B that were asked for, each once: without a filter there is no confidence."""
    combinations = itertools.product(args.noise_scale, args.max_attempts, args.min_confidence, args.choose_from)
    return list(
        dict.fromkeys(
            Draw(scale, most, least if most > 1 else 0.0, choose_from)
            for scale, most, least, choose_from in combinations
        )
    )


@dataclass(frozen=True)
class Folders:
    """
    What an evaluation reads and writes.

    Args:
        pipeline (`Path`): The distilled data set, or its id on the Hub.
        before (`str`, *optional*): Folder or id of the control from before matching, if it is asked for and there.
        output (`Path`): Of the evaluation.
        training: Options of the training run, to score what it held out; `None` to score the test split.
        run: Options of the run that made the pipeline, if they are on record.
    """

    pipeline: Path
    before: str | None
    output: Path
    training: dict[str, Any] | None
    run: dict[str, Any] | None


def check_folders(args: argparse.Namespace) -> Folders:
    """Refuses, from the files that are there, what cannot be read or written."""
    if not Path(args.pipeline).exists() and not args.output_dir:
        raise FileNotFoundError(
            f"`--pipeline` {args.pipeline} is not a local folder; for a pipeline on the Hub, `--output_dir` must be "
            "given."
        )
    check_pipeline("pipeline", args.pipeline)
    pipeline = Path(args.pipeline)
    before = args.before_matching or str(pipeline / "before_matching")
    if "before_matching" not in args.controls or not (args.before_matching or Path(before).exists()):
        before = None
    if before:
        check_pipeline("before_matching", before)
    training = read_training(args.pipeline) if args.validation else None
    run = read_options(pipeline)
    if not training:
        refuse_seen(args, args.pipeline, run)
    output = Path(args.output_dir or pipeline / "evaluation")
    refuse_data_folder(output, args.dataset_name, args.train_data_dir)
    refuse_foreign_files(output, "evaluate_dim.py")
    # A new evaluation takes the place of an older one.
    check_output_dir(output, 2**20, resuming=True)
    read_results(output / "results.jsonl")
    if args.export_dir:
        check_export(args.export_dir, output)
    return Folders(pipeline, before, output, training, run)


def is_data_of(args: argparse.Namespace, run: dict[str, Any]) -> bool:
    """Whether the data that are given are, by their names, those that a run was trained on."""
    now, then = (
        (local_or_hub(each["train_data_dir"] or each["dataset_name"]), each["dataset_config_name"])
        for each in ({"train_data_dir": None, "dataset_config_name": None} | options for options in (vars(args), run))
    )
    return now == then


def was_trained_on(run: dict[str, Any], data: ImageData) -> bool:
    """Whether a run was trained on a split, by its content, or on a sample of it."""
    sample = run.get("max_train_samples") or len(data)
    return run.get("data_fingerprint") in (data.fingerprint, fingerprint_of_sample(data, sample))


def refuse_seen(
    args: argparse.Namespace, pipeline: str, run: dict[str, Any] | None, test: ImageData | None = None
) -> None:
    """
    Refuses a test split that a pipeline was trained on.

    Args:
        args: Of the data and of `--test_split`.
        pipeline: The folder of the pipeline.
        run: The options.json in it, if there is one.
        test ([`ImageData`], *optional*): The split, to tell by its content, too.

    Raises:
        ValueError: If the split has the name or the content of the one in options.json.
    """
    if run is None:
        return
    same_name = is_data_of(args, run) and overlap(run.get("train_split") or "train", args.test_split)
    if same_name or (test is not None and was_trained_on(run, test)):
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, which the pipeline {pipeline} was trained on (its options.json); "
            "valid is another split, or, in evaluate_dim.py, --validation for what training held out of it."
        )


def check_against_training(
    args: argparse.Namespace, folders: Folders, train: ImageData, test: ImageData, accelerator: Accelerator
) -> None:
    """
    Refuses to score images that the pipeline was trained on. Warns of test images that are among the training images,
    and of data that are not those of the pipeline's run.
    """
    if accelerator.is_main_process:
        twice = int(copies_among(test, train).sum())
        # A few are in well-known data sets.
        if twice > 0.01 * len(test):
            warnings.warn(
                f"{twice:,} of the {len(test):,} images that classifiers are scored on are also among the training "
                "images, so accuracies are too high.",
                stacklevel=2,
            )
    if not folders.run or folders.training:
        return
    refuse_seen(args, args.pipeline, folders.run, test)
    if not accelerator.is_main_process or was_trained_on(folders.run, train):
        return
    if is_data_of(args, folders.run):
        # Private runs do not say what they saw, and a sample is something else.
        comparable = folders.run.get("data_fingerprint") and not args.max_train_samples
        if comparable and args.train_split == folders.run.get("train_split"):
            columns = [
                f"--{name} {folders.run[name]}" for name in ("image_column", "label_column") if folders.run.get(name)
            ]
            with_flags = f" (with {' '.join(columns)})" if columns else ""
            warnings.warn(
                f"the images or labels of split {args.train_split!r} of {data_flag(args)} are not those that the "
                f"pipeline was trained on{with_flags}: they have changed, or are read otherwise.",
                stacklevel=2,
            )
    else:
        config = f", configuration {args.dataset_config_name}," if args.dataset_config_name else ""
        warnings.warn(
            f"{data_flag(args)}{config} does not seem to be the data that the pipeline was trained on, "
            f"{trained_on(folders.run)}; its accuracy on other data says less about it.",
            stacklevel=2,
        )


@dataclass(frozen=True)
class Pipelines:
    """
    The pipelines of an evaluation, on its device.

    Args:
        evaluated ([`DiMPipeline`]): In the form of `--storage`.
        before ([`DiMPipeline`], *optional*): The one from before matching, in the same form.
        unstored ([`DiMPipeline`], *optional*): With `--storage`, the pipeline before rounding.
    """

    evaluated: DiMPipeline
    before: DiMPipeline | None
    unstored: DiMPipeline | None


def load_pipelines(args: argparse.Namespace, folders: Folders, accelerator: Accelerator) -> Pipelines:
    """Loads what is evaluated, and refuses a pipeline from before matching that does not fit it."""
    given = load_pipeline("pipeline", args.pipeline)
    # Its findings will be part of the report.
    read_audit(given)
    evaluated = stored_form(given, args.storage)
    before = None
    if folders.before:
        before = stored_form(load_pipeline("before_matching", folders.before), args.storage)
        shapes = {
            (p.generator.config.sample_size, p.generator.config.out_channels, p.generator.config.num_classes)
            for p in (evaluated, before)
        }
        if len(shapes) > 1:
            raise ValueError(
                f"`--before_matching` {folders.before} makes other images than `--pipeline` {folders.pipeline}: "
                f"(size, channels, classes) are {' and '.join(map(str, sorted(shapes)))}."
            )
        if before.class_names != evaluated.class_names:
            raise ValueError(
                f"`--before_matching` {folders.before} generates {listed(before.class_names)}; `--pipeline` "
                f"{folders.pipeline} generates {listed(evaluated.class_names)}."
            )
    needs = {"max_attempts": args.max_attempts, "choose_from": args.choose_from}
    asked_for = [f"`--{name}` {listed(values)}" for name, values in needs.items() if max(values) > 1]
    if evaluated.labeler is None and (args.soft_labels or asked_for):
        asked = "`--soft_labels`" if args.soft_labels else asked_for[0]
        raise ValueError(
            f"{asked} takes a teacher, but `--pipeline` {folders.pipeline} has no `labeler`; "
            "training/train_labeler.py adds one."
        )
    for ipc in args.ipc:
        check_size(ipc, args, evaluated.generator.config.num_classes)
    pipelines = Pipelines(evaluated, before, given if args.storage else None)
    for pipeline in (evaluated, before, pipelines.unstored):
        if pipeline is not None:
            pipeline.to(accelerator.device)
            pipeline.set_progress_bar_config(disable=True)
    return pipelines


def check_fit(args: argparse.Namespace, test: ImageData) -> None:
    """Refuses classifiers that do not take images of this size and these channels."""
    for name in args.classifiers:
        check_classifier(name, test.channels, test.size)
    for name, _ in args.pool if takes_pool(args) else ():
        try:
            check_classifier(name, test.channels, test.size, features=True)
        except ValueError as error:
            raise ValueError(f"`--pool`: {error}") from error
    for ipc in args.ipc if args.train_batch_size else ():
        images = ipc * test.num_classes
        # Streams split an epoch evenly.
        if images // math.ceil(images / args.train_batch_size) == 1:
            for name in args.classifiers:
                _check_single(name, ipc, args.train_batch_size, test)


def _check_single(name: str, ipc: int, batch_size: int, test: ImageData) -> None:
    """Refuses a classifier that cannot be trained on a batch of one image."""
    with torch.random.fork_rng(devices=[]):
        network = build_classifier(name, test.num_classes, test.channels, test.size).train()
    try:
        with torch.no_grad():
            network(torch.zeros(1, test.channels, test.size, test.size))
    except ValueError as error:
        raise ValueError(
            f"`--train_batch_size` {batch_size} makes a batch of one image at `--ipc` {ipc}, on which {name} cannot "
            "be trained, since its batch norm would have one value per channel; choose another."
        ) from error


def takes_pool(args: argparse.Namespace) -> bool:
    """Whether fixed sets are made with networks that were trained on the real images."""
    return "A" in args.protocols and (any(args.latent_steps) or args.selection != ["random"])


def check_size(ipc: int, args: argparse.Namespace, num_classes: int) -> None:
    """Refuses more images than can be kept in memory."""
    check_shuffled(ipc * num_classes)
    per_class = ipc * args.candidates if args.selection != ["random"] else ipc
    for name, images in (("ipc", ipc * num_classes), ("candidates", per_class)):
        if "A" in args.protocols and images > MOST_IN_SET:
            raise ValueError(
                f"`--{name}` {getattr(args, name)} asks for {images:,} images in memory, with `--ipc` {ipc} and "
                f"{num_classes} classes; valid are at most {MOST_IN_SET:,} in a set, or to choose from in a class."
            )


def load_splits(
    args: argparse.Namespace, pipeline: DiMPipeline, accelerator: Accelerator, training: dict[str, Any] | None
) -> tuple[ImageData, ImageData]:
    """
    The real images to train controls on and to score, at the size, channels and labels of the pipeline.

    Args:
        training: The options of the training run, to score what it held out; `None` to score the test split.
    """
    config = pipeline.generator.config

    def load(split: str, class_names: tuple[str, ...] | None, max_samples: int | None) -> ImageData:
        with accelerator.main_process_first():
            data = load_image_data(
                args.dataset_name,
                split,
                dataset_config_name=args.dataset_config_name,
                train_data_dir=args.train_data_dir,
                image_column=args.image_column,
                label_column=args.label_column,
                class_names=class_names,
                resolution=config.sample_size,
                channels=config.out_channels,
                cache_dir=args.cache_dir,
                num_workers=args.dataloader_num_workers,
                max_samples=max_samples,
                revision=args.revision,
            )
        accelerator.print(data.describe())
        return data

    if training:
        train = load(training["train_split"], None, training["max_train_samples"])
    else:
        train = load(args.train_split, None, args.max_train_samples)
    names = pipeline.config.id2label
    expected = tuple(names.values()) if names else tuple(str(label) for label in range(config.num_classes))
    if train.class_names != expected:
        raise ValueError(
            f"{data_flag(args)} has the classes {listed(train.class_names)}; the pipeline generates "
            f"{listed(expected)}."
        )
    if training:
        if train.fingerprint != training["data_fingerprint"]:
            raise ValueError(
                f"`--validation` scores what training held out, but {data_flag(args)} is not the data that it was "
                f"trained on, {trained_on(training)}."
            )
        train, test = holdout(train, training["validation_fraction"], training["seed"])
    else:
        test = load(args.test_split, train.class_names, None)
        if test.fingerprint == train.fingerprint:
            raise ValueError(
                f"`--test_split` {args.test_split} of {data_flag(args)} holds the images of `--train_split` "
                f"{args.train_split}; valid is one that nothing is trained on."
            )
    return train.to(accelerator.device), test.to(accelerator.device)
