"""What the classifiers of a row are trained on: generated images, fresh or fixed, with hard labels or a teacher's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..data.image_data import ImageData
from ..models import DiMLabeler
from ..streams.generated import GeneratedStream
from ..streams.real import RealStream
from ..weights import module_bytes, module_digest
from .fixed_sets import fixed_set
from .judges import Judge, Stream
from .names import GENERATED
from .tables import Row, row_title


# From the seed of a row to the latents and labels of a fixed set.
LatentsOf = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Draw:
    """
    How the images of a stream are drawn from a generator: what can be tuned without training it again.

    Args:
        noise_scale (`float`), max_attempts (`int`), min_confidence (`float`), choose_from (`int`):
            As in [`DiMDataset`].
    """

    noise_scale: float = 1.0
    max_attempts: int = 1
    min_confidence: float = 0.0
    choose_from: int = 1

    @property
    def filtered(self) -> bool:
        """Whether a teacher chooses among the images, and so must be stored too."""
        return self.max_attempts > 1 or self.choose_from > 1

    @property
    def title(self) -> str:
        """The addition to a row's name; empty for the usual draw."""
        parts = [f"noise x {self.noise_scale:g}"] if self.noise_scale != 1 else []
        if self.max_attempts > 1:
            confidence = f", confidence {self.min_confidence:g}" if self.min_confidence else ""
            parts.append(f"teacher's filter ({self.max_attempts} draws{confidence})")
        if self.choose_from > 1:
            parts.append(f"chosen from {self.choose_from} times as many")
        return ", ".join(parts)

    def identity(self) -> dict[str, Any]:
        """The values that differ from the usual draw."""
        values = {name: value for name, value in asdict(self).items() if value != getattr(Draw, name)}
        # Of draws that are all rejected; development versions kept the last one.
        return values | ({"kept": "best"} if self.max_attempts > 1 else {})


@dataclass(frozen=True, kw_only=True)
class Source:
    """
    What the classifiers of a row are trained on, and how.

    Args:
        description (`str`): What the table calls it.
        kind (`str`): Together with `content`, identifies the source in results.jsonl.
        protocol (`str`): `"A"`, `"B"` or `"C"`; of a control, the protocols that it is compared with.
        ipc (`int`): Images per class and epoch; of a fixed set, images per class.
        judge ([`Judge`]): Trains and scores the classifiers.
        stream: From the seed of a row to what its classifier is trained on.
        content: From the seed to a digest of the weights, latents or real images that determine the stream.
        stored: From the seed to the bytes that must be kept: weights, latents and soft labels, or real images with
            their labels in a container (see `codecs.py`).
        seen: From the seed to the number of different images that a classifier sees.
        draw ([`Draw`], *optional*): How generated images are drawn.
        labels (`str`, *optional*, defaults to `"hard"`): `"soft"` for those of a teacher.
        augment (`bool`, *optional*, defaults to `True`): Whether classifiers are trained with augmentation.
        control (`bool`, *optional*, defaults to `False`): Whether the row is not a result of the distilled data set.
    """

    description: str
    kind: str
    protocol: str
    ipc: int
    judge: Judge
    stream: Callable[[int], Stream]
    content: Callable[[int], str]
    stored: Callable[[int], int]
    seen: Callable[[int], int]
    draw: Draw = Draw()
    labels: str = "hard"
    augment: bool = True
    control: bool = False

    @property
    def title(self) -> str:
        """The description, with soft labels or missing augmentation."""
        return row_title(self.description, self.labels, self.augment)

    def identity(self, seed: int) -> dict[str, Any]:
        """JSON values that determine the images and labels of a seed, and how a classifier is trained on them."""
        identity: dict[str, Any] = {"source": self.kind, "content": self.content(seed)} | self.draw.identity()
        if self.labels != "hard":
            identity["labels"] = self.labels
        if not self.augment:
            identity["augment"] = False
        return identity

    def train(self, classifier: str, test: ImageData, seed: int, progress: bool = False) -> dict[str, Any]:
        """The figures of one classifier: `accuracy`, in [0, 1], and others of its judge."""
        return self.judge.train(
            self.stream(seed), classifier, test, seed=seed, augment=self.augment, progress=progress
        )

    def row(self, classifier: str, seed: int, results: Sequence[dict[str, Any]]) -> Row:
        """The row of results with `accuracy` and `seconds`, one per seed; `seed` determines its counts and bytes."""
        stream = self.stream(seed)
        return Row(
            source=self.description,
            classifier=classifier,
            ipc=self.ipc,
            steps=self.judge.recipe.epochs * stream.steps_per_epoch,
            distinct_images=self.seen(seed),
            bytes=self.stored(seed),
            num_classes=stream.num_classes,
            accuracies=[result["accuracy"] for result in results],
            seconds=round(sum(result["seconds"] for result in results) / len(results), 1),
            protocol=self.protocol,
            labels=self.labels,
            augment=self.augment,
            control=self.control,
        )


