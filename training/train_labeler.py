"""
Trains a teacher on real images and saves it with a pipeline as its `labeler`: for soft labels, and to draw images
again that the teacher takes for another class.

    python training/train_labeler.py                                    # the embedded digits, for out/digits
    python training/train_labeler.py --pipeline out/fashion --dataset_name zalando-datasets/fashion_mnist

The teacher is a ConvNet-3. It sees the part of *train* that the generator was trained on, as options.json in the
pipeline's folder says, and its accuracy is that on the part held out.
"""

import argparse

from command_line import (
    Parser,
    add_data_arguments,
    add_pipeline_argument,
    fraction,
    given_flags,
    idle_data_flags,
    local_path,
    parse_before_imports,
    positive_float,
    positive_int,
    refuse_idle_flags,
    run_script,
    seed,
)

from dim_hf.evaluation.recipe import DeploymentRecipe


# What labeler.json says of a teacher's training, for an audit that repeats it.
TEACHER_SETTINGS = ("num_train_epochs", "train_batch_size", "learning_rate", "mixed_precision")


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("Train a teacher on real images and save it with a pipeline.")
    add_pipeline_argument(parser)
    parser.add_argument(
        "--output_dir", type=local_path, help="where to save the pipeline with its teacher; default: --pipeline itself"
    )
    add_data_arguments(parser, None, "split to train on; default: that of the training run in --pipeline, or train")
    parser.add_argument(
        "--validation_fraction",
        type=fraction,
        help="share of the train split held out, if --pipeline has no record of its run; default: 0.1",
    )
    parser.add_argument("--seed", type=seed, help="default: that of the training run in --pipeline, or 0")
    parser.add_argument("--num_train_epochs", type=positive_int, default=20, help="passes through the real images")
    parser.add_argument(
        "--train_batch_size", type=positive_int, default=DeploymentRecipe.batch_size, help="images per step"
    )
    parser.add_argument(
        "--learning_rate", type=positive_float, default=DeploymentRecipe.learning_rate, help="of SGD, at most"
    )
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "bf16"],
        help="default: accelerate's configuration, or bf16 on a CPU that has AMX or AVX512-BF16",
    )
    given = given_flags(parser, input_args)
    refuse_idle_flags(given, [idle_data_flags(given)])
    return parser.parse_args(input_args)


if __name__ == "__main__":
    ARGS = parse_before_imports("train_labeler.py", parse_args)

import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from command_line import data_flag, load_pipeline, trained_on
from huggingface_hub import ModelCard
from run_folder import read_json_object

from dim_hf.data import ImageData, holdout, load_image_data, normalise
from dim_hf.data.folders import refuse_data_folder
from dim_hf.evaluation.judges import evaluate_accuracy, train_classifier
from dim_hf.files import (
    check_output_dir,
    lock_output_dir,
    refuse_foreign_files,
    replace_text,
)
from dim_hf.hub.card import HUB_ERRORS
from dim_hf.hub.merging import existing_card
from dim_hf.hub_errors import hub_reason
from dim_hf.machine import bfloat16_unit, check_bfloat16, choose_precision, keep_freed_memory
from dim_hf.models import DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.real import WholeSetStream
from dim_hf.weights import module_digest, stored_form


