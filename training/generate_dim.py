"""
Writes generated images to disk as a data set: parquet shards of an image and a label column, for any number of images.

    accelerate launch training/generate_dim.py --ipc 1000                            # from out/digits
    accelerate launch training/generate_dim.py --pipeline out/fashion --ipc 100000 --output_dir out/fashion-1m \
        --push_to_hub --hub_dataset_id me/fashion-generated

Every shard cycles through all classes and depends only on the weights and the settings. Several processes share the
shards. A shard is written aside and renamed; after an interruption the same command continues.
"""

import argparse

from command_line import (
    Parser,
    add_hub_arguments,
    add_pipeline_argument,
    below_one,
    given_flags,
    local_path,
    parse_before_imports,
    positive_float,
    positive_int,
    refuse_idle_flags,
    run_script,
    whole_number,
)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("Write generated images to disk as a data set.")
    add_pipeline_argument(parser)
    parser.add_argument(
        "--output_dir", type=local_path, default="out/generated", help="the folder of the generated data set"
    )
    parser.add_argument("--ipc", type=whole_number(1, 2**32 - 1), default=100, help="images per class")
    parser.add_argument("--class_labels", nargs="+", metavar="CLASS", help="names or labels; default: every class")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of the noise")
    parser.add_argument(
        "--max_attempts", type=positive_int, default=1, help="above 1: draw again what the teacher rejects"
    )
    parser.add_argument(
        "--min_confidence",
        type=below_one,
        default=0.0,
        help="draw again, too, where the teacher gives the class less than this probability",
    )
    parser.add_argument("--noise_scale", type=positive_float, default=1.0, help="factor of the noise")
    parser.add_argument(
        "--shard_size", type=positive_int, default=10_000, help="images per file; a process holds one file"
    )
    parser.add_argument("--batch_size", type=positive_int, default=256, help="images made at once")
    add_hub_arguments(
        parser, "the images as a data set", "hub_dataset_id", "the name of --output_dir, in your namespace"
    )
    args = parser.parse_args(input_args)
    hub = ("hub_dataset_id", "hub_token", "hub_private_repo")
    idle = [
        (not args.push_to_hub, hub, "without `--push_to_hub`"),
        (args.max_attempts == 1, ("min_confidence",), "without `--max_attempts` above 1"),
    ]
    refuse_idle_flags(given_flags(parser, input_args), idle)
    return args


if __name__ == "__main__":
    ARGS = parse_before_imports("generate_dim.py", parse_args)

import contextlib
import hashlib
import json
import math
from collections import Counter
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from command_line import check_pipeline, check_processes, load_pipeline
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from tqdm.auto import tqdm

from dim_hf.data.data_files import DATA_SUFFIXES
from dim_hf.data.folders import ARCHIVES, image_suffixes
from dim_hf.data.reading import TABLE_SUFFIXES
from dim_hf.files import (
    check_output_dir,
    has_made,
    lock_output_dir,
    read_json,
    refuse_foreign_files,
    replace_text,
    whole_file,
)
from dim_hf.hub.card import HUB_ERRORS
from dim_hf.hub.merging import existing_card, merge_cards
from dim_hf.hub.push import check_token, prepare_repository
from dim_hf.hub_errors import hub_reason
from dim_hf.messages import listed, markdown
from dim_hf.pipelines import DiMPipeline
from dim_hf.pipelines.pipeline_dim import labelled_features
from dim_hf.streams.dim_dataset import DiMDataset, to_pil


# Of a card that `Dataset.push_to_hub` wrote. `datasets` refuses a data set with other numbers of images.
SIZES = ("dataset_info",)


