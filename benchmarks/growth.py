"""
What grows with the classes and the images of a data set, and how: CPU seconds, characters and pixels.

    python benchmarks/growth.py                                        # 10, 100, 1000 classes; 6,000 to 600,000 images
    python benchmarks/growth.py --classes 10 100 --images 6000 60000 --json growth.json

Made-up images of 8x8 pixels, small networks, one thread. Each row is measured for each number of classes with the
second-largest number of images, and for each number of images with the fewest classes. The last column of each half is
the growth from the second-last number to the last: 1.0 is proportional, 0 is constant.
"""

import argparse
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import generate_dim  # noqa: E402
import validation  # noqa: E402
from command_line import check_json_file, check_numbers, run_script  # noqa: E402
from gpu_stages.step import WAYS, Feed, Run  # noqa: E402
from presets import network_configs  # noqa: E402

from dim_hf.classifiers import build_classifier  # noqa: E402
from dim_hf.data import ImageData, holdout, load_image_data, stratified_order  # noqa: E402
from dim_hf.distillation.pool import build_pool  # noqa: E402
from dim_hf.distillation.pool_recipe import PoolEntry, PoolRecipe  # noqa: E402
from dim_hf.evaluation.codecs import PNG_FILES, packed_subset, png_bytes  # noqa: E402
from dim_hf.evaluation.fixed_sets import choose_latents, optimise_latents  # noqa: E402
from dim_hf.evaluation.html_report import nearest_real, write_html_report  # noqa: E402
from dim_hf.evaluation.judges import evaluate_accuracy  # noqa: E402
from dim_hf.evaluation.sample_grid import save_sample_grid  # noqa: E402
from dim_hf.evaluation.tables import Row  # noqa: E402
from dim_hf.files import replace_text  # noqa: E402
from dim_hf.hub.card import model_card  # noqa: E402
from dim_hf.machine import environment  # noqa: E402
from dim_hf.models import DiMDiscriminator, DiMGenerator  # noqa: E402
from dim_hf.pipelines import DiMPipeline  # noqa: E402
from dim_hf.streams.generated import GeneratedStream  # noqa: E402
from dim_hf.streams.real import RealStream, WholeSetStream  # noqa: E402


SIZE = 8


@dataclass
class Case:
    """Made-up data of one size, and what is made of it."""

    num_classes: int
    num_images: int
    folder: Path

    @cached_property
    def data(self) -> ImageData:
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (self.num_images, 1, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        labels = torch.arange(self.num_images) % self.num_classes
        names = tuple(f"class {label:04}" for label in range(self.num_classes))
        return ImageData(pixels, labels, names, f"{self.num_classes}/{self.num_images}")

    @cached_property
    def parquet(self) -> Path:
        files = []
        for image in self.data.images[:100]:
            buffer = io.BytesIO()
            Image.fromarray(image[0].numpy()).save(buffer, format="PNG")
            files.append({"bytes": buffer.getvalue(), "path": None})
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(self.data.class_names))}
        )
        columns = {
            "image": [files[i % len(files)] for i in range(self.num_images)],
            "label": self.data.labels.tolist(),
        }
        path = self.folder / f"{self.num_classes}-{self.num_images}.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
        return path

    @cached_property
    def run(self) -> Run:
        return Run("pico", (SIZE, 1, self.num_classes), torch.device("cpu"), "no", WAYS["as train_dim.py"])

    @cached_property
    def pipeline(self) -> DiMPipeline:
        generator = DiMGenerator(**network_configs("pico", SIZE, 1, self.num_classes)[0]).eval()
        pipeline = DiMPipeline(generator, id2label=dict(enumerate(self.data.class_names)))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def classifier(self) -> torch.nn.Module:
        return build_classifier("convnet3", self.num_classes, 1, SIZE).eval()


def read(case: Case) -> None:
    load_image_data(case.parquet, cache_dir=case.folder / "cache", num_workers=0)


def train_step(case: Case) -> None:
    Feed(case.run, case.data, 64).advance(1, with_r1=False)


def pool(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build_pool(
            [PoolEntry("convnet3", 1)], case.data, PoolRecipe(steps=16, batch_size=64), seed=0, cache_dir=folder,
            device=torch.device("cpu"), show_progress=False,
        )  # fmt: skip


def latent_step(case: Case) -> None:
    latents, labels = choose_latents(case.pipeline.generator, 1, "random", seed=0)
    optimise_latents(case.pipeline.generator, latents, labels, case.data, [case.classifier], 1, seed=0)


def report(case: Case) -> int:
    save_sample_grid(case.pipeline, case.folder / "samples.png")
    row = Row("generated", "convnet3", 1, 1, 1, 1, case.num_classes, [0.5], 1.0, "B", "hard", True, False)
    counts = torch.eye(case.num_classes, dtype=torch.int64) if case.num_classes <= 100 else None
    confusion = None if counts is None else (row, counts)
    write_html_report(case.folder, [row], "", pipeline=case.pipeline, train=case.data, confusion=confusion)
    return len((case.folder / "report.html").read_text())


def validated_images(case: Case) -> int:
    """Images that the validations of 2,000 steps train classifiers on."""
    configs = network_configs("base", 32, 3, case.num_classes)
    data = ImageData(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1), case.data.class_names, "")
    operations = validation.count_operations(
        DiMGenerator(**configs[0]), DiMDiscriminator(**configs[1]), "convnet3", data
    )
    plan = validation.plan_validations(
        operations, images_trained=2000 * 64, phases=(2000, 0), num_classes=case.num_classes,
        held_out=case.num_images // 10,
    )  # fmt: skip
    return plan.times * (plan.epochs * plan.ipc * case.num_classes + plan.images)