def main(args: argparse.Namespace) -> float:
    keep_freed_memory()
    # 1. Settings and folders are checked before data is read.
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "train_labeler.py runs in one process; valid are python training/train_labeler.py, and accelerate launch "
            "with --num_processes 1."
        )
    precision, chosen = choose_precision(args.mixed_precision, unit=bfloat16_unit())
    # An audit trains teachers beside networks of another precision, so that of the whole process stays as it is.
    device, args.mixed_precision = Accelerator().device, precision or "no"
    check_bfloat16(args.mixed_precision, device)
    if chosen:
        print(chosen)
    # Soft labels carry more information if the teacher's own labels were not smoothed (arXiv 1906.02629).
    recipe = DeploymentRecipe(
        args.num_train_epochs,
        args.train_batch_size,
        args.learning_rate,
        label_smoothing=0.0,
        mixed_precision=args.mixed_precision,
    )
    output_dir = Path(args.output_dir or args.pipeline)
    if args.output_dir is None and not output_dir.is_dir():
        raise ValueError(f"`--output_dir` must be given, since `--pipeline` {args.pipeline} is not a local folder.")
    run = read_options(Path(args.pipeline))
    held_out, split = run.get("validation_fraction"), run.get("train_split")
    if args.train_split is not None and split not in (None, args.train_split):
        raise ValueError(
            f"`--train_split` is {args.train_split!r}, and the run in `--pipeline` {args.pipeline} was trained on "
            f"{split!r}, as its teacher must be; leave the flag out."
        )
    if args.validation_fraction is not None and held_out not in (None, args.validation_fraction):
        raise ValueError(
            f"`--validation_fraction` is {args.validation_fraction}, and the run in `--pipeline` {args.pipeline} held "
            f"out {held_out}, which its teacher must not see either; leave the flag out."
        )
    pipe = load_pipeline("pipeline", args.pipeline)
    if "privacy" in run or tells_of_privacy(args.pipeline):
        raise ValueError(
            f"`--pipeline` {args.pipeline} has a guarantee of privacy, which a teacher of real images would not have; "
            "valid is one without `--privacy_epsilon`."
        )
    if output_dir.resolve() != Path(args.pipeline).resolve() and read_options(output_dir):
        raise FileExistsError(f"`--output_dir` {output_dir} holds another training run; name another folder.")
    if output_dir.resolve() != Path(args.pipeline).resolve():
        refuse_data_folder(output_dir, args.dataset_name, args.train_data_dir)
        refuse_foreign_files(output_dir, "train_labeler.py")
    config = pipe.generator.config
    labeler = DiMLabeler(config.num_classes, config.sample_size, config.out_channels)
    check_output_dir(output_dir, 2 * 4 * (labeler.num_parameters() + pipe.generator.num_parameters()), resuming=True)
    # What the run held out stays unseen, so that evaluate_dim.py --validation may score with this teacher's labels.
    defaults: dict[str, Any] = {"train_split": "train", "validation_fraction": 0.1, "seed": 0}
    settings = defaults | run | {name: value for name in defaults if (value := getattr(args, name)) is not None}
    data = load_image_data(
        args.dataset_name,
        settings["train_split"],
        dataset_config_name=args.dataset_config_name,
        train_data_dir=args.train_data_dir,
        image_column=args.image_column,
        label_column=args.label_column,
        class_names=tuple(pipe.class_names),
        resolution=config.sample_size,
        channels=config.out_channels,
        cache_dir=args.cache_dir,
        num_workers=args.dataloader_num_workers,
        max_samples=run.get("max_train_samples"),
        revision=args.revision,
    )
    print(data.describe())
    if run.get("data_fingerprint", data.fingerprint) != data.fingerprint:
        raise ValueError(
            f"{data_flag(args)} is not the data that `--pipeline` {args.pipeline} was trained on, {trained_on(run)}."
        )
    seed = settings["seed"]
    parts = holdout(data, settings["validation_fraction"], run.get("seed", seed))
    train, validation = (part.to(device) for part in parts)

    # 2. The teacher is trained, scored once, and saved.
    with lock_output_dir(output_dir, "train_labeler.py"):
        stream = WholeSetStream(train, -(-len(train) // data.num_classes), seed, recipe.batch_size)
        classifier = train_classifier(
            stream,
            "convnet3",
            recipe,
            channels=data.channels,
            size=data.size,
            # A classifier that learns from the teacher must not share its initial weights.
            seed=random.Random(f"teacher/{seed}").getrandbits(32),
            device=device,
            progress=True,
        )
        if not finite_logits(classifier, validation):
            raise FloatingPointError(
                f"the teacher's logits became infinite, so {output_dir} stays as it is; lower `--learning_rate`, "
                f"which is {args.learning_rate}."
            )
        labeler.network.load_state_dict(classifier.state_dict())
        # What is scored is what is shipped: a generator's codes have the teacher in codes too.
        taught = stored_form(DiMPipeline(pipe.generator, pipe.config.id2label, labeler), pipe.generator.storage)
        accuracy = evaluate_accuracy(taught.labeler.to(device).network, validation)
        settings = {name: getattr(args, name) for name in TEACHER_SETTINGS}
        record = settings | {"seed": seed, "weights": module_digest(taught.labeler)}
        replace_text(output_dir / "labeler.json", json.dumps(record, indent=2))
        taught.save_pretrained(output_dir)
    print(f"teacher in {output_dir}: accuracy {accuracy:.4f} on the {len(validation):,} images held out of train")
    return accuracy


def tells_of_privacy(pipeline: str) -> bool:
    """Whether the card of a pipeline states a guarantee; an export and a push have no other record of it."""
    try:
        card = existing_card(ModelCard, Path(pipeline) / "README.md" if Path(pipeline).is_dir() else pipeline)
    except HUB_ERRORS as error:
        raise OSError(
            f"`--pipeline` {pipeline}: its card, which says whether it is private, cannot be read: {hub_reason(error)}"
        ) from error
    return card is not None and bool(card.data.get("differential_privacy"))


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the training run that made a folder; empty if none did."""
    path = folder / "options.json"
    return read_json_object(path) if path.exists() else {}


@torch.no_grad()
def finite_logits(classifier: torch.nn.Module, data: ImageData) -> bool:
    """Whether a classifier in `eval()` gives finite logits for the first images, at most 512."""
    indices = torch.arange(min(512, len(data)), device=data.labels.device)
    return bool(classifier(normalise(data.batch(indices)[0])).isfinite().all())


if __name__ == "__main__":
    run_script("train_labeler.py", lambda: main(ARGS), "Nothing was replaced; the same command begins again.")