def generated_source(
    pipeline: DiffusionPipeline,
    ipc: int,
    judge: Judge,
    description: str = GENERATED,
    control: bool = False,
    draw: Draw = Draw(),
) -> Source:
    """Fresh images of a pipeline in every epoch, `ipc` per class: protocol B."""
    networks = [pipeline.generator, pipeline.labeler] if draw.filtered else [pipeline.generator]
    content = "/".join(module_digest(network) for network in networks)
    images = judge.recipe.epochs * ipc * pipeline.generator.config.num_classes
    return Source(
        description=", ".join(part for part in (description, draw.title) if part),
        kind="generated",
        protocol="B",
        ipc=ipc,
        judge=judge,
        stream=lambda seed: GeneratedStream(pipeline, ipc, seed, judge.recipe.batch_size, **asdict(draw)),
        content=lambda seed: content,
        stored=lambda seed: sum(map(module_bytes, networks)),
        seen=lambda seed: images,
        draw=draw,
        control=control,
    )


def fixed_source(
    pipeline: DiffusionPipeline,
    latents_of: LatentsOf,
    ipc: int,
    judge: Judge,
    description: str,
    control: bool = False,
) -> Source:
    """
    The same `ipc` images of a pipeline per class in every epoch: protocol A.

    Args:
        latents_of: From the seed of a row to the set's latents `(n, latent_dim)` and labels `(n,)`.
    """
    digest = module_digest(pipeline.generator)

    @cache
    def images(seed: int) -> ImageData:
        latents, labels = latents_of(seed)
        return fixed_set(pipeline, latents, labels.to(pipeline.device))

    def stored(seed: int) -> int:
        latents, _ = latents_of(seed)
        return module_bytes(pipeline.generator) + latents.numel() * latents.element_size()

    return Source(
        description=description,
        kind="fixed",
        protocol="A",
        ipc=ipc,
        judge=judge,
        stream=lambda seed: RealStream(images(seed), ipc, seed, judge.recipe.batch_size),
        content=lambda seed: f"{digest}/{images(seed).fingerprint}",
        stored=stored,
        seen=lambda seed: len(images(seed)),
        control=control,
    )


def with_soft_labels(source: Source, teacher: DiMLabeler) -> Source:
    """
    The source with a teacher's probabilities as labels. The teacher must be stored with a stream, the probabilities
    with a fixed set.
    """
    digest = module_digest(teacher)

    def stored(seed: int) -> int:
        probabilities = 4 * teacher.config.num_classes * source.seen(seed)
        if source.kind != "generated":
            return source.stored(seed) + probabilities
        return source.stored(seed) + (0 if source.draw.filtered else module_bytes(teacher))

    return replace(
        source,
        stream=lambda seed: SoftLabels(source.stream(seed), teacher),
        content=lambda seed: f"{source.content(seed)}/{digest}",
        stored=stored,
        labels="soft",
    )


class SoftLabels:
    """
    A stream of the same images with a teacher's probabilities as labels, as `GeneratedStream(..., soft_labels=True)`
    has them: of real images and fixed sets too.

    Args:
        stream: Gives `batches(epoch)` of images in [-1, 1] and labels.
        teacher ([`DiMLabeler`]): In `eval()`, on the stream's device.
    """

    def __init__(self, stream: Stream, teacher: DiMLabeler):
        self.stream, self.teacher = stream, teacher
        self.num_classes, self.steps_per_epoch = stream.num_classes, stream.steps_per_epoch

    @torch.no_grad()
    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images, and float32 probabilities of shape `(batch_size, num_classes)`."""
        for images, _ in self.stream.batches(epoch):
            yield images, self.teacher(images.to(self.teacher.dtype)).logits.float().softmax(dim=1)
