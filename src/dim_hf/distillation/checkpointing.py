"""Checkpoints of a training run: written aside and renamed, pruned, found, and refused when they do not fit."""

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The complete checkpoints in a folder, oldest first by their step."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(output_dir: str | os.PathLike, name: str) -> Path | None:
    """
    The checkpoint that `--resume_from_checkpoint` names: a path, a `checkpoint-N` of `output_dir`, or `"latest"`.

    Returns:
        Its folder; `None` if `"latest"` is asked for and there is none yet.

    Raises:
        FileNotFoundError: If a checkpoint is named that does not exist.
    """
    if name == "latest":
        return found[-1] if (found := checkpoints(output_dir)) else None
    for path in (Path(name), Path(output_dir) / name):
        if (path / "progress.json").is_file():
            return path
    valid = ["latest", *(path.name for path in checkpoints(output_dir))]
    raise FileNotFoundError(
        f"`--resume_from_checkpoint` {name!r} is no checkpoint; valid are {', '.join(valid)} or a checkpoint's path."
    )


def read_progress(
    checkpoint: Path,
    options: dict[str, Any],
    may_differ: Callable[[int, dict[str, Any], dict[str, Any]], Collection[str]] = lambda step, then, now: (),
) -> dict[str, Any]:
    """
    What a checkpoint says of the run it was taken from.

    Args:
        options: The settings of the present run that decide its result; they must be those of the checkpoint.
        may_differ: From the checkpoint's step, its settings and `options` to the names of those that have not decided
            anything by then.

    Returns:
        What was given to [`save_checkpoint`], with `options` as they are now.

    Raises:
        ValueError: If a setting differs, naming each with both values.
    """
    progress = json.loads((checkpoint / "progress.json").read_text())
    now = json.loads(json.dumps(options))
    then = progress["options"]
    compared = {*now, *then}.difference(may_differ(progress["step"], then, now))
    changed = [name for name in compared if now.get(name) != then.get(name)]
    if changed:
        listed = "; ".join(f"`{name}` was {then.get(name)!r} and is now {now.get(name)!r}" for name in sorted(changed))
        raise ValueError(f"{checkpoint} is a checkpoint of another configuration: {listed}.")
    return progress | {"options": now}


def save_checkpoint(
    accelerator: Accelerator,
    models: dict[str, ModelMixin],
    output_dir: str | os.PathLike,
    progress: dict[str, Any],
    total_limit: int,
) -> Path:
    """
    Saves `checkpoint-{progress["step"]}`; to be called by every process. It is written aside and renamed when it is
    complete, so an interruption leaves the ones before it as they were.

    Args:
        models: By the name of their subfolder, saved in diffusers' format.
        progress: JSON values to be read back by [`read_progress`].
        total_limit: At most so many checkpoints are kept; the oldest go first, before the new one is written.
    """
    path = Path(output_dir) / f"checkpoint-{progress['step']}"
    aside = Path(output_dir) / f".{path.name}.incomplete"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        others = [old for old in checkpoints(output_dir) if old != path]
        # The newest stays until this one is complete, even where only one is to be kept.
        for old in others[: max(0, min(len(others) - 1, len(others) - total_limit + 1))]:
            shutil.rmtree(old)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, model in models.items():
            model.save_pretrained(aside / name)
        (aside / "progress.json").write_text(json.dumps(progress, indent=2))
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
        for old in checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def leave_models_to_diffusers(accelerator: Accelerator) -> None:
    """Keeps the weights out of `save_state` and `load_state`: [`save_checkpoint`] writes them in diffusers' format."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())


def load_models(models: dict[str, ModelMixin], checkpoint: Path) -> None:
    """Copies the weights of a checkpoint into models that exist."""
    for name, model in models.items():
        model.load_state_dict(type(model).from_pretrained(checkpoint / name).state_dict())
