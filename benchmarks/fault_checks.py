"""What a run that was broken leaves behind, and how that differs from an undisturbed run; for benchmarks/faults.py."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import safe_open


# What an output folder keeps for itself.
HIDDEN = (".lock", ".locks", ".made_by")
TRACEBACK = "Traceback (most recent call last)"


def check_messages(errors: str, status: int | None) -> tuple[str, list[str]]:
    """The message of a run in its stderr, and what is wrong with it."""
    wrong = []
    messages = re.findall(r"(?:^|[\r\n])(train_dim\.py: .*)", errors)
    if TRACEBACK in errors:
        wrong.append(f"traceback: {errors.strip().splitlines()[-1][:300]}")
    elif status == 1 and not messages:
        hanging = "train_dim.py: " in errors
        wrong.append("its message does not begin a line" if hanging else "exit status 1 without a message")
    if len(messages) > 1:
        wrong.append(f"{len(messages)} messages")
    if any(len(message) > 600 for message in messages):
        wrong.append(f"a message of {max(map(len, messages))} characters")
    return messages[0] if messages else "", wrong


def is_aside(path: Path, root: Path) -> bool:
    """Whether a path below `root` is of something that is not under its final name yet."""
    if path.name in HIDDEN or path.suffix == ".lock":
        return False
    return any(re.match(r"\.|tmp", part) or "incomplete" in part for part in path.relative_to(root).parts)


def final_files(root: Path) -> list[Path]:
    return [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in HIDDEN and not is_aside(p, root)]


def half_written(folder: Path, reference: Path) -> list[str]:
    """What is not whole of the files under their final names, in an output folder or a cache."""
    from diffusers.utils.logging import disable_progress_bar

    from dim_hf.pipelines import DiMPipeline

    disable_progress_bar()
    wrong = []
    for path in final_files(folder):
        name = str(path.relative_to(folder))
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                # All of one component have the same shapes; a pool's file has its own name.
                twins = [p for p in final_files(reference) if p.parts[-2:] == path.parts[-2:]]
                if twins and shapes(path) != shapes(twins[0]):
                    wrong.append(f"{name} has other shapes")
            elif path.suffix == ".npy":
                np.load(path)
            elif path.suffix == ".sha256" and not re.fullmatch("[0-9a-f]{64}", path.read_text()):
                wrong.append(f"{name} is not a digest")
        except Exception as error:  # Whatever a reader says of a damaged file.
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    last = checkpoints(reference)[-1:]
    for checkpoint in checkpoints(folder):
        there = {str(path.relative_to(checkpoint)) for path in final_files(checkpoint)}
        due = {str(path.relative_to(last[0])) for path in final_files(last[0])}
        # One from before the first validation has less to hold than the last one, and says so itself.
        with suppress(OSError, ValueError):
            due = {"manifest.json", *json.loads((checkpoint / "manifest.json").read_text())}
        missing = due - there
        if missing:
            wrong.append(f"{checkpoint.name} lacks {', '.join(sorted(missing))}")
    for index in (path for path in final_files(folder) if path.name == "model_index.json"):
        try:
            DiMPipeline.from_pretrained(index.parent)
        except Exception as error:
            wrong.append(f"the pipeline in {index.parent} does not load: {type(error).__name__}: {error}")
    return wrong


def shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "np") as file:
        return {name: list(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints under their final names, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=checkpoint_step)


def differences(folder: Path, reference: Path, stopped_at: list[int], log_damaged: bool = False) -> list[str]:
    """How the output folder of a finished run differs from that of the undisturbed run."""
    wrong = []
    last = checkpoints(reference)[-1].name
    for path in final_files(reference):
        name = path.relative_to(reference)
        mine = folder / name
        if name.parts[0].startswith("checkpoint-") and name.parts[0] != last:
            continue
        if path.suffix in (".safetensors", ".bin", ".png", ".py") or path.name in ("config.json", "model_index.json"):
            if not mine.exists() or mine.read_bytes() != path.read_bytes():
                wrong.append(f"{name} {'differs' if mine.exists() else 'is not there'}")
        elif path.name == "progress.json" and mine.exists():
            here, there = (json.loads(p.read_text()) for p in (mine, path))
            wrong += [f"{name}: {key} differs" for key in ("step", "best") if here[key] != there[key]]
        elif path.name == "metrics.jsonl":
            wrong += log_differences(mine, path, stopped_at, log_damaged)
        elif not mine.exists():
            wrong.append(f"{name} is not there")
    return wrong


def log_differences(mine: Path, theirs: Path, stopped_at: list[int], damaged: bool) -> list[str]:
    """A stop on request writes one more line, and cuts the means of the one after it; validations are the same."""
    try:
        here, there = ([json.loads(line) for line in path.read_text().splitlines()] for path in (mine, theirs))
    except (OSError, ValueError) as error:
        return [f"metrics.jsonl cannot be read: {error}"]
    steps = [line["step"] for line in here]
    extra = set(steps) - {line["step"] for line in there} - set(stopped_at)
    missing = {line["step"] for line in there} - set(steps)
    if steps != sorted(set(steps)) or extra or (missing and not damaged):
        return [f"metrics.jsonl has the steps {steps}"]
    by_step = {line["step"]: line for line in here}
    names = ("validation/accuracy",) if stopped_at else (*there[0], "validation/accuracy")
    return [
        f"metrics.jsonl: {name} of step {line['step']} differs"
        for line in there
        for name in names
        if name not in ("seconds", "peak_memory_mib")
        and line["step"] in by_step
        and not damaged
        and by_step[line["step"]].get(name) != line.get(name)
    ]
