"""
Trains classifiers on a distilled data set and scores them on real test images (deployment, protocol B).

    accelerate launch training/evaluate_dim.py                                   # what train_dim.py made of the digits
    accelerate launch training/evaluate_dim.py --pipeline out/fashion --dataset_name zalando-datasets/fashion_mnist \
        --ipc 1 10 --classifiers convnet3 resnet18 --seeds 0 1 2

Every row is trained by one recipe for the same number of steps: on generated images, on those of the same generator
before matching, and on real images as controls. The test split is scored once per classifier, after its last epoch.
The output folder gets metrics.json, report.md and samples.png, and results.jsonl, a line per classifier: what is there
is not run again, after an interruption or with another row beside it. With several processes the classifiers are
shared out.
"""

import argparse
import io
import json
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from PIL import Image
from tqdm.auto import tqdm

from dim_hf.checkpointing import check_output_dir
from dim_hf.classifiers import check_classifier
from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.deployment import DeploymentRecipe, Stream, evaluate_accuracy, train_classifier
from dim_hf.pipelines.pipeline_dim import DiMPipeline
from dim_hf.publishing import local_or_hub, prepare_repository, weights_digest
from dim_hf.reporting import Row, environment, results_table, save_sample_grid, write_report
from dim_hf.streaming import GeneratedStream, RealStream, WholeSetStream


