"""
What each part of the base preset adds, and whether matching does: one thing changed at a time, over several seeds.

    python benchmarks/ablation.py --json ablation.json                                     # the embedded digits
    python benchmarks/ablation.py --dataset_name zalando-datasets/fashion_mnist --output_dir out/ablation-fashion \
        --max_train_steps 8000 --max_match_steps 2000 --seeds 0 1 2 --rows "no matching" "no matching, as long" energy

Rows about matching branch off one adversarial run per seed, so that they differ only in what follows it. Two rows do
not match: one takes the same number of further steps, the other the same time as the first row that matches. One row
matches from the first step. Rows about the adversarial step are whole runs of the same length without matching.

Every accuracy is a validation accuracy of `training/train_dim.py`: of a classifier trained on images of the last
generator and scored on a part held out of *train*. The test split is not read. The times of a step are those of each
phase without validation, medians over the seeds. The runs are kept in the output folder; the same command goes on
after an interruption and repeats nothing that is finished.
"""

import argparse
import io
import json
import runpy
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dim_hf.classifiers import check_classifier
from dim_hf.files import check_output_dir, read_json, read_json_lines, replace_text
from dim_hf.machine import environment


TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "training" / "train_dim.py"
sys.path.insert(0, str(TRAIN_SCRIPT.parent))
import train_dim  # noqa: E402, F401, so that each run need not import the libraries
from command_line import (  # noqa: E402
    check_json_file,
    check_numbers,
    check_once,
    local_path,
    run_script,
)
from presets import PRESETS  # noqa: E402


RELEASED_POOL = Path(__file__).with_name("released_pool.py")

NO_MATCHING, AS_LONG = "no matching", "no matching, as long"
# The second phase without its loss: what its learning rate does.
RATE_ALONE = "learning rate of matching alone"
FROM_THE_START = "energy from the first step"
# The preset matches by class. The rows of other losses have the settings that were found for those.
OTHERS = ["--match_loss", "energy", "--match_interval", "4", "--match_learning_rate", "2e-4", "--pool_snapshots", "6"]
# How matching is done: the flags that differ from the preset's.
MATCHING = {
    RATE_ALONE: [*OTHERS, "--match_interval", "1000000"],
    "class": [],
    "energy": OTHERS,
    "energy, weight 10": [*OTHERS, "--match_loss", "energy=10"],
    "energy of probabilities, weight 10": [*OTHERS, "--match_loss", "energy_probabilities=10"],
    "energy of features, weight 30": [*OTHERS, "--match_loss", "energy_features=30"],
    "means of features": [*OTHERS, "--match_loss", "features"],
    "standardised": [*OTHERS, "--match_loss", "standardised"],
    "pairwise": [*OTHERS, "--match_loss", "pairwise"],
    "pairwise, weight 0.01 (paper)": [*OTHERS, "--match_loss", "pairwise=0.01"],
    "energy in every step": [*OTHERS, "--match_interval", "1"],
    "energy in every step, released pool": [*OTHERS, "--match_interval", "1"],
    "energy, pool of five": [*OTHERS, "--pool", "convnet3", "resnet10", "resnet18", "resnet10_ap", "resnet18_ap"],
}
# What the adversarial step is made of: flags, and entries of the discriminator's config.
ADVERSARIAL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "no batch std": ([], {"batch_std": False}),
    "class loss too": (["--class_loss_weight", "1"], {}),
    "class loss for projection": (["--class_loss_weight", "1"], {"projection": False}),
    "spectral norm for R1": (["--r1_weight", "0"], {"norm": "spectral"}),
    "shift": (["--augmentation", "shift"], {}),
    "no augmentation": (["--augmentation"], {}),
    "no EMA": (["--ema_decay", "0"], {}),
}
# Two lines of the log before the last one, which has a validation.
LEAST_TIMED = 21
TAKE_TIME = tuple(row for row in MATCHING if row != RATE_ALONE)
BRANCHES = (NO_MATCHING, *MATCHING, AS_LONG)
ROWS = (*BRANCHES, FROM_THE_START, *ADVERSARIAL)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Validation accuracy of the base preset with one thing changed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset_name", type=local_path, default="digits")
    parser.add_argument("--resolution", type=int, help="height and width in pixels; default: that of the images")
    parser.add_argument("--cache_dir", type=local_path)
    parser.add_argument("--output_dir", type=local_path, default="out/ablation")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max_train_steps", type=int, default=1500, help="of phase 1")
    parser.add_argument("--max_match_steps", type=int, default=500, help="of phase 2, or as many without matching")
    parser.add_argument("--pool_steps", type=int, default=1000, help="of each network matched")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--validation_fraction", type=float, default=0.3)
    parser.add_argument("--validation_classifier", default="resnet10")
    parser.add_argument("--validation_epochs", type=int, default=300)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    if AS_LONG in args.rows and not set(TAKE_TIME) & set(args.rows):
        parser.error(f"--rows has {AS_LONG!r}, which takes the time of the first row that matches; name one too")
    counts = ("max_train_steps", "max_match_steps", "pool_steps", "validation_epochs")
    check_numbers(args, dict.fromkeys(counts, (1, 2**31)) | {"resolution": (4, 2**31), "seeds": (0, 2**32)})
    check_once(args, ("rows", "seeds"))
    if AS_LONG in args.rows and min(args.max_train_steps, args.max_match_steps) < LEAST_TIMED:
        parser.error(
            f"--rows has {AS_LONG!r}, for which steps are timed; --max_train_steps and --max_match_steps must be "
            f"{LEAST_TIMED} or more"
        )
    if not 0 < args.validation_fraction < 1:
        raise ValueError(f"`--validation_fraction` is {args.validation_fraction}; it must lie between 0 and 1.")
    check_classifier(args.validation_classifier)
    check_json_file(args.json, ("options", "environment", "results"))
    return args


