"""The kinds of faults of benchmarks/faults.py. Each leaves a folder for the same command to go on in."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from fault_checks import checkpoint_step, checkpoints, final_files, is_aside
from fault_runs import Run, Trial, torchrun


class Skipped(Exception):
    """A fault that cannot be made on this machine."""


def wait_for_a_moment(trial: Trial, run: Run) -> None:
    """Waits until a run has used a random share of the processor time of the undisturbed one."""
    seconds = trial.rng.uniform(0, trial.reference.record["cpu_seconds"])
    trial.record["moment"] = f"after {seconds:.2f} s of processor time"
    # It may end between the two questions.
    with suppress(psutil.NoSuchProcess):
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
    trial.wait(trial.start(die_at=number, opened=opened))
    if trial.rng.random() < 0.5:
        # What goes on is killed too, soon after its start.
        again = trial.rng.randrange(30)
        trial.record["moment"] += f"; then at operation {again} of the run that goes on"
        trial.wait(trial.start(die_at=again, opened=True))


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
        message = trial.note(run)
        log = trial.output / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        if run.status == 130 and lines:
            # In the middle of a validation the step is saved before its line is written.
            saved = checkpoint_step(checkpoints(trial.output)[-1]) if checkpoints(trial.output) else 0
            trial.stopped_at.append(saved)
            if saved < json.loads(lines[-1])["step"]:
                trial.lost(f"only step {saved} is saved of {json.loads(lines[-1])['step']}")
            if "everything is saved" not in run.read("stdout") and "interrupted" not in message:
                trial.rough("it does not say what is saved")
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
        with suppress(psutil.NoSuchProcess):
            workers = [p for p in psutil.Process(run.pid).children() if "tracker" not in " ".join(p.cmdline())]
    run.ended(delay)
    if workers and not run.ended():
        trial.rng.choice(workers).kill()
    trial.record["moment"] = f"{1000 * delay:.0f} ms after the first of {len(workers)} workers began"
    trial.wait(run)
    if run.status not in (0, 1):
        trial.rough(f"it ends with status {run.status}")


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
