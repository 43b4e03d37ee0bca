"""
Breaks real training runs in every way that a machine breaks them, lets them go on, and compares with undisturbed runs.

    python benchmarks/faults.py --runs 200 --output faults.json       # some 10 minutes of one core
    python benchmarks/faults.py --runs 30 --kinds "kill at a file operation" --seed 7

A run is `training/train_dim.py` on the embedded digits with tiny networks. After a fault the same command, which has
`--resume_from_checkpoint latest`, is given again. What it leaves must be what the undisturbed run left: weights,
optimisers, pipeline, samples and log bit for bit, no file half written under its final name, none left aside, one
message at most, and the usual exit status. A fault ends as one of

- recovered: all of that holds;
- refused: the run does not go on, and one message names the damaged file. Right where KINDS says so;
- rough: the result is right, but on the way there was a traceback, a wrong exit status or something left behind;
- lost: the result differs, is damaged, or cannot be had.

Starting Python and importing the libraries takes longer than such a run. So one process imports them, runs nothing,
and forks a child for each run, which then executes the script as `python training/train_dim.py` does, in a session of
its own. A random moment is one of the processor time that the undisturbed run takes, as that depends less on what else
the machine does than the time of day. Runs of two processes are started by the real torchrun.

The exit status is 1 if anything is rough or lost. The folders of those faults are kept, and named.
"""

import argparse
import errno
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fault_checks import check_messages, checkpoints, differences, final_files, half_written, is_aside
from fault_runs import SCRIPT, TIMEOUT, Run, become_run, fork_server, run_script


TINY = [
    "--train_batch_size", "8", "--logging_steps", "5", "--checkpointing_steps", "7", "--checkpoints_total_limit", "2",
    "--report_to", "none", "--validation_steps", "8", "--validation_epochs", "4", "--match_interval", "2",
    "--pool_steps", "8", "--pool_snapshots", "2",
    # So fast that validation sees a difference, and the pipeline is replaced several times.
    "--learning_rate", "5e-3", "--discr_learning_rate", "5e-3", "--match_learning_rate", "5e-3", "--ema_decay", "0.5",
]  # fmt: skip
PLAIN = ["--max_train_steps", "28", "--max_match_steps", "0"]
MATCHING = ["--max_train_steps", "16", "--max_match_steps", "12"]
CONFIGURATIONS = {
    "plain": PLAIN,
    "matching": MATCHING,
    "parquet": [*PLAIN, "--dataloader_num_workers", "2"],
    "two processes": MATCHING,
}


class Skipped(Exception):
    """A fault that cannot be made on this machine."""


@dataclass
class Trial:
    """One fault: the folder that it happens in and what is written down of it."""

    kind: str
    configuration: str
    folder: Path
    campaign: "Campaign"
    rng: random.Random
    record: dict[str, Any] = field(default_factory=lambda: {"lost": [], "rough": [], "status": [], "cpu_seconds": 0.0})
    cleanup: ExitStack = field(default_factory=ExitStack)
    # Where set, a message must name one of these to be a refusal.
    damaged: tuple[str, ...] = ()
    stopped_at: list[int] = field(default_factory=list)
    started: int = 0

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def reference(self) -> "Trial":
        return self.campaign.reference(self.configuration)

    def lost(self, what: str) -> None:
        self.record["lost"].append(what)

    def rough(self, what: str) -> None:
        self.record["rough"].append(what)

    def arguments(self) -> list[str]:
        root = self.campaign.root
        data = ["--dataset_name", str(root / "images.parquet")] if self.configuration == "parquet" else []
        return [
            *TINY, *CONFIGURATIONS[self.configuration], *data, "--output_dir", str(self.output), "--cache_dir",
            str(self.cache), "--generator_config", str(root / "network.json"), "--discriminator_config",
            str(root / "network.json"), "--resume_from_checkpoint", "latest",
        ]  # fmt: skip

    def start(
        self, *, operations: str = "", die_at: int | None = None, opened: bool = False, modes: bool = False
    ) -> Run:
        self.started += 1
        name = f"run-{self.started}"
        self.campaign.connection.send(
            {
                "arguments": self.arguments(),
                "stdout": str(self.folder / f"{name}.stdout"),
                "stderr": str(self.folder / f"{name}.stderr"),
                "folders": [str(self.output), str(self.cache)],
                "operations": operations,
                "die_at": die_at,
                "opened": opened,
                "modes": modes,
            }
        )
        return Run(self.campaign.connection.recv(), self.campaign.connection, self.folder, name)

    def wait(self, run: Run) -> str:
        """Waits for the end of a run that nothing ends any more, and returns its message."""
        if not run.ended(TIMEOUT):
            run.end()
            self.lost(f"{run.name} hangs")
        return self.note(run)

    def note(self, run: Run) -> str:
        """Writes down how a run ended, with what is wrong with its message, and returns that."""
        self.record["status"].append(run.status)
        self.record["cpu_seconds"] += run.cpu_seconds
        errors = run.read("stderr")
        message, wrong = check_messages(errors, run.status)
        self.record["rough"] += [f"{run.name}: {what}" for what in wrong]
        if message:
            self.record.setdefault("messages", []).append(message)
        return message


