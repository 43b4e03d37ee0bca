"""
What each part of protocol C, the deployment of DiM's released code, does to a figure.

    python benchmarks/protocol_c.py --pipeline out/cifar10 --dataset_name uoft-cs/cifar10 --batch_sizes 10 64

Classifiers are trained as the released code trains them, on generated images and on real ones at the same rate, with
and without its changes of colour, on batches of each size; a batch of as many images as there are classes has one of
each. Every classifier is scored three ways: the best of five evaluations with batch norm in training mode, which the
released code reports; the last of the five; and the last in `eval()`. The same pipeline in protocol B, without any of
this, is evaluated by training/evaluate_dim.py.

The output folder gets results.jsonl, a line per classifier, and protocol_c.md, the table; the same command goes on
after an interruption.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dim_hf.classifiers import check_classifier, local_fingerprint
from dim_hf.data import load_image_data
from dim_hf.evaluation.names import GENERATED, REAL
from dim_hf.evaluation.protocol_c import LegacyRealStream, LegacyStream, legacy_figures
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.results import EVALUATION_FORMAT
from dim_hf.files import append_json_line, check_output_dir, lock_output_dir, read_json_lines, replace_text
from dim_hf.hub.card import read_options
from dim_hf.machine import environment, keep_freed_memory
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_digest


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from command_line import check_numbers, check_once, overlap, run_script  # noqa: E402
from evaluate_inputs import refuse_seen  # noqa: E402


SCORES = {
    "best of five": lambda figures: figures["accuracy"],
    "last": lambda figures: figures["evaluations"][-1],
    "last, in eval()": lambda figures: figures["last_in_eval"],
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What each part of protocol C does to a figure.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pipeline", required=True, help="folder of a distilled data set")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--cache_dir")
    parser.add_argument("--output_dir", default="out/protocol-c")
    parser.add_argument("--classifiers", nargs="+", default=["convnet3", "resnet18"], metavar="CLASSIFIER")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[10, 64])
    parser.add_argument("--ipc", type=int, default=10, help="images per class and epoch")
    parser.add_argument("--epochs", type=int, default=DeploymentRecipe.epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of classifiers and of what they see")
    args = parser.parse_args(input_args)
    check_numbers(args, dict.fromkeys(("batch_sizes", "ipc", "epochs"), (1, 2**31)) | {"seeds": (0, 2**32)})
    check_once(args, ("classifiers", "batch_sizes", "seeds"))
    if overlap(args.test_split, args.train_split):
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, and `--train_split`, of the real images, {args.train_split!r}; "
            "valid is one that nothing is trained on."
        )
    return args


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    keep_freed_memory()
    if not (Path(args.pipeline) / "model_index.json").exists():
        raise FileNotFoundError(f"`--pipeline` is {args.pipeline}, which holds no pipeline (model_index.json).")
    run = read_options(Path(args.pipeline))
    refuse_seen(args, args.pipeline, run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = DiMPipeline.from_pretrained(args.pipeline)
    generator = pipeline.generator.to(device).eval()
    size, channels = generator.config.sample_size, generator.config.out_channels
    for name in args.classifiers:
        check_classifier(name, channels, size)
    options: dict[str, Any] = {"resolution": size, "channels": channels, "cache_dir": args.cache_dir}
    # Classes of other names are refused.
    options["class_names"] = tuple(pipeline.class_names) if pipeline.config.id2label else None
    train = load_image_data(args.dataset_name, args.train_split, **options).to(device)
    if train.num_classes != pipeline.generator.config.num_classes:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has {train.num_classes} classes; `--pipeline` generates "
            f"{pipeline.generator.config.num_classes}."
        )
    options["class_names"] = train.class_names
    test = load_image_data(args.dataset_name, args.test_split, **options).to(device)
    if test.fingerprint == train.fingerprint:
        raise ValueError(
            f"`--test_split` {args.test_split} of `--dataset_name` {args.dataset_name} holds the images of "
            f"`--train_split` {args.train_split}; valid is one that nothing is trained on."
        )
    refuse_seen(args, args.pipeline, run, test)
    streams = {
        GENERATED: lambda seed, batch: LegacyStream(generator, args.ipc, seed, batch),
        REAL["streamed"]: lambda seed, batch: LegacyRealStream(train, args.ipc, seed, batch),
    }
    contents = {GENERATED: module_digest(generator), REAL["streamed"]: train.fingerprint}
    local = {name: {"local": content} for name in args.classifiers if (content := local_fingerprint(name))}

    output_dir = Path(args.output_dir)
    check_output_dir(output_dir, 2**20, resuming=True)
    lock = lock_output_dir(output_dir)
    results = output_dir / "results.jsonl"
    wanted = []
    for seed, name, colours, batch, source in product(
        args.seeds, args.classifiers, (True, False), args.batch_sizes, streams
    ):
        job = {"source": source, "content": contents[source], "test": test.fingerprint, "classifier": name}
        job |= {"ipc": args.ipc, "epochs": args.epochs, "batch_size": batch, "colours": colours, "seed": seed}
        job["format"] = EVALUATION_FORMAT
        job |= local.get(name, {})
        wanted.append(job)
        if job in [row["job"] for row in read_json_lines(results)]:
            continue
        start, stream = time.perf_counter(), streams[source](seed, batch)
        figures = legacy_figures(stream, name, test, epochs=args.epochs, seed=seed, colours=colours, progress=True)
        steps = args.epochs * stream.steps_per_epoch
        append_json_line(
            results, {"job": job, "steps": steps, "seconds": round(time.perf_counter() - start, 1)} | figures
        )
        rows = [row for row in read_json_lines(results) if row["job"] in wanted]
        replace_text(output_dir / "protocol_c.md", describe(rows, args))
    rows = [row for row in read_json_lines(results) if row["job"] in wanted]
    print(describe(rows, args))
    lock.release()
    return rows


def describe(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table: a line for each source, classifier, size of batches and augmentation; means over seeds."""
    lines = [
        f"# Protocol C: {Path(args.dataset_name).name}, ipc {args.ipc}, {args.epochs:,} epochs",
        "",
        f"| classifier | trained on | batch | steps | colours | {' | '.join(SCORES)} |",
        f"|{'---|' * (5 + len(SCORES))}",
    ]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(json.dumps({k: v for k, v in row["job"].items() if k != "seed"}), []).append(row)
    for same in kinds.values():
        job = same[0]["job"]
        means = [100 * statistics.mean(score(row) for row in same) for score in SCORES.values()]
        spreads = [
            f" ± {100 * statistics.stdev(score(row) for row in same):.1f}" if len(same) > 1 else ""
            for score in SCORES.values()
        ]
        cells = [job["classifier"], job["source"], str(job["batch_size"]), f"{same[0]['steps']:,}"]
        cells += ["changed" if job["colours"] else "kept"]
        cells += [f"{mean:.1f}{spread}" for mean, spread in zip(means, spreads, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Accuracy in %, seeds {', '.join(map(str, args.seeds))}.", ""]
    lines += [f"- {name}: {value}" for name, value in environment().items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(
        "protocol_c.py",
        lambda: main(parse_args()),
        "Every classifier that was finished is kept in results.jsonl; the same command goes on.",
    )
