"""
Images per second and peak memory of the main operations of dim_hf, each beside a naive implementation.

    python benchmarks/throughput.py                                                   # the embedded digits
    python benchmarks/throughput.py --dataset_name zalando-datasets/fashion_mnist --json throughput.json
    python benchmarks/throughput.py --preset paper --dataset_name ylecun/mnist --intervals 5

The rows `phase 1` and `phase 2` are `training/train_dim.py` itself: its log says when each interval ended.
Their naive rows take the step that DiM's released code takes, on networks of the same size: eager, the reader of real
images started again for every generator step, a fresh classifier trained for 16 steps before each of them, and the
discriminator's weight gradients computed in the generator's step and thrown away. Naive generation makes one image at
a time with gradients recorded; naive reading decodes each image when it is asked for.

Every row is in float32 and runs in a process of its own, ours and naive in turn, so that peak memory and ratios are of
the same run.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from dim_hf.classifiers import build_classifier, check_classifier
from dim_hf.data import ImageData, load_image_data, normalise
from dim_hf.distillation.losses import (
    class_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    pairwise_matching_loss,
    wasserstein_discriminator_loss,
)
from dim_hf.files import replace_text
from dim_hf.machine import environment, peak_memory_mib
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.models.convolution import PenalisedConv2d


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))
import train_dim  # noqa: E402
from command_line import check_json_file, check_numbers, local_path, run_script  # noqa: E402
from presets import PRESETS, network_configs  # noqa: E402


ROWS = ("phase 1", "phase 2", "generation", "data reading")
POOL_STEPS_OF_RELEASED_CODE = 16


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Throughput and peak memory, beside naive rows.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--preset", default="base", choices=sorted(PRESETS))
    parser.add_argument("--dataset_name", type=local_path, default="digits")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--pool_classifier", default="convnet3", help="the classifier that both matching steps use")
    parser.add_argument("--intervals", type=int, default=9, help="timed intervals per row, after one to warm up")
    parser.add_argument("--interval_steps", type=int, default=10, help="steps per interval; naive phase 2 takes 1")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    check_numbers(args, dict.fromkeys(("batch_size", "intervals", "interval_steps"), (1, 2**31)))
    check_classifier(args.pool_classifier)
    check_json_file(args.json, ("options", "environment", "rows"))
    return args


def main(args: argparse.Namespace) -> None:
    results = []
    for row in args.rows:
        for kind in ("ours", "naive"):
            with ProcessPoolExecutor(1) as process:
                results.append(process.submit(measure, args, row, kind).result())
            print(format_row(results[-1]), flush=True)
        ours, naive = results[-2], results[-1]
        print(f"{'':24}{ours['images_per_second'] / naive['images_per_second']:.1f}x\n", flush=True)
    by_name = {(result["row"], result["kind"]): result["images_per_second"] for result in results}
    ratio = None
    if {"phase 1", "phase 2"} <= set(args.rows):
        ratio = by_name["phase 1", "ours"] / by_name["phase 2", "ours"]
        print(f"a step of phase 2 costs {ratio:.2f} adversarial steps")
    if args.json:
        report = {
            "options": vars(args),
            "environment": environment(),
            "rows": results,
            "phase_2_over_phase_1": ratio,
        }
        replace_text(args.json, json.dumps(report, indent=2))


def format_row(result: dict[str, Any]) -> str:
    return (
        f"{result['row']:14}{result['kind']:6}{result['images_per_second']:>12,.1f} images/s "
        f"[{result['slowest']:,.1f} to {result['fastest']:,.1f}]   {result['peak_memory_mib']:>8,.0f} MiB"
    )


def measure(args: argparse.Namespace, row: str, kind: str) -> dict[str, Any]:
    """The figures of one row, in this process."""
    if row.startswith("phase") and kind == "ours":
        rates, peak = train_script_rates(args, matching=row == "phase 2")
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = load_image_data(args.dataset_name)
        if row.startswith("phase"):
            steps, interval = naive_steps(args, data, device, matching=row == "phase 2"), 1
        elif row == "generation":
            steps, interval = generation(args, data, device, naive=kind == "naive"), args.interval_steps
        else:
            steps, interval = reading(args, data.to(device), naive=kind == "naive"), args.interval_steps
            if kind == "ours":
                # A batch takes a fraction of a millisecond; ten would measure the scheduler.
                interval *= 100
        rates = timed(steps, interval, args.intervals, device)
        peak = peak_memory_mib(device)
    return {
        "row": row,
        "kind": kind,
        "images_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "intervals": len(rates),
        "peak_memory_mib": peak,
    }


def timed(steps: Iterator[int], interval: int, intervals: int, device: torch.device) -> list[float]:
    """Images per second of each interval of steps; a step yields how many images it handled."""
    rates = []
    for i in range(intervals + 1):
        start = time.perf_counter()
        images = sum(next(steps) for _ in range(interval))
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i:
            rates.append(images / (time.perf_counter() - start))
    return rates


def train_script_rates(args: argparse.Namespace, matching: bool) -> tuple[list[float], float]:
    """The training script's own rates, from the times in its log, and the peak memory of its process."""
    # The first interval warms up; the validation at the end falls into the last.
    steps = args.interval_steps * (args.intervals + 2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "--preset", args.preset, "--dataset_name", args.dataset_name, "--output_dir", f"{folder}/run",
            "--report_to", "none", "--train_batch_size", str(args.batch_size), "--pool", args.pool_classifier,
            "--pool_steps", "16", "--cache_dir", f"{folder}/cache", "--logging_steps", str(args.interval_steps),
            "--checkpointing_steps", "1000000", "--validation_steps", "1000000", "--validation_epochs", "1",
            "--max_train_steps", str(1 if matching else steps), "--max_match_steps", str(steps if matching else 0),
            "--mixed_precision", "no",
        ]  # fmt: skip
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train_dim.main(train_dim.parse_args(arguments))
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    marks = [(line["step"], line["seconds"]) for line in lines if line["step"] % args.interval_steps == 0]
    rates = [
        (step - before) * args.batch_size / (seconds - earlier)
        for (before, earlier), (step, seconds) in zip(marks[:-1], marks[1:-1], strict=False)
    ]
    return rates, lines[-1]["peak_memory_mib"]