def check_whole(trial: Trial) -> None:
    """What a fault leaves has no file half written under its final name."""
    for folder, reference in ((trial.output, trial.reference.output), (trial.cache, trial.reference.cache)):
        if folder.exists():
            trial.record["rough"] += [
                f"half written after the fault: {what}" for what in half_written(folder, reference)
            ]


def go_on(trial: Trial, refusal: bool) -> None:
    """Gives the same command again and judges what it leaves."""
    if trial.configuration == "two processes":
        status, message = torchrun(trial).wait(2 * TIMEOUT), ""
        trial.record["status"].append(status)
    else:
        run = trial.start()
        message = trial.wait(run)
        status = run.status
    if status == 1 and message and refusal and any(name in message for name in trial.damaged):
        trial.record["refused"] = True
    elif status != 0:
        trial.lost(f"the same command ends with status {status}")
    else:
        reference = trial.reference
        log_damaged = "metrics.jsonl" in trial.damaged
        trial.record["lost"] += differences(trial.output, reference.output, trial.stopped_at, log_damaged)
        for folder, other in ((trial.output, reference.output), (trial.cache, reference.cache)):
            if folder.exists():
                trial.record["lost"] += half_written(folder, other)
            left = [str(path.relative_to(folder)) for path in folder.rglob("*") if is_aside(path, folder)]
            if left:
                trial.rough(f"left aside in {folder.name}: {', '.join(left[:3])}")


# Faults. Each leaves a folder for the same command to go on in.


def wait_for_a_moment(trial: Trial, run: Run) -> None:
    """Waits until a run has used a random share of the processor time of the undisturbed one."""
    seconds = trial.rng.uniform(0, trial.reference.record["cpu_seconds"])
    trial.record["moment"] = f"after {seconds:.2f} s of processor time"
    process = psutil.Process(run.pid)
    while not run.ended(0.002) and sum(process.cpu_times()[:2]) < seconds:
        pass


def kill_at_a_moment(trial: Trial) -> None:
    run = trial.start()
    wait_for_a_moment(trial, run)
    run.end()
    trial.note(run)


def kill_at_an_operation(trial: Trial) -> None:
    operations = (trial.reference.folder / "operations").read_text().splitlines()
    # Every kind of operation is as likely, however often it comes.
    groups: dict[str, list[int]] = {}
    for number, line in enumerate(operations):
        event, _, path = line.partition(" ")
        groups.setdefault(f"{event} {re.sub('[0-9]+|tmp.*', '', Path(path).name)}", []).append(number)
    number = trial.rng.choice(groups[trial.rng.choice(sorted(groups))])
    opened = trial.rng.random() < 0.5
    trial.record["moment"] = f"operation {number}{', opened' * opened}: {operations[number]}"
    run = trial.start(die_at=number, opened=opened)
    trial.wait(run)


def kill_in_a_save(trial: Trial) -> None:
    """Ends a run some milliseconds after something has appeared aside."""
    wanted, delay = trial.rng.randint(1, 10), trial.rng.uniform(0, 0.04)
    seen: set[str] = set()
    run = trial.start()
    while len(seen) < wanted and not run.ended(0.0005):
        seen |= set(asides(trial))
    run.ended(delay)
    run.end()
    trial.record["moment"] = f"{1000 * delay:.1f} ms after the {wanted}th aside; there were {asides(trial)} at the end"
    trial.note(run)


def asides(trial: Trial) -> list[str]:
    found = []
    for folder in (trial.output, trial.output / "before_matching", trial.cache / "images", trial.cache / "pool"):
        try:
            found += [path.name for path in folder.iterdir() if is_aside(path, folder)]
        except FileNotFoundError:
            continue
    return found


