"""Decodes the images of a data set once, in parallel, into one memory-mapped uint8 array that is kept on disk."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image


CACHE_FORMAT = 2
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
LARGEST_16_BIT = 65535


def default_cache_dir() -> Path:
    """Where decoded images and pools are kept unless a folder is given."""
    return Path(HF_HOME) / "dim_hf"


def find_columns(features: datasets.Features, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """
    The columns of the images and of the labels: those named, or the only ones that can be meant.

    Raises:
        ValueError: If a named column does not exist or does not fit, or if there is a choice, listing it.
    """
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Value) and feature.dtype.startswith(("string", "large_string", "int", "uint"))
    ]
    image = _choose("image_column", image_column, images, images)
    return image, _choose("label_column", label_column, classes or plain, classes + plain)


def _choose(argument: str, given: str | None, candidates: list[str], valid: list[str]) -> str:
    listed = ", ".join(valid) or "none"
    if given is not None:
        if given not in valid:
            raise ValueError(f"`{argument}` {given!r} is not in the data set or does not fit; valid are {listed}.")
        return given
    if len(candidates) != 1:
        kind = "no column fits" if not candidates else "several columns fit"
        raise ValueError(f"`{argument}` must be given, since {kind}; valid are {listed}.")
    return candidates[0]


def decoded_images(
    dataset: datasets.Dataset,
    origin: str,
    column: str,
    resolution: int | None,
    channels: int | None,
    cache_dir: Path,
    num_workers: int | None,
) -> tuple[torch.Tensor, str]:
    """
    The images of a data set, decoded now or before.

    Args:
        origin (`str`): What the data set is called in messages.

    Returns:
        A memory-mapped uint8 tensor of shape `(N, channels, size, size)`, and a digest of its shape and pixels.
    """
    key_parts = [CACHE_FORMAT, dataset._fingerprint, len(dataset), column, resolution, channels]
    key = hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:24]
    path = cache_dir / "images" / f"{key}.npy"
    digest_path = path.with_suffix(".sha256")
    if not path.exists():
        raw = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        workers = min(num_workers or os.cpu_count() or 1, max(1, len(dataset) // 2000))
        size, channels = _common_shape(raw, origin, column, resolution, channels, workers)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            target = Path(aside) / path.name
            shape = (len(dataset), channels, size, size)
            np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape).flush()
            _each_batch(raw, "Decoding", workers, _decode_batch, (origin, column, size, channels, str(target)))
            # Over the same images the key can change, as `datasets` names local files by where and when they were
            # written. The digest, which results and checkpoints are kept under, does not.
            digest = hashlib.sha256(f"{shape}".encode())
            pixels = np.load(target, mmap_mode="r")
            for start in range(0, len(pixels), 4096):
                digest.update(pixels[start : start + 4096])
            Path(aside, digest_path.name).write_text(digest.hexdigest())
            os.replace(Path(aside, digest_path.name), digest_path)
            os.replace(target, path)
    # Copy-on-write, because torch has no read-only tensors; nothing here writes to it.
    return torch.from_numpy(np.load(path, mmap_mode="c")), digest_path.read_text()


def _each_batch(raw: datasets.Dataset, what: str, workers: int, function, arguments: tuple) -> datasets.Dataset:
    return raw.map(
        function,
        with_indices=True,
        batched=True,
        batch_size=256,
        num_proc=workers if workers > 1 else None,
        fn_kwargs={"arguments": arguments},
        load_from_cache_file=False,
        keep_in_memory=workers == 1,
        remove_columns=raw.column_names,
        desc=what,
    )


def _common_shape(
    raw: datasets.Dataset, origin: str, column: str, resolution: int | None, channels: int | None, workers: int
) -> tuple[int, int]:
    """Size and channels that all images are brought to, read from their headers where they are not given."""
    if resolution is not None and channels is not None:
        return resolution, channels
    found = _each_batch(raw, "Reading sizes", workers, _read_headers, (origin, column))
    if channels is None:
        channels = 1 if all(found["grey"]) else 3
    if resolution is None:
        sizes = sorted(set(zip(found["width"], found["height"], strict=True)))
        if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
            listed = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
            raise ValueError(
                f"the images of {origin} are not all square and of one size ({listed}"
                f"{', ...' if len(sizes) > 4 else ''}); `resolution` must be given (--resolution)."
            )
        resolution = sizes[0][0]
    return resolution, channels


def _opened(value: dict, origin: str, row: int) -> Image.Image:
    try:
        return datasets.Image().decode_example(value)
    except Exception as error:
        raise ValueError(f"the image in row {row} of {origin} cannot be decoded: {error}") from error


def _read_headers(batch: dict, rows: list[int], arguments: tuple) -> dict:
    origin, column = arguments
    images = [_opened(value, origin, row) for value, row in zip(batch[column], rows, strict=True)]
    return {
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "grey": [image.mode in GREY_MODES for image in images],
    }


def _decode_batch(batch: dict, rows: list[int], arguments: tuple) -> dict:
    origin, column, size, channels, path = arguments
    target = np.load(path, mmap_mode="r+")
    for value, row in zip(batch[column], rows, strict=True):
        target[row] = to_pixels(_opened(value, origin, row), size, channels)
    target.flush()
    return {"row": rows}


def to_pixels(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """
    A PIL image of any mode as uint8 pixels of shape `(channels, size, size)`.

    16-bit values are scaled, not clipped. Transparent images are laid over white, as a page shows them. The shorter
    side is brought to `size` with antialiasing and the middle is kept.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) * (255 / LARGEST_16_BIT)
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
