"""
What generated images lack beside real ones: variety, faithfulness, or both.

    python benchmarks/gap.py --dataset_name uoft-cs/cifar10 --run out/cifar10 --steps 4000 8000 16000 --output gap

Each checkpoint of a run (its EMA generator) is measured on the images that training held out, never on a test split:

    accuracy     of a ConvNet-3 trained on a stream of its images (protocol B)
    agreement    how often a judge, trained on the real training images, gives a generated image its own label
    recall       the share of held-out images within reach of a generated one: variety
    density      how many real images reach a generated one, over the number expected: faithfulness
    nearest      accuracy of a ConvNet-3 trained on real images, each replaced by its nearest generated image

beside the same figures for real training images. Recall and density are means over the classes, on the last features
of the judge. Results go to OUTPUT.jsonl as they come; a row that is there is not measured again.

The run needs a `--checkpoints_total_limit` that keeps these checkpoints; by default it keeps the last two.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dim_hf.data import ImageData, holdout, load_image_data, normalise
from dim_hf.evaluation.coverage import density, last_features, recall
from dim_hf.evaluation.judges import Stream, evaluate_accuracy, train_classifier
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.results import EVALUATION_FORMAT
from dim_hf.files import append_json_line, read_json_lines
from dim_hf.machine import environment, keep_freed_memory
from dim_hf.messages import listed
from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import latents_at
from dim_hf.streams.real import RealStream, WholeSetStream
from dim_hf.weights import module_digest


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from command_line import run_script  # noqa: E402


CPU = torch.device("cpu")
# The epoch of the noise that is measured; no classifier is trained for that long.
EPOCH = 10**6
FIGURES = ("accuracy", "judge", "agreement", "recall", "density", "nearest")


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--dataset_name", default="digits", help="the data that the run was trained on")
    parser.add_argument("--run", required=True, type=Path, help="folder of a training run with its checkpoints")
    parser.add_argument("--steps", nargs="+", required=True, type=int, help="which checkpoints")
    parser.add_argument("--output", default="gap", help="name of the results, without .jsonl")
    parser.add_argument("--ipc", type=int, default=10, help="images per class and epoch of the accuracies")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--judge_steps", type=int, default=4000, help="training steps of the judge, of 64 images")
    parser.add_argument("--per_class", type=int, default=500, help="images per class of recall and density")
    parser.add_argument("--candidates", type=int, default=2000, help="generated images per class to find nearest ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    keep_freed_memory()
    options = json.loads((args.run / "options.json").read_text())
    if "max_train_samples" not in options:
        raise ValueError(f"`--run` {args.run} is a private run, which held no images out; valid is another one.")
    results = Path(f"{args.output}.jsonl")
    folder = results.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"`--output` {args.output} cannot be written; valid is a name in a folder that exists.")
    kept = sorted(path.parent.name for path in args.run.glob("checkpoint-*/ema_generator"))
    if missing := [step for step in args.steps if f"checkpoint-{step}" not in kept]:
        raise FileNotFoundError(
            f"`--steps` names {listed(missing)}, of which `--run` {args.run} has no checkpoint-N/ema_generator; valid "
            f"are the steps of {listed(kept)}. A run keeps as many as its --checkpoints_total_limit."
        )
    as_read = ("dataset_config_name", "image_column", "label_column", "resolution", "revision")
    data = load_image_data(
        args.dataset_name,
        options["train_split"],
        max_samples=options["max_train_samples"],
        **{name: options.get(name) for name in as_read},
    )
    if data.fingerprint != options["data_fingerprint"]:
        raise ValueError(f"`--dataset_name` {args.dataset_name} is not what `--run` {args.run} was trained on.")
    train, held_out = (part.to(CPU) for part in holdout(data, options["validation_fraction"], options["seed"]))
    settings = {name: getattr(args, name) for name in ("ipc", "epochs", "judge_steps", "per_class", "candidates")}
    judge = None
    for seed, step in itertools.product(args.seeds, [None, *args.steps]):
        job = settings | {"data": data.fingerprint, "run": args.run.name, "step": step, "seed": seed}
        job["format"] = EVALUATION_FORMAT
        generator = None
        if step is None:
            # No generator tells which images its run held out.
            job["held_out"] = held_out.fingerprint
        else:
            generator = DiMGenerator.from_pretrained(args.run / f"checkpoint-{step}" / "ema_generator").eval()
            # Another run may have the same name.
            job["content"] = module_digest(generator)
        if job in [row["job"] for row in read_json_lines(results)]:
            continue
        judge = judge or train_judge(train, args.judge_steps)
        start = time.perf_counter()
        if generator is None:
            row = coverage(judge, train, held_out, args.per_class, seed)
            row["judge"] = evaluate_accuracy(judge, held_out)
            row["accuracy"] = accuracy(RealStream(train, args.ipc, seed, 64), held_out, args.epochs, seed)
        else:
            row = coverage(judge, generator, held_out, args.per_class, seed)
            row["accuracy"] = accuracy(GeneratedStream(generator, args.ipc, seed, 64), held_out, args.epochs, seed)
            replaced = nearest_generated(judge, train, generator, args.candidates, seed)
            row["nearest"] = accuracy(RealStream(replaced, args.ipc, seed, 64), held_out, args.epochs, seed)
        row = {"job": job} | row | {"seconds": round(time.perf_counter() - start), "environment": environment()}
        append_json_line(results, row)
        print(", ".join(f"{name} {row[name]:.3f}" for name in FIGURES if name in row), "of step", step)
    return read_json_lines(results)


def train_judge(train: ImageData, steps: int) -> torch.nn.Module:
    """A ConvNet-3 trained on the real training images."""
    stream = WholeSetStream(train, max(1, 6400 // train.num_classes), seed=1000, batch_size=64)
    recipe = DeploymentRecipe(max(1, round(steps / stream.steps_per_epoch)), label_smoothing=0.0)
    return train_classifier(
        stream,
        "convnet3",
        recipe,
        channels=train.channels,
        size=train.size,
        seed=1000,
        device=CPU,
        progress=True,
    )


def accuracy(stream: Stream, held_out: ImageData, epochs: int, seed: int) -> float:
    """Of a fresh ConvNet-3 on held-out images."""
    classifier = train_classifier(
        stream,
        "convnet3",
        DeploymentRecipe(epochs),
        channels=held_out.channels,
        size=held_out.size,
        seed=seed,
        device=CPU,
        progress=True,
    )
    return evaluate_accuracy(classifier, held_out)


def coverage(
    judge: torch.nn.Module, source: ImageData | DiMGenerator, held_out: ImageData, per_class: int, seed: int
) -> dict[str, Any]:
    """Agreement, recall and density of a source, and the pairs of classes that the judge confuses most in it."""
    recalls, densities, confusion = [], [], torch.zeros(held_out.num_classes, held_out.num_classes)
    for label in range(held_out.num_classes):
        real, made = images_of(held_out, label, per_class, seed), images_of(source, label, per_class, seed)
        count = min(len(real), len(made))
        ours, theirs = (last_features(judge, images[:count].split(256)) for images in (real, made))
        recalls.append(recall(ours, theirs))
        densities.append(density(ours, theirs))
        with torch.no_grad():
            named = torch.cat([judge(images).argmax(dim=1) for images in made.split(256)])
        confusion[label] = torch.bincount(named, minlength=held_out.num_classes) / len(made)
    wrong = confusion.clone().fill_diagonal_(0)
    pairs = wrong.flatten().argsort(descending=True)[:5].tolist()
    names = held_out.class_names
    return {
        "agreement": confusion.diagonal().mean().item(),
        "recall": statistics.mean(recalls),
        "density": statistics.mean(densities),
        "recall_by_class": dict(zip(names, [round(value, 3) for value in recalls], strict=True)),
        "confused": [
            f"{names[pair // len(names)]} as {names[pair % len(names)]} {wrong.flatten()[pair]:.3f}" for pair in pairs
        ],
    }


def images_of(source: ImageData | DiMGenerator, label: int, count: int, seed: int) -> torch.Tensor:
    """`count` images of a class in [-1, 1], or all that a data set has."""
    if isinstance(source, ImageData):
        members = torch.nonzero(source.labels == label).flatten()
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
        return normalise(source.batch(members[order[:count]])[0])
    labels = torch.full((count,), label)
    latents = latents_at(seed, EPOCH, labels, torch.arange(count), source.config.latent_dim)
    with torch.no_grad():
        return torch.cat([source(noise, labels[: len(noise)]).sample for noise in latents.split(256)])


def nearest_generated(
    judge: torch.nn.Module, train: ImageData, generator: DiMGenerator, candidates: int, seed: int
) -> ImageData:
    """The training set with each image replaced by the nearest of `candidates` generated ones of its class."""
    images = torch.empty((len(train), train.channels, train.size, train.size), dtype=torch.uint8)
    for label in range(train.num_classes):
        members = torch.nonzero(train.labels == label).flatten()
        made = images_of(generator, label, candidates, seed)
        features = last_features(judge, made.split(256))
        pixels = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        for rows in members.split(1000):
            real = last_features(judge, normalise(train.batch(rows)[0]).split(256))
            images[rows] = pixels[torch.cdist(real, features).argmin(dim=1)]
    return ImageData(images, train.labels, train.class_names, fingerprint=f"nearest of {train.fingerprint}")


if __name__ == "__main__":
    run_script(
        "gap.py", lambda: main(parse_args()), "Rows that were finished are kept in --output; the same command goes on."
    )
