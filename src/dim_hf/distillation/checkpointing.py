"""
Checkpoints of a training run: written aside and renamed, known to be whole by a manifest of their files, pruned,
found, and refused when they do not fit.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import SCALER_NAME
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..messages import listed


# The size and digest of every other file of a checkpoint, written last.
MANIFEST = "manifest.json"


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name, `checkpoint-N`; -1 for any other name."""
    found = re.fullmatch(r"checkpoint-(\d{1,18})", path.name, re.ASCII)
    return int(found[1]) if found else -1


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder, oldest first by their step; one that was damaged later is among them."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if checkpoint_step(path) >= 0 and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def find_checkpoint(output_dir: str | os.PathLike, name: str) -> tuple[Path | None, list[str]]:
    """
    The checkpoint that `--resume_from_checkpoint` names: a `checkpoint-N` of `output_dir`, a path, or `"latest"`, the
    last one that is whole.

    Returns:
        Its folder, `None` if `"latest"` is asked for and there is none yet; and for each later one that is not whole,
        what is wrong with it.

    Raises:
        FileNotFoundError: If a checkpoint is named that does not exist.
        ValueError: If it is not whole, naming the file, or if `"latest"` is asked for and none is.
        FileExistsError: If it is one of `output_dir` and whole ones follow it, which the run would lose.
    """
    found = checkpoints(output_dir)
    if name == "latest":
        damaged: list[str] = []
        for path in reversed(found):
            if not (reason := damage(path)):
                return path, damaged
            damaged.append(f"{path.name} is damaged ({reason})")
        if damaged:
            raise ValueError(
                f"no checkpoint in {output_dir} is whole: {listed(damaged, 2)}; name another --output_dir to begin "
                f"again."
            )
        return None, []
    for path in (Path(output_dir) / name, Path(name).expanduser()):
        if path.is_dir() and (checkpoint_step(path) >= 0 or (path / "progress.json").is_file()):
            if reason := damage(path):
                raise ValueError(f"`--resume_from_checkpoint` {path} is damaged: {reason}.")
            later = [
                other
                for other in found
                if path.resolve().parent == other.resolve().parent and checkpoint_step(other) > checkpoint_step(path)
            ]
            if later and (whole := [other.name for other in later if not damage(other)]):
                raise FileExistsError(
                    f"`--resume_from_checkpoint` {name} is followed by {listed(whole, 3)} in {output_dir}, which "
                    f"would be lost; go on with latest, or branch off into another --output_dir."
                )
            return path, []
    valid = ["latest", *(path.name for path in reversed(found))]
    raise FileNotFoundError(
        f"`--resume_from_checkpoint` {name!r} is not a checkpoint; valid are {listed(valid)} or a checkpoint's path."
    )


def damage(checkpoint: Path) -> str | None:
    """
    Why a checkpoint is not whole, naming the file; `None` if it is. Every byte of it is read and compared with its
    manifest.
    """
    try:
        if not (checkpoint / MANIFEST).is_file():
            return f"{MANIFEST} is missing" if any(checkpoint.iterdir()) else "it is empty"
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        if "progress.json" not in manifest:
            return f"{MANIFEST} is not what was saved"
        for name, (size, digest) in manifest.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
            if _digest(path) != digest:
                return f"{name} has other content than was saved"
        if not _is_progress(checkpoint / "progress.json"):
            return "progress.json is not what was saved"
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror}"
    # The manifest is a small file of ours: whatever it holds in place of what was written is damage.
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was saved"
    return None