GENERATED = "generated"
CONTROLS = ("before_matching", "streamed", "random", "whole")
SOURCES = {
    GENERATED: "generated images",
    "before_matching": "generated, before matching",
    "streamed": "real images, streamed",
    "random": "real subset of ipc per class",
    "whole": "real images, the whole set",
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train classifiers on a distilled data set and score them on real test images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pipeline", default="out/digits", help="folder or Hub id of a distilled data set")
    parser.add_argument("--before_matching", help="pipeline of that control; default: before_matching/ in --pipeline")
    parser.add_argument("--output_dir", help="default: evaluation/ in --pipeline")

    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="digits", help="Hub id, local folder or file, or 'digits' (embedded)")
    data.add_argument("--dataset_config_name", help="configuration of the data set, where it has several")
    data.add_argument("--train_data_dir", help="folder of images, one sub-folder per class, instead of a data set")
    data.add_argument("--revision", help="revision of a data set on the Hub")
    data.add_argument("--train_split", default="train", help="where the real controls come from")
    data.add_argument("--test_split", default="test")
    data.add_argument("--max_train_samples", type=int, help="take real controls from so many images, stratified")
    data.add_argument(
        "--validation",
        action="store_true",
        help="score the part of train that training held out, as options.json in --pipeline says, not the test split",
    )
    data.add_argument("--image_column", help="found from the features unless given")
    data.add_argument("--label_column", help="found from the features unless given")
    data.add_argument("--cache_dir", help="where decoded images are kept")
    data.add_argument("--dataloader_num_workers", type=int, help="processes that decode; default: every core")

    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--ipc", type=int, nargs="+", default=[10], help="images per class and epoch")
    protocol.add_argument("--classifiers", nargs="+", default=["convnet3", "resnet18"], metavar="CLASSIFIER")
    protocol.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of classifiers and of noise")
    protocol.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS))
    protocol.add_argument("--epochs", type=int, default=DeploymentRecipe.epochs)
    protocol.add_argument("--train_batch_size", type=int, default=DeploymentRecipe.batch_size)
    protocol.add_argument("--learning_rate", type=float, default=DeploymentRecipe.learning_rate)
    protocol.add_argument("--mixed_precision", choices=["no", "bf16"], help="default: accelerate's configuration")

    hub = parser.add_argument_group("Hugging Face Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="push the pipeline, with the results on its card")
    hub.add_argument("--hub_model_id", help="repository; default: --pipeline, or the name of its folder")
    hub.add_argument("--hub_token", help="default: the token of `hf auth login` or of HF_TOKEN")
    hub.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> list[Row]:
    # 1. Settings are checked before any work.
    # Processes wait at the end for the slowest; the usual time-out would lose hours of work.
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    recipe = DeploymentRecipe(
        args.epochs, args.train_batch_size, args.learning_rate, mixed_precision=accelerator.mixed_precision
    )
    for name in args.classifiers:
        check_classifier(name)
    if wrong := [ipc for ipc in args.ipc if ipc < 1]:
        raise ValueError(f"`--ipc` is {wrong[0]}; it must be at least 1.")
    for name, values in {"ipc": args.ipc, "seeds": args.seeds, "classifiers": args.classifiers}.items():
        if len(set(values)) != len(values):
            raise ValueError(f"`--{name}` names {values}; each must be given once.")
    if min(args.seeds) < 0:
        raise ValueError(f"`--seeds` has {min(args.seeds)}; it must be 0 or above.")
    folder = Path(args.pipeline)
    if not folder.exists() and not args.output_dir:
        raise FileNotFoundError(
            f"`--pipeline` {folder} is no local folder; for a pipeline on the Hub, `--output_dir` must be given."
        )
    training = None
    if args.validation:
        if not (folder / "options.json").exists():
            raise FileNotFoundError(
                f"`--validation` needs options.json in `--pipeline` {folder}, which says what training held out."
            )
        training = json.loads((folder / "options.json").read_text())
    output_dir = Path(args.output_dir or folder / "evaluation")
    pipelines = {GENERATED: load_pipeline("pipeline", folder)}
    before = Path(args.before_matching) if args.before_matching else folder / "before_matching"
    if "before_matching" in args.controls and (args.before_matching or before.exists()):
        pipelines["before_matching"] = load_pipeline("before_matching", before)
    shapes = {
        (p.generator.config.sample_size, p.generator.config.out_channels, p.generator.config.num_classes)
        for p in pipelines.values()
    }
    if len(shapes) > 1:
        raise ValueError(
            f"`--before_matching` {before} makes other images than `--pipeline` {folder}: (size, channels, classes) "
            f"are {' and '.join(map(str, sorted(shapes)))}."
        )
    for pipeline in pipelines.values():
        pipeline.to(accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
    train, test = load_splits(args, pipelines[GENERATED], accelerator, training)
    for name in args.classifiers:
        check_classifier(name, test.channels, test.size)
    if accelerator.is_main_process:
        # A new evaluation takes the place of an older one.
        check_output_dir(output_dir, 2**20, resuming=True)
        if args.push_to_hub:
            name = args.hub_model_id or (folder.resolve().name if folder.exists() else args.pipeline)
            args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
    accelerator.wait_for_everyone()

    # 2. One job per row and seed, shared out over the processes. A job that an earlier evaluation has finished in the
    # same folder is not run again.
    sources = [GENERATED, *(name for name in CONTROLS if name in args.controls)]
    if "before_matching" in sources and "before_matching" not in pipelines:
        sources.remove("before_matching")
    rows = [(source, name, ipc) for ipc in args.ipc for name in args.classifiers for source in sources]
    content = {name: weights_digest(pipelines[name]) if name in pipelines else train.fingerprint for name in sources}
    jobs = [
        {
            # Two generators with the same weights are the same source.
            "source": GENERATED if source in pipelines else source,
            "content": content[source],
            "classifier": name,
            "ipc": ipc,
            "seed": seed,
            "recipe": asdict(recipe),
            "test": test.fingerprint,
        }
        for seed in args.seeds
        for source, name, ipc in rows
    ]
    finished = read_results(output_dir / "results.jsonl")
    accelerator.wait_for_everyone()
    missing = [
        (row, job) for row, job in zip(rows * len(args.seeds), jobs, strict=True) if job_key(job) not in finished
    ]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for (source, name, ipc), job in tqdm(mine, unit="classifier", disable=not accelerator.is_main_process):
        start = time.perf_counter()
        classifier = train_classifier(
            make_stream(source, ipc, job["seed"], recipe, pipelines, train),
            name,
            recipe,
            channels=test.channels,
            size=test.size,
            seed=job["seed"],
            device=accelerator.device,
            progress=accelerator.is_main_process,
        )
        accuracy = evaluate_accuracy(classifier, test)
        result = {"job": job, "accuracy": accuracy, "seconds": round(time.perf_counter() - start, 1)}
        with (output_dir / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        tqdm.write(f"{SOURCES[source]}, {name}, ipc {ipc}, seed {job['seed']}: {100 * accuracy:.2f} %")
    accelerator.wait_for_everyone()
    finished = read_results(output_dir / "results.jsonl")

    # 3. The table, the report and the picture.
    table = []
    in_class = torch.bincount(train.labels, minlength=train.num_classes)
    for i, (source, name, ipc) in enumerate(rows):
        own = [finished[job_key(job)] for job in jobs[i :: len(rows)]]
        steps = recipe.epochs * make_stream(source, ipc, args.seeds[0], recipe, pipelines, train).steps_per_epoch
        drawn = recipe.epochs * ipc
        distinct = {
            "streamed": int(in_class.clamp(max=drawn).sum()),
            "random": int(in_class.clamp(max=ipc).sum()),
            "whole": min(drawn * train.num_classes, len(train)),
        }.get(source, drawn * train.num_classes)
        stored = stored_bytes(source, ipc, args.seeds[0], pipelines, train)
        seconds = sum(result["seconds"] for result in own) / len(own)
        accuracies = [result["accuracy"] for result in own]
        table.append(Row(SOURCES[source], name, ipc, steps, distinct, stored, accuracies, round(seconds, 1)))
    if accelerator.is_main_process:
        protocol = (
            f"Protocol B: `ipc` images per class *and epoch*, {recipe.epochs:,} epochs, hard labels smoothed by "
            f"{recipe.label_smoothing}, SGD with a one-cycle learning rate up to {recipe.learning_rate}, random "
            f"shifts of up to an eighth of the size, mixed precision: {recipe.mixed_precision}. All rows of an ipc "
            f"take the same steps on batches of the "
            f"same size. Accuracy on the {len(test):,} images of "
            f"{'the part of train that training held out' if training else 'split ' + args.test_split}, scored once "
            f"after the last epoch; mean and standard deviation over classifier and noise seeds {args.seeds}. Real "
            f"images are at the generator's {test.size} x {test.size} pixels and {test.channels} channels. Size: "
            f"weights at the precision they are loaded in, or images as PNG. The generator takes {table[0].bytes:,} "
            f"bytes, as many as {table[0].bytes * len(train) / png_bytes(train):,.0f} real images do as PNG."
        )
        save_sample_grid(pipelines[GENERATED], output_dir / "samples.png")
        options = {name: value for name, value in vars(args).items() if name != "hub_token"}
        options["dataset_name"] = local_or_hub(args.dataset_name)
        details = {"options": options, "environment": environment(), "weights": weights_digest(pipelines[GENERATED])}
        write_report(output_dir, table, protocol, details)
        print(f"\n{results_table(table)}\n\nreport {output_dir / 'report.md'}\nsamples {output_dir / 'samples.png'}")
        if args.push_to_hub:
            url = pipelines[GENERATED].push_to_hub(
                args.hub_model_id,
                token=args.hub_token,
                private=args.hub_private_repo or None,
                evaluation_dir=output_dir,
            )
            print(f"pushed to {args.hub_model_id}: {url}")
    return table


def job_key(job: dict[str, Any]) -> str:
    """One string for all that decides the result of a job."""
    return json.dumps(job, sort_keys=True)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by their jobs' keys; a line that an interruption cut short is no result."""
    results = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[job_key(result["job"])] = result
    return results


def load_pipeline(argument: str, path: Path) -> DiMPipeline:
    if path.exists() and not (path / "model_index.json").exists():
        raise FileNotFoundError(f"`--{argument}` {path} holds no pipeline (model_index.json).")
    try:
        return DiMPipeline.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"`--{argument}` {path} cannot be loaded: {error}") from error


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
            return load_image_data(
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

    if training:
        train = load(training["train_split"], None, training["max_train_samples"])
    else:
        train = load(args.train_split, None, args.max_train_samples)
    names = pipeline.config.id2label
    expected = tuple(names.values()) if names else tuple(str(label) for label in range(config.num_classes))
    if train.class_names != expected:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has the classes {', '.join(train.class_names)}; the pipeline "
            f"generates {', '.join(expected)}."
        )
    if training:
        train, test = holdout(train, training["validation_fraction"], training["seed"])
    else:
        test = load(args.test_split, train.class_names, None)
    return train.to(accelerator.device), test.to(accelerator.device)


def make_stream(
    source: str,
    ipc: int,
    seed: int,
    recipe: DeploymentRecipe,
    pipelines: dict[str, DiMPipeline],
    train: ImageData,
) -> Stream:
    """What a row is trained on."""
    if source in pipelines:
        return GeneratedStream(pipelines[source].generator, ipc, seed, recipe.batch_size)
    if source == "random":
        return RealStream(random_subset(train, ipc, seed), ipc, seed, recipe.batch_size)
    if source == "streamed":
        return RealStream(train, ipc, seed, recipe.batch_size)
    return WholeSetStream(train, ipc, seed, recipe.batch_size)


def random_subset(train: ImageData, ipc: int, seed: int) -> ImageData:
    """`ipc` images of every class, or all of a class that has fewer."""
    rng = torch.Generator().manual_seed(seed)
    labels = train.labels.cpu()
    chosen = []
    for label in range(train.num_classes):
        members = torch.nonzero(labels == label).squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=rng)[:ipc]])
    return train.select(torch.cat(chosen))


def stored_bytes(source: str, ipc: int, seed: int, pipelines: dict[str, DiMPipeline], train: ImageData) -> int:
    """What has to be kept to train on a source: the generator's weights, or real images as PNG."""
    if source in pipelines:
        generator = pipelines[source].generator
        return sum(p.numel() * p.element_size() for p in [*generator.parameters(), *generator.buffers()])
    return png_bytes(random_subset(train, ipc, seed) if source == "random" else train)


def png_bytes(data: ImageData, at_most: int = 1000) -> int:
    """Bytes of the images as PNG files, from at most so many of them, evenly spread."""
    count = min(len(data), at_most)
    total = 0
    for index in torch.linspace(0, len(data) - 1, count).long().to(data.labels.device):
        pixels = data.batch(index[None])[0][0].permute(1, 2, 0).squeeze(2).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        total += buffer.tell()
    return round(total * len(data) / count)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        raise SystemExit(f"evaluate_dim.py: {error}") from error