def stop_with(number: int) -> Callable[[Trial], None]:
    def stop(trial: Trial) -> None:
        run = trial.start()
        wait_for_a_moment(trial, run)
        run.end(number)
        trial.note(run)
        log = trial.output / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        if run.status == 130 and lines:
            trial.stopped_at.append(json.loads(lines[-1])["step"])
            if "everything is saved" not in run.read("stdout"):
                trial.rough("it does not say that everything is saved")
            if (
                not checkpoints(trial.output)
                or checkpoints(trial.output)[-1].name != f"checkpoint-{trial.stopped_at[-1]}"
            ):
                trial.lost(f"step {trial.stopped_at[-1]} is not saved")
        elif run.status not in (0, 130) and (lines or run.status != -number) and "Done in" not in run.read("stdout"):
            trial.rough(f"it ends with status {run.status}")

    return stop


def full_disk(name: str) -> Callable[[Trial], None]:
    """A small disk for the output or for the cache: too small from the start, or filled by others at some moment."""

    def fill(trial: Trial) -> None:
        folder = trial.folder / name
        filler = folder / "of-others"
        needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in final_files(trial.reference.folder / name))
        at_start = trial.rng.random() < 0.5
        size = int(trial.rng.uniform(0.02, 1) * needed) if at_start else 4 * needed + 2**20
        mount_tmpfs(trial, folder, size)
        trial.record["moment"] = f"{size} of {needed} bytes"
        run = trial.start()
        if not at_start:
            wait_for_a_moment(trial, run)
            trial.record["moment"] = f"filled {trial.record['moment']}"
            try:
                with filler.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        message = trial.wait(run)
        if run.status not in (0, 1):
            trial.rough(f"it ends with status {run.status}")
        elif run.status == 1 and str(folder) not in message:
            trial.rough(f"the message does not name {name}")
        filler.unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={4 * needed + 2**24}", str(folder)], check=True)

    return fill


def mount_tmpfs(trial: Trial, folder: Path, size: int) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Skipped(f"no tmpfs can be mounted: {result.stderr.strip()}")
    trial.cleanup.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)


def read_only(trial: Trial) -> None:
    """The output folder or the cache is made read-only, before the start or at some moment."""
    folder = trial.rng.choice([trial.output, trial.cache])
    folder.mkdir()
    at_start = trial.rng.random() < 0.3
    trial.record["moment"] = f"{folder.name}, from the start"
    if at_start:
        set_modes(folder, 0o555)
    run = trial.start(modes=True)
    if not at_start:
        wait_for_a_moment(trial, run)
        trial.record["moment"] = f"{folder.name}, {trial.record['moment']}"
        set_modes(folder, 0o555)
    message = trial.wait(run)
    set_modes(folder, 0o755)
    if run.status not in (0, 1):
        trial.rough(f"it ends with status {run.status}")
    elif run.status == 1 and str(folder) not in message:
        trial.rough(f"the message does not name {folder.name}")


def set_modes(folder: Path, mode: int) -> None:
    for path, _, _ in os.walk(folder):
        os.chmod(path, mode)


def damage(trial: Trial, choose: Callable[[Trial], Iterator[Path]]) -> None:
    """Copies an interrupted run and damages one of its files, or makes a checkpoint's folder empty."""
    half = trial.campaign.half(trial.configuration)
    for name in ("output", "cache"):
        shutil.copytree(half.folder / name, trial.folder / name)
    path = trial.rng.choice(sorted(choose(trial)))
    way = trial.rng.choice(["cut", "empty", "bit", "missing"])
    content = bytearray(path.read_bytes() if path.is_file() else b"")
    position = trial.rng.randrange(max(1, len(content)))
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    elif way == "missing":
        path.unlink()
    elif way == "bit":
        content[position] ^= 1 << trial.rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: position if way == "cut" else 0])
    trial.damaged = (path.name, path.parent.name) if "checkpoint-" in str(path) else (path.name,)
    at = f" at byte {position} of {len(content)}" if way in ("cut", "bit") else ""
    trial.record["moment"] = f"{path.relative_to(trial.folder)}: {'folder emptied' if path.is_dir() else way}{at}"


def damaged_checkpoint(trial: Trial) -> None:
    def choose(trial: Trial) -> Iterator[Path]:
        older, newest = checkpoints(trial.output)
        if trial.rng.random() < 0.25:
            shutil.rmtree(older)
        yield newest
        yield from final_files(newest)

    damage(trial, choose)


def damaged_cache(trial: Trial) -> None:
    damage(trial, lambda trial: iter(final_files(trial.cache)))


def damaged_pipeline(trial: Trial) -> None:
    def choose(trial: Trial) -> Iterator[Path]:
        for path in final_files(trial.output):
            if path.parts[len(trial.output.parts)] in ("generator", "model_index.json", "pipeline.py"):
                yield path

    damage(trial, choose)


