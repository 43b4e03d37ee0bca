"""Decodes the images of a data set once, in parallel, into a memory-mapped uint8 array on disk."""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from huggingface_hub.constants import HF_HOME
from PIL import ExifTags, Image, UnidentifiedImageError

from ..files import replace_text, whole_cache_file
from ..machine import usable_cores
from ..messages import listed


CACHE_FORMAT = 5
BATCH_SIZE = 256
FITTING_LABELS = "named classes, text, integers or booleans"
GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Mode I has 32 bits, but Pillow also uses it for 16-bit PGM and, in older releases, PNG. An image that was not read
# from a file has no format.
FORMATS_OF_16_BIT = ("PNG", "PPM", None)
TIFF_BITS_PER_SAMPLE = 258
TIFF_PHOTOMETRIC = 262
TIFF_WHITE_IS_ZERO = 0


def default_cache_dir() -> Path:
    """The default folder for decoded images and pools."""
    return Path(HF_HOME) / "dim_hf"


# What columns of labels are called.
LABEL_NAMES = {"label", "labels", "class", "classes", "target", "targets", "category", "y"}


def find_columns(features: datasets.Features, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """
    The names of the image and label columns: those given, or else the only ones that fit.

    Raises:
        ValueError: If a given column does not exist or fit, or if several fit and none is given, listing them.
    """
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [name for name, feature in features.items() if _holds_encoded_images(feature)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Value)
        and feature.dtype.startswith(("string", "large_string", "int", "uint", "bool"))
        and not name.startswith("__index_level_")  # The index of a pandas table.
    ]
    kinds = {name: getattr(feature, "dtype", type(feature).__name__) for name, feature in features.items()}
    image = _choose("image_column", image_column, images or encoded, images + encoded, kinds)
    found = classes or plain
    # Named classes under such a name say what they are; beside them only a column of that very name raises doubts.
    sure = len(classes) == 1 and classes[0].lower() in LABEL_NAMES
    likely = {"label", "labels"} if sure else LABEL_NAMES
    named = [name for name in kinds if name.lower() in likely and name not in found]
    if label_column is None and len(found) == 1 and not classes and found[0].lower() not in LABEL_NAMES:
        # Classes as floats, as pandas has integers with gaps, or as a list with a one.
        named += [
            name
            for name, feature in features.items()
            if name not in (image, *named, *found)
            and not name.startswith("__index_level_")
            and (getattr(feature, "dtype", "").startswith(("float", "double", "decimal")) or _is_list(feature))
        ]
    if label_column is None and len(found) == 1 and named:
        # Another column must not take its place in silence.
        raise ValueError(
            f"`label_column` must be given, since there is {named[0]} ({kinds[named[0]]}) beside {listed(found)} "
            f"({kinds[found[0]]}); valid are {listed(classes + plain, most=4)}, since labels are {FITTING_LABELS}."
        )
    return image, _choose("label_column", label_column, found, classes + plain, kinds)


def _is_list(feature: object) -> bool:
    return isinstance(feature, list | datasets.Sequence | datasets.List | datasets.LargeList)


def _holds_encoded_images(feature: object) -> bool:
    """Whether a column holds the bytes of image files without the `Image` feature, as pandas writes them."""
    content = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(content, datasets.Value) and content.dtype in ("binary", "large_binary")