def networks(args: argparse.Namespace, data: ImageData, device: torch.device) -> tuple[DiMGenerator, DiMDiscriminator]:
    configs = network_configs(args.preset, data.size, data.channels, data.num_classes)
    return DiMGenerator(**configs[0]).to(device), DiMDiscriminator(**configs[1]).to(device)


class DecodedOnDemand(Dataset):
    """Images as a reader without a cache gives them: decoded, converted and scaled one by one."""

    def __init__(self, data: ImageData):
        self.labels = data.labels.tolist()
        self.files = []
        for image in data.images:
            pixels = image.permute(1, 2, 0).squeeze(2).numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            self.files.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_tensor(Image.open(io.BytesIO(self.files[index]))) * 2 - 1, self.labels[index]


def naive_steps(args: argparse.Namespace, data: ImageData, device: torch.device, matching: bool) -> Iterator[int]:
    """The released step; see the top of this file."""
    step = released_step(*networks(args, data, device), PRESETS[args.preset], device)
    dataset = DecodedOnDemand(data)

    def restarted() -> Iterator[Any]:
        return iter(DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=2))

    classifier = build_classifier(args.pool_classifier, data.num_classes, data.channels, data.size).to(device)
    classifier_optimizer = torch.optim.SGD(classifier.parameters(), 0.01, momentum=0.9)
    batches = restarted()
    while True:
        if matching:
            batches = restarted()
            for _ in range(POOL_STEPS_OF_RELEASED_CODE):
                images, labels = (part.to(device) for part in next(batches))
                classifier_optimizer.zero_grad()
                F.cross_entropy(classifier(images), labels).backward()
                classifier_optimizer.step()
        try:
            images, labels = (part.to(device) for part in next(batches))
        except StopIteration:
            batches = restarted()
            images, labels = (part.to(device) for part in next(batches))
        step(images, labels, classifier if matching else None)
        yield len(labels)


def released_step(
    generator: DiMGenerator, discriminator: DiMDiscriminator, settings: dict[str, Any], device: torch.device
) -> Callable[..., None]:
    """The released step of both networks on a batch of images and labels, with matching if a classifier is given."""
    # On PyTorch's own convolutions, whose penalties are slower.
    for module in discriminator.modules():
        if isinstance(module, PenalisedConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    generator_optimizer = torch.optim.Adam(generator.parameters(), settings["learning_rate"])
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), settings["discr_learning_rate"])

    def step(images: torch.Tensor, labels: torch.Tensor, classifier: nn.Module | None = None) -> None:
        fake = generator(torch.randn(len(labels), generator.config.latent_dim, device=device), labels).sample
        real_output, fake_output = discriminator(images, labels), discriminator(fake.detach(), labels)
        if settings["adversarial_loss"] == "hinge":
            loss = hinge_discriminator_loss(real_output.logits, fake_output.logits)
        else:
            mix = torch.rand(len(labels), 1, 1, 1, device=device)
            critic = critic_of(discriminator, labels)
            loss = wasserstein_discriminator_loss(real_output.logits, fake_output.logits)
            loss = loss + 10 * gradient_penalty(critic, images, fake, mix)
        loss = loss + class_loss(real_output.class_logits, labels)
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        fake = generator(torch.randn(len(labels), generator.config.latent_dim, device=device), labels).sample
        output = discriminator(fake, labels)
        loss = generator_loss(output.logits) + class_loss(output.class_logits, labels)
        if classifier is not None:
            loss = loss + 0.01 * pairwise_matching_loss(classifier(images).detach(), classifier(fake), labels)
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()

    return step


def critic_of(discriminator: nn.Module, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: discriminator(images, labels).logits


def generation(args: argparse.Namespace, data: ImageData, device: torch.device, naive: bool) -> Iterator[int]:
    generator = networks(args, data, device)[0].eval()
    size = 1 if naive else args.batch_size
    with torch.set_grad_enabled(naive):
        while True:
            labels = torch.randint(data.num_classes, (size,), device=device)
            generator(torch.randn(size, generator.config.latent_dim, device=device), labels)
            yield size


def reading(args: argparse.Namespace, data: ImageData, naive: bool) -> Iterator[int]:
    if naive:
        dataset = DecodedOnDemand(data)
        while True:
            for images, _ in DataLoader(dataset, args.batch_size, shuffle=True):
                yield len(images)
    while True:
        indices = torch.randint(len(data), (args.batch_size,), device=data.labels.device)
        normalise(data.batch(indices)[0])
        yield args.batch_size


if __name__ == "__main__":
    run_script("throughput.py", lambda: main(parse_args()), "Nothing is kept.")
