"""What the rows of an evaluation are trained on, generated or real, and the scores that compare rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..data.image_data import ImageData
from ..models import DiMLabeler
from ..streams.generated import GeneratedStream
from ..streams.real import RealStream, WholeSetStream
from ..weights import module_bytes, module_digest
from .codecs import PNG_FILES, Codec, packed_subset, png_bytes, shuffled_classes, unpacked
from .fixed_sets import fixed_set
from .judges import DeploymentRecipe, Stream
from .metrics import augmentation_robust_score, label_robust_score
from .protocol_c import LegacyStream
from .tables import PROTOCOLS, Row, row_title


GENERATED, BEFORE_MATCHING = "generated images", "generated, before matching"
REAL = {
    "streamed": "real images, streamed",
    "random": "real subset of ipc per class",
    "equal_bytes": "real subset of equal bytes",
    "equal_bytes_lossy": "real subset of equal bytes, best coding",
    "whole": "real images, the whole set",
}
# From the seed of a row to the latents and labels of a fixed set.
LatentsOf = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Source:
    """
    What the classifiers of a row are trained on.

    Args:
        description (`str`): What the table calls it.
        kind (`str`): With `content`, names the source in the results, whatever it is called.
        protocol (`str`): `"A"`, `"B"` or `"C"`; of a control, those that it is one of.
        stream: From the seed of a row to what its classifier is trained on.
        content: From the seed to a short name of the weights, latents or real images that decide the stream.
        stored: From the seed to the bytes of all that has to be kept: weights, latents and what labels take, or real
            images with their labels in a container (see `codecs.py`).
        seen: From the seed to the number of different images that a classifier sees.
        labels (`str`, *optional*, defaults to `"hard"`): `"soft"` for those of a teacher.
        augment (`bool`, *optional*, defaults to `True`): Whether classifiers are trained with augmentation.
        control (`bool`, *optional*, defaults to `False`): Whether the row is no result of the distilled data set.
    """

    description: str
    kind: str
    protocol: str
    stream: Callable[[int], Stream]
    content: Callable[[int], str]
    stored: Callable[[int], int]
    seen: Callable[[int], int]
    labels: str = "hard"
    augment: bool = True
    control: bool = False

    @property
    def title(self) -> str:
        """The description, with what is not as usual."""
        return row_title(self.description, self.labels, self.augment)

    def identity(self, seed: int) -> dict[str, Any]:
        """JSON values that decide the images and labels of a seed, and how a classifier is trained on them."""
        identity: dict[str, Any] = {"source": self.kind, "content": self.content(seed)}
        if self.labels != "hard":
            identity["labels"] = self.labels
        if not self.augment:
            identity["augment"] = False
        return identity

    def row(
        self, classifier: str, ipc: int, recipe: DeploymentRecipe, seed: int, results: Sequence[dict[str, Any]]
    ) -> Row:
        """The row of results with `accuracy` and `seconds`, one per seed; `seed` is that of its counts and bytes."""
        return Row(
            self.description,
            classifier,
            ipc,
            recipe.epochs * self.stream(seed).steps_per_epoch,
            self.seen(seed),
            self.stored(seed),
            self.stream(seed).num_classes,
            [result["accuracy"] for result in results],
            round(sum(result["seconds"] for result in results) / len(results), 1),
            self.protocol,
            self.labels,
            self.augment,
            self.control,
        )


def list_sources(
    pipeline: DiffusionPipeline,
    ipc: int,
    recipe: DeploymentRecipe,
    train: ImageData,
    *,
    protocols: Sequence[str],
    controls: Sequence[str] = (),
    before_matching: DiffusionPipeline | None = None,
    selections: Mapping[str, LatentsOf] | None = None,
    selections_before: Mapping[str, LatentsOf] | None = None,
    soft_labels: bool = False,
    without_augmentation: bool = False,
    codec_for: Callable[[int], Codec] = lambda budget: PNG_FILES,
) -> list[Source]:
    """
    What an evaluation trains classifiers on at one ipc, results first.

    Args:
        pipeline ([`DiMPipeline`]): What is evaluated; with a `labeler` for soft labels.
        ipc (`int`): Images per class.
        recipe ([`DeploymentRecipe`]): How classifiers are trained.
        train ([`ImageData`]): Where real images come from.
        protocols (`Sequence[str]`): Any of `"A"`, `"B"` and `"C"`.
        controls (`Sequence[str]`, *optional*): Any of `REAL`, as controls of A and B.
        before_matching ([`DiMPipeline`], *optional*): A control of A and B.
        selections (`Mapping`, *optional*): The fixed sets of A by their descriptions, as [`fixed_source`] takes them.
        selections_before (`Mapping`, *optional*): Those of `before_matching`, by the same descriptions.
        soft_labels (`bool`, *optional*, defaults to `False`):
            Whether results, and the random real subset, are there with the teacher's labels too.
        without_augmentation (`bool`, *optional*, defaults to `False`): The same for training without augmentation.
        codec_for: From a number of bytes to the codec of `"equal_bytes_lossy"`, as [`best_codec`] finds it.

    Raises:
        ValueError: If a protocol or a control is unknown, or a teacher is asked for that the pipeline does not have.
    """
    for argument, values, valid in (("protocols", protocols, PROTOCOLS), ("controls", controls, REAL)):
        if unknown := [value for value in values if value not in valid]:
            raise ValueError(f"`{argument}` has {unknown[0]!r}; valid are {', '.join(map(repr, valid))}.")
    if soft_labels and pipeline.labeler is None:
        raise ValueError("`soft_labels` takes a teacher, but the pipeline has no `labeler`.")
    sources = [generated_source(pipeline, ipc, recipe)] if "B" in protocols else []
    if "A" in protocols:
        sources += [fixed_source(pipeline, each, ipc, recipe, name) for name, each in (selections or {}).items()]
    compared = list(sources)
    if before_matching and "B" in protocols:
        sources.append(generated_source(before_matching, ipc, recipe, BEFORE_MATCHING, control=True))
    if before_matching and "A" in protocols:
        sources += [
            fixed_source(before_matching, each, ipc, recipe, f"{name}, before matching", control=True)
            for name, each in (selections_before or {}).items()
        ]
    if fair := ", ".join(sorted(set(protocols) - {"C"})):
        # Of the protocols that are compared with the same real images, the larger budget counts.
        budget = module_bytes(pipeline.generator)
        if "A" in protocols:
            config = pipeline.generator.config
            budget += 4 * ipc * config.num_classes * config.latent_dim
        real = []
        for kind in REAL:
            if kind in controls:
                codec = codec_for(budget) if kind == "equal_bytes_lossy" else PNG_FILES
                real.append(real_source(kind, train, ipc, recipe, budget, fair, codec))
        sources += real
        compared += [source for source in real if source.kind == "random"]
    if soft_labels:
        sources += [with_soft_labels(source, pipeline.labeler) for source in compared]
    if without_augmentation:
        sources += [replace(source, augment=False) for source in compared]
    if "C" in protocols:
        sources.append(legacy_source(pipeline, ipc, recipe))
    return sources


def generated_source(
    pipeline: DiffusionPipeline,
    ipc: int,
    recipe: DeploymentRecipe,
    description: str = GENERATED,
    control: bool = False,
) -> Source:
    """Fresh images of a pipeline in every epoch, `ipc` per class: protocol B."""
    digest = module_digest(pipeline.generator)
    images = recipe.epochs * ipc * pipeline.generator.config.num_classes
    return Source(
        description,
        "generated",
        "B",
        lambda seed: GeneratedStream(pipeline.generator, ipc, seed, recipe.batch_size),
        lambda seed: digest,
        lambda seed: module_bytes(pipeline.generator),
        lambda seed: images,
        control=control,
    )


def fixed_source(
    pipeline: DiffusionPipeline,
    latents_of: LatentsOf,
    ipc: int,
    recipe: DeploymentRecipe,
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
        description,
        "fixed",
        "A",
        lambda seed: RealStream(images(seed), ipc, seed, recipe.batch_size),
        lambda seed: f"{digest}/{images(seed).fingerprint}",
        stored,
        lambda seed: len(images(seed)),
        control=control,
    )


def legacy_source(pipeline: DiffusionPipeline, ipc: int, recipe: DeploymentRecipe) -> Source:
    """Fresh images of a pipeline, for [`legacy_accuracy`]: protocol C."""

    def stream(seed: int) -> LegacyStream:
        return LegacyStream(pipeline.generator, ipc, seed)

    source = generated_source(pipeline, ipc, recipe)
    seen = recipe.epochs * stream(0).length
    return replace(source, kind="legacy", protocol="C", stream=stream, seen=lambda seed: seen)


def real_source(
    kind: str,
    train: ImageData,
    ipc: int,
    recipe: DeploymentRecipe,
    budget: int,
    protocol: str,
    codec: Codec = PNG_FILES,
) -> Source:
    """
    Real images as a control.

    Args:
        kind (`str`): One of `REAL`.
        budget (`int`): The bytes of those of equal bytes: of the generator, and of the latents of a fixed set.
        protocol (`str`): The protocols that it is a control of.
        codec ([`Codec`], *optional*): How those of equal bytes are kept, and so what is read back; by default as PNG.
    """
    if kind not in REAL:
        raise ValueError(f"`kind` is {kind!r}; valid are {', '.join(map(repr, REAL))}.")
    drawn = recipe.epochs * ipc
    of_equal_bytes = kind.startswith("equal_bytes")

    @cache
    def container(seed: int) -> bytes:
        return packed_subset(train, budget, seed, codec)

    @cache
    def images(seed: int) -> ImageData:
        if kind == "random":
            return random_subset(train, ipc, seed)
        return unpacked(container(seed), train) if of_equal_bytes else train

    @cache
    def stored(seed: int) -> int:
        return len(container(seed)) if of_equal_bytes else png_bytes(images(seed))

    def seen(seed: int) -> int:
        data = images(seed)
        in_class = torch.bincount(data.labels, minlength=data.num_classes)
        return min(drawn * data.num_classes, len(data)) if kind == "whole" else int(in_class.clamp(max=drawn).sum())

    stream = WholeSetStream if kind == "whole" else RealStream
    return Source(
        f"{REAL['equal_bytes']}, {codec.name}" if kind == "equal_bytes_lossy" else REAL[kind],
        kind,
        protocol,
        lambda seed: stream(images(seed), ipc, seed, recipe.batch_size),
        lambda seed: f"{train.fingerprint}/{budget}/{codec.name}" if of_equal_bytes else train.fingerprint,
        stored,
        seen,
        control=True,
    )


def with_soft_labels(source: Source, teacher: DiMLabeler) -> Source:
    """
    A source with a teacher's probabilities as labels. What has to be stored with it is the teacher where images never
    end, and the probabilities of a fixed set.
    """
    digest = module_digest(teacher)

    def stored(seed: int) -> int:
        probabilities = 4 * teacher.config.num_classes * source.seen(seed)
        return source.stored(seed) + (module_bytes(teacher) if source.kind == "generated" else probabilities)

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


def random_subset(train: ImageData, ipc: int, seed: int) -> ImageData:
    """`ipc` images of every class, or all of a class that has fewer."""
    return train.select(torch.cat([members[:ipc] for members in shuffled_classes(train, seed)]))


def scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    The scores of DD-Ranking (see `metrics.py`) that the rows allow, from mean accuracies.

    LRS takes the rows of the same classifier and ipc on a random real subset, with the same kind of labels, and on the
    whole set. ARS takes rows with and without augmentation, generated and random.

    Returns:
        For each result in protocol A or B with augmentation: `source`, `labels`, `classifier`, `ipc`, and `lrs` and
        `ars` in [0, 1] or `None`. A row without either is left out.
    """
    means = {(row.source, row.labels, row.augment, row.protocol == "C", row.classifier, row.ipc): row for row in rows}

    def mean(source: str, labels: str, augment: bool, like: Row) -> float | None:
        row = means.get((source, labels, augment, False, like.classifier, like.ipc))
        return row.mean if row else None

    found = []
    for row in rows:
        if row.control or row.protocol == "C" or not row.augment:
            continue
        real, hard = mean(REAL["whole"], "hard", True, row), mean(row.source, "hard", True, row)
        random = mean(REAL["random"], row.labels, True, row)
        plain, random_plain = mean(row.source, row.labels, False, row), mean(REAL["random"], row.labels, False, row)
        lrs = ars = None
        if real is not None and hard is not None and random is not None:
            lrs = label_robust_score(real=real, hard=hard, own=row.mean, random=random)
        if random is not None and plain is not None and random_plain is not None:
            ars = augmentation_robust_score(
                augmented=row.mean, random_augmented=random, plain=plain, random_plain=random_plain
            )
        if lrs is not None or ars is not None:
            found.append(
                {
                    "source": row.source,
                    "labels": row.labels,
                    "classifier": row.classifier,
                    "ipc": row.ipc,
                    "lrs": lrs,
                    "ars": ars,
                }
            )
    return found
