# ruff: noqa: E402
"""
The library on a GPU, in one command of under ten minutes: are results correct, how fast is it, what accuracy does it
reach.

    python benchmarks/gpu.py --prepare cifar10-arrays --dataset_name uoft-cs/cifar10    # where dim_hf is installed
    python benchmarks/gpu.py --data cifar10-arrays --output_dir out/gpu                  # on the machine with the GPU
    python benchmarks/gpu.py --data cifar10-arrays --output_dir out/rehearsal --device cpu --minutes 3

The machine with the GPU needs this checkout, torch, accelerate, diffusers, safetensors and huggingface_hub; nothing is
installed there, nothing downloaded, and no library that reads data sets is imported. Four stages, each with a share of
the time, and `results.json` is rewritten after every row, so that an interrupted run keeps its results:

1. `equality`: images and a training step against the CPU's; bf16 and fp16; resume; CUDA graphs.
2. `synchronisation`: no step may make the host wait (`torch.cuda.set_sync_debug_mode("error")`); what takes the time.
3. `throughput`: steps by batch size and execution mode, relative to the rate of their convolutions; generation; a
   classifier's feed.
4. `training`: the base preset for the time that is left; `training.jsonl`, `samples.png` and a pipeline in `pipeline/`
   that `DiMPipeline.from_pretrained` loads, beside them; checkpoints go to a folder `OUTPUT_DIR-checkpoints`.

The loop here is not train_dim.py's, which reads data sets, but its step is (gpu_stages/step.py).
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import psutil
import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "training")]
import dim_hf


if importlib.util.find_spec("dim_hf.pipelines") is None:
    # Not installed: `pipelines/` at the top of the repository is `dim_hf.pipelines`.
    dim_hf.__path__.append(str(ROOT))

from command_line import run_script
from gpu_stages.arrays import load_prepared, prepare
from gpu_stages.equality import equality
from gpu_stages.report import Bench, Report, check_precision
from gpu_stages.step import DTYPES, WAYS
from gpu_stages.synchronisation import synchronisation
from gpu_stages.throughput import throughput
from gpu_stages.training import training
from presets import PRESETS

from dim_hf.data.image_data import holdout


# The share of the time that a stage may take; the last one that is asked for has all that is left.
STAGES = {"equality": 0.15, "synchronisation": 0.08, "throughput": 0.3, "training": 1.0}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Equality, speed and training on a GPU.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("preparing the data, on any machine")
    data.add_argument("--prepare", metavar="FOLDER", help="write a data set into a new folder, and nothing else")
    data.add_argument("--dataset_name", default="digits", help="Hub id, local folder or file, or 'digits' (embedded)")
    data.add_argument("--max_test_samples", type=int, default=4000, help="exact test images, stratified")
    data.add_argument("--megabytes", type=float, default=50, help="at most so much; above it train images become JPEG")

    run = parser.add_argument_group("run")
    run.add_argument("--data", metavar="FOLDER", help="what --prepare has written")
    run.add_argument("--output_dir", default="out/gpu")
    run.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    run.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    run.add_argument("--minutes", type=float, default=9.5, help="for everything, from the start of the process")
    run.add_argument("--precision", default="bf16", choices=DTYPES, help="of throughput and training")
    run.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 1024, 64], help="of the base preset's steps")
    run.add_argument("--paper_batch_sizes", type=int, nargs="+", default=[128, 256])
    run.add_argument("--row_seconds", type=float, default=1.0, help="how long a row is timed")

    training = parser.add_argument_group("training")
    training.add_argument("--preset", default="base", choices=sorted(PRESETS))
    training.add_argument("--batch_size", type=int, default=256)
    training.add_argument("--way", default="graph", choices=WAYS, help="how a step is run")
    training.add_argument(
        "--rate_factor",
        type=float,
        help="of the preset's learning rates; default: the root of how many times larger the batches are, the rule "
        "for Adam (arXiv 2205.10287)",
    )
    training.add_argument(
        "--warmup_images", type=int, default=50_000, help="until the learning rates are full: Adam's moments settle"
    )
    training.add_argument(
        "--ema_half_life",
        type=int,
        default=500_000,
        help="images until half of the average is new, whatever the batch; as for CIFAR-10 in arXiv 2006.06676. At "
        "the beginning it is a twentieth of the images seen",
    )
    training.add_argument("--save_minutes", type=float, default=1.0, help="from one saved pipeline to the next")
    training.add_argument("--validation_epochs", type=int, default=1000, help="of a ConvNet-3 at 10 images per class")
    training.add_argument("--resume", action="store_true", help="train on from the latest checkpoint")
    return parser.parse_args(input_args)


def check_args(args: argparse.Namespace) -> torch.device:
    """Refuses settings that cannot work here, before any work; gives the device."""
    for name in (
        "minutes", "row_seconds", "batch_size", "rate_factor", "ema_half_life", "save_minutes", "validation_epochs",
        "max_test_samples", "megabytes",
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`--{name}` is {value}; it must be above 0.")
    if args.rate_factor is None:
        args.rate_factor = math.sqrt(args.batch_size / PRESETS[args.preset]["train_batch_size"])
    for name in ("batch_sizes", "paper_batch_sizes"):
        if min(getattr(args, name)) < 2:
            raise ValueError(f"`--{name}` has {min(getattr(args, name))}; a batch must have at least 2 images.")
    if args.prepare:
        return torch.device("cpu")
    if args.data is None:
        raise ValueError("`--data` is missing: the folder that --prepare has written.")
    if args.device == "cpu":
        if args.precision == "fp16":
            raise ValueError("`--precision` is fp16, which needs CUDA; valid on a CPU are no and bf16.")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"`--device` is cuda, and PyTorch {torch.__version__} finds no CUDA device (it was built for CUDA "
            f"{torch.version.cuda}); --device cpu rehearses the command."
        )
    check_precision(args.precision, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    return torch.device("cuda", torch.cuda.current_device())


def main(args: argparse.Namespace, started: float) -> None:
    device = check_args(args)
    if args.prepare:
        # Reads data sets; everything else here must do without.
        from dim_hf.data import load_image_data

        parts = [load_image_data(args.dataset_name)]
        parts.append(load_image_data(args.dataset_name, "test", class_names=parts[0].class_names))
        manifest = prepare(Path(args.prepare), *parts, args.max_test_samples, args.megabytes)
        size = sum(path.stat().st_size for path in Path(args.prepare).iterdir())
        print(f"{args.prepare}: {size / 1e6:.1f} MB\n{json.dumps(manifest['splits'], indent=1)}")
        return
    output_dir = Path(args.output_dir)
    if (output_dir / "results.json").exists() and not args.resume:
        raise FileExistsError(f"`--output_dir` {output_dir} holds results already; name another.")
    data, test = load_prepared(Path(args.data))
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    train, validation, test = (part.to(device) for part in (*holdout(data), test))
    report = Report(output_dir / "results.json", args, device)
    bench = Bench(args, device, report, train, validation, test, started + 60 * args.minutes)
    stages = {"equality": equality, "synchronisation": synchronisation, "throughput": throughput, "training": training}
    asked = [name for name in STAGES if name in args.stages]
    for name in asked:
        share = 1.0 if name == asked[-1] else STAGES[name]
        report.end = min(bench.deadline, time.time() + share * 60 * args.minutes)
        stages[name](bench)
    print(f"{output_dir / 'results.json'} after {time.time() - started:.0f} s")
    if report.failed:
        raise SystemExit(f"gpu.py: failed: {'; '.join(report.failed)}"[:600])


if __name__ == "__main__":
    args = run_script("gpu.py", parse_args)
    results = Path(args.output_dir) / "results.json"
    kept = "Nothing was written." if args.prepare else f"Rows that were finished are in {results}."
    run_script("gpu.py", lambda: main(args, psutil.Process().create_time()), kept)
