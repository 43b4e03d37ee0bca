"""Opens data sets on the Hub, in folders and in files, and the embedded digits."""

import errno
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import yaml
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..messages import listed, one_line
from .folders import Folder, read_folder, read_image_folder
from .metadata import METADATA


# Files that can hold images with labels, and files that hold tables without images.
DATA_SUFFIXES = (".parquet", ".arrow")
LONGEST_REASON = 250
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".tar")


# The digits become PNG files in memory, which takes a third of a second.
@cache
def embedded_digits(split: str) -> datasets.Dataset:
    """The 1,797 digits of scikit-learn (UCI, 8x8 pixels, 17 shades): 1,437 for training and 360 for testing."""
    if split not in ("train", "test"):
        raise ValueError(f"digits have no split {split!r}; valid are train, test.")
    digits = load_digits()
    parts = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    rows = np.sort(parts[0 if split == "train" else 1])
    pixels = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(mode="L"), "label": datasets.ClassLabel(names=[str(n) for n in range(10)])}
    )
    content = {"image": list(pixels), "label": digits.target[rows].tolist()}
    dataset = datasets.Dataset.from_dict(content, features=features)
    dataset._fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    return dataset


def open_dataset(
    name: str, split: str, argument: str, config: str | None, revision: str | None, label_column: str | None
) -> tuple[datasets.Dataset, str]:
    """
    Opens one split of a data set on the Hub, in a folder or in a file.

    Args:
        argument (`str`): The argument that gave the name, for messages.
        label_column (`str`, *optional*): A column in the metadata of a folder of images.

    Returns:
        The split, and a text about skipped files, or `""`.

    Raises:
        FileNotFoundError: If there is no such data set.
        OSError: If a folder or file cannot be read.
        ValueError: If there is no such split, or the layout or files do not fit.
    """
    path = Path(name)
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    if revision is not None and path.exists():
        raise ValueError(f"`revision` is {revision!r}, but `{argument}` {name} is not on the Hub and has none.")
    if config is not None and (saved or path.is_file()):
        kind = "a file" if path.is_file() else "a folder of `save_to_disk`"
        raise ValueError(f"`dataset_config_name` is {config!r}, but `{argument}` {name} is {kind} and has none.")
    if saved:
        return _saved(path, split, argument), ""
    if path.is_dir():
        folder = read_folder(path, argument)
        if data_files := _data_files(folder):
            _check_data_files(folder, data_files, split, config)
            return _load(argument, name, split, config, path=name), _images_beside(folder)
        if folder.num_images or not any(file.endswith(TABLE_SUFFIXES) for file in folder.files()):
            if config is not None:
                raise ValueError(
                    f"`dataset_config_name` is {config!r}, but {name} is a folder of images and has none."
                )
            return read_image_folder(folder, split, label_column)
        return _load(argument, name, split, config, path=name), ""
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"`{argument}` {name} is a file; valid are parquet files and folders.")
        _refuse_empty([path], argument)
        if split != "train":
            raise ValueError(f"`{argument}` {name} is a file and has no split {split!r}; valid is train.")
        return _load(argument, name, split, path="parquet", data_files={split: glob.escape(name)}), ""
    if name.count("/") > 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"`{argument}` {name} is not a folder or file, or an id of the Hub.")
    return _load(argument, name, split, config, path=name, revision=revision), ""


def _saved(path: Path, split: str, argument: str) -> datasets.Dataset:
    """A split of a folder written by `save_to_disk`."""
    try:
        saved = datasets.load_from_disk(str(path))
    except IndexError as error:
        raise ValueError(
            f"`{argument}` {path} has a split without rows, which `datasets` saves but cannot read; save it without."
        ) from error
    # Errors of `datasets` over files that are cut, missing or not its own.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{argument}` {path} is damaged, or was not written by `save_to_disk`: {_reason(error)}"
        ) from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in parts:
        raise ValueError(f"`{argument}` {path} has no split {split!r}; valid are {listed(parts)}.")
    # A format is saved with a data set; it may leave out columns, and gives values of another kind.
    return parts[split].with_format(None)


def _data_files(folder: Folder) -> list[str]:
    """The data files of a folder, without the metadata of its images."""
    return [
        file
        for file in folder.files()
        if file.lower().endswith(DATA_SUFFIXES) and not (folder.num_images and os.path.basename(file) in METADATA)
    ]


def _images_beside(folder: Folder) -> str:
    names = [name for name, _ in folder.images_below()]
    return f"{len(names):,} images beside the data files ({listed(names, most=2)})" if names else ""