def unknown_class(case: Case) -> int:
    try:
        case.pipeline.get_label_ids(["none"])
    except ValueError as error:
        return len(str(error))
    raise AssertionError("a class that is not there was found")


def generated_card(case: Case) -> int:
    args = generate_dim.parse_args([])
    return len(str(generate_dim.dataset_card(args, 1, list(case.data.class_names))))


SECONDS: dict[str, Callable[[Case], Any]] = {
    "reading parquet, decoding": read,
    "reading again, from the cache": read,
    "hold-out": lambda case: holdout(case.data),
    "stratified sample": lambda case: stratified_order(case.data.labels, 0),
    "adversarial step": train_step,
    "pool: 16 steps": pool,
    "scoring 1,000 images": lambda case: evaluate_accuracy(case.classifier, case.data.select(torch.arange(1000))),
    "generated epoch, ipc 1": lambda case: list(GeneratedStream(case.pipeline, 1, 0, 64).batches(0)),
    "balanced real epoch, ipc 1": lambda case: list(RealStream(case.data, 1, 0, 64).batches(0)),
    "whole set: epoch of 10,000": lambda case: list(
        WholeSetStream(case.data, 10_000 // case.num_classes, 0, 64).batches(0)
    ),
    "k-means, 1 of 20 per class": lambda case: choose_latents(
        case.pipeline.generator, 1, "kmeans", seed=0, candidates=20, teacher=case.classifier
    ),
    "herding, 1 of 20 per class": lambda case: choose_latents(
        case.pipeline.generator, 1, "herding", seed=0, candidates=20, teacher=case.classifier
    ),
    "latents: choice of 1 per class, one step": latent_step,
    "bytes as PNG files": lambda case: png_bytes(case.data),
    "real images of 100 kB": lambda case: packed_subset(case.data, 100_000, 0, PNG_FILES),
    "nearest of all real images": lambda case: nearest_real(case.data.images[:40], case.data),
    "report with its pictures": report,
}
COUNTS: dict[str, Callable[[Case], int]] = {
    "images of all validations": validated_images,
    "report, characters": report,
    "description of the data, characters": lambda case: len(case.data.describe()),
    "message on an unknown class, characters": unknown_class,
    "model card, characters": lambda case: len(str(model_card(case.pipeline, "me/made-up"))),
    "card of generated images, characters": generated_card,
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How costs grow with classes and images.")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--images", type=int, nargs="+", default=[6_000, 60_000, 600_000])
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    check_numbers(args, {"classes": (2, 2**31), "images": (1000, 2**31)})
    if len(args.classes) < 2 or len(args.images) < 2 or 2 * max(args.classes) > sorted(args.images)[-2]:
        raise ValueError(
            "`--classes` and `--images` must have two numbers each, and the second-largest number of images two for "
            "each of the most classes."
        )
    check_json_file(args.json, ("options", "environment", "rows"))
    return args


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    classes, images = sorted(args.classes), sorted(args.images)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in (*SECONDS, *COUNTS)}
    for half, sizes in (
        ("classes", [(count, images[-2]) for count in classes]),
        ("images", [(classes[0], count) for count in images]),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                case = Case(*size, Path(folder))
                for name, value in measure(case).items():
                    rows[name].setdefault(half, []).append(value)
            print(f"{half}: {size[0]:,} classes, {size[1]:,} images", flush=True)
    header = [f"{count:,} classes" for count in classes] + ["growth"]
    header += [f"{count:,} images" for count in images] + ["growth"]
    print(f"| CPU seconds, or as said | {' | '.join(header)} |\n|{'---|' * (len(header) + 1)}")
    for name, row in rows.items():
        cells = []
        for half, steps in (("classes", classes), ("images", images)):
            values = row[half]
            cells += [f"{value:,}" if name in COUNTS else f"{value:.2g}" for value in values]
            cells.append(f"{math.log(values[-1] / values[-2], steps[-1] / steps[-2]):.1f}")
        print(f"| {name} | {' | '.join(cells)} |")
    if args.json:
        replace_text(
            args.json, json.dumps({"options": vars(args), "environment": environment(), "rows": rows}, indent=2)
        )


def measure(case: Case) -> dict[str, float]:
    """The figure of each row. What a case makes once is made before, and a short operation is run twice."""
    for made in (case.data, case.parquet, case.run, case.pipeline, case.classifier):
        assert made is not None
    figures: dict[str, float] = {}
    for name, function in SECONDS.items():
        # The first reading of a file is the one that decodes it.
        for _ in range(1 if name.startswith("reading") else 2):
            start = time.process_time()
            function(case)
            figures[name] = time.process_time() - start
            if figures[name] > 1:
                break
    return figures | {name: function(case) for name, function in COUNTS.items()}


if __name__ == "__main__":
    run_script("growth.py", lambda: main(parse_args()), "Nothing is kept.")
