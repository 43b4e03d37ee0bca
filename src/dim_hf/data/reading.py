"""Opens data sets on the Hub, in folders and in files, and the embedded digits."""

import glob
import hashlib
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..messages import listed
from .data_files import data_files, read_data_files, refuse_empty
from .folders import read_folder, read_image_folder
from .loading import load, reason


# Files that hold tables without images.
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
        if files := data_files(folder):
            return read_data_files(folder, files, split, config)
        if folder.num_images or not any(file.endswith(TABLE_SUFFIXES) for file in folder.files()):
            if config is not None:
                raise ValueError(
                    f"`dataset_config_name` is {config!r}, but {name} is a folder of images and has none."
                )
            return read_image_folder(folder, split, label_column)
        return load(argument, name, split, config, path=name), ""
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"`{argument}` {name} is a file; valid are parquet files and folders.")
        refuse_empty([path], argument)
        if split != "train":
            raise ValueError(f"`{argument}` {name} is a file and has no split {split!r}; valid is train.")
        return load(argument, name, split, path="parquet", data_files={split: glob.escape(name)}), ""
    if name.count("/") > 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"`{argument}` {name} is not a folder or file, or an id of the Hub.")
    return load(argument, name, split, config, path=name, revision=revision), ""


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
            f"`{argument}` {path} is damaged, or was not written by `save_to_disk`: {reason(error)}"
        ) from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in parts:
        raise ValueError(f"`{argument}` {path} has no split {split!r}; valid are {listed(parts)}.")
    # A format is saved with a data set; it may leave out columns, and gives values of another kind.
    return parts[split].with_format(None)


def read_labels(
    dataset: datasets.Dataset, origin: str, column: str, class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The class names, and the label of each row."""
    feature = dataset.features[column]
    values = dataset.select_columns([column])[:][column]
    # A ClassLabel column holds -1 in rows without a label, and one of text often nothing.
    absent = (None, -1) if isinstance(feature, datasets.ClassLabel) else (None, "")
    plain = [value.strip() if isinstance(value, str) else value for value in values]
    if missing := [row for row, value in enumerate(plain) if value in absent]:
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