def _choose(argument: str, given: str | None, candidates: list[str], valid: list[str], kinds: dict[str, str]) -> str:
    if given is not None and given in valid:
        return given
    if given is None and len(candidates) == 1:
        return candidates[0]
    if given is None:
        wrong = f"must be given, since {'no column fits' if not candidates else 'several columns fit'}"
    else:
        wrong = f"{listed([repr(given)])} is not in the data set or does not fit"
    if not valid:
        fitting = "images, or the bytes of their files" if argument == "image_column" else FITTING_LABELS
        columns = listed((f"{name} ({kind})" for name, kind in kinds.items()), most=4)
        wrong += f" ({fitting}; columns are {columns})"
    elif given in kinds:
        wrong += f" (it holds {kinds[given]})"
    raise ValueError(f"`{argument}` {wrong}; valid are {listed(valid, most=4)}.")


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
    The images of a data set, decoded or from the cache. A cached file that does not match its digest, as after a disk
    fault, is decoded anew.

    Args:
        origin (`str`): Name of the data set in messages.
        num_workers (`int`, *optional*): Processes that decode, by default one per core. 0 decodes in this process.

    Returns:
        A memory-mapped uint8 tensor of shape `(N, channels, size, size)`, and a digest of its shape and pixels.

    Raises:
        ValueError: If an image cannot be decoded, naming its row and file, or if sizes differ without `resolution`.
        OSError: If the cache cannot be written or is too small, or if a decoding process was killed.
    """
    mode = getattr(dataset.features[column], "mode", None)
    if channels is None and mode is not None:
        # What the data set declares, such as grey for files with three channels.
        channels = 1 if mode in GREY_MODES else 3
    raw = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    # The fingerprint of `datasets` is that of what was computed, and may stay where the result has changed.
    files = [os.stat(path) for path in (*(file["filename"] for file in dataset.cache_files), *_paths(raw, column))]
    content = [(file.st_size, file.st_mtime_ns) for file in files]
    key_parts = [CACHE_FORMAT, dataset._fingerprint, content, len(dataset), column, resolution, channels]
    key = hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:24]
    path = cache_dir / "images" / f"{key}.npy"
    digest_path = path.with_suffix(".sha256")
    if (pixels := _whole(path, digest_path)) is None:
        wanted = usable_cores() if num_workers is None else num_workers
        workers = min(wanted, len(dataset) // 2000)
        size, channels = _common_shape(raw, origin, column, resolution, channels, workers)
        shape = (len(dataset), channels, size, size)
        try:
            with whole_cache_file(path) as aside:
                # Another process may have decoded them while this one waited for it.
                if _whole(path, digest_path) is None:
                    _reserve(aside, shape)
                    _each_batch(raw, "Decoding", workers, _decode_batch, (origin, column, size, channels, aside))
                    # Results and checkpoints are kept under this digest of the content. The key of the cache can
                    # differ for the same images, since it depends on the paths and times of local files.
                    replace_text(digest_path, digest_of(np.load(aside, mmap_mode="r")))
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(
                f"`cache_dir` {cache_dir} cannot take the decoded images of {origin}, "
                f"{math.prod(shape) / 2**20:,.1f} MiB: {error.strerror}; name another folder with --cache_dir."
            ) from error
        # Copy-on-write, because torch has no read-only tensors; nothing writes to it.
        pixels = np.load(path, mmap_mode="c")
    return torch.from_numpy(pixels), digest_path.read_text()


def _paths(raw: datasets.Dataset, column: str) -> list[str]:
    """The files that rows name instead of holding an image, as `Dataset.to_parquet` writes those of a folder."""
    images = raw.data.column(column)
    without = pc.is_null(pc.struct_field(images, "bytes"))
    paths = pc.struct_field(images, "path").filter(without).drop_null().to_pylist()
    return [path for path in paths if os.path.isfile(path)]


def _whole(path: Path, digest_path: Path) -> np.ndarray | None:
    """The pixels in the cache, if they are there and match their digest."""
    try:
        pixels = np.load(path, mmap_mode="c")
        whole = pixels.dtype == np.uint8 and pixels.ndim == 4 and digest_of(pixels) == digest_path.read_text()
    # Errors of the file system, and of numpy over a damaged header.
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):
        return None
    return pixels if whole else None


def digest_of(pixels: np.ndarray) -> str:
    """A digest of the shape and the values of uint8 pixels."""
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    return digest.hexdigest()


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Makes a file for an array and allocates its disk space; a memory map that runs out of it kills the process."""
    size = math.prod(shape)
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


# In a decoding process: the data set, which is sent only once.
_rows_of_process: datasets.Dataset


def _start_process(raw: datasets.Dataset) -> None:
    global _rows_of_process
    # Ctrl-C reaches all processes of a terminal, but only the parent should report it; it ends these by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _rows_of_process = raw


def _process_batch(function: Callable, start: int, arguments: tuple) -> Any:
    return function(_rows_of_process[start : start + BATCH_SIZE], start, *arguments)


def _each_batch(raw: datasets.Dataset, what: str, workers: int, function: Callable, arguments: tuple) -> list[Any]:
    """
    Calls a function for each batch of rows and returns the results in order.

    `Dataset.map` is not used because it can wait for ever for a process that was killed.
    """
    starts = range(0, len(raw), BATCH_SIZE)
    results = []
    with datasets.utils.tqdm(total=len(raw), desc=what, unit=" images") as bar:
        if workers <= 1:
            for start in starts:
                results.append(function(raw[start : start + BATCH_SIZE], start, *arguments))
                bar.update(min(BATCH_SIZE, len(raw) - start))
            return results
        pool = ProcessPoolExecutor(workers, initializer=_start_process, initargs=(raw,))
        try:
            futures = [pool.submit(_process_batch, function, start, arguments) for start in starts]
            for start, future in zip(starts, futures, strict=True):
                results.append(future.result())
                bar.update(min(BATCH_SIZE, len(raw) - start))
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"a process that decoded {arguments[0]} was killed, perhaps for lack of memory; try again with fewer "
                f"processes (--dataloader_num_workers, `num_workers`, now {workers}; 0 starts none)."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _common_shape(
    raw: datasets.Dataset, origin: str, column: str, resolution: int | None, channels: int | None, workers: int
) -> tuple[int, int]:
    """The size and channels of the decoded images, read from the headers unless given."""
    if resolution is not None and channels is not None:
        return resolution, channels
    found = _each_batch(raw, "Reading sizes", workers, _read_headers, (origin, column))
    if channels is None:
        channels = 1 if all(grey for _, grey in found) else 3
    if resolution is None:
        sizes = sorted(set().union(*(sizes for sizes, _ in found)))
        if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
            raise ValueError(
                f"the images of {origin} are not all square and of one size "
                f"({listed((f'{width}x{height}' for width, height in sizes), most=4)}); `resolution` must be given "
                f"(--resolution)."
            )
        resolution = sizes[0][0]
    return resolution, channels


