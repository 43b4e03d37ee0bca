"""Real images as controls: as a stream, a subset, or all of them. One function for each control."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from ..data.image_data import ImageData
from ..streams.real import RealStream, WholeSetStream
from .codecs import PNG_FILES, Codec, packed_subset, png_bytes, shuffled_classes, unpacked
from .judges import Judge
from .names import REAL
from .sources import Source


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """
    What real images are compared with.

    Args:
        train ([`ImageData`]): Where they come from.
        ipc (`int`): Images per class and epoch.
        judge ([`Judge`]): Trains and scores the classifiers.
        protocol (`str`): The protocols of the rows that they are compared with.
        budget (`int`): The bytes of those rows: of the generator, and of the latents of a fixed set.
        codec_for: From a number of bytes to the best codec for them.
    """

    train: ImageData
    ipc: int
    judge: Judge
    protocol: str
    budget: int
    codec_for: Callable[[int], Codec] = lambda budget: PNG_FILES


def streamed(of: Comparison) -> Source:
    """All images, `ipc` of each class in every epoch."""
    return _real("streamed", of, lambda seed: of.train)


def random(of: Comparison) -> Source:
    """The same `ipc` images of each class in every epoch, drawn at random."""
    return _real("random", of, lambda seed: random_subset(of.train, of.ipc, seed))


def equal_bytes(of: Comparison) -> Source:
    """Class-balanced images up to `budget` bytes, as PNG files."""
    return _packed("equal_bytes", of, PNG_FILES)


def equal_bytes_lossy(of: Comparison) -> Source:
    """Class-balanced images up to `budget` bytes, in the best codec for them."""
    codec = of.codec_for(of.budget)
    return replace(_packed("equal_bytes_lossy", of, codec), description=f"{REAL['equal_bytes']}, {codec.name}")


def whole(of: Comparison) -> Source:
    """All images, shuffled without regard to class, at the same number of steps."""
    drawn = min(of.judge.recipe.epochs * of.ipc * of.train.num_classes, len(of.train))
    return replace(
        _real("whole", of, lambda seed: of.train),
        stream=lambda seed: WholeSetStream(of.train, of.ipc, seed, of.judge.recipe.batch_size),
        seen=lambda seed: drawn,
    )


# The function of each control in `REAL`.
CONTROLS: dict[str, Callable[[Comparison], Source]] = {
    "streamed": streamed,
    "random": random,
    "equal_bytes": equal_bytes,
    "equal_bytes_lossy": equal_bytes_lossy,
    "whole": whole,
}


def _real(kind: str, of: Comparison, images: Callable[[int], ImageData]) -> Source:
    """`ipc` images per class and epoch of what `images` gives for the seed of a row."""
    images = cache(images)
    drawn = of.judge.recipe.epochs * of.ipc

    def seen(seed: int) -> int:
        in_class = torch.bincount(images(seed).labels, minlength=of.train.num_classes)
        return int(in_class.clamp(max=drawn).sum())

    return Source(
        description=REAL[kind],
        kind=kind,
        protocol=of.protocol,
        ipc=of.ipc,
        judge=of.judge,
        stream=lambda seed: RealStream(images(seed), of.ipc, seed, of.judge.recipe.batch_size),
        content=lambda seed: of.train.fingerprint,
        stored=cache(lambda seed: png_bytes(images(seed))),
        seen=seen,
        control=True,
    )


def _packed(kind: str, of: Comparison, codec: Codec) -> Source:
    """Images that were stored in a container of at most `budget` bytes and read back."""

    @cache
    def container(seed: int) -> bytes:
        return packed_subset(of.train, of.budget, seed, codec)

    return replace(
        _real(kind, of, lambda seed: unpacked(container(seed), of.train)),
        content=lambda seed: f"{of.train.fingerprint}/{of.budget}/{codec.name}",
        stored=lambda seed: len(container(seed)),
    )


def random_subset(train: ImageData, ipc: int, seed: int) -> ImageData:
    """`ipc` images of every class, or all of a class that has fewer."""
    return train.select(torch.cat([members[:ipc] for members in shuffled_classes(train, seed)]))