def main(args: argparse.Namespace) -> None:
    # 1. Settings are checked before anything is made, arguments and folders first.
    if args.push_to_hub:
        check_token(args.hub_token, "`--push_to_hub`", "--hub_token")
    check_pipeline("pipeline", args.pipeline)
    output_dir = Path(args.output_dir)
    refuse_foreign_files(output_dir, "generate_dim.py")
    refuse_other_data(output_dir)
    check_output_dir(output_dir, 0, resuming=True)
    existing_card(DatasetCard, output_dir / "README.md")
    # Processes wait at the end for the slowest; the usual time-out would lose hours of work.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    check_processes(accelerator.num_processes)
    pipe = load_pipeline("pipeline", args.pipeline).to(accelerator.device)
    label_ids = pipe.get_label_ids(named_classes(args.class_labels, pipe.class_names))
    if twice := [pipe.class_names[label] for label, times in Counter(label_ids).items() if times > 1]:
        raise ValueError(
            f"`--class_labels` names {listed(twice)} more than once; `--ipc` is the number of its images."
        )
    dataset = DiMDataset(
        pipe,
        dict.fromkeys(label_ids, args.ipc),
        args.seed,
        max_attempts=args.max_attempts,
        min_confidence=args.min_confidence,
        noise_scale=args.noise_scale,
    )
    num_shards = math.ceil(len(dataset) / args.shard_size)
    # What decides the images and their files: a folder holds those of one setting.
    options = {
        "weights": fingerprint(pipe, filtered=args.max_attempts > 1),
        "labels": sorted(set(label_ids)),
        "class_names": [pipe.class_names[label] for label in sorted(set(label_ids))],
        **{
            name: getattr(args, name)
            for name in ("ipc", "seed", "max_attempts", "min_confidence", "noise_scale", "shard_size")
        },
    }
    config = pipe.generator.config
    if accelerator.is_main_process:
        check_options(output_dir, options)
        left = len(dataset) - args.shard_size * len(list(output_dir.glob("data/train-*.parquet")))
        check_output_dir(output_dir, max(0, left) * config.out_channels * config.sample_size**2, resuming=True)
        if args.push_to_hub:
            name = args.hub_dataset_id or output_dir.resolve().name
            private = args.hub_private_repo or None
            args.hub_dataset_id = prepare_repository(name, args.hub_token, private, repo_type="dataset")
    with contextlib.ExitStack() as at_the_end:
        if accelerator.is_main_process:
            at_the_end.callback(lock_output_dir(output_dir, "generate_dim.py").release)
        # 2. Each process writes its shards.
        if accelerator.is_main_process:
            # Another process may have been here since the first check.
            check_options(output_dir, options)
            (output_dir / "data").mkdir(exist_ok=True)
            replace_text(output_dir / "options.json", json.dumps(options, indent=2))
        accelerator.wait_for_everyone()
        shards = range(accelerator.process_index, num_shards, accelerator.num_processes)
        for shard in tqdm(shards, unit="shard", disable=not accelerator.is_main_process):
            path = output_dir / "data" / f"train-{shard:05d}-of-{num_shards:05d}.parquet"
            if not path.exists():
                images = images_of(dataset, label_ids, shard, args)
                with whole_file(path) as aside:
                    images.to_parquet(aside)
        accelerator.wait_for_everyone()

        # 3. What it is, and where it goes.
        if accelerator.is_main_process:
            save_card(output_dir / "README.md", dataset_card(args, len(dataset), options["class_names"]))
            print(f"{len(dataset):,} images in {num_shards:,} files: load_dataset({str(output_dir)!r})")
            if args.push_to_hub:
                print(f"Pushed to {args.hub_dataset_id}: {upload(output_dir, args.hub_dataset_id, args.hub_token)}")


def refuse_other_data(output_dir: Path) -> None:
    """Refuses a folder with data of others: `datasets` would read the generated images in their place."""
    if has_made("generate_dim.py", output_dir) or not output_dir.is_dir():
        return
    suffixes = {*image_suffixes(), *DATA_SUFFIXES, *TABLE_SUFFIXES, *ARCHIVES}
    for path in output_dir.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(output_dir).parts)
        if path.suffix.lower() in suffixes and not hidden:
            raise FileExistsError(
                f"`--output_dir` {output_dir} holds other data ({path.relative_to(output_dir)}), in whose place the "
                "generated images would be read; name another folder."
            )


def named_classes(class_labels: list[str] | None, class_names: list[str]) -> list[int | str] | None:
    """Classes of the command line: a number is a label, unless a class has it for its name."""
    if class_labels is None:
        return None
    return [int(label) if label.isdecimal() and label not in class_names else label for label in class_labels]