def damaged_record(trial: Trial) -> None:
    damage(trial, lambda trial: iter(trial.output / name for name in ("options.json", "metrics.jsonl")))


def killed_worker(trial: Trial) -> None:
    """Kills one of the processes that decode."""
    delay = trial.rng.uniform(0, 0.3)
    run = trial.start()
    workers: list[psutil.Process] = []
    while not workers and not run.ended(0.001):
        workers = [p for p in psutil.Process(run.pid).children() if "tracker" not in " ".join(p.cmdline())]
    run.ended(delay)
    if workers and not run.ended():
        trial.rng.choice(workers).kill()
    trial.record["moment"] = f"{1000 * delay:.0f} ms after the first of {len(workers)} workers began"
    trial.wait(run)
    if run.status not in (0, 1):
        trial.rough(f"it ends with status {run.status}")


def torchrun(trial: Trial) -> subprocess.Popen:
    trial.started += 1
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(SCRIPT), *trial.arguments(),
    ]  # fmt: skip
    with (trial.folder / f"run-{trial.started}.stderr").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def killed_rank(trial: Trial) -> None:
    """Kills one of two processes that train: the job must end within a minute."""
    steps = trial.rng.randint(1, 8)
    log = trial.output / "metrics.jsonl"
    job = torchrun(trial)
    while job.poll() is None and not (log.exists() and log.read_text().count("\n") >= steps):
        time.sleep(0.01)
    ranks = psutil.Process(job.pid).children()
    rank = trial.rng.randrange(len(ranks))
    ranks[rank].kill()
    trial.record["moment"] = f"the process of rank {rank}, after {steps} lines of the log"
    try:
        trial.record["status"].append(job.wait(60))
        if job.returncode == 0:
            trial.rough("the job ends with status 0")
    except subprocess.TimeoutExpired:
        trial.rough("the job has not ended after 60 s")
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    if left := [process for process in ranks if process.is_running()]:
        trial.rough(f"{len(left)} processes outlive the job")


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how it is made, its share of the faults, and whether a message may be the right answer."""

    make: Callable[[Trial], None]
    share: int
    refusal: bool = False
    configurations: tuple[str, ...] = ("plain", "matching")
    tests_the_rest: bool = True


KINDS = {
    "kill at a random moment": Kind(kill_at_a_moment, 20),
    "kill at a file operation": Kind(kill_at_an_operation, 25),
    "kill inside a save": Kind(kill_in_a_save, 10),
    "SIGTERM": Kind(stop_with(signal.SIGTERM), 5),
    "SIGINT": Kind(stop_with(signal.SIGINT), 5),
    "full disk, output": Kind(full_disk("output"), 5),
    "full disk, cache": Kind(full_disk("cache"), 4),
    "read-only folder": Kind(read_only, 4),
    # There may be no other checkpoint; a damaged pipeline may be of a step before the checkpoint's.
    "damaged checkpoint": Kind(damaged_checkpoint, 10, refusal=True, tests_the_rest=False),
    "damaged pipeline": Kind(damaged_pipeline, 3, refusal=True, tests_the_rest=False),
    "damaged cache": Kind(damaged_cache, 4, tests_the_rest=False),
    "damaged options or log": Kind(damaged_record, 3, tests_the_rest=False),
    "killed decoding worker": Kind(killed_worker, 2, configurations=("parquet",)),
    "killed rank of two": Kind(killed_rank, 1, configurations=("two processes",)),
}
OUTCOMES = ("recovered", "refused", "rough", "lost", "skipped")


# The campaign.


class Campaign:
    """The folder of a campaign, with the undisturbed and the interrupted run of each configuration, made when due."""

    def __init__(self, root: Path, seed: int, connection: Connection) -> None:
        self.root, self.seed, self.connection = root, seed, connection
        self.references: dict[str, Trial] = {}
        self.halves: dict[str, Trial] = {}
        (root / "network.json").write_text('{"block_out_channels": [16], "layers_per_block": [0]}')

    def trial(self, kind: str, configuration: str, name: str) -> Trial:
        folder = self.root / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        return Trial(kind, configuration, folder, self, random.Random(f"{self.seed}/{name}"))

    def reference(self, configuration: str) -> Trial:
        """The undisturbed run."""
        if configuration not in self.references:
            if configuration == "parquet" and not (self.root / "images.parquet").exists():
                write_images(self.root / "images.parquet")
            self.references[configuration] = trial = self.trial("none", configuration, f"undisturbed {configuration}")
            if configuration == "two processes":
                status = torchrun(trial).wait(2 * TIMEOUT)
            else:
                run = trial.start(operations=str(trial.folder / "operations"))
                trial.wait(run)
                status = run.status
            if status or trial.record["rough"]:
                raise SystemExit(f"faults.py: the undisturbed run in {trial.folder} fails: {trial.record}")
        return self.references[configuration]

    def half(self, configuration: str) -> Trial:
        """A run killed after its second checkpoint."""
        self.reference(configuration)
        if configuration not in self.halves:
            self.halves[configuration] = trial = self.trial("none", configuration, f"half of {configuration}")
            run = trial.start()
            while not (trial.output / "checkpoint-14").exists() and not run.ended(0.001):
                pass
            run.end()
        return self.halves[configuration]

    def run(self, kind: str, number: int) -> dict[str, Any]:
        """Makes one fault, lets the run go on, and returns what happened."""
        configurations = KINDS[kind].configurations
        configuration = configurations[number % len(configurations)]
        self.reference(configuration)
        trial = self.trial(kind, configuration, f"{kind} {number}")
        record = trial.record = {"kind": kind, "number": number, "configuration": configuration} | trial.record
        with trial.cleanup:
            try:
                KINDS[kind].make(trial)
                if KINDS[kind].tests_the_rest:
                    check_whole(trial)
                go_on(trial, KINDS[kind].refusal)
            except Skipped as reason:
                record["skipped"] = str(reason)
            except TimeoutError as error:
                trial.lost(str(error))
            record["outcome"] = next(
                (name for name in ("skipped", "lost", "rough", "refused") if record.get(name)), "recovered"
            )
        if record["outcome"] in ("rough", "lost"):
            record["folder"] = str(trial.folder)
        else:
            shutil.rmtree(trial.folder)
        return record


def write_images(path: Path) -> None:
    """So many tiny images that two processes decode them."""
    import datasets
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4100, 8, 8), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": [i % 2 for i in range(len(pixels))]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def numbers_of(runs: int, kinds: list[str]) -> dict[str, int]:
    """How many faults of each kind: by its share, at least one."""
    total = sum(KINDS[kind].share for kind in kinds)
    return {kind: max(1, round(runs * KINDS[kind].share / total)) for kind in kinds}


def table(records: list[dict[str, Any]]) -> str:
    lines = [f"| fault | tried | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * (len(OUTCOMES) + 1)}"]
    for kind in [kind for kind in KINDS if any(record["kind"] == kind for record in records)] + ["all"]:
        counts = Counter(record["outcome"] for record in records if kind in ("all", record["kind"]))
        cells = [counts.total(), *(counts[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {kind} | {' | '.join(str(cell or '') for cell in cells)} |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Breaks training runs, lets them go on, and compares with undisturbed ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=int, default=100, help="faults, shared out among the kinds, one of each at least"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is broken, where and when")
    parser.add_argument("--folder", help="where the runs are made; default: a temporary folder")
    parser.add_argument("--output", help="a JSON file for every fault with its moment and its end")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace, connection: Connection) -> int:
    root = Path(args.folder or tempfile.mkdtemp(prefix="faults-")).resolve()
    root.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(root, args.seed, connection)
    records: list[dict[str, Any]] = []
    numbers = numbers_of(args.runs, args.kinds)
    due = [(kind, number) for kind, count in numbers.items() for number in range(count)]
    # The kinds take turns, so that a campaign that is cut short has seen them all.
    due.sort(key=lambda fault: fault[1] / numbers[fault[0]])
    for i, (kind, number) in enumerate(due, 1):
        record = campaign.run(kind, number)
        records.append(record)
        where = f"{record['configuration']}; {record.get('moment')}"
        print(f"{i}/{len(due)} {kind} {number} ({where}): {record['outcome']}", flush=True)
        for what in record["lost"] + record["rough"]:
            print(f"    {what}", flush=True)
        if args.output:
            report = {"seed": args.seed, "runs": args.runs, "faults": records}
            Path(args.output).write_text(json.dumps(report, indent=2))
    print(table(records))
    print(f"{sum(-signal.SIGKILL in record['status'] for record in records)} runs were killed before their end.")
    bad = [record for record in records if record["outcome"] in ("rough", "lost")]
    if not bad:
        shutil.rmtree(root)
    return int(bool(bad))


if __name__ == "__main__":
    arguments = parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(SCRIPT.parent))
    import train_dim  # noqa: F401

    # A collection in a forked process would copy all that was imported.
    gc.freeze()

    server, asked = fork_server()
    if server:
        sys.exit(main(arguments, server))
    become_run(asked)
    run_script()
