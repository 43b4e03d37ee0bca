"""The folder of a run of `train_dim.py`: whether it may be written to, and what a continuation keeps of it."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dim_hf.distillation.checkpointing import changed_settings, checkpoints
from dim_hf.files import (
    check_output_dir,
    lock_output_dir,
    read_json,
    read_json_lines,
    refuse_foreign_files,
    replace_text,
)
from dim_hf.messages import listed
from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline


def check_folder(output_dir: Path, checkpoint: Path | None, goes_on: bool) -> None:
    """
    Refuses, before any work, a folder that cannot be written to or whose content the run would destroy.

    Args:
        checkpoint: The checkpoint to resume from, if any.
        goes_on: Whether the run continues in this folder, rather than beginning in it or branching off into it.
    """
    if not goes_on and (found := [path.name for path in reversed(checkpoints(output_dir))]):
        raise FileExistsError(
            f"`--output_dir` {output_dir} holds the checkpoints of a run already, {listed(found, 2)}; go on "
            f"with --resume_from_checkpoint latest, or name another."
        )
    pipeline, options = output_dir / "model_index.json", output_dir / "options.json"
    if goes_on and checkpoint is None and pipeline.exists() and not options.exists():
        raise FileExistsError(f"`--output_dir` {output_dir} holds a pipeline, and no run to go on with; name another.")
    check_output_dir(output_dir, 0, goes_on)
    if checkpoint is None or not goes_on:
        # A folder with a whole checkpoint of ours is ours.
        refuse_foreign_files(output_dir, "train_dim.py")
    if (output_dir / ".lock").exists():
        lock_output_dir(output_dir).release()


def refuse_private_run(output_dir: Path, checkpoint: Path | None) -> None:
    """Refuses to go on from a run with `--privacy_epsilon`, or to train in its folder, without that flag."""
    options = json.loads((checkpoint / "progress.json").read_text())["options"] if checkpoint else {}
    if options.get("privacy_epsilon") is not None:
        raise ValueError(
            f"`--resume_from_checkpoint` {checkpoint} is of a run with --privacy_epsilon, which goes on with it, "
            "and only in its own folder."
        )
    if (output_dir / "release").exists():
        raise FileExistsError(
            f"`--output_dir` {output_dir} holds the release of a run with --privacy_epsilon; give that flag, or name "
            "another folder."
        )


def is_branch(checkpoint: Path | None, output_dir: Path) -> bool:
    """Whether a run resumes from a checkpoint of another folder."""
    return checkpoint is not None and checkpoint.parent.resolve() != output_dir.resolve()


def check_restart(output_dir: Path, options: dict[str, Any]) -> None:
    """
    Refuses to start over a pipeline of other settings where there is no checkpoint to resume from.

    Args:
        options: The settings that decide the result.
    """
    path = output_dir / "options.json"
    if not (output_dir / "model_index.json").exists():
        return
    recorded, now = read_json_object(path), json.loads(json.dumps(options))
    if changed := changed_settings({name: recorded.get(name) for name in now}, now):
        raise FileExistsError(
            f"`--output_dir` {output_dir} holds the pipeline of another configuration and no checkpoint to go on "
            f"from; name another. {changed}."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a run; a `ValueError` names it where it is not what was written."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it does not hold an object.")
    return content


def needed_bytes(
    output_dir: Path,
    generator: DiMGenerator,
    discriminator: DiMDiscriminator,
    saves: int,
    total_limit: int,
) -> int:
    """
    Additional disk space for a run's checkpoints and pipelines; checkpoints already in the folder make room for the
    new ones.

    Args:
        saves: Number of checkpoints yet to be saved.
        total_limit: How many are kept, of which the newest stays until the one being written is complete.
    """
    small, large = (4 * model.num_parameters() for model in (generator, discriminator))
    # Weights and two moments of each network; of the generator also the average and the best.
    checkpoint = 5 * small + 3 * large
    there = sum(file.stat().st_size for path in checkpoints(output_dir) for file in path.rglob("*") if file.is_file())
    pipelines = 3 * small
    return max(0, checkpoint * min(saves, max(2, total_limit)) + pipelines - there)


def set_pipeline(folder: Path, pipeline: DiMPipeline | None) -> None:
    """Replaces a folder's pipeline, or removes it for `None`."""
    if pipeline is not None:
        pipeline.save_pretrained(folder)
        return
    # Without its index a folder is not a pipeline.
    for name in ("model_index.json", "pipeline.py"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "generator", ignore_errors=True)
    if folder.is_dir() and not os.listdir(folder):
        folder.rmdir()


def read_teacher(folder: Path) -> DiMLabeler | None:
    """The teacher that train_labeler.py saved in a run's folder; `None` if there is none or it cannot be read."""
    if not (folder / "labeler").is_dir():
        return None
    try:
        return DiMLabeler.from_pretrained(folder / "labeler")
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        print(f"The teacher in {folder / 'labeler'} cannot be read and is left out: {' '.join(str(error).split())}")
        return None


def losses_at(output_dir: Path, step: int) -> dict[str, float]:
    """The losses that the log of a run has of a step."""
    path = output_dir / "metrics.jsonl"
    lines = read_json_lines(path) if path.exists() else []
    found = [line for line in lines if isinstance(line, dict) and line.get("step") == step]
    return {name: value for line in found for name, value in line.items() if name.startswith("loss/")}


def keep_until(output_dir: Path, step: int) -> None:
    """Drops log records and sample grids made after the checkpoint that a run resumes from."""
    path = output_dir / "metrics.jsonl"
    if path.exists():
        # An interruption may have left an incomplete line.
        lines = [
            line for line in read_json_lines(path) if isinstance(line, dict) and line.get("step", math.inf) <= step
        ]
        replace_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    for picture in (output_dir / "samples").glob("step-*.png"):
        number = picture.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            picture.unlink()
