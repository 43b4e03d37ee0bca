"""
What share of the rate of its own convolutions a training step reaches, and what the rest of its time goes to.

    python benchmarks/shares.py                                    # base and paper at 28, 32 and 64 pixels, float32
    python benchmarks/shares.py --presets paper --resolutions 32 --precision bf16 --json shares.json

The step is that of `train_dim.py` without R1 (see gpu_stages/step.py), on random images. Its floating-point operations
are counted, and its convolutions are timed one by one, forward and backward, in a loop. The share is the time that all
of the operations would take at that rate, over the time that the step takes. Steps alternate with DiM's released one
on networks of the same size, and with the base preset's R1 step. On a CPU this takes one thread and counts its CPU
time, so that other work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from command_line import check_json_file, check_numbers, run_script  # noqa: E402
from gpu_stages.step import (  # noqa: E402
    DTYPES,
    WAYS,
    Batch,
    Run,
    convolution_rate,
    now,
    step_flops,
    unchanged,
)
from presets import PRESETS, network_configs  # noqa: E402
from throughput import released_step  # noqa: E402

from dim_hf.files import replace_text  # noqa: E402
from dim_hf.machine import check_bfloat16, environment, keep_freed_memory  # noqa: E402
from dim_hf.models import DiMDiscriminator, DiMGenerator  # noqa: E402


# What an operation is, by a part of its name or of the names of what it belongs to; the first that fits.
KINDS = {
    "optimiser": ("Optimizer.step",),
    "copies": ("copy_", "aten::cat", "clone", "index", "aten::fill_", "zero_"),
    "convolutions": ("conv",),
    "products": ("aten::mm", "addmm", "bmm"),
    "norms": ("norm", "Norm"),
    "activations": ("relu", "threshold", "tanh", "Relu", "Tanh"),
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Shares of the convolutions' rate, and a profile by kind.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--presets", nargs="+", default=["base", "paper"], choices=sorted(PRESETS))
    parser.add_argument("--resolutions", type=int, nargs="+", default=[28, 32, 64])
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32, help="of the base preset's step")
    parser.add_argument("--paper_batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each kind, after one to warm up")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    counts = ("resolutions", "num_classes", "batch_size", "paper_batch_size", "repeats")
    check_numbers(args, dict.fromkeys(counts, (1, 2**31)))
    for resolution in args.resolutions:
        for preset in args.presets:
            network_configs(preset, resolution, args.channels, args.num_classes)
    check_json_file(args.json, ("options", "environment", "rows"))
    return args


def main(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_bfloat16(args.precision, device, "precision")
    keep_freed_memory()
    torch.set_num_threads(1)
    rows = []
    for preset in args.presets:
        for resolution in args.resolutions:
            rows.append(measure(args, preset, resolution, device))
            print(format_row(rows[-1]), flush=True)
            if args.json:
                report = {"options": vars(args), "environment": environment(), "rows": rows}
                replace_text(args.json, json.dumps(report, indent=2))


def format_row(row: dict[str, Any]) -> str:
    profile = ", ".join(f"{kind} {share:.0%}" for kind, share in row["profile"].items())
    return (
        f"{row['preset']:6} {row['resolution']:3} px  {row['images_per_second']:8.1f} images/s "
        f"[{row['slowest']:.1f} to {row['fastest']:.1f}], {row['gigaflop_per_image']:.3f} GFLOP per image, "
        f"{row['share']:.0%} of {row['convolutions_gigaflop_per_second']:.0f} GFLOP/s, released step "
        f"{row['released_over_ours']:.2f}x; {profile}"
    )


def measure(args: argparse.Namespace, preset: str, resolution: int, device: torch.device) -> dict[str, Any]:
    """The figures of one preset and size."""
    size = args.paper_batch_size if preset == "paper" else args.batch_size
    shape = (resolution, args.channels, args.num_classes)
    run = Run(preset, shape, device, args.precision, WAYS["as train_dim.py"])
    batch = random_batch(run, size, shape)
    released = released_step(*fresh_networks(preset, shape, device), PRESETS[preset], device)
    steps: dict[str, Callable[[], Any]] = {
        "ours": lambda: run.step(batch, unchanged, with_r1=False),
        "released": lambda: released(batch["images"], batch["labels"]),
    }
    if run.settings["r1_weight"]:
        steps["r1"] = lambda: run.step(batch, unchanged, with_r1=True)
    flops = step_flops(run, batch)
    rate = convolution_rate(run, batch, DTYPES[args.precision], seconds=4.0)["flop_per_second"]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            start = now(device)
            step()
            if repeat:
                times[name].append(now(device) - start)
    ours = statistics.median(times["ours"])
    result: dict[str, Any] = {
        "preset": preset,
        "resolution": resolution,
        "batch_size": size,
        "images_per_second": size / ours,
        "slowest": size / max(times["ours"]),
        "fastest": size / min(times["ours"]),
        "gigaflop_per_image": flops / size / 1e9,
        "convolutions_gigaflop_per_second": rate / 1e9,
        "share": flops / rate / ours,
        "released_over_ours": statistics.median(
            one / other for one, other in zip(times["released"], times["ours"], strict=True)
        ),
        "profile": profile(steps["ours"], args.repeats, device),
    }
    if "r1" in times:
        result["r1_over_plain"] = statistics.median(times["r1"]) / ours
    return result


def random_batch(run: Run, size: int, shape: tuple[int, int, int]) -> Batch:
    rng = torch.Generator(run.device).manual_seed(0)
    resolution, channels, num_classes = shape
    draw = {"generator": rng, "device": run.device}
    return {
        "images": torch.rand(size, channels, resolution, resolution, **draw) * 2 - 1,
        "labels": torch.randint(num_classes, (size,), **draw),
        "latents": torch.randn(size, run.plain_generator.config.latent_dim, **draw),
        "mix": torch.rand(size, 1, 1, 1, **draw),
    }


def fresh_networks(
    preset: str, shape: tuple[int, int, int], device: torch.device
) -> tuple[DiMGenerator, DiMDiscriminator]:
    generator_config, discriminator_config = network_configs(preset, *shape)
    return DiMGenerator(**generator_config).to(device), DiMDiscriminator(**discriminator_config).to(device)


def profile(step: Callable[[], Any], repeats: int, device: torch.device) -> dict[str, float]:
    """Shares of the time of some steps by kind of operation, the largest first."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(repeats):
            step()
        now(device)
    times: Counter[str] = Counter()
    for event in profiler.events():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if own > 0:
            times[kind_of(event)] += own
    total = sum(times.values())
    return {kind: time / total for kind, time in times.most_common()}


def kind_of(event: Any) -> str:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for kind, parts in KINDS.items():
        # What is copied within a convolution is a copy; any step of an optimiser is the optimiser's.
        looked_at = names[:1] if kind == "copies" else names
        if any(part in name for part in parts for name in looked_at):
            return kind
    return "other elementwise"


if __name__ == "__main__":
    args = run_script("shares.py", parse_args)
    kept = f"Rows that were finished are in {args.json}." if args.json else "Nothing is kept."
    run_script("shares.py", lambda: main(args), kept)