def main(args: argparse.Namespace) -> None:
    check_output_dir(args.output_dir, 2**20, resuming=True)
    for name in set(args.rows) & ADVERSARIAL.keys():
        path = config_file(args, name)
        if path.exists() and path.read_text(errors="replace") != json.dumps(ADVERSARIAL[name][1]):
            raise FileExistsError(f"`--output_dir` holds {path}, which is not by ablation.py; name another folder.")
    # A run may go on in another precision, and one that is finished is not run again.
    for path in sorted(Path(args.output_dir).glob("*-seed-*/options.json")):
        begun = read_json(path).get("mixed_precision")
        if begun != args.mixed_precision:
            raise ValueError(
                f"`--mixed_precision` is {args.mixed_precision!r}, and `--output_dir` holds {path.parent.name}, which "
                f"is in {begun!r}; valid is that, or another folder."
            )
    results = []
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    print("| row | validation accuracy % | steps | ms per step | with matching |\n|---|---|---|---|---|", flush=True)
    if set(args.rows) & set(BRANCHES):
        for seed in args.seeds:
            run(args, "trunk", seed, args.max_train_steps, 0, [])
    # The row that takes another's time comes after it.
    for name in sorted(args.rows, key=ROWS.index):
        if name == AS_LONG:
            matched = next(own for row, own in runs.items() if row in TAKE_TIME)
            runs[name] = [
                continued(args, seed, args.max_train_steps + steps_for_the_time_of(log, args, seed))
                for seed, log in zip(args.seeds, matched, strict=True)
            ]
        else:
            runs[name] = [train(args, name, seed) for seed in args.seeds]
        results.append(summary(name, runs[name]))
        print(format_row(results[-1]), flush=True)
    if args.json:
        report = {"options": vars(args), "environment": environment(), "results": results}
        replace_text(args.json, json.dumps(report, indent=2))


