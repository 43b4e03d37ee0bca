"""Folders of parquet or arrow files: which files are read for which split, and what their labels mean."""

import glob
import os
import re
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from huggingface_hub import DatasetCard

from ..files import MARKER
from ..messages import listed
from .folders import Folder
from .loading import clear_errors, load
from .metadata import METADATA


DATA_SUFFIXES = (".parquet", ".arrow")


def data_files(folder: Folder) -> list[str]:
    """The data files of a folder, as paths from it, without the metadata of its images."""
    return [
        file
        for file in folder.files()
        if file.lower().endswith(DATA_SUFFIXES) and not (folder.num_images and os.path.basename(file) in METADATA)
    ]


def read_data_files(folder: Folder, files: list[str], split: str, config: str | None) -> tuple[datasets.Dataset, str]:
    """
    One split of a folder with data files.

    `datasets` infers splits from words in file names, and reads all files with the features of the first one. So that
    each split has its own names of classes, only the files of this split are given to it, unless README.md describes
    the data set.

    Returns:
        The split, and a text about skipped files.

    Raises:
        ValueError: If a file would be read for no split or for several, or the files of a split do not agree.
    """
    path, argument = folder.root, folder.argument
    _refuse_outputs(folder)
    refuse_empty([path / file for file in files if file.endswith(".parquet")], argument)
    if capitals := [file for file in files if not file.endswith(DATA_SUFFIXES)]:
        raise ValueError(
            f"`{argument}` {path} holds {listed(capitals, most=2)}; `datasets` reads only files whose suffix is in "
            "small letters, so rename them."
        )
    if glob.has_magic(str(path.resolve())):
        raise ValueError(
            f"`{argument}` {path}: `datasets` takes *, ? and [ in its path as a pattern; rename the folder."
        )
    readme = path / "README.md"
    with clear_errors(argument, str(path), split, config):
        card = DatasetCard.load(readme).data if readme.is_file() else {}
    declared = bool(card.get("configs"))
    if not declared and sum(bool(part.images) for part in folder.below()) > 1:
        raise ValueError(
            f"`{argument}` {path} holds data files ({listed(files, most=2)}) and {folder.num_images:,} images in "
            f"folders; keep one of them there, or name a folder that holds one kind."
        )
    with clear_errors(argument, str(path), split, config):
        builder = datasets.load_dataset_builder(str(path), config)
    if builder.name not in ("parquet", "arrow"):
        if declared:
            return load(argument, str(path), split, config, path=str(path)), _images_beside(folder)
        raise ValueError(
            f"`{argument}` {path} holds data files ({listed(files, most=2)}) among files of another kind, which "
            f"`datasets` would read instead ({builder.name}); move those elsewhere."
        )
    splits = {str(name): [str(file) for file in part] for name, part in (builder.config.data_files or {}).items()}
    if not declared:
        _refuse_unread_or_twice(folder, files, splits)
    # `train[:80%]+test` is of two.
    asked = list(dict.fromkeys(part.split("[")[0].strip() for part in split.split("+")))
    for name, part in splits.items():
        if name not in asked and "all" not in asked:
            continue
        _refuse_missing_parts(folder, part)
        if not declared and len({os.path.dirname(file) for file in part}) > 1:
            found = [os.path.relpath(file, path.resolve()) for file in part]
            raise ValueError(
                f"`{argument}` {path} holds files of the split {name!r} in several folders ({listed(found, 4)}), "
                "which `datasets` would read as one; name one of these folders, or assign the files to splits in "
                "README.md (`configs`)."
            )
        # Such as a copy of it.
        if not declared and len(part) > 1 and name in (Path(file).stem for file in part):
            files_read = listed((os.path.basename(file) for file in part), 4)
            warnings.warn(
                f"the split {name!r} of {path} is read from {len(part):,} files: {files_read}.", stacklevel=2
            )
    infos = card.get("dataset_info") or []
    described = any("features" in info for info in (infos if isinstance(infos, list) else [infos]))
    if not described and all(name in splits for name in asked):
        read = asked if not declared else list(splits)
        _refuse_unlike(folder, [file for name in read for file in splits[name]])
        if not declared:
            names = {name: [glob.escape(file) for file in splits[name]] for name in asked}
            return load(argument, str(path), split, path=builder.name, data_files=names), _images_beside(folder)
    unread = _unread(folder, files, splits) if declared and len(card["configs"]) == 1 else []
    skipped = [_images_beside(folder)]
    if unread:
        skipped.append(f"{len(unread):,} data files that README.md does not name ({listed(unread, most=2)})")
    return load(argument, str(path), split, config, path=str(path)), " and ".join(filter(None, skipped))


def _refuse_outputs(folder: Folder) -> None:
    """Refuses folders below that our scripts wrote: `datasets` would read their files, too."""
    markers = [os.path.dirname(path) for part in folder.below() for path in part.hidden if path.endswith(f"/{MARKER}")]
    runs = [path for part in folder.below() for path in part.hidden if (folder.root / path / MARKER).is_file()]
    if outputs := sorted({*markers, *runs}):
        raise ValueError(
            f"`{folder.argument}` {folder.root} holds data files, and among them the output of a script "
            f"({listed(outputs, 2)}), whose files `datasets` would read, too; move it elsewhere."
        )


