"""Files and folders of a run: checked and locked before any work, written under hidden names and renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .messages import listed, one_line


# Names that each script writes at the top of its output folder.
WRITES = {
    "train_dim.py": (
        "options.json", "environment.json", "metrics.jsonl", "samples", "logs", "before_matching", "checkpoint-*",
        "model_index.json", "pipeline.py", "generator", "labeler",
    ),
    "train_labeler.py": ("model_index.json", "pipeline.py", "generator", "labeler", "labeler.json"),
    "evaluate_dim.py": (
        "metrics.json", "report.md", "report.html", "results.jsonl", "codecs.jsonl", "samples.png", "fixed",
    ),
    "generate_dim.py": ("options.json", "README.md", "data"),
    "audit_dim.py": ("audit.json", "plan.json", "report.html", "closest.png", "pipeline", "shadows"),
}  # fmt: skip
# The files of an export and of a push; see `hub/push.py`.
EXPORTED = ("model_index.json", "pipeline.py", "generator", "labeler", "README.md", "samples.png")
# A file that lists the scripts that have written to its folder, one per line.
MARKER = ".made_by"
# What they write there beside those: a private release, the time of a short run, and the file above.
OTHERS = ("release", "probe", MARKER)
# Signs of folders that were copied without that file: a file and some of its entries.
KNOWN_BY = {
    "train_dim.py": [("options.json", {"preset", "data_fingerprint"})],
    "train_labeler.py": [("labeler/config.json", {"num_classes", "sample_size", "in_channels"})],
    "evaluate_dim.py": [("results.jsonl", {"job", "accuracy"}), ("metrics.json", {"protocol", "rows"})],
    "generate_dim.py": [("options.json", {"weights", "shard_size"})],
    "audit_dim.py": [("audit.json", {"findings", "weights"})],
}
# Holds a whole pipeline before its files replace those of an older one; `DiMPipeline` looks here first. The file
# `pipeline_dim.py`, which works without this package, has the same name.
NEXT_PIPELINE = ".pipeline.next"


def refuse_foreign_files(folder: str | os.PathLike, made_by: str, argument: str = "output_dir") -> None:
    """
    Checks, before any work, that a script would not overwrite files that it did not write.

    Args:
        folder: The output folder; it need not exist.
        made_by (`str`): The script, one of `WRITES`.
        argument (`str`, *optional*, defaults to `"output_dir"`): The flag for the folder.

    Raises:
        FileExistsError: If the folder holds names that the script writes, and the script has not written there before.
    """
    folder = Path(folder)
    if not folder.is_dir() or has_made(made_by, folder):
        return
    found = [
        path.name
        for path in sorted(folder.iterdir())
        if any(fnmatch(path.name, name) for name in WRITES[made_by])
        and not (path.is_dir() and not any(path.iterdir()))
    ]
    if found:
        raise FileExistsError(
            f"`--{argument}` {folder} holds {listed(found)}, which {made_by} would overwrite but did not write; name "
            "another folder."
        )


def is_run(folder: Path) -> bool:
    """Whether a script wrote to a folder, other than `generate_dim.py`, whose folders are data."""
    return not (WRITES.keys() - {"generate_dim.py"}).isdisjoint(_recorded(folder))


def _recorded(folder: Path) -> list[str]:
    """The scripts that have written to a folder, from its list of them."""
    marker = folder / MARKER
    return marker.read_text(encoding="utf-8", errors="replace").split() if marker.is_file() else []


def has_made(made_by: str, folder: Path) -> bool:
    """Whether a script has written to a folder."""
    if made_by in _recorded(folder):
        return True
    for name, entries in KNOWN_BY[made_by]:
        records = read_json_lines(folder / name)
        with suppress(ValueError):
            records += [read_json(folder / name)]
        if any(isinstance(record, dict) and entries <= record.keys() for record in records):
            return True
    return False


def check_output_dir(output_dir: str | os.PathLike, needed_bytes: int, resuming: bool) -> None:
    """
    Checks, before any work, that a run can be written to a folder and would not overwrite another. Creates nothing.

    Raises:
        FileExistsError: If the folder holds a run and `resuming` is false.
        OSError: If the folder cannot be written to, or has less than `needed_bytes` free.
    """
    path = Path(output_dir)
    if not resuming and ((path / "options.json").exists() or (path / "model_index.json").exists()):
        raise FileExistsError(
            f"`--output_dir` {path} already holds a run; resume it with --resume_from_checkpoint latest, or name "
            "another folder."
        )
    present = check_writable(path, f"`--output_dir` {path}")
    free = shutil.disk_usage(present).free
    if free < needed_bytes:
        raise OSError(
            f"`--output_dir` {path} has {free / 2**20:.1f} MiB free; this run needs {needed_bytes / 2**20:.1f} MiB."
        )


def check_writable(path: Path, named: str) -> Path:
    """
    Checks that a folder can be made or written to, and returns it or the nearest of its parents that exists.

    Args:
        named (`str`): The folder and its argument, for the message.

    Raises:
        OSError: If it cannot.
    """
    try:
        present = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=present):
            return present
    except OSError as error:
        raise OSError(f"{named} cannot be written to: {error.strerror}.") from error


def lock_output_dir(output_dir: str | os.PathLike, made_by: str | None = None, wait: bool = False) -> FileLock:
    """
    Prevents other processes from writing to a folder until the lock is released or this process ends. Creates the
    folder, removes files that a killed process left incomplete, and puts a pipeline that it had completed in place.

    Args:
        made_by (`str`, *optional*): The script, which the folder records for [`refuse_foreign_files`].
        wait (`bool`, *optional*, defaults to `False`): Whether to wait while another process has the lock.

    Raises:
        FileExistsError: If another process has the lock, and `wait` is false.
        OSError: If the folder cannot be written to.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise FileExistsError(
            f"`--output_dir` {output_dir} is being written to by another process; wait for it, or name another."
        ) from error
    except OSError as error:
        raise OSError(f"`--output_dir` {output_dir} cannot be written to: {_reason(error)}.") from error
    recorded = _recorded(folder)
    if made_by and made_by not in recorded:
        replace_text(folder / MARKER, "".join(f"{script}\n" for script in (*recorded, made_by)))
    _remove_leftovers(folder, made=bool(recorded))
    for path in (folder, *(written.parent for written in folder.glob(f"*/{NEXT_PIPELINE}"))):
        finish_replacing(path)
    return lock