def fingerprint(pipe: DiMPipeline, filtered: bool) -> str:
    """A digest of the weights that decide the images: those of a teacher if it filters them."""
    digest = hashlib.sha256()
    for component in (pipe.generator, pipe.labeler if filtered else None):
        for name, value in (component.state_dict() if component is not None else {}).items():
            digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_options(output_dir: Path, options: dict) -> None:
    """Refuses a folder that holds something else, naming what differs."""
    path = output_dir / "options.json"
    then = read_json(path)
    if then is None:
        return
    if not isinstance(then, dict):
        raise ValueError(f"{path} is damaged: it does not hold the settings of a run.")
    if changed := [f"`{name}`" for name in {*then, *options} if then.get(name) != options.get(name)]:
        raise FileExistsError(
            f"`--output_dir` {output_dir} holds what was made with other settings ({listed(sorted(changed))}); name "
            "another folder."
        )


def images_of(dataset: DiMDataset, label_ids: list[int], shard: int, args: argparse.Namespace) -> datasets.Dataset:
    """The images of one shard."""
    features, image_column, label_column, label_of = labelled_features(dataset.class_names, label_ids)
    encode = features[image_column].encode_example
    start = shard * args.shard_size
    rows = torch.arange(start, min(start + args.shard_size, len(dataset)))
    # Row by row the classes take turns, so that any shard has all of them.
    num_classes = len(dataset) // args.ipc
    columns: dict[str, list] = {image_column: [], label_column: []}
    for batch in rows.split(args.batch_size):
        images, labels = dataset.make(0, batch % num_classes * args.ipc + batch // num_classes)
        columns[image_column] += [encode(image) for image in to_pil(images)]
        columns[label_column] += [label_of[label] for label in labels.tolist()]
    return datasets.Dataset.from_dict(columns, features=features)


def dataset_card(args: argparse.Namespace, count: int, class_names: list[str]) -> DatasetCard:
    classes = listed(map(markdown, class_names), most=100)
    teacher = ""
    if args.max_attempts > 1:
        unsure = f", or gave its class a probability below {args.min_confidence}," if args.min_confidence else ""
        teacher = f"""
An image that a teacher took for another class{unsure} was drawn again, up to {args.max_attempts} draws in all."""
    images = f"""\
{count:,} images, {args.ipc:,} of each class ({classes}), made from noise by the generator of a
distilled data set with `training/generate_dim.py` of dim_hf: seed {args.seed}, noise scale
{args.noise_scale}.{teacher}
The licence of the data set that the generator was trained on applies."""
    digest = hashlib.sha256(images.encode()).hexdigest()[:16]
    return DatasetCard(f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
task_categories:
- image-classification
tags:
- dim_hf
- synthetic-data
---

# Generated images

<!-- images of settings {digest} -->
{images}
<!-- end of images -->
""")


def save_card(path: Path, card: DatasetCard) -> None:
    """Saves a card. An existing one keeps its text, except the description of the images if they changed."""
    if existing := existing_card(DatasetCard, path):
        card = merge_cards(existing, card, known=set(), outdated=SIZES)
    replace_text(path, str(card))


def upload(output_dir: Path, repo_id: str, token: str | None) -> str:
    """
    Uploads a folder as a repository's data set, in one commit, and returns its URL. A card that is there keeps its
    text, as with `datasets.Dataset.push_to_hub`, except the description of the images if they changed; the card in the
    folder stays as it is.
    """
    try:
        card = (output_dir / "README.md").read_bytes()
        if existing := existing_card(DatasetCard, repo_id, token):
            own = DatasetCard.load(output_dir / "README.md", ignore_metadata_errors=True)
            card = str(merge_cards(existing, own, known=set(), outdated=SIZES)).encode()
        # `upload_folder` makes several commits of many files, and a data set between two of them lacks images.
        api = HfApi(token=token)
        shards = sorted(output_dir.glob("data/train-*.parquet"))
        files: dict[str, Path | bytes] = {path.relative_to(output_dir).as_posix(): path for path in shards}
        files["README.md"] = card
        # Shards of an earlier push would be read beside these.
        outdated = {
            path for path in api.list_repo_files(repo_id, repo_type="dataset") if fnmatch(path, "data/train-*.parquet")
        } - files.keys()
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in sorted(outdated)),
            ],
            commit_message="Generated images",
            repo_type="dataset",
        )
    except HUB_ERRORS as error:
        raise OSError(
            f"The push to {repo_id!r} failed: {hub_reason(error)} {output_dir} is complete all the same; the same "
            "command pushes it."
        ) from error


if __name__ == "__main__":
    run_script(
        "generate_dim.py",
        lambda: main(ARGS),
        "Every file that was finished is kept; the same command goes on.",
    )
