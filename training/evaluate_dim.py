"""
Trains classifiers on a distilled data set and scores them on real test images (deployment, protocol B).

    accelerate launch training/evaluate_dim.py                                   # what train_dim.py made of the digits
    accelerate launch training/evaluate_dim.py --pipeline out/fashion --dataset_name zalando-datasets/fashion_mnist \
        --ipc 1 10 --classifiers convnet3 resnet18 --seeds 0 1 2

Every row is trained by one recipe for the same number of steps: on generated images, on those of the same generator
before matching, and on real images as controls. The test split is scored once per classifier, after its last epoch.
The output folder gets metrics.json, report.md and samples.png. With several processes the classifiers are shared out.
"""

import argparse
import io
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.deployment import DeploymentRecipe, Stream, evaluate_accuracy, train_classifier
from dim_hf.pipelines.pipeline_dim import DiMPipeline
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
    data.add_argument("--validation", action="store_true", help="score the held-out part of train, not the test split")
    data.add_argument("--validation_fraction", type=float, default=0.1, help="share of train that --validation scores")
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
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> list[Row]:
    # 1. Settings are checked before any work.
    recipe = DeploymentRecipe(args.epochs, args.train_batch_size, args.learning_rate)
    for name in args.classifiers:
        build_classifier(name, num_classes=2)
    if wrong := [ipc for ipc in args.ipc if ipc < 1]:
        raise ValueError(f"`--ipc` is {wrong[0]}; it must be at least 1.")
    for name in ("ipc", "seeds", "classifiers"):
        if len(set(getattr(args, name))) != len(getattr(args, name)):
            raise ValueError(f"`--{name}` names {getattr(args, name)}; each must be given once.")
    if min(args.seeds) < 0:
        raise ValueError(f"`--seeds` has {min(args.seeds)}; it must be 0 or above.")
    folder = Path(args.pipeline)
    if folder.exists() and not (folder / "model_index.json").exists():
        raise FileNotFoundError(f"`--pipeline` {folder} holds no pipeline (model_index.json).")
    output_dir = Path(args.output_dir or folder / "evaluation")
    accelerator = Accelerator()
    pipelines = {GENERATED: DiMPipeline.from_pretrained(args.pipeline)}
    before = Path(args.before_matching) if args.before_matching else folder / "before_matching"
    if "before_matching" in args.controls and (args.before_matching or before.exists()):
        pipelines["before_matching"] = DiMPipeline.from_pretrained(before)
    for pipeline in pipelines.values():
        pipeline.to(accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
    train, test = load_splits(args, pipelines[GENERATED], accelerator)
    output_dir.mkdir(parents=True, exist_ok=True)

    # 2. One job per row and seed, shared out over the processes.
    sources = [GENERATED, *(name for name in CONTROLS if name in args.controls)]
    if "before_matching" in sources and "before_matching" not in pipelines:
        sources.remove("before_matching")
    rows = [(source, name, ipc) for ipc in args.ipc for name in args.classifiers for source in sources]
    jobs = [(row, seed) for seed in args.seeds for row in rows]
    results = []
    mine = jobs[accelerator.process_index :: accelerator.num_processes]
    for (source, name, ipc), seed in tqdm(mine, unit="classifier", disable=not accelerator.is_main_process):
        start = time.perf_counter()
        stream, _ = make_stream(source, ipc, seed, recipe, pipelines, train)
        classifier = train_classifier(
            stream,
            name,
            recipe,
            channels=test.channels,
            size=test.size,
            seed=seed,
            device=accelerator.device,
            progress=accelerator.is_main_process,
        )
        accuracy = evaluate_accuracy(classifier, test)
        results.append(((source, name, ipc), seed, accuracy, time.perf_counter() - start))
        tqdm.write(f"{SOURCES[source]}, {name}, ipc {ipc}, seed {seed}: {100 * accuracy:.2f} %")
    results = sorted(gather_object(results), key=lambda result: result[1])

    # 3. The table, the report and the picture.
    table = []
    for source, name, ipc in rows:
        own = [result for result in results if result[0] == (source, name, ipc)]
        stream, stored = make_stream(source, ipc, args.seeds[0], recipe, pipelines, train)
        steps = recipe.epochs * stream.steps_per_epoch
        drawn = recipe.epochs * ipc * train.num_classes
        distinct = {"random": ipc * train.num_classes, "streamed": min(drawn, len(train))}.get(source, drawn)
        if source == "whole":
            distinct = min(steps * recipe.batch_size, len(train))
        seconds = sum(result[3] for result in own) / len(own)
        table.append(
            Row(SOURCES[source], name, ipc, steps, distinct, stored, [result[2] for result in own], round(seconds, 1))
        )
    if accelerator.is_main_process:
        protocol = (
            f"Protocol B: `ipc` images per class *and epoch*, {recipe.epochs:,} epochs, hard labels, SGD with a "
            f"one-cycle learning rate up to {recipe.learning_rate}, random shifts of up to an eighth of the size. All "
            f"rows of an ipc take the same steps. Accuracy on the {len(test):,} images of "
            f"{'the held-out part of ' + args.train_split if args.validation else args.test_split}, scored once after "
            f"the last epoch; mean and standard deviation over classifier and noise seeds {args.seeds}. Size: weights "
            f"as saved, or images as PNG."
        )
        save_sample_grid(pipelines[GENERATED], output_dir / "samples.png")
        write_report(output_dir, table, protocol, {"options": vars(args), "environment": environment()})
        print(f"\n{results_table(table)}\n\nreport {output_dir / 'report.md'}\nsamples {output_dir / 'samples.png'}")
    return table


def load_splits(
    args: argparse.Namespace, pipeline: DiMPipeline, accelerator: Accelerator
) -> tuple[ImageData, ImageData]:
    """The real images to train controls on and to score, at the size, channels and labels of the pipeline."""
    config = pipeline.generator.config

    def load(split: str, class_names: tuple[str, ...] | None) -> ImageData:
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
                revision=args.revision,
            )

    train = load(args.train_split, None)
    names = pipeline.config.id2label
    expected = tuple(names.values()) if names else tuple(str(label) for label in range(config.num_classes))
    if train.class_names != expected:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has the classes {', '.join(train.class_names)}; the pipeline "
            f"generates {', '.join(expected)}."
        )
    if args.validation:
        train, test = holdout(train, args.validation_fraction, 0)
    else:
        test = load(args.test_split, train.class_names)
    return train.to(accelerator.device), test.to(accelerator.device)


def make_stream(
    source: str,
    ipc: int,
    seed: int,
    recipe: DeploymentRecipe,
    pipelines: dict[str, DiMPipeline],
    train: ImageData,
) -> tuple[Stream, int]:
    """What a row is trained on, and the bytes that have to be stored for it."""
    if source in pipelines:
        generator = pipelines[source].generator
        stored = sum(p.numel() * p.element_size() for p in [*generator.parameters(), *generator.buffers()])
        return GeneratedStream(generator, ipc, seed, recipe.batch_size), stored
    if source == "random":
        rng = torch.Generator().manual_seed(seed)
        labels = train.labels.cpu()
        chosen = []
        for label in range(train.num_classes):
            members = torch.nonzero(labels == label).squeeze(1)
            chosen.append(members[torch.randperm(len(members), generator=rng)[:ipc]])
        subset = train.select(torch.cat(chosen))
        return RealStream(subset, ipc, seed, recipe.batch_size), png_bytes(subset)
    stored = png_bytes(train)
    real = RealStream(train, ipc, seed, recipe.batch_size)
    if source == "streamed":
        return real, stored
    return WholeSetStream(train, real.steps_per_epoch, seed, recipe.batch_size), stored


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
