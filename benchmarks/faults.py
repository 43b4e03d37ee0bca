"""
Kills and damages real training runs as a failing machine would, resumes them, and compares with undisturbed runs.

    python benchmarks/faults.py --runs 200 --output faults.json       # 100 kills among them
    python benchmarks/faults.py --runs 30 --kinds "kill at a file operation" --seed 7

A run is `training/train_dim.py` on the embedded digits with tiny networks. After a fault the same command, which has
`--resume_from_checkpoint latest`, is run again. It must leave what the undisturbed run left: weights,
optimisers, pipeline, samples and log bit for bit, no file half written under its final name, none left aside, one
message at most, and the usual exit status. A fault ends as one of

- recovered: all of that holds;
- refused: the run does not continue, and one message names the damaged file. Correct where KINDS says so;
- rough: the result is right, but on the way there was a traceback, a wrong exit status or something left behind;
- lost: the result differs, is damaged, or cannot be had.

Starting Python and importing the libraries takes longer than such a run. So one process imports them, runs nothing,
and forks a child for each run, which then executes the script as `python training/train_dim.py` does, in a session of
its own. A random moment is one of the processor time that the undisturbed run takes, as that depends less on what else
the machine does than the time of day. Runs of two processes are started by the real torchrun.

The exit status is 1 if anything is rough or lost. The folders of those faults are kept, and named.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fault_checks import differences, half_written, is_aside
from fault_kinds import KINDS, Skipped
from fault_runs import SCRIPT, TIMEOUT, Campaign, Trial, become_run, fork_server, run_script, torchrun


OUTCOMES = ("recovered", "refused", "rough", "lost", "skipped")


def check_whole(trial: Trial) -> None:
    """A fault must not leave a file half written under its final name."""
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


def break_a_run(campaign: Campaign, kind: str, number: int) -> dict[str, Any]:
    """Makes one fault, lets the run go on, and returns what happened."""
    configurations = KINDS[kind].configurations
    configuration = configurations[number % len(configurations)]
    campaign.reference(configuration)
    trial = campaign.trial(kind, configuration, f"{kind} {number}")
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
    if any(root.iterdir()):
        raise SystemExit(f"faults.py: `--folder` {root} is not empty; name a new one.")
    # Asked to end, a campaign unmounts its disks too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    campaign = Campaign(root, args.seed, connection)
    records: list[dict[str, Any]] = []
    numbers = numbers_of(args.runs, args.kinds)
    due = [(kind, number) for kind, count in numbers.items() for number in range(count)]
    # The kinds take turns, so that a campaign that is cut short has seen them all.
    due.sort(key=lambda fault: fault[1] / numbers[fault[0]])
    for i, (kind, number) in enumerate(due, 1):
        record = break_a_run(campaign, kind, number)
        records.append(record)
        where = f"{record['configuration']}; {record.get('moment')}"
        print(f"{i}/{len(due)} {kind} {number} ({where}): {record['outcome']}", flush=True)
        for what in record["lost"] + record["rough"]:
            print(f"    {what}", flush=True)
        if args.output:
            report = {"seed": args.seed, "runs": args.runs, "faults": records}
            Path(args.output).write_text(json.dumps(report, indent=2))
    print(table(records))
    kills = sum(record["status"].count(-signal.SIGKILL) for record in records if record["kind"].startswith("kill "))
    print(f"{kills} runs were alive when they were killed.")
    bad = [record for record in records if record["outcome"] in ("rough", "lost")]
    if not bad and args.folder is None:
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
