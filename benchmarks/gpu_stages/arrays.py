"""
A data set as a small folder of decoded images, for a machine without a library that reads data sets.

Images lie side by side on sheets, losslessly where that keeps to the size that is asked for. Otherwise the training
images are JPEG without chroma subsampling, at the highest quality that fits; tiles keep to JPEG's blocks of 8 pixels,
so that neighbours do not affect each other. Test images are exact in any case, and fewer where they must be.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dim_hf.data.image_data import ImageData, stratified_order


MANIFEST = "arrays.json"
QUALITIES = (95, 92, 90, 85, 80, 70)
# WebP takes images of up to 16,383 pixels.
_SHEET_SIZE = 1024


def prepare(
    folder: Path, train: ImageData, test: ImageData, max_test_samples: int, megabytes: float
) -> dict[str, Any]:
    """
    Writes a data set into a folder of limited size.

    Returns:
        What the manifest says: for each split the number of images, how they are coded and by how much a value of 0 to
        255 is off on average.

    Raises:
        FileExistsError: If the folder holds anything.
        ValueError: If the data set does not fit.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"`--prepare` {folder} is not empty; name a new folder.")
    chosen = stratified_order(test.labels, seed=0)[:max_test_samples].sort().values
    test_sheets = [_encoded(sheet, None) for sheet in _sheets(test.images[chosen].numpy())]
    room = megabytes * 1e6 - sum(map(len, test_sheets))
    images = train.images.numpy()
    sheets = _sheets(images)
    for quality in (None, *QUALITIES):
        # The first sheet tells the size of all, within a few per cent.
        if 0.95 * len(_encoded(sheets[0], quality)) * len(images) / min(len(images), _per_sheet(images)) > room:
            continue
        train_sheets = [_encoded(sheet, quality) for sheet in sheets]
        if sum(map(len, train_sheets)) + 4 * len(images) <= room:
            break
    else:
        raise ValueError(
            f"`--megabytes` is {megabytes:g}; {len(images):,} training images take more at JPEG quality "
            f"{QUALITIES[-1]}, beside {len(chosen):,} exact test images. More megabytes or fewer images are needed."
        )
    files: dict[str, bytes] = {}
    manifest: dict[str, Any] = {
        "class_names": train.class_names, "channels": train.channels, "size": train.size, "splits": {},
    }  # fmt: skip
    for split, data, coded, how in (
        ("train", train.labels, train_sheets, quality),
        ("test", test.labels[chosen], test_sheets, None),
    ):
        buffer = io.BytesIO()
        np.save(buffer, data.numpy().astype(np.uint16))
        files[f"{split}-labels.npy"] = buffer.getvalue()
        files |= {f"{split}-{number:03}.{'jpg' if how else 'webp'}": sheet for number, sheet in enumerate(coded)}
        own = train.images if split == "train" else test.images[chosen]
        error = (_decoded(coded, len(own), train.channels, train.size).float() - own.float()).abs().mean().item()
        manifest["splits"][split] = {
            "images": len(own),
            "coding": f"JPEG {how}, no chroma subsampling" if how else "lossless WebP",
            "mean_absolute_error": round(error, 4),
            "bytes": sum(map(len, coded)),
        }
    manifest["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    # Last, so that a folder with a manifest is whole.
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def load_prepared(folder: Path) -> tuple[ImageData, ImageData]:
    """
    The train and the test split of a folder that [`prepare`] has written.

    Raises:
        FileNotFoundError: If there is no such folder, or it was not made by [`prepare`].
        OSError: If a file is missing or is not as it was written.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"`--data` {folder} holds no {MANIFEST}; make it where the library is installed, with `python "
            f"benchmarks/gpu.py --prepare {folder} --dataset_name <name>`, and bring it here."
        )
    manifest = json.loads((folder / MANIFEST).read_text())
    contents = {}
    for name, digest in manifest["sha256"].items():
        contents[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise OSError(
                f"`--data` {folder}: {name} is missing or has changed since it was prepared ({len(contents[name]):,} "
                "bytes); bring the folder anew."
            )
    parts = []
    for split, entry in manifest["splits"].items():
        labels = np.load(io.BytesIO(contents.pop(f"{split}-labels.npy"))).astype(np.int64)
        sheets = [contents[name] for name in sorted(contents) if name.startswith(f"{split}-")]
        images = _decoded(sheets, entry["images"], manifest["channels"], manifest["size"])
        fingerprint = hashlib.sha256(json.dumps([split, manifest["sha256"]]).encode()).hexdigest()[:16]
        parts.append(ImageData(images, torch.from_numpy(labels), tuple(manifest["class_names"]), fingerprint))
    return parts[0], parts[1]


def _pitch(size: int) -> int:
    return -(-size // 8) * 8


def _columns(size: int) -> int:
    return max(1, _SHEET_SIZE // _pitch(size))


def _per_sheet(images: np.ndarray) -> int:
    return _columns(images.shape[2]) ** 2


def _sheets(images: np.ndarray) -> list[np.ndarray]:
    """Images `(N, channels, size, size)` on sheets `(height, width, channels)`; what is missing on the last is 0."""
    count, channels, size, _ = images.shape
    columns, pitch, per_sheet = _columns(size), _pitch(size), _per_sheet(images)
    sheets = []
    for start in range(0, count, per_sheet):
        part = images[start : start + per_sheet]
        rows = -(-len(part) // columns)
        part = np.pad(part, ((0, rows * columns - len(part)), (0, 0), (0, 0), (0, 0)))
        part = np.pad(part, ((0, 0), (0, 0), (0, pitch - size), (0, pitch - size)), mode="edge")
        tiles = part.reshape(rows, columns, channels, pitch, pitch).transpose(0, 3, 1, 4, 2)
        sheets.append(tiles.reshape(rows * pitch, columns * pitch, channels))
    return sheets


def _encoded(sheet: np.ndarray, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet)
    if quality is None:
        image.save(buffer, "WEBP", lossless=True, quality=60)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def _decoded(sheets: list[bytes], count: int, channels: int, size: int) -> torch.Tensor:
    """The first `count` images of coded sheets, uint8 of shape `(count, channels, size, size)`."""
    columns, pitch = _columns(size), _pitch(size)
    parts = []
    for sheet in sheets:
        pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("L" if channels == 1 else "RGB"))
        tiles = pixels.reshape(-1, pitch, columns, pitch, channels).transpose(0, 2, 4, 1, 3)
        parts.append(tiles.reshape(-1, channels, pitch, pitch)[:, :, :size, :size])
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)[:count]))