def train(args: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one row with one seed and returns the lines of its log."""
    if name == NO_MATCHING:
        return continued(args, seed, args.max_train_steps + args.max_match_steps)
    if name == FROM_THE_START:
        rate = str(PRESETS["base"]["learning_rate"])
        steps = args.max_train_steps + args.max_match_steps - 1
        return run(args, name, seed, 1, steps, [*OTHERS, "--match_learning_rate", rate])
    if name in ADVERSARIAL:
        flags, discriminator = ADVERSARIAL[name]
        config = config_file(args, name)
        replace_text(config, json.dumps(discriminator))
        steps = args.max_train_steps + args.max_match_steps
        return run(args, name, seed, steps, 0, ["--discriminator_config", str(config), *flags])
    script = RELEASED_POOL if "released pool" in name else TRAIN_SCRIPT
    return run(
        args, name, seed, args.max_train_steps, args.max_match_steps, MATCHING[name], branch=True, script=script
    )


def config_file(args: argparse.Namespace, name: str) -> Path:
    """Where the entries of a row's discriminator config lie."""
    return Path(args.output_dir) / f"{name}.json".replace(" ", "-")


def continued(args: argparse.Namespace, seed: int, steps: int) -> list[dict[str, Any]]:
    """The adversarial run that the rows about matching branch off, until a later step."""
    return run(args, f"adversarial {steps}", seed, steps, 0, [], branch=True)


def run(
    args: argparse.Namespace,
    name: str,
    seed: int,
    train_steps: int,
    match_steps: int,
    flags: list[str],
    branch: bool = False,
    script: Path = TRAIN_SCRIPT,
) -> list[dict[str, Any]]:
    """One run of the training script, from the end of the trunk where it is a branch; the lines of its log."""
    root = Path(args.output_dir)
    folder = root / f"{name}, seed {seed}".replace(" ", "-").replace(",", "")
    checkpoint = "latest"
    if branch and not list(folder.glob("checkpoint-*")):
        checkpoint = str(root / f"trunk-seed-{seed}" / f"checkpoint-{args.max_train_steps}")
    arguments = [
        "--dataset_name", args.dataset_name, "--output_dir", str(folder), "--seed", str(seed),
        "--max_train_steps", str(train_steps), "--max_match_steps", str(match_steps),
        "--pool_steps", str(args.pool_steps), "--mixed_precision", args.mixed_precision,
        "--validation_fraction", str(args.validation_fraction),
        "--validation_classifier", args.validation_classifier, "--validation_epochs", str(args.validation_epochs),
        "--validation_steps", "1000000", "--checkpointing_steps", "1000000", "--report_to", "none",
        "--logging_steps", "10", "--resume_from_checkpoint", checkpoint, *flags,
    ]  # fmt: skip
    arguments += ["--cache_dir", args.cache_dir] if args.cache_dir else []
    arguments += ["--resolution", str(args.resolution)] if args.resolution else []
    with ProcessPoolExecutor(1) as process:
        try:
            process.submit(execute, script, arguments).result()
        except SystemExit as end:
            if end.code == 130:
                # Ctrl-C reaches both; the run has saved what it did.
                raise KeyboardInterrupt from None
            raise SystemExit(f"{script.name} {' '.join(arguments)} failed:\n{end.code}") from None
    return read_json_lines(folder / "metrics.jsonl")


def execute(script: Path, arguments: list[str]) -> None:
    """Runs a script in this process, and shows nothing of it."""
    sys.argv = [str(script), *arguments]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        runpy.run_path(str(script), run_name="__main__")


def steps_for_the_time_of(log: list[dict[str, Any]], args: argparse.Namespace, seed: int) -> int:
    """So many steps without matching take as long as the second phase of a run of that seed."""
    trunk_log = Path(args.output_dir) / f"trunk-seed-{seed}" / "metrics.jsonl"
    adversarial = read_json_lines(trunk_log)
    ratio = milliseconds(log, matching=True) / milliseconds(adversarial, matching=False)
    return round(ratio * args.max_match_steps)


def summary(name: str, runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    accuracies = [log[-1]["validation/accuracy"] for log in runs]
    times = [statistics.median(milliseconds(log, matching) for log in runs) for matching in (False, True)]
    return {
        "row": name,
        "accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "steps": [log[-1]["step"] for log in runs],
        "ms_per_step": times,
    }


def format_row(result: dict[str, Any]) -> str:
    cells = ["" if time != time else f"{time:.1f}" for time in result["ms_per_step"]]
    # One seed tells of no spread.
    spread = "" if result["std"] is None else f" ± {100 * result['std']:.1f}"
    return (
        f"| {result['row']} | {100 * result['mean']:.1f}{spread} | "
        f"{statistics.mean(result['steps']):,.0f} | {cells[0]} | {cells[1]} |"
    )


def milliseconds(log: list[dict[str, Any]], matching: bool) -> float:
    """Time of a step in one phase, from the stretches of the log without a validation; NaN if it has none."""
    stretches = [
        (after["step"] - before["step"], after["seconds"] - before["seconds"])
        for before, after in zip(log, log[1:], strict=False)
        if after["matching"] == before["matching"] == matching and "validation/accuracy" not in after
    ]
    return 1000 * sum(s for _, s in stretches) / sum(n for n, _ in stretches) if stretches else float("nan")


if __name__ == "__main__":
    run_script("ablation.py", lambda: main(parse_args()), "Runs are kept in --output_dir; the same command goes on.")
