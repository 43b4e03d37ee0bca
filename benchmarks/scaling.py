"""
The rate of evaluation jobs and of `generate_dim.py` in two processes, over that of one with a core of the same kind.

    python benchmarks/scaling.py --json scaling.json        # on an idle machine with two cores or more

Each script runs with little work and with more; the difference of the times leaves out what starting takes. The
generator is untrained, which makes no difference to the time. CPU seconds tell on a busy machine, too, what sharing
the work costs: without any, two processes take as many as one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROWS = ("evaluation", "generation")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))
from command_line import check_json_file, check_numbers, run_script  # noqa: E402
from presets import network_configs  # noqa: E402

from dim_hf.files import replace_text  # noqa: E402
from dim_hf.machine import environment, usable_cores  # noqa: E402
from dim_hf.models import DiMGenerator  # noqa: E402
from dim_hf.pipelines import DiMPipeline  # noqa: E402


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Rates of two processes over one.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=8, help="classifiers of the longer evaluation; the shorter has 2")
    parser.add_argument("--epochs", type=int, default=150, help="of each classifier")
    parser.add_argument("--shards", type=int, default=20, help="of the longer generation; the shorter has 2")
    parser.add_argument("--shard_size", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args(input_args)
    check_numbers(args, {"jobs": (4, 1000), "epochs": (1, 2**31), "shards": (4, 2**20), "repeats": (1, 100)})
    check_numbers(args, {"shard_size": (10, 2**31)})
    for name in ("jobs", "shards"):
        if getattr(args, name) % 2:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; valid are even numbers, which two can share.")
    check_json_file(args.json, ("options", "environment", "rows"))
    if usable_cores() < 2:
        raise ValueError("this process may use one core only; two processes need two.")
    return args


def main(args: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        generator = DiMGenerator(**network_configs("base", 8, 1, 10)[0])
        DiMPipeline(generator).save_pretrained(f"{folder}/pipeline")
        for name in args.rows:
            longer = {"evaluation": args.jobs, "generation": args.shards}[name]
            # Seconds and CPU seconds of the additional work, in one process and in two.
            taken: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for repeat in range(args.repeats):
                for processes in (1, 2):
                    few, many = (
                        run(command(args, name, count, Path(folder), f"{repeat}-{processes}-{count}"), processes)
                        for count in (2, longer)
                    )
                    taken[processes].append((many[0] - few[0], many[1] - few[1]))
            rate, cost = (
                statistics.median(one[i] / two[i] for one, two in zip(taken[1], taken[2], strict=True))
                for i in range(2)
            )
            rows.append({"row": name, "rate_of_two_over_one": rate, "cpu_of_one_over_two": cost, "taken": taken})
            print(f"{name}: {rate:.2f} times the rate; one takes {cost:.2f} of the CPU time of two", flush=True)
    if args.json:
        report = {"options": vars(args), "environment": environment(), "rows": rows}
        replace_text(args.json, json.dumps(report, indent=2))


def command(args: argparse.Namespace, name: str, count: int, folder: Path, run_name: str) -> list[str]:
    pipeline, output = ["--pipeline", f"{folder}/pipeline"], ["--output_dir", f"{folder}/{name}-{run_name}"]
    if name == "generation":
        ipc = str(count * args.shard_size // 10)
        return [f"{ROOT}/training/generate_dim.py", *pipeline, *output, "--ipc", ipc, "--shard_size",
                str(args.shard_size)]  # fmt: skip
    return [f"{ROOT}/training/evaluate_dim.py", *pipeline, *output, "--protocols", "B", "--controls", "--ipc", "10",
            "--epochs", str(args.epochs), "--classifiers", "convnet3", "--mixed_precision", "no",
            "--seeds", *map(str, range(count))]  # fmt: skip


def run(script: list[str], processes: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a script in some processes of one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run([sys.executable, *launcher, *script], env=variables, capture_output=True, text=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    if result.returncode:
        raise OSError(f"{Path(script[0]).name} failed: {result.stderr[-400:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_script("scaling.py", lambda: main(parse_args()), "Nothing is kept.")