def _remove_leftovers(folder: Path, made: bool) -> None:
    """
    Removes what a killed process left incomplete, by its name, and nothing else.

    Args:
        made (`bool`): Whether a script has written to the folder before.
    """
    written = {name for names in WRITES.values() for name in names}
    for name in (*written, *OTHERS) if made else ():
        for path in (*folder.glob(f".{name}.incomplete"), *folder.glob(f".{name}.old.incomplete")):
            _remove(path)
    for part in (".", *written):
        for path in folder.glob(f"{part}/.pipeline.*.incomplete"):
            # As `save_pretrained` and `replace_pipeline` make them.
            inside = {entry.name for entry in path.glob("*")}
            if path.name == f"{NEXT_PIPELINE}.incomplete" or (path.is_dir() and inside <= {"pipeline"}):
                _remove(path)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yields the path of a hidden file to write, which replaces `path` on the disk when the block ends. Until then `path`
    is unchanged, and if the block fails the hidden file is removed. Creates the folder.

    Raises:
        OSError: If the file cannot be written, naming `path`.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.incomplete")
    with _cleared_away(aside, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _share(aside)
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """[`whole_file`] for a folder: yields an empty one, and removes the one that it replaces at the end."""
    path = Path(path)
    aside, old = path.with_name(f".{path.name}.incomplete"), path.with_name(f".{path.name}.old.incomplete")
    with _cleared_away(aside, path):
        _remove(aside)
        aside.mkdir(parents=True)
        yield aside
        for each in aside.rglob("*"):
            _share(each)
        _flush_folder(aside)
        if path.exists():
            _remove(old)
            os.rename(path, old)
        os.rename(aside, path)
        _flush(path.parent)
        _remove(old)


@contextmanager
def whole_cache_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    [`whole_file`] for a cache, which several processes may write, one at a time. Errors are raised as they are, and
    the file need not survive a power cut. If the body writes nothing, the file stays as it is.
    """
    path = Path(path)
    aside, locks = path.with_name(f".{path.name}.incomplete"), path.parent.with_name(".locks")
    for folder in (path.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{path.name}.lock"):
        try:
            _remove(aside)
            yield aside
            if aside.exists():
                _share(aside)
                os.replace(aside, path)
        finally:
            with suppress(OSError):
                _remove(aside)


@contextmanager
def _cleared_away(aside: Path, path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            _remove(aside)
        # safetensors raises an error of its own for a full disk.
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(f"{path} cannot be written: {_reason(error)}.") from error
        raise


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _share(path: Path) -> None:
    """Gives a file the usual permissions; safetensors lets only the owner read it, whatever the umask."""
    if path.is_file() and not path.stat().st_mode & 0o077:
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk; otherwise a renamed file could be empty after a power cut."""
    if path.is_dir():
        # Windows and some network disks cannot flush folders; a rename may then be lost, but no content.
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Waits until a folder and everything below it is on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush(path)
    _flush(folder)


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file with [`whole_file`]."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def replace_pipeline(written: Path, folder: Path) -> None:
    """
    Puts a saved pipeline in the place of the older one in a folder that may hold other files, too. If the process is
    killed at any moment, `DiMPipeline` loads either the older or the new one, never a mixture.

    Args:
        written: The folder of the new pipeline, on the same disk. It is removed.
    """
    _flush_folder(written)
    os.rename(written, folder / NEXT_PIPELINE)
    _flush(folder)
    finish_replacing(folder)


def finish_replacing(folder: str | os.PathLike) -> None:
    """Moves a pipeline that [`replace_pipeline`] completed into its place, and removes files of an older one."""
    folder = Path(folder)
    written = folder / NEXT_PIPELINE
    if not written.is_dir() or written.is_symlink():
        return
    # So that diffusers does not load a mixture either.
    (folder / "model_index.json").unlink(missing_ok=True)
    files = (path for path in written.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == "model_index.json"):
        with whole_file(folder / path.relative_to(written)) as aside:
            shutil.copyfile(path, aside)
    for component in ("generator", "labeler"):
        if not (written / component).is_dir() and (folder / component / "config.json").is_file():
            shutil.rmtree(folder / component)
        # Of an older save in more files, or in fewer.
        for path in (folder / component).glob("*.safetensors*"):
            if not (written / component / path.name).exists():
                path.unlink()
    # Under the new name it is no longer loaded, so it may be removed file by file.
    done = folder / f"{NEXT_PIPELINE}.incomplete"
    _remove(done)
    os.rename(written, done)
    shutil.rmtree(done)


def read_json(path: str | os.PathLike) -> Any:
    """
    The content of a JSON file, or `None` if there is no such file.

    Raises:
        ValueError: If the file is not valid JSON, is nested too deeply or has more than 16 MiB, naming it.
    """
    if not Path(path).is_file():
        return None
    _check_size(path, 2**24)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON: {one_line(error)}.") from error


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    The records of a file, or none if it does not exist; skips lines that an interruption cut short.

    Raises:
        ValueError: If the file has more than 256 MiB, naming it.
    """
    if not Path(path).is_file():
        return []
    _check_size(path, 2**28)
    records = []
    for line in Path(path).read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return records


def _check_size(path: str | os.PathLike, most: int) -> None:
    # Of a stranger's file: what is read takes some 30 times as much memory.
    if (size := Path(path).stat().st_size) > most:
        raise ValueError(f"{path} has {size:,} bytes; valid are at most {most:,}.")


def append_json_line(path: str | os.PathLike, record: dict[str, Any]) -> None:
    """
    Appends a record to a file in a single write, since other processes may write to it too.

    Raises:
        OSError: If the file cannot be written, naming it.
    """
    line = f"{json.dumps(record)}\n".encode()
    try:
        with Path(path).open("ab+", buffering=0) as file:
            # Start a new line after one that an interruption cut short.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            line = line if file.read(1) in (b"", b"\n") else b"\n" + line
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}.") from error
