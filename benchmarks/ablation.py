"""
What each part of the base preset adds: the preset, and the preset with one thing changed, at equal steps.

    python benchmarks/ablation.py --json ablation.json                                     # the embedded digits
    python benchmarks/ablation.py --dataset_name zalando-datasets/fashion_mnist --max_train_steps 8000 --seeds 0 1 2

Every figure is a validation accuracy of `training/train_dim.py`: of a classifier trained on images of the last
generator and scored on a part held out of *train*. The test split is not read.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dim_hf.reporting import environment


TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "training" / "train_dim.py"
# The flags of each variant; `{steps}` and `{match}` are the lengths of the two phases.
SPECTRAL = {"norm": "spectral"}
NO_PROJECTION = {"projection": False}
VARIANTS: dict[str, list[str]] = {
    "base": ["--max_train_steps", "{steps}", "--max_match_steps", "{match}"],
    "no matching, as many steps": ["--max_train_steps", "{total}", "--max_match_steps", "0"],
    "pairwise matching": ["--max_train_steps", "{steps}", "--max_match_steps", "{match}", "--match_loss", "pairwise"],
    "no class loss": ["--max_train_steps", "{total}", "--max_match_steps", "0", "--class_loss_weight", "0"],
    "no projection": ["--max_train_steps", "{total}", "--max_match_steps", "0", "--discriminator_config", "{no_proj}"],
    "spectral norm, no R1": [
        "--max_train_steps", "{total}", "--max_match_steps", "0", "--r1_weight", "0",
        "--discriminator_config", "{spectral}",
    ],
    "no augmentation": ["--max_train_steps", "{total}", "--max_match_steps", "0", "--augmentation"],
    "no EMA": ["--max_train_steps", "{total}", "--max_match_steps", "0", "--no-use_ema"],
}  # fmt: skip


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Validation accuracy of the base preset with one thing changed.")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--cache_dir")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max_train_steps", type=int, default=1500, help="of phase 1")
    parser.add_argument("--max_match_steps", type=int, default=500, help="of phase 2, where there is one")
    parser.add_argument("--validation_fraction", type=float, default=0.3)
    parser.add_argument("--validation_classifier", default="resnet10")
    parser.add_argument("--validation_epochs", type=int, default=300)
    parser.add_argument("--json", help="where to write the figures")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    results = []
    print("| variant | validation accuracy % | seconds |\n|---|---|---|", flush=True)
    for name in args.variants:
        start = time.perf_counter()
        accuracies = [last_accuracy(args, VARIANTS[name], seed) for seed in args.seeds]
        seconds = (time.perf_counter() - start) / len(args.seeds)
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        mean = statistics.mean(accuracies)
        print(f"| {name} | {100 * mean:.1f} ± {100 * spread:.1f} | {seconds:.0f} |", flush=True)
        results.append({"variant": name, "accuracies": accuracies, "mean": mean, "std": spread, "seconds": seconds})
    if args.json:
        report = {"options": vars(args), "environment": environment(), "results": results}
        Path(args.json).write_text(json.dumps(report, indent=2))


def last_accuracy(args: argparse.Namespace, flags: list[str], seed: int) -> float:
    """Trains one variant and returns the validation accuracy of its last step."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "steps": str(args.max_train_steps),
            "match": str(args.max_match_steps),
            "total": str(args.max_train_steps + args.max_match_steps),
            "spectral": f"{folder}/spectral.json",
            "no_proj": f"{folder}/no_projection.json",
        }
        Path(values["spectral"]).write_text(json.dumps(SPECTRAL))
        Path(values["no_proj"]).write_text(json.dumps(NO_PROJECTION))
        command = [
            sys.executable, str(TRAIN_SCRIPT), "--dataset_name", args.dataset_name, "--output_dir", f"{folder}/run",
            "--seed", str(seed), "--validation_fraction", str(args.validation_fraction), "--validation_classifier",
            args.validation_classifier, "--validation_epochs", str(args.validation_epochs), "--validation_steps",
            "1000000", "--checkpointing_steps", "1000000", "--report_to", "none",
            *(["--cache_dir", args.cache_dir] if args.cache_dir else []),
            *(flag.format(**values) for flag in flags),
        ]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{' '.join(flags)} failed:\n{process.stderr[-2000:]}")
        last = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1]
        return json.loads(last)["validation/accuracy"]


if __name__ == "__main__":
    main(parse_args())
