"""
Loads any image classification data set of `datasets`, or the embedded digits, as uint8 tensors.

Images are decoded once (see `decoding.py`).
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

import datasets
import torch

from ..arguments import check_integer, check_seed, shown
from ..messages import listed
from .decoding import decoded_images, default_cache_dir, digest_of, find_columns
from .image_data import ImageData, stratified_order
from .reading import embedded_digits, open_dataset, read_labels
from .splits import SPLIT_COLUMNS, several_splits


def load_image_data(
    dataset_name: str | os.PathLike[str] = "digits",
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | os.PathLike[str] | None = None,
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
    least_per_class: int = 1,
) -> ImageData:
    """
    Loads one split of a data set.

    Args:
        dataset_name: `"digits"` (embedded; `"./digits"` is a folder), a Hub id, a folder of images or parquet files, a
            parquet file, or a folder written by `save_to_disk`. `~` is the home folder in all paths.
        split: `"train"`, `"test"` or another split of the data set.
        dataset_config_name: Configuration, if a data set has several.
        train_data_dir: A folder, instead of `dataset_name`.
        image_column, label_column: Found from the features unless given. The classes of a folder of images are its
            folders, unless `label_column` names a column of its `metadata.csv`, `.jsonl` or `.parquet`.
        class_names: The names of another split, so that labels mean the same; by default the split's own.
        resolution: Height and width in pixels. The default is that of the images, which must be square and equal.
        channels: 1 or 3. The default is what the data set declares, or else 1 if every image is grey.
        cache_dir: Folder for decoded images, not among the images. The default is `dim_hf` in the cache folder of
            Hugging Face.
        num_workers: Processes that decode, by default one per core. 0 decodes in this process.
        max_samples: Number of images in a stratified sample, drawn with `seed`.
        revision: Revision of a data set on the Hub.
        least_per_class: Images that each class must have, unless `class_names` is given; [`holdout`] needs 2.

    Raises:
        FileNotFoundError: If there is no such data set.
        OSError: If a folder cannot be read, or the cache cannot be written or is too small.
        ValueError: If a split, layout, column, label, size or image cannot be used.
    """
    given = {"dataset_name": dataset_name, "train_data_dir": train_data_dir, "cache_dir": cache_dir}
    for name, path in given.items():
        if not isinstance(path, str | os.PathLike) and (path is not None or name == "dataset_name"):
            raise ValueError(f"`{name}` is {shown(path)}; valid is a name or a path.")
    words = {"split": split, "dataset_config_name": dataset_config_name, "revision": revision}
    words |= {"image_column": image_column, "label_column": label_column}
    for name, word in words.items():
        if not isinstance(word, str) and (word is not None or name == "split"):
            raise ValueError(f"`{name}` is {shown(word)}; valid is a `str`.")
    numbers = {"resolution": (resolution, 4), "num_workers": (num_workers, 0), "max_samples": (max_samples, 1)}
    for name, (number, least) in numbers.items():
        if number is not None:
            check_integer(name, number, least)
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` is {shown(channels)}; valid are 1 (grey) and 3 (RGB).")
    check_seed(seed)
    skipped = ""
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    if train_data_dir is None and os.fspath(dataset_name) == "digits":
        for argument, word in (("dataset_config_name", dataset_config_name), ("revision", revision)):
            if word is not None:
                raise ValueError(f"`{argument}` is {shown(word)}, but the embedded digits have none.")
        name, dataset = "digits", embedded_digits(split)
        if Path(name).is_dir():
            warnings.warn("`dataset_name` digits is the embedded set; ./digits names the folder.", stacklevel=2)
    else:
        argument = "dataset_name" if train_data_dir is None else "train_data_dir"
        name = os.path.expanduser(dataset_name if train_data_dir is None else train_data_dir)
        if train_data_dir is not None and not Path(name).is_dir():
            raise FileNotFoundError(f"`train_data_dir` {name} is not a folder.")
        dataset, skipped = open_dataset(name, split, argument, dataset_config_name, revision, label_column)
        # Only folders of images are read from their own files.
        if not dataset.cache_files:
            _refuse_cache_within(cache, Path(name))
    image_column, label_column = find_columns(dataset.features, image_column, label_column)
    origin = f"split {split!r} of {name}"
    for column, feature in dataset.features.items():
        if column == label_column or column.lower() not in SPLIT_COLUMNS:
            continue
        values = dataset.unique(column) if isinstance(feature, datasets.Value | datasets.ClassLabel) else []
        if isinstance(feature, datasets.ClassLabel):
            values = [feature.names[v] for v in values if v is not None and 0 <= v < feature.num_classes]
        if several := several_splits(column, values):
            if Path(name).exists():
                raise ValueError(f"{origin} {several}; put each split into files of its own.")
            # On the Hub it may only tell where a row comes from.
            warnings.warn(f"{origin} {several}; all of them are read.", stacklevel=2)
    own_names, own_labels = read_labels(dataset, origin, label_column, class_names)
    if class_names is None and len(own_names) < 2:
        raise ValueError(f"{origin} has only the class {listed(own_names)}; valid are two or more.")
    if len(dataset) < len(own_names) and class_names is None:
        raise ValueError(f"{origin} has {len(dataset)} images of {len(own_names)} classes.")
    sample = ""
    if max_samples is not None and max_samples < len(dataset):
        if max_samples < len(own_names):
            raise ValueError(
                f"`max_samples` is {max_samples}, and there are {len(own_names)} classes; valid are at least as many "
                "images (--max_train_samples)."
            )
        chosen = stratified_order(own_labels, seed)[:max_samples].sort().values
        dataset, own_labels = dataset.select(chosen.tolist()), own_labels[chosen]
        sample = f" in a sample of {max_samples:,} images"
    counts = torch.bincount(own_labels, minlength=len(own_names))
    if class_names is None and (few := torch.nonzero(counts < least_per_class).flatten().tolist()):
        fewest = int(counts.min())
        classes = listed(own_names[i] for i in few if counts[i] == fewest)
        problem = "no image" if fewest == 0 else f"too few images ({fewest})"
        raise ValueError(
            f"{origin} has {problem} of the class {classes}{sample}; each class needs {least_per_class} or more."
        )
    images, digest = decoded_images(
        dataset,
        origin,
        image_column,
        resolution,
        channels,
        cache,
        num_workers,
    )
    fingerprint = content_fingerprint(digest, own_labels, own_names)
    return ImageData(images, own_labels, own_names, fingerprint, torch.arange(len(images)), origin, skipped)


def fingerprint_of_sample(data: ImageData, max_samples: int) -> str:
    """The fingerprint that a whole split would have, loaded with this `max_samples` and the default seed."""
    if max_samples >= len(data):
        return data.fingerprint
    chosen = stratified_order(data.labels.cpu(), 0)[:max_samples].sort().values
    sample = data.select(chosen)
    return content_fingerprint(digest_of(sample.images.cpu().numpy()), sample.labels.cpu(), sample.class_names)


def content_fingerprint(digest: str, labels: torch.Tensor, class_names: tuple[str, ...]) -> str:
    content = json.dumps([digest, labels.tolist(), class_names])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _refuse_cache_within(cache: Path, data: Path) -> None:
    """Refuses a cache whose files would be read as a part of the data; hidden folders are not read."""
    cache, data = cache.resolve(), data.resolve()
    within = data.is_dir() and cache.is_relative_to(data)
    if within and not any(part.startswith(".") for part in cache.relative_to(data).parts):
        raise ValueError(
            f"`cache_dir` {cache} is in the data folder {data}, and would be read as a part of it; name another "
            "(--cache_dir)."
        )