# As `datasets` names the parts of a split.
PART = re.compile(r"(?P<name>.*?)-?(?P<number>\d{5,})-of-(?P<total>\d{5,})(?!\d)")


def _refuse_missing_parts(folder: Folder, files: list[str]) -> None:
    """Refuses a split of which a part `-NNNNN-of-NNNNN` is missing, or that lies there twice, in other parts."""
    parts: dict[tuple[str, str], dict[int, set[int]]] = {}
    for file in files:
        if found := PART.match(os.path.basename(file)):
            of_name = parts.setdefault((os.path.dirname(file), found["name"]), {})
            of_name.setdefault(int(found["total"]), set()).add(int(found["number"]))
    for (place, name), by_total in parts.items():
        totals = sorted(by_total)
        if len(totals) > 1:
            raise ValueError(
                f"`{folder.argument}` {folder.root} holds {name} in {listed(totals)} parts (-of-{totals[0]:05d} and "
                f"-of-{totals[1]:05d}), which `datasets` would read as one; keep those of one kind."
            )
        # What README.md leaves out on purpose is there.
        there = {file for file in os.listdir(place) if file.startswith(name)}
        numbers = sorted({*range(totals[0])} - by_total[totals[0]])
        missing = [f"{number:05d}-of-{totals[0]:05d}" for number in numbers]
        if missing := [part for part in missing if not any(part in file for file in there)]:
            raise ValueError(
                f"`{folder.argument}` {folder.root} lacks {len(missing):,} of the {totals[0]:,} parts of {name} "
                f"({listed(missing, 2)}); fetch them, or rename the others if they are meant to be all."
            )


def _images_beside(folder: Folder) -> str:
    names = [name for name, _ in folder.images_below()]
    return f"{len(names):,} images beside the data files ({listed(names, most=2)})" if names else ""


def _unread(folder: Folder, files: list[str], splits: dict[str, list[str]]) -> list[str]:
    read = {os.path.realpath(file) for part in splits.values() for file in part}
    return [file for file in files if os.path.realpath(folder.root / file) not in read]


def _refuse_unread_or_twice(folder: Folder, files: list[str], splits: dict[str, list[str]]) -> None:
    """Refuses files that `datasets` would read for no split, or for several."""
    times = Counter(os.path.realpath(file) for part in splits.values() for file in part)
    unread = _unread(folder, files, splits)
    twice = [file for file in files if times[os.path.realpath(folder.root / file)] > 1]
    if unread or twice:
        raise ValueError(
            f"`{folder.argument}` {folder.root}: `datasets` infers splits from words in file names, and would read "
            f"{listed(unread or twice, 3)} for {'none' if unread else 'several'}; rename files to train.parquet and "
            f"test.parquet, or assign them to splits in README.md (`configs`)."
        )


def _refuse_unlike(folder: Folder, files: list[str]) -> None:
    """Refuses files that are read as one although later ones have other columns, or a column has other classes."""
    first: dict[str, tuple[str, Any, str]] = {}
    columns: tuple[str, set[str]] | None = None
    for file in files:
        name = os.path.relpath(file, folder.root.resolve())
        try:
            features = datasets.Features.from_arrow_schema(_schema(Path(file)))
        # A damaged file gets its message from `datasets`.
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            return
        columns = columns or (name, {*features})
        # What a later file lacks, `datasets` fills with nulls.
        if not {*features} <= columns[1]:
            raise ValueError(
                f"`{folder.argument}` {folder.root}: {columns[0]} has the columns {listed(sorted(columns[1]), 4)}, "
                f"and {name} has {listed(sorted(features), 4)}, so they cannot be read as one; write them alike, or "
                "name a folder that holds one data set."
            )
        for column, feature in sorted(features.items()):
            kind, text = _kind(feature)
            of, was, told = first.setdefault(column, (name, kind, text)) if kind else (name, None, "")
            if kind and was != kind:
                raise ValueError(
                    f"`{folder.argument}` {folder.root}: `{column}` of {of} has {told}, and `{column}` of {name} has "
                    f"{text}, which `datasets` would take for the same; write them alike, or name a folder that "
                    f"holds one data set."
                )


def _schema(path: Path) -> pa.Schema:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_schema(path)
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).schema


def _kind(feature: Any) -> tuple[Any, str]:
    """What a column of labels holds, to compare and to tell; `None` for one that holds none, or only nulls."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.names, f"the classes {listed(feature.names, most=8)}"
    kinds = {"text": ("string", "large_string"), "numbers": ("int", "uint", "float"), "booleans": ("bool",)}
    for kind, starts in kinds.items():
        if isinstance(feature, datasets.Value) and feature.dtype.startswith(starts):
            return kind, kind
    return None, ""


def refuse_empty(files: list[Path], argument: str) -> None:
    """Refuses parquet files without rows, for which `datasets` reads none of the others either."""
    for file in files:
        # A file that is not parquet gets its message from `datasets`.
        with suppress(pa.ArrowException, OSError):
            parts = pyarrow.parquet.read_metadata(file)
            if parts.num_row_groups and not parts.num_rows:
                raise ValueError(f"`{argument}`: {file} has no rows; remove it.")
