"""
Any image classification data set of `datasets` as uint8 tensors on the device, and the embedded digits.

Images are decoded once (see `decoding.py`) and gathered from memory after that.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .decoding import decoded_images, default_cache_dir, find_columns
from .image_data import ImageData, stratified_order


def load_image_data(
    dataset_name: str = "digits",
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: tuple[str, ...] | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = None,
    max_samples: int | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> ImageData:
    """
    Loads one split of a data set.

    Args:
        dataset_name: `"digits"` (embedded), a Hub id, a local folder or parquet file, or a `save_to_disk` folder.
        split: `"train"`, `"test"` or what the data set calls its splits.
        dataset_config_name: Configuration, where a data set has several.
        train_data_dir: A folder of images, one sub-folder per class, instead of `dataset_name`.
        image_column, label_column: Found from the features unless given.
        class_names: The names of another split, so that labels mean the same; otherwise the split's own.
        resolution: Height and width in pixels; by default that of the images, which must then be square and equal.
        channels: 1 or 3; by default 1 if every image is grey.
        cache_dir: Where decoded images are kept; by default `dim_hf` in the cache folder of Hugging Face.
        num_workers: Processes that decode; by default every core.
        max_samples: A stratified part of so many images, drawn with `seed`.
        revision: Of a data set on the Hub.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If a split, column, label, size or image is not usable, naming it and what is.
    """
    if resolution is not None and resolution < 4:
        raise ValueError(f"`resolution` is {resolution}; it must be at least 4.")
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` is {channels}; valid are 1 (grey) and 3 (RGB).")
    if train_data_dir is not None:
        name = str(train_data_dir)
        if not Path(name).is_dir():
            raise FileNotFoundError(f"`train_data_dir` {name} is no folder.")
        dataset = _read(name, split, None, None, builder="imagefolder")
    elif dataset_name == "digits":
        name, dataset = "digits", _embedded_digits(split)
    else:
        name, dataset = dataset_name, _open(dataset_name, split, dataset_config_name, revision)
    image_column, label_column = find_columns(dataset.features, image_column, label_column)
    origin = f"split {split!r} of {name}"
    own_names, own_labels = _labels(dataset, origin, label_column, class_names)
    if len(dataset) < len(own_names) and class_names is None:
        raise ValueError(f"{origin} has {len(dataset)} images of {len(own_names)} classes.")
    counts = torch.bincount(own_labels, minlength=len(own_names))
    if class_names is None and (counts == 0).any():
        empty = [own_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
        raise ValueError(f"{origin} has no image of the class {', '.join(empty)}.")
    if max_samples is not None and max_samples < len(dataset):
        if max_samples < len(own_names):
            raise ValueError(f"`max_samples` is {max_samples}; there are {len(own_names)} classes.")
        chosen = stratified_order(own_labels, seed)[:max_samples].sort().values
        dataset, own_labels = dataset.select(chosen.tolist()), own_labels[chosen]
    images, digest = decoded_images(
        dataset,
        origin,
        image_column,
        resolution,
        channels,
        Path(cache_dir) if cache_dir is not None else default_cache_dir(),
        num_workers,
    )
    content = json.dumps([digest, own_labels.tolist(), own_names])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return ImageData(images, own_labels, own_names, fingerprint, rows=torch.arange(len(images)))


def _embedded_digits(split: str) -> datasets.Dataset:
    """The 1,797 digits of scikit-learn (UCI, 8x8 pixels of 17 shades): 1,437 to train on and 360 to test."""
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


def _open(name: str, split: str, config: str | None, revision: str | None) -> datasets.Dataset:
    path = Path(name)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(name)
        parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        if split not in parts:
            raise ValueError(f"{name} has no split {split!r}; valid are {', '.join(parts)}.")
        return parts[split]
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"`dataset_name` {name} is a file; valid are parquet files and folders.")
        if split != "train":
            raise ValueError(f"`dataset_name` {name} is a file and has no split {split!r}; valid is train.")
        return _read(name, split, None, None, builder="parquet")
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"`dataset_name` {name} is no folder or file, and no id of the Hub.")
    return _read(name, split, config, revision)


def _read(
    name: str, split: str, config: str | None, revision: str | None, builder: str | None = None
) -> datasets.Dataset:
    arguments: dict[str, Any] = {"path": name, "name": config, "revision": revision}
    if builder == "imagefolder":
        arguments = {"path": builder, "data_dir": name}
    elif builder == "parquet":
        arguments = {"path": builder, "data_files": {split: name}}
    try:
        return datasets.load_dataset(**arguments, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"`dataset_name` {name} cannot be found: {_first_line(error)}") from error
    except ValueError as error:
        text = str(error)
        if "Config name is missing" in text or "BuilderConfig" in text:
            raise ValueError(
                f"`dataset_config_name` {config!r} does not name one of {name}: {' '.join(text.split())}"
            ) from error
        raise ValueError(f"split {split!r} of {name} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _labels(
    dataset: datasets.Dataset, origin: str, column: str, class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The class names and the label of every row."""
    feature = dataset.features[column]
    values = dataset.select_columns([column])[:][column]
    # An unlabelled row of a ClassLabel column holds -1.
    absent = (None, -1) if isinstance(feature, datasets.ClassLabel) else (None,)
    if missing := [row for row, value in enumerate(values) if value in absent]:
        raise ValueError(f"`label_column` {column} of {origin} has no label in row {missing[0]}.")
    if isinstance(feature, datasets.ClassLabel):
        own = tuple(feature.names or [str(n) for n in range(feature.num_classes)])
        values = [own[value] for value in values]
    else:
        own = tuple(str(value) for value in sorted(set(values)))
        values = [str(value) for value in values]
    names = class_names or own
    label_of = {name: label for label, name in enumerate(names)}
    if unknown := sorted({value for value in values if value not in label_of}):
        raise ValueError(
            f"`label_column` {column} of {origin} has the classes {', '.join(unknown)} that are unknown; valid are "
            f"{', '.join(names)}."
        )
    return names, torch.tensor([label_of[value] for value in values], dtype=torch.int64)