def _check_data_files(folder: Folder, files: list[str], split: str, config: str | None) -> None:
    """
    Checks that `datasets`, which infers splits from words in file names, would read every data file of a folder for
    exactly one split. A README that assigns files to splits is trusted.
    """
    path, argument = folder.root, folder.argument
    _refuse_empty([path / file for file in files if file.endswith(".parquet")], argument)
    if capitals := [file for file in files if not file.endswith(DATA_SUFFIXES)]:
        raise ValueError(
            f"`{argument}` {path} holds {listed(capitals, most=2)}; `datasets` reads only files whose suffix is in "
            "small letters, so rename them."
        )
    if glob.has_magic(str(path.resolve())):
        raise ValueError(
            f"`{argument}` {path}: `datasets` takes *, ? and [ in its path as a pattern; rename the folder."
        )
    with _errors(argument, str(path), split, config):
        readme = path / "README.md"
        declared = readme.is_file() and bool(DatasetCard.load(readme).data.get("configs"))
    if declared:
        return
    if sum(bool(part.images) for part in folder.below()) > 1:
        raise ValueError(
            f"`{argument}` {path} holds data files ({listed(files, most=2)}) and {folder.num_images:,} images in "
            f"folders; keep one of them there, or name a folder that holds one kind."
        )
    with _errors(argument, str(path), split, config):
        builder = datasets.load_dataset_builder(str(path), config)
    if builder.name not in ("parquet", "arrow"):
        raise ValueError(
            f"`{argument}` {path} holds data files ({listed(files, most=2)}) among files of another kind, which "
            f"`datasets` would read instead ({builder.name}); move those elsewhere."
        )
    splits_of: dict[str, list[str]] = {}
    for each, members in (builder.config.data_files or {}).items():
        for member in members:
            splits_of.setdefault(os.path.realpath(member), []).append(str(each))
    unread = [file for file in files if os.path.realpath(path / file) not in splits_of]
    twice = [file for file in files if len(splits_of.get(os.path.realpath(path / file), ())) > 1]
    if unread or twice:
        raise ValueError(
            f"`{argument}` {path}: `datasets` infers splits from words in file names, and would read "
            f"{listed(unread or twice, 3)} for {'none' if unread else 'several'}; rename files to train.parquet and "
            f"test.parquet, or assign them to splits in README.md (`configs`)."
        )


def _refuse_empty(files: list[Path], argument: str) -> None:
    """Refuses parquet files without rows, for which `datasets` reads none of the others either."""
    for file in files:
        # A file that is not parquet gets its message from `datasets`.
        with suppress(pa.ArrowException, OSError):
            parts = pyarrow.parquet.read_metadata(file)
            if parts.num_row_groups and not parts.num_rows:
                raise ValueError(f"`{argument}`: {file} has no rows; remove it.")


@contextmanager
def _errors(argument: str, name: str, split: str, config: str | None) -> Iterator[None]:
    """Turns the errors of `datasets` over a user's data set into clear messages."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"`{argument}` {name} cannot be found: {_reason(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = f"{Path(name, 'README.md')} cannot be read: {_reason(error, whole=True)}"
        raise ValueError(f"`{argument}`: the YAML at the top of {reason}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"`{argument}` {name} needs its own script, which `datasets` no longer runs ({_reason(error)}); valid are "
            f"data sets of parquet files or images."
        ) from error
    # The last three occur when entries of a README have the wrong types.
    except (OSError, ValueError, DatasetsError, TypeError, KeyError, AttributeError) as error:
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise ValueError(
                f"`dataset_config_name` {config!r} does not name one of {name}: {_reason(error, whole=True)}"
            ) from error
        full = getattr(error.__cause__ or error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        hint = f" ({datasets.config.HF_DATASETS_CACHE}; HF_HOME names another place)" if full else ""
        raise ValueError(f"split {split!r} of {name} cannot be read: {_reason(error)}{hint}") from error


def _load(argument: str, name: str, split: str, config: str | None = None, **arguments: Any) -> datasets.Dataset:
    with _errors(argument, name, split, config):
        return datasets.load_dataset(name=config, split=split, **arguments)


def _reason(error: BaseException, whole: bool = False) -> str:
    """The short message of another library's error: its first line, or all lines joined if `whole`."""
    if isinstance(error, DatasetsError) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return one_line(" ".join(text.split()) if whole else text.splitlines()[0], LONGEST_REASON)


def read_labels(
    dataset: datasets.Dataset, origin: str, column: str, class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The class names, and the label of each row."""
    feature = dataset.features[column]
    values = dataset.select_columns([column])[:][column]
    # A ClassLabel column holds -1 in rows without a label, and one of text often nothing.
    absent = (None, -1) if isinstance(feature, datasets.ClassLabel) else (None, "")
    if missing := [row for row, value in enumerate(values) if value in absent]:
        raise ValueError(f"`label_column` {column} of {origin} has no label in row {missing[0]}.")
    if isinstance(feature, datasets.ClassLabel):
        own = tuple(feature.names or [str(n) for n in range(feature.num_classes)])
        # `datasets` reads what a file holds without looking at it.
        if wrong := [row for row, value in enumerate(values) if not 0 <= value < len(own)]:
            raise ValueError(
                f"`label_column` {column} of {origin} has the label {values[wrong[0]]} in row {wrong[0]}; valid are 0 "
                f"to {len(own) - 1}, its {len(own)} named classes."
            )
        values = [own[value] for value in values]
    else:
        own = tuple(str(value) for value in sorted(set(values)))
        values = [str(value) for value in values]
    names = class_names or own
    label_of = {name: label for label, name in enumerate(names)}
    if unknown := sorted({value for value in values if value not in label_of}):
        raise ValueError(
            f"`label_column` {column} of {origin} has the unknown classes {listed(unknown, most=4)}; valid are "
            f"{listed(names, most=4)}."
        )
    return names, torch.tensor([label_of[value] for value in values], dtype=torch.int64)
