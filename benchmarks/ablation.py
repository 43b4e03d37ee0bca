"""
What each part of the base preset adds: the preset, and the preset with one thing changed, at equal steps.

    python benchmarks/ablation.py --json ablation.json                                     # the embedded digits
    python benchmarks/ablation.py --dataset_name zalando-datasets/fashion_mnist --max_train_steps 8000 --seeds 0 1 2

Every accuracy is a validation accuracy of `training/train_dim.py`: of a classifier trained on images of the last
generator and scored on a part held out of *train*. The test split is not read. The times of a step are those of each
phase without validation, medians over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dim_hf.reporting import environment


TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "training" / "train_dim.py"
RELEASED_POOL = Path(__file__).with_name("released_pool.py")


@dataclass(frozen=True)
class Variant:
    """What differs from the base preset."""

    flags: list[str] = field(default_factory=list)
    discriminator: dict[str, Any] = field(default_factory=dict)
    matching: bool = False
    script: Path = TRAIN_SCRIPT


VARIANTS = {
    "base": Variant(matching=True),
    # What the adversarial step is made of; as many steps, none with matching.
    "no matching": Variant(),
    "no matching, no class loss": Variant(["--class_loss_weight", "0"]),
    "no matching, no batch std": Variant(discriminator={"batch_std": False}),
    "no matching, no projection": Variant(discriminator={"projection": False}),
    "no matching, spectral norm for R1": Variant(["--r1_weight", "0"], {"norm": "spectral"}),
    "no matching, no augmentation": Variant(["--augmentation"]),
    "no matching, no EMA": Variant(["--no-use_ema"]),
    # How matching is done.
    "matching in every step": Variant(["--match_interval", "1"], matching=True),
    "matching in every step, released pool": Variant(["--match_interval", "1"], matching=True, script=RELEASED_POOL),
    "pairwise matching": Variant(["--match_loss", "pairwise"], matching=True),
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Validation accuracy of the base preset with one thing changed.")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--cache_dir")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max_train_steps", type=int, default=1500, help="of phase 1")
    parser.add_argument("--max_match_steps", type=int, default=500, help="of phase 2, where there is one")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--validation_fraction", type=float, default=0.3)
    parser.add_argument("--validation_classifier", default="resnet10")
    parser.add_argument("--validation_epochs", type=int, default=300)
    parser.add_argument("--json", help="where to write the figures")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    results = []
    print("| variant | validation accuracy % | ms per step, phase 1 | phase 2 |\n|---|---|---|---|", flush=True)
    for name in args.variants:
        runs = [train(args, VARIANTS[name], seed) for seed in args.seeds]
        accuracies = [run[-1]["validation/accuracy"] for run in runs]
        mean, std = statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        times = [statistics.median(milliseconds(run, matching) for run in runs) for matching in (False, True)]
        cells = ["" if time != time else f"{time:.1f}" for time in times]
        print(f"| {name} | {100 * mean:.1f} ± {100 * std:.1f} | {cells[0]} | {cells[1]} |", flush=True)
        results.append({"variant": name, "accuracies": accuracies, "mean": mean, "std": std, "ms_per_step": times})
    if args.json:
        report = {"options": vars(args), "environment": environment(), "results": results}
        Path(args.json).write_text(json.dumps(report, indent=2))


def train(args: argparse.Namespace, variant: Variant, seed: int) -> list[dict[str, Any]]:
    """Trains one variant and returns the lines of its log."""
    steps, match_steps = args.max_train_steps, args.max_match_steps
    if not variant.matching:
        steps, match_steps = steps + match_steps, 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "discriminator.json").write_text(json.dumps(variant.discriminator))
        command = [
            sys.executable, str(variant.script), "--dataset_name", args.dataset_name, "--output_dir", f"{folder}/run",
            "--seed", str(seed), "--max_train_steps", str(steps), "--max_match_steps", str(match_steps),
            "--discriminator_config", f"{folder}/discriminator.json", "--mixed_precision", args.mixed_precision,
            "--validation_fraction", str(args.validation_fraction), "--validation_classifier",
            args.validation_classifier, "--validation_epochs", str(args.validation_epochs), "--validation_steps",
            "1000000", "--checkpointing_steps", "1000000", "--report_to", "none",
            *(["--cache_dir", args.cache_dir] if args.cache_dir else []), *variant.flags,
        ]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
        return [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]


def milliseconds(log: list[dict[str, Any]], matching: bool) -> float:
    """Time of a step in one phase, from the stretches of the log without a validation; NaN if it has none."""
    stretches = [
        (after["step"] - before["step"], after["seconds"] - before["seconds"])
        for before, after in zip(log, log[1:], strict=False)
        if after["matching"] == matching and "validation/accuracy" not in after
    ]
    return 1000 * sum(s for _, s in stretches) / sum(n for n, _ in stretches) if stretches else float("nan")


if __name__ == "__main__":
    main(parse_args())
