"""Files and folders of a run: checked and locked before any work, written aside and renamed."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from filelock import FileLock, Timeout


def check_output_dir(output_dir: str | os.PathLike, needed_bytes: int, resuming: bool) -> None:
    """
    Makes sure, before any work, that a run can be written to a folder and takes nothing away there.

    Raises:
        FileExistsError: If it holds a run and `resuming` is false.
        OSError: If it cannot be written to, or has fewer than `needed_bytes` free.
    """
    path = Path(output_dir)
    if not resuming and ((path / "options.json").exists() or (path / "model_index.json").exists()):
        raise FileExistsError(
            f"`--output_dir` {path} holds a run already; go on with --resume_from_checkpoint latest, or name another."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"`--output_dir` {path} cannot be written to: {error.strerror}.") from error
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise OSError(
            f"`--output_dir` {path} has {free / 2**20:.1f} MiB free; this run needs {needed_bytes / 2**20:.1f} MiB."
        )


def lock_output_dir(output_dir: str | os.PathLike) -> FileLock:
    """
    Keeps other processes from writing to a folder until the lock is released or this process ends, however it does.

    Raises:
        FileExistsError: If another process has the lock.
    """
    lock = FileLock(Path(output_dir) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"`--output_dir` {output_dir} is being written to by another process; wait for its end, or name another."
        ) from error
    return lock


def replace_text(path: Path, text: str) -> None:
    """Writes a file aside and renames it, so that what was there is whole until the new one is."""
    aside = path.with_name(f"{path.name}.incomplete")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def replace_pipeline(pipeline: DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Saves a pipeline into a folder that may hold an older one and other files: aside first, then file by file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pipeline.") as aside:
        pipeline.save_pretrained(aside)
        for source in sorted(Path(aside).rglob("*")):
            target = folder / source.relative_to(aside)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(source, target)


def append_json_line(path: str | os.PathLike, record: dict[str, Any]) -> None:
    """Adds a record to a file in one piece, and not to the end of a line that an interruption cut short."""
    with Path(path).open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        new_line = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(new_line + json.dumps(record).encode() + b"\n")


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file, if there is one; a line that an interruption cut short is none."""
    records = []
    for line in Path(path).read_text().splitlines() if Path(path).exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
