"""
Accuracy against stored bytes: generators, the same bytes of real images as PNG and in the best codec, and the limit,
all real images streamed at the same rate.

    python benchmarks/frontier.py --dataset_name zalando-datasets/fashion_mnist --output_dir out/frontier-fashion \
        --pipelines out/fashion-nano out/fashion-tiny out/fashion-int8 --budgets 0.1 0.3 0.9

Classifiers are trained in protocol B and scored once on the test split. Real images are compared at `--budgets`, or
else at the size of each pipeline; their best codec is chosen for each size on held-out images of *train*, by
`dim_hf.evaluation.codec_search`, which takes longer than the rows. With `--budgets`, another pipeline needs no other
search: it is compared with the smallest budget that it fits in. `--storage float16 int8 int4` scores each pipeline in
each of these forms, and `--max_attempts 1 8` pipelines with a teacher without and with its filter.

The output folder gets results.jsonl, a line per classifier, and codecs.jsonl, the searches: the same command goes on
after an interruption, and another pipeline, size, seed or classifier adds to what is there. frontier.md (the table)
and frontier.png (the plot) are written anew after every classifier.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dim_hf.choices import STORAGE_FORMS
from dim_hf.classifiers import check_classifier
from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation.codec_search import best_codec
from dim_hf.evaluation.codecs import Codec
from dim_hf.evaluation.controls import Comparison, equal_bytes, equal_bytes_lossy, streamed
from dim_hf.evaluation.protocols import Deployment
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.results import describe_job, job_key
from dim_hf.evaluation.sources import Draw, Source, generated_source
from dim_hf.evaluation.tables import Row, results_table
from dim_hf.files import append_json_line, check_output_dir, lock_output_dir, read_json_lines, replace_text
from dim_hf.hub.card import read_options
from dim_hf.machine import environment, keep_freed_memory
from dim_hf.messages import listed
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import stored_form


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from command_line import check_numbers, check_once, overlap, run_script  # noqa: E402
from evaluate_inputs import refuse_seen  # noqa: E402


OURS, PNG, CODED, LIMIT = "generated images", "real images as PNG", "real images in the best codec", "all real images"
# No line between generators: each is trained by itself.
STYLES = {OURS: ("C0", "o", ""), PNG: ("C1", "s", ":"), CODED: ("C3", "^", "--")}
DEFAULT_BUDGETS = (0.05, 0.1, 0.3, 0.9, 3.0)
# Fixed sets of all classes with ConvNet-3: MB, accuracy in % and name. Recipes differ, and each counts bytes in its
# own way.
PUBLISHED = {
    "cifar10": (
        (0.03, 58.6, "AutoPalette"),
        (0.12, 67.6, "GSDD"),
        (0.31, 74.3, "AutoPalette"),
        (1.21, 75.5, "GSDD"),
        (1.54, 79.4, "AutoPalette"),
    )
}
SOURCES = {"AutoPalette": "arXiv 2411.11329", "GSDD": "arXiv 2509.26219"}


@dataclass(frozen=True)
class Point:
    """One size of one curve; of a curve of real images, `budget` is the bytes that it was given."""

    curve: str
    source: Source
    budget: int


@dataclass(frozen=True)
class Mark:
    """What the plot shows of a row: `mean` and `std` are accuracies in %; a limit has no `bytes`."""

    curve: str
    classifier: str
    bytes: int
    mean: float
    std: float | None


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Accuracy against stored bytes, of generators and of real images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--cache_dir")
    parser.add_argument("--output_dir", default="out/frontier")
    parser.add_argument("--pipelines", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument(
        "--storage", nargs="+", choices=STORAGE_FORMS, help="score each of them in these forms; default: as stored"
    )
    parser.add_argument(
        "--max_attempts",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="draws of an image that the teacher takes for another class, for pipelines with a teacher, whose bytes "
        "count then; 1: no filter",
    )
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        metavar="MB",
        help="sizes of real images; default: those of the pipelines, or without any "
        f"{' '.join(map(str, DEFAULT_BUDGETS))}",
    )
    parser.add_argument("--classifiers", nargs="+", default=["convnet3", "resnet18"], metavar="CLASSIFIER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of classifiers and of what they see")
    parser.add_argument("--ipc", type=int, default=10, help="images per class and epoch")
    parser.add_argument("--epochs", type=int, default=DeploymentRecipe.epochs)
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--published", choices=PUBLISHED, help="draw published fixed sets of that data set, too")
    args = parser.parse_args(input_args)
    check_numbers(args, {"ipc": (1, 2**31), "epochs": (1, 2**31), "seeds": (0, 2**32)})
    check_once(args, ("classifiers", "seeds"))
    for megabytes in args.budgets or ():
        if not (math.isfinite(megabytes) and megabytes >= 1e-6):
            raise ValueError(f"`--budgets` has {megabytes:g} MB; valid are finite numbers from 0.000001, one byte.")
    if overlap(args.test_split, args.train_split):
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, and `--train_split`, of the real images, {args.train_split!r}; "
            "valid is one that nothing is trained on."
        )
    return args


def main(args: argparse.Namespace) -> list[Row]:
    keep_freed_memory()
    recipe = DeploymentRecipe(args.epochs, mixed_precision=args.mixed_precision)
    for name in args.classifiers:
        check_classifier(name)
    if args.storage and not args.pipelines:
        raise ValueError(f"`--storage` {' '.join(args.storage)} has no effect without `--pipelines`.")
    runs = {folder: read_options(Path(folder)) for folder in args.pipelines}
    for folder, run in runs.items():
        refuse_seen(args, folder, run)
    pipelines = load_pipelines(args.pipelines, args.storage)
    if min(args.max_attempts) < 1:
        raise ValueError(f"`--max_attempts` has {min(args.max_attempts)}; each must be at least 1.")
    if max(args.max_attempts) > 1 and all(pipeline.labeler is None for pipeline in pipelines.values()):
        raise ValueError(f"`--max_attempts` {max(args.max_attempts)} takes a teacher, which no pipeline here has.")
    train, test = load_data(args, pipelines)
    for folder, run in runs.items():
        refuse_seen(args, folder, run, test)
    for name in args.classifiers:
        check_classifier(name, test.channels, test.size)
    output_dir = Path(args.output_dir)
    check_output_dir(output_dir, 2**20, resuming=True)
    lock = lock_output_dir(output_dir)

    points = list_points(args, pipelines, train, recipe, output_dir / "codecs.jsonl")
    path = output_dir / "results.jsonl"
    finished = {job_key(record["job"]): record for record in read_json_lines(path) if {"job", "accuracy"} <= {*record}}

    def job(point: Point, classifier: str, seed: int) -> dict[str, Any]:
        return describe_job(point.source, classifier, seed, test)

    # A whole curve with one seed before any second seed.
    rows: list[tuple[Point, Row]] = []
    for seed in args.seeds:
        for classifier in args.classifiers:
            for point in points:
                if job_key(job(point, classifier, seed)) in finished:
                    continue
                start = time.perf_counter()
                figures = point.source.train(classifier, test, seed)
                record: dict[str, Any] = {"job": job(point, classifier, seed), "accuracy": figures["accuracy"]}
                record |= {"seconds": round(time.perf_counter() - start, 1), "bytes": point.source.stored(seed)}
                finished[job_key(record["job"])] = record
                append_json_line(path, record)
                print(
                    f"{point.source.description}, {record['bytes']:,} bytes, {classifier}, seed {seed}: "
                    f"{100 * record['accuracy']:.2f} %",
                    flush=True,
                )
                rows = collect(points, finished, job, args)
                write(output_dir, rows, args, test)
    if not rows:
        rows = collect(points, finished, job, args)
        write(output_dir, rows, args, test)
    lock.release()
    print(f"\n{results_table([row for _, row in rows])}\n\nplot {output_dir / 'frontier.png'}")
    return [row for _, row in rows]


def load_pipelines(folders: Sequence[str], forms: Sequence[str] | None) -> dict[str, DiMPipeline]:
    """The pipelines by their folders, or by folder and form of storage where forms are asked for."""
    loaded = {folder: load_pipeline(folder) for folder in folders}
    if forms is None:
        return loaded
    return {f"{folder}, {form}": stored_form(each, form) for folder, each in loaded.items() for form in forms}


def load_pipeline(folder: str) -> DiMPipeline:
    if not (Path(folder) / "model_index.json").exists():
        raise FileNotFoundError(f"`--pipelines` has {folder}, which holds no pipeline (model_index.json).")
    pipeline = DiMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def load_data(args: argparse.Namespace, pipelines: dict[str, DiMPipeline]) -> tuple[ImageData, ImageData]:
    """The splits at the size and channels of the pipelines."""
    configs = [pipeline.generator.config for pipeline in pipelines.values()]
    shapes = {(config.sample_size, config.out_channels, config.num_classes) for config in configs}
    if len(shapes) > 1:
        raise ValueError(f"`--pipelines` make different images: (size, channels, classes) are {sorted(shapes)}.")
    size, channels, classes = next(iter(shapes), (None, None, None))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"resolution": size, "channels": channels, "cache_dir": args.cache_dir}
    names = {tuple(pipeline.class_names) for pipeline in pipelines.values()}
    train = load_image_data(args.dataset_name, args.train_split, **options)
    if classes is not None and train.num_classes != classes:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has {train.num_classes} classes; `--pipelines` generate {classes}."
        )
    if other := names - {train.class_names}:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has the classes {listed(train.class_names)}; of `--pipelines`, one "
            f"generates {listed(other.pop())}."
        )
    options |= {"resolution": train.size, "channels": train.channels}
    test = load_image_data(args.dataset_name, args.test_split, class_names=train.class_names, **options)
    if test.fingerprint == train.fingerprint:
        raise ValueError(
            f"`--test_split` {args.test_split} of `--dataset_name` {args.dataset_name} holds the images of "
            f"`--train_split` {args.train_split}; valid is one that nothing is trained on."
        )
    return train.to(device), test.to(device)


def list_points(
    args: argparse.Namespace,
    pipelines: dict[str, DiMPipeline],
    train: ImageData,
    recipe: DeploymentRecipe,
    searches: Path,
) -> list[Point]:
    """What classifiers are trained on. The best codecs are searched for here, where `searches` does not know them."""
    judge = Deployment(recipe)
    short = [Path(name).name for name in pipelines]
    titles = {name: Path(name).name if short.count(Path(name).name) == 1 else name for name in pipelines}
    ours = [
        generated_source(pipeline, args.ipc, judge, f"{OURS}, {titles[name]}", draw=Draw(max_attempts=attempts))
        for name, pipeline in pipelines.items()
        for attempts in (dict.fromkeys(args.max_attempts) if pipeline.labeler is not None else [1])
    ]
    points = sorted((Point(OURS, source, source.stored(0)) for source in ours), key=lambda point: point.budget)
    asked = {round(1e6 * each) for each in args.budgets or (() if pipelines else DEFAULT_BUDGETS)}
    budgets = sorted(asked or {point.budget for point in points})

    def compared(budget: int) -> Comparison:
        def search(budget: int) -> Codec:
            return best_codec(train, budget, args.ipc, recipe, searches)

        return Comparison(train=train, ipc=args.ipc, judge=judge, protocol="B", budget=budget, codec_for=search)

    for budget in budgets:
        points.append(Point(PNG, equal_bytes(compared(budget)), budget))
        points.append(Point(CODED, equal_bytes_lossy(compared(budget)), budget))
    return [*points, Point(LIMIT, streamed(compared(0)), 0)]


def collect(
    points: Sequence[Point], finished: dict[str, Any], job: Any, args: argparse.Namespace
) -> list[tuple[Point, Row]]:
    """The finished rows, over the seeds that are finished."""
    rows = []
    for classifier in args.classifiers:
        for point in points:
            own = [finished.get(job_key(job(point, classifier, seed))) for seed in args.seeds]
            if results := [record for record in own if record is not None]:
                rows.append((point, point.source.row(classifier, args.seeds[0], results)))
    return rows


def write(folder: Path, rows: Sequence[tuple[Point, Row]], args: argparse.Namespace, test: ImageData) -> None:
    """The table, what generators are above real images by, and the plot."""
    title = f"# Accuracy against stored bytes: {Path(args.dataset_name).name}"
    text = [title, results_table([row for _, row in rows])]
    if margins := list(describe_margins(rows)):
        text.append("\n".join(margins))
    text.append(
        f"Protocol B, {args.ipc} images per class and epoch, {args.epochs:,} epochs, accuracy on the {len(test):,} "
        f"images of split {args.test_split}, seeds {', '.join(map(str, args.seeds))}. Codecs were chosen on held-out "
        f"images of train. Size: everything that must be stored."
    )
    if args.published:
        named = "; ".join(f"{name}, {source}" for name, source in SOURCES.items())
        text.append(
            f"Published fixed sets in the plot ({named}): ConvNet-3, other recipes, and bytes are counted in their "
            "own ways."
        )
    text.append("\n".join(f"- {name}: {value}" for name, value in environment().items()))
    replace_text(folder / "frontier.md", "\n\n".join(text) + "\n")
    marks = [
        Mark(point.curve, row.classifier, row.bytes, 100 * row.mean, None if row.std is None else 100 * row.std)
        for point, row in rows
    ]
    plot(folder / "frontier.png", marks, args.published)


def describe_margins(rows: Sequence[tuple[Point, Row]]) -> list[str]:
    """How many points each generator is better than real images of as many bytes, or of the next larger budget."""
    means = {(point.curve, point.budget, row.classifier): (row.mean, row.source) for point, row in rows}
    budgets = sorted({point.budget for point, _ in rows if point.curve in (PNG, CODED)})
    lines = []
    for point, row in rows:
        if point.curve != OURS:
            continue
        budget = next((each for each in budgets if each >= point.budget), None)
        real = [means.get((curve, budget, row.classifier)) for curve in (PNG, CODED)] if budget else []
        differences = [f"{100 * (row.mean - each[0]):+.2f} to {each[1]}" for each in real if each]
        if differences:
            lines.append(f"- {row.source}, {row.bytes:,} bytes, {row.classifier}: {', '.join(differences)}")
    return lines


def plot(path: Path, marks: Sequence[Mark], published: str | None = None) -> None:
    """A panel per classifier; `published` names the data set of published fixed sets, which are drawn, too."""
    classifiers = list(dict.fromkeys(mark.classifier for mark in marks))
    figure = Figure(figsize=(1 + 5 * len(classifiers), 4.5), layout="constrained")
    panels = figure.subplots(1, len(classifiers), squeeze=False, sharex=True, sharey=True)[0]
    for axes, classifier in zip(panels, classifiers, strict=True):
        own = [mark for mark in marks if mark.classifier == classifier]
        for curve, (colour, marker, line) in STYLES.items():
            of_curve = sorted((mark for mark in own if mark.curve == curve), key=lambda mark: mark.bytes)
            axes.errorbar(
                [mark.bytes / 1e6 for mark in of_curve],
                [mark.mean for mark in of_curve],
                [mark.std or 0 for mark in of_curve],
                color=colour,
                marker=marker,
                ls=line,
                ms=5,
                capsize=3,
                label=curve,
                zorder=3 if curve == OURS else 2,
            )
        for mark in own:
            if mark.curve == LIMIT:
                axes.axhline(mark.mean, color="grey", lw=1, label=f"{LIMIT}, streamed")
        if published and classifier == "convnet3":
            for megabytes, accuracy, name in PUBLISHED[published]:
                axes.plot(megabytes, accuracy, "kx", ms=5)
                axes.annotate(name, (megabytes, accuracy), (0, 5), textcoords="offset points", fontsize=7, ha="center")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("stored, MB")
        axes.set_title(classifier)
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.1)
        axes.legend(fontsize=7, loc="best")
    panels[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_script(
        "frontier.py",
        lambda: main(parse_args()),
        "Every classifier that was finished is kept in results.jsonl, and every search in codecs.jsonl; the same "
        "command goes on.",
    )
