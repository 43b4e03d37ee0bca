"""
The cost of training a classifier on images that are generated on the fly.

    python benchmarks/feed.py --json feed.json                                        # 8x8, as the embedded digits
    python benchmarks/feed.py --resolution 28 --ipc 64 --json feed28.json             # as Fashion-MNIST
    python benchmarks/feed.py --resolution 32 --channels 3 --classifier resnet18

One step of the deployment recipe is timed with three feeds, in turn, in one process: the very images of the stream,
ready in memory as batches; `GeneratedStream`; and `DiMDataset` in a `DataLoader` without workers. The weights are
untrained, which makes no difference to the time. A ratio is one interval's time per step over that of the interval
from memory beside it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dim_hf.classifiers import check_classifier
from dim_hf.evaluation.judges import DeploymentRecipe, Stream, train_classifier
from dim_hf.files import replace_text
from dim_hf.machine import environment
from dim_hf.models import DiMGenerator
from dim_hf.streams.dim_dataset import DiMDataset
from dim_hf.streams.generated import GeneratedStream


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from command_line import check_json_file, check_numbers, run_script  # noqa: E402
from presets import PRESETS, network_configs  # noqa: E402


class MemoryStream:
    """Batches of one epoch that are kept and given again in every epoch."""

    def __init__(self, stream: GeneratedStream):
        self.num_classes, self.steps_per_epoch = stream.num_classes, stream.steps_per_epoch
        self.kept = list(stream.batches(0))

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self.kept


class LoaderStream:
    """A `DiMDataset` in a `DataLoader`, as a loop in plain PyTorch has it."""

    def __init__(self, stream: GeneratedStream, batch_size: int):
        self.num_classes, self.steps_per_epoch, self.device = (
            stream.num_classes,
            stream.steps_per_epoch,
            stream.device,
        )
        self.dataset: DiMDataset = stream.dataset
        self.loader = DataLoader(stream.dataset, batch_size=batch_size, shuffle=True)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.dataset.set_epoch(epoch)
        for batch in self.loader:
            yield batch["pixel_values"].to(self.device), batch["labels"].to(self.device)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time per training step, fed by a stream and from memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--preset", default="base", choices=sorted(PRESETS), help="network of the generator")
    parser.add_argument("--resolution", type=int, default=8)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--classifier", default="convnet3")
    parser.add_argument("--ipc", type=int, default=64, help="images per class and epoch")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--block_size", type=int, help="images made at once; default: that of GeneratedStream")
    parser.add_argument("--intervals", type=int, default=9, help="timed intervals of each feed, after one to warm up")
    parser.add_argument("--interval_epochs", type=int, default=10)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    counts = ("resolution", "num_classes", "ipc", "batch_size", "block_size", "intervals", "interval_epochs")
    check_numbers(args, dict.fromkeys(counts, (1, 2**31)))
    check_json_file(args.json, ("options", "environment", "results"))
    return args


def main(args: argparse.Namespace) -> None:
    if args.channels not in (1, 3):
        raise ValueError(f"`--channels` is {args.channels}; valid are 1 (grey) and 3 (RGB).")
    check_classifier(args.classifier, args.channels, args.resolution)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, _ = network_configs(args.preset, args.resolution, args.channels, args.num_classes)
    generator = DiMGenerator(**config).to(device)
    stream = GeneratedStream(generator, args.ipc, 0, args.batch_size, block_size=args.block_size)
    feeds: dict[str, Stream] = {
        "memory": MemoryStream(stream),
        "stream": stream,
        "data loader": LoaderStream(stream, args.batch_size),
    }
    times: dict[str, list[float]] = {name: [] for name in feeds}
    for interval in range(args.intervals + 1):
        # Each is first, second and last in turn: what one leaves behind in caches and clocks favours none.
        names = list(feeds)
        for name in names[interval % len(names) :] + names[: interval % len(names)]:
            seconds = seconds_per_step(feeds[name], args, device)
            if interval:
                times[name].append(seconds)
    results = []
    for name, own in times.items():
        ratios = [one / base for one, base in zip(own, times["memory"], strict=True)]
        result = {
            "feed": name,
            "milliseconds_per_step": 1000 * statistics.median(own),
            "ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
            "intervals": len(own),
        }
        results.append(result)
        print(
            f"{name:12}{result['milliseconds_per_step']:>9.2f} ms per step   {result['ratio']:.2f}x "
            f"[{result['lowest_ratio']:.2f} to {result['highest_ratio']:.2f}]"
        )
    if args.json:
        report = {"options": vars(args), "environment": environment(), "results": results}
        replace_text(args.json, json.dumps(report, indent=2))


def seconds_per_step(feed: Stream, args: argparse.Namespace, device: torch.device) -> float:
    recipe = DeploymentRecipe(epochs=args.interval_epochs, batch_size=args.batch_size)
    start = time.perf_counter()
    train_classifier(
        feed, args.classifier, recipe, channels=args.channels, size=args.resolution, seed=0, device=device
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / (recipe.epochs * feed.steps_per_epoch)


if __name__ == "__main__":
    run_script("feed.py", lambda: main(parse_args()), "Nothing is kept.")