def _is_progress(path: Path) -> bool:
    """Whether a file is what [`read_progress`] reads."""
    progress = json.loads(path.read_bytes())
    kinds: dict[str, Any] = {"step": int, "options": dict, "seconds": int | float, "best": dict}
    # Only runs with validations have the best of them.
    return (
        isinstance(progress, dict)
        and {"step", "options"} <= progress.keys()
        and all(isinstance(progress[name], kind) for name, kind in kinds.items() if name in progress)
    )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_progress(
    checkpoint: Path,
    options: dict[str, Any],
    may_differ: Callable[[int, dict[str, Any], dict[str, Any]], Collection[str]] = lambda step, then, now: (),
) -> dict[str, Any]:
    """
    What a whole checkpoint says of the run it was taken from.

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
    then, now = progress["options"], json.loads(json.dumps(options))
    if changed := changed_settings(then, now, may_differ(progress["step"], then, now)):
        raise ValueError(f"{checkpoint} is a checkpoint of another configuration: {changed}.")
    return progress | {"options": now}


# Which flags decide the settings that are not flags themselves.
MEANINGS = {
    "data_fingerprint": " (the images and labels of the data set)",
    "adversarial_steps": " (by --max_train_steps or --num_train_epochs)",
    "rounded_from": " (the step after which --rounded_steps begin)",
}


def changed_settings(then: dict[str, Any], now: dict[str, Any], may_differ: Collection[str] = ()) -> str:
    """Names the settings that differ, with both values; entries of a nested config are named one by one."""
    old, new = ({name: value for name, value in each.items() if name not in may_differ} for each in (then, now))
    for name in {*old, *new}:
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            old |= {f"{name}.{entry}": value for entry, value in old.pop(name).items()}
            new |= {f"{name}.{entry}": value for entry, value in new.pop(name).items()}
    changed = [
        f"`{name}` was {listed([repr(old.get(name))])} and is now {listed([repr(new.get(name))])}"
        + MEANINGS.get(name, "")
        # What a user sets comes before what follows from it.
        for name in sorted({*old, *new}, key=lambda name: (name != "preset", "." in name, name))
        if old.get(name) != new.get(name)
    ]
    return "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")


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
        total_limit: Most checkpoints to keep; the oldest are removed first, before the new one is written. Those of
            later steps, left when the run went back past a damaged one, are removed as well.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(output_dir) / f"checkpoint-{progress['step']}"
    aside, replaced = (Path(output_dir) / f".{path.name}.{state}" for state in ("incomplete", "old.incomplete"))
    if accelerator.is_main_process:
        for stale in Path(output_dir).glob(".checkpoint-*"):
            shutil.rmtree(stale, ignore_errors=True)
        remove_later_checkpoints(output_dir, progress["step"])
        earlier = [old for old in checkpoints(output_dir) if checkpoint_step(old) < progress["step"]]
        # The newest stays until this one is complete, even where only one is to be kept.
        for old in earlier[: max(0, min(len(earlier) - 1, len(earlier) - total_limit + 1))]:
            _remove(old)
        aside.mkdir(parents=True)
        with writing(aside):
            # The other processes have nothing of their own: no step depends on a random state.
            accelerator.save_state(str(aside))
            for name, model in models.items():
                model.save_pretrained(aside / name)
            (aside / "progress.json").write_text(json.dumps(progress, indent=2))
            files = sorted(file for file in aside.rglob("*") if file.is_file())
            manifest = {file.relative_to(aside).as_posix(): (file.stat().st_size, _digest(file)) for file in files}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2))
            if path.exists():
                path.rename(replaced)
            aside.rename(path)
            shutil.rmtree(replaced, ignore_errors=True)
        for old in checkpoints(output_dir)[:-total_limit]:
            _remove(old)
    accelerator.wait_for_everyone()
    return path


def remove_later_checkpoints(output_dir: str | os.PathLike, step: int) -> None:
    """Removes the checkpoints of later steps than `step`, left when a run goes back past damaged ones."""
    for checkpoint in checkpoints(output_dir):
        if checkpoint_step(checkpoint) > step:
            _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; killed meanwhile, it leaves nothing half there under a checkpoint's name."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old.incomplete")
    checkpoint.rename(aside)
    shutil.rmtree(aside)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """
    Names the file or folder in the error of a write that fails, as on a full disk, and makes it an `OSError`: torch
    and safetensors raise errors of their own, and the system's may name no file.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{error.filename or path} cannot be written: {error.strerror}.") from error


def leave_models_to_diffusers(accelerator: Accelerator) -> None:
    """Keeps the weights out of `save_state` and `load_state`: [`save_checkpoint`] writes them in diffusers' format."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())


def load_models(models: dict[str, ModelMixin], checkpoint: Path) -> None:
    """Copies the weights of a checkpoint into models that exist."""
    for name, model in models.items():
        found = type(model).from_pretrained(checkpoint / name, use_safetensors=True)
        model.load_state_dict(found.state_dict())


def load_optimizers(accelerator: Accelerator, checkpoint: Path) -> None:
    """
    Reads the state of the optimisers and of accelerate, without running code that a checkpoint may hold.

    Raises:
        ValueError: If a file holds more than numbers, lists and tensors.
    """
    scaler = accelerator.scaler
    if not (checkpoint / SCALER_NAME).is_file():
        # A run that goes on in float16, but did not begin in it, begins with a new one.
        accelerator.scaler = None
    try:
        accelerator.load_state(str(checkpoint))
    except UnpicklingError as error:
        raise ValueError(f"{checkpoint} holds more than numbers and tensors; reading it could run code.") from error
    finally:
        accelerator.scaler = scaler
