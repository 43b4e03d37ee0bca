"""
Labelled images as uint8 tensors: indexed, moved, split and normalised.

Does not import the libraries that read data sets, so that code that only uses images runs without them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psutil
import torch

from ..messages import listed


# Largest share of a device's free memory for images; larger data sets stay memory-mapped.
SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class ImageData:
    """
    A labelled image data set, in memory or on disk.

    Args:
        stored (`torch.Tensor` of shape `(M, channels, size, size)`): uint8; in memory, or memory-mapped.
        labels (`torch.Tensor` of shape `(N,)`): int64, `0 .. num_classes - 1`.
        class_names (`tuple[str, ...]`): The name of each label.
        fingerprint (`str`): Digest of images, labels and class names; keys caches, results and checkpoints.
        rows (`torch.Tensor` of shape `(N,)`, *optional*):
            Row numbers into memory-mapped `stored`: int64, on the CPU. `None` in memory.
        origin (`str`, *optional*): Split and name of the data set, for messages.
        skipped (`str`, *optional*): Files that were skipped when it was read, for messages.
    """

    stored: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    fingerprint: str
    rows: torch.Tensor | None = None
    origin: str = "the data set"
    skipped: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> torch.Tensor:
        """uint8 of shape `(N, channels, size, size)`. Reads all images if they are on disk."""
        return self.stored if self.rows is None else self.stored[self.rows]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.stored.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.stored.shape[2]

    def describe(self) -> str:
        """One line for a log: the number of images of each class, their shape, and skipped files."""
        counts = torch.bincount(self.labels.cpu(), minlength=self.num_classes).tolist()
        classes = listed((f"{name} {count:,}" for name, count in zip(self.class_names, counts, strict=True)), most=10)
        colour = "grey" if self.channels == 1 else "colour"
        skipped = f"; skipped {self.skipped}" if self.skipped else ""
        return (
            f"{self.origin}: {len(self):,} images of {self.num_classes:,} classes ({classes}), "
            f"{self.size}x{self.size}, {colour}{skipped}"
        )

    def to(self, device: torch.device) -> "ImageData":
        """Moves the labels to a device, and the images too if they take at most half of its free memory."""
        moved = replace(self, labels=self.labels.to(device))
        if len(self) * self.stored[:1].nbytes <= SHARE_OF_MEMORY * free_memory(device):
            moved = replace(moved, stored=self.images.to(device), rows=None)
        return moved

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            indices (`torch.Tensor` of shape `(batch_size,)`): int64, on the device of the labels.

        Returns:
            The images, uint8, and their labels, both on the device of the labels.
        """
        device = self.labels.device
        if self.stored.device == device and self.rows is None:
            return self.stored[indices], self.labels[indices]
        positions = indices.cpu() if self.rows is None else self.rows[indices.cpu()]
        return self.stored[positions].to(device, non_blocking=True), self.labels[indices]

    def select(self, indices: torch.Tensor) -> "ImageData":
        """The images at `indices` as a data set with its own fingerprint; images on disk stay there."""
        chosen = indices.cpu()
        digest = hashlib.sha256(self.fingerprint.encode() + chosen.numpy().tobytes()).hexdigest()
        part = replace(self, labels=self.labels[chosen.to(self.labels.device)], fingerprint=digest[:16])
        if self.rows is None:
            return replace(part, stored=self.stored[chosen.to(self.stored.device)])
        return replace(part, rows=self.rows[chosen])


def free_memory(device: torch.device) -> int:
    """Free memory in bytes: of a GPU, or else of this machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def copies_among(images: ImageData, others: ImageData) -> torch.Tensor:
    """Which images equal one of the others in every pixel: bool, of shape `(len(images),)`."""
    known = {digest for batch in _digests(others) for digest in batch}
    return torch.tensor([digest in known for batch in _digests(images) for digest in batch], dtype=torch.bool)


def _digests(data: ImageData) -> Iterator[list[bytes]]:
    for rows in torch.arange(len(data), device=data.labels.device).split(4096):
        yield [hashlib.sha256(image.tobytes()).digest() for image in data.batch(rows)[0].cpu().numpy()]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Converts uint8 images to float32 in [-1, 1], the input of all networks here."""
    return images.float() / 127.5 - 1


def holdout(data: ImageData, fraction: float = 0.1, seed: int = 0) -> tuple[ImageData, ImageData]:
    """
    Splits a data set in two, stratified; the split depends only on the seed.

    Args:
        data ([`ImageData`]): Has at least two images of each class.
        fraction (`float`, *optional*, defaults to 0.1): Share of each class in the second part, at least one image.

    Returns:
        The larger part, and the part that is held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` is {fraction}; it must lie between 0 and 1.")
    labels = data.labels.cpu()
    counts = torch.bincount(labels, minlength=data.num_classes)
    if (counts < 2).any():
        too_few = [data.class_names[i] for i in torch.nonzero(counts < 2).flatten().tolist()]
        raise ValueError(f"a part cannot be held out: the class {listed(too_few)} has fewer than 2 images.")
    rng = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(data), dtype=torch.bool)
    for members in members_by_class(labels, data.num_classes):
        count = len(members)
        size = min(max(1, round(count * fraction)), count - 1)
        held_out[members[torch.randperm(count, generator=rng)[:size]]] = True
    return data.select(torch.nonzero(~held_out).flatten()), data.select(torch.nonzero(held_out).flatten())


def members_by_class(labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, ...]:
    """
    The positions of each class in `labels` `(N,)`, ascending. One sort finds all of them, however many classes there
    are.
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    return labels.argsort(stable=True).split(counts)


def stratified_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """An order of all images in which every prefix has the classes in proportion, as nearly as possible."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)
    for members in members_by_class(labels[order], int(labels.max()) + 1):
        if len(members) == 0:
            continue
        members = order[members]
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        # One image of each class comes before any second one.
        position[members[0]] -= 1
    return position.argsort(stable=True)