@contextmanager
def _named(value: dict | None, origin: str, row: int) -> Iterator[None]:
    """Adds the row and file to an error."""
    try:
        yield
    # Pillow and its plugins raise errors of any kind over a broken file.
    except Exception as error:
        file = f" ({value['path']})" if value and value.get("path") else ""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "Pillow finds no image in it"
        raise ValueError(f"the image in row {row}{file} of {origin} cannot be decoded: {reason}") from error


def _opened(value: dict | None) -> Image.Image:
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ValueError("it is missing (null)")
    if value["bytes"] is None and not os.path.isabs(value["path"]) and "://" not in value["path"]:
        raise ValueError(
            f"it is only a path, {value['path']}, and from which folder is not known; store the image or a whole path"
        )
    image = datasets.Image().decode_example(value)
    if image.format is None and image.mode.startswith("I"):
        # `datasets` copies an image whose file has an orientation, even the usual one. The copy lacks what the file
        # says of the range of its values.
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
            image.format = file.format
            image.tag_v2 = getattr(file, "tag_v2", {})  # type: ignore[attr-defined]
    return image


def _size_and_mode(value: dict | None) -> tuple[tuple[int, int], str]:
    """
    The size of the image that [`_opened`] gives and the mode that its file has. A JPEG file is not decoded, since its
    header is enough.
    """
    grey = False
    if value and (value["bytes"] is not None or os.path.isfile(value["path"] or "")):
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
            if file.format in ("JPEG", "MPO"):
                turned = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                return (file.height, file.width) if turned else file.size, file.mode
            # Pillow gives 16-bit grey with transparency as colour.
            grey = any(tile[3] == "LA;16B" for tile in getattr(file, "tile", ()))
    image = _opened(value)
    return image.size, "LA" if grey else image.mode


def _read_headers(batch: dict, start: int, origin: str, column: str) -> tuple[set[tuple[int, int]], bool]:
    """The sizes of the images of a batch, and whether all are grey."""
    sizes, grey = set(), True
    for row, value in enumerate(batch[column], start):
        with _named(value, origin, row):
            size, mode = _size_and_mode(value)
            sizes.add(size)
            grey = grey and mode in GREY_MODES
    return sizes, grey


def _decode_batch(batch: dict, start: int, origin: str, column: str, size: int, channels: int, path: Path) -> None:
    target = np.load(path, mmap_mode="r+")
    for row, value in enumerate(batch[column], start):
        with _named(value, origin, row):
            target[row] = to_pixels(_opened(value), size, channels)
    target.flush()


def to_pixels(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """
    A PIL image of any mode as uint8 pixels of shape `(channels, size, size)`.

    16-bit values are scaled, not clipped. Transparent images are put on a white background, as on a web page. The
    shorter side is resized to `size` with antialiasing, and the centre is cropped.

    Raises:
        ValueError: If its pixels are 32-bit integers or floating point numbers, because their range is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in FORMATS_OF_16_BIT):
        values = np.asarray(image, dtype=np.float64) * (255 / _largest_value(image))
        if values.min() < 0 or values.max() > 255:
            raise ValueError("its pixels are not of 16 bits")
        # Pillow does both for 8 bits: values that count from white to black, and one value that is transparent.
        if getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
            values = 255 - values
        if (transparent := image.info.get("transparency")) is not None:
            values[np.asarray(image) == transparent] = 255
        image = Image.fromarray(np.round(values).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "signed or 32-bit integers" if image.mode == "I" else "floating point numbers"
        raise ValueError(f"its pixels are {kind}, of no known range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow cannot convert LAB to grey.
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _largest_value(image: Image.Image) -> int:
    """The largest possible value in a 16-bit image; TIFF may also have 12 bits."""
    # Of a TIFF file.
    tags = getattr(image, "tag_v2", {})
    return 2 ** tags.get(TIFF_BITS_PER_SAMPLE, (16,))[0] - 1
