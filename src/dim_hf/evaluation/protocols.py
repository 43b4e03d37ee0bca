"""
The protocols of an evaluation: what rows each one has, and how their classifiers are trained.

All rows of A, B and their controls are trained alike, so they are comparable; protocol C has its own way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusers import DiffusionPipeline
from sklearn.metrics import confusion_matrix

from ..data.image_data import ImageData
from ..weights import module_bytes
from .codecs import PNG_FILES, Codec
from .controls import CONTROLS, Comparison, streamed
from .judges import Stream, predict, train_classifier
from .names import BEFORE_MATCHING, COMPARED, PROTOCOLS, REAL
from .protocol_c import LegacyRealStream, LegacyStream, legacy_figures
from .recipe import LEGACY_BATCH_SIZE, DeploymentRecipe
from .sources import Draw, LatentsOf, Source, fixed_source, generated_source, with_soft_labels


# Results of at most this many classes include the confusion matrix.
MOST_IN_CONFUSION = 100


@dataclass(frozen=True)
class Deployment:
    """Protocols A and B and their controls: trained by a recipe, scored once, after the last epoch."""

    recipe: DeploymentRecipe

    def train(
        self, stream: Stream, classifier: str, test: ImageData, *, seed: int, augment: bool, progress: bool
    ) -> dict[str, Any]:
        """`accuracy` and, for at most 100 classes, `confusion`: rows are true classes, columns predictions."""
        network = train_classifier(
            stream,
            classifier,
            self.recipe,
            channels=test.channels,
            size=test.size,
            seed=seed,
            device=test.labels.device,
            augment=augment,
            progress=progress,
        )
        predictions = predict(network, test)
        figures: dict[str, Any] = {"accuracy": (predictions == test.labels).sum().item() / len(test)}
        if test.num_classes <= MOST_IN_CONFUSION:
            counts = confusion_matrix(test.labels.cpu(), predictions.cpu(), labels=range(test.num_classes))
            figures["confusion"] = counts.tolist()
        return figures


@dataclass(frozen=True)
class Legacy:
    """Protocol C: trained and scored as the released code does it. Of the recipe, epochs and batch size count."""

    recipe: DeploymentRecipe

    def train(
        self, stream: Stream, classifier: str, test: ImageData, *, seed: int, augment: bool, progress: bool
    ) -> dict[str, Any]:
        """The figures of [`legacy_figures`]; images are always augmented."""
        return legacy_figures(stream, classifier, test, epochs=self.recipe.epochs, seed=seed, progress=progress)


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
    draws: Sequence[Draw] = (Draw(),),
    soft_labels: bool = False,
    without_augmentation: bool = False,
    codec_for: Callable[[int], Codec] = lambda budget: PNG_FILES,
    legacy_batch_size: int = LEGACY_BATCH_SIZE,
) -> list[Source]:
    """
    What an evaluation trains classifiers on at one ipc, results first.

    Args:
        pipeline ([`DiMPipeline`]): What is evaluated; with a `labeler` for soft labels.
        ipc (`int`): Images per class.
        recipe ([`DeploymentRecipe`]): How classifiers are trained.
        train ([`ImageData`]): The real images for controls.
        protocols (`Sequence[str]`): Any of `"A"`, `"B"` and `"C"`.
        controls (`Sequence[str]`, *optional*): Any of `REAL`, as controls of A and B; `"streamed"` is one of C, too.
        before_matching ([`DiMPipeline`], *optional*): A control of A and B.
        selections (`Mapping`, *optional*): The fixed sets of A by their descriptions, as [`fixed_source`] takes them.
        selections_before (`Mapping`, *optional*): Those of `before_matching`, by the same descriptions.
        draws (`Sequence[Draw]`, *optional*): How the images of B are drawn; each is a row.
        soft_labels (`bool`, *optional*, defaults to `False`):
            Whether to repeat results, and the random real subset, with the teacher's labels.
        without_augmentation (`bool`, *optional*, defaults to `False`): The same for training without augmentation.
        codec_for: From a number of bytes to the codec of `"equal_bytes_lossy"`, as [`best_codec`] finds it.
        legacy_batch_size (`int`, *optional*, defaults to 128): Images of a batch of C.

    Raises:
        ValueError: If a protocol or a control is unknown, or a teacher is asked for that the pipeline does not have.
    """
    for argument, values, valid in (("protocols", protocols, PROTOCOLS), ("controls", controls, REAL)):
        if unknown := [value for value in values if value not in valid]:
            raise ValueError(f"`{argument}` has {unknown[0]!r}; valid are {', '.join(map(repr, valid))}.")
    if pipeline.labeler is None and (soft_labels or any(draw.filtered for draw in draws)):
        asked = "`soft_labels` takes" if soft_labels else "the filter of `draws` takes"
        raise ValueError(f"{asked} a teacher, but the pipeline has no `labeler`.")
    judge = Deployment(recipe)
    sources = [generated_source(pipeline, ipc, judge, draw=draw) for draw in draws if "B" in protocols]
    if "A" in protocols:
        sources += [fixed_source(pipeline, each, ipc, judge, name) for name, each in (selections or {}).items()]
    compared = list(sources)
    if before_matching and "B" in protocols:
        sources.append(generated_source(before_matching, ipc, judge, BEFORE_MATCHING, control=True))
    if before_matching and "A" in protocols:
        sources += [
            fixed_source(before_matching, each, ipc, judge, f"{name}, before matching", control=True)
            for name, each in (selections_before or {}).items()
        ]
    if fair := ", ".join(sorted({*protocols} & {*COMPARED})):
        # A and B are compared with the same real images, so the larger budget counts.
        budget = module_bytes(pipeline.generator)
        if "A" in protocols:
            config = pipeline.generator.config
            budget += 4 * ipc * config.num_classes * config.latent_dim
        comparison = Comparison(train=train, ipc=ipc, judge=judge, protocol=fair, budget=budget, codec_for=codec_for)
        real = [control(comparison) for name, control in CONTROLS.items() if name in controls]
        sources += real
        compared += [source for source in real if source.kind == "random"]
    if soft_labels:
        sources += [with_soft_labels(source, pipeline.labeler) for source in compared]
    if without_augmentation:
        sources += [replace(source, augment=False) for source in compared]
    if "C" in protocols:
        # Whatever else the recipe says does not change what C does.
        legacy = Legacy(DeploymentRecipe(epochs=recipe.epochs, batch_size=legacy_batch_size))
        sources.append(legacy_source(pipeline, ipc, legacy))
        if "streamed" in controls:
            sources.append(legacy_streamed(train, ipc, legacy))
    return sources


def legacy_source(pipeline: DiffusionPipeline, ipc: int, judge: Legacy) -> Source:
    """Fresh images of a pipeline: protocol C."""

    def stream(seed: int) -> LegacyStream:
        return LegacyStream(pipeline.generator, ipc, seed, judge.recipe.batch_size)

    seen = judge.recipe.epochs * stream(0).length
    return replace(
        generated_source(pipeline, ipc, judge), kind="legacy", protocol="C", stream=stream, seen=lambda seed: seen
    )


def legacy_streamed(train: ImageData, ipc: int, judge: Legacy) -> Source:
    """All real images, in batches like those of generated ones: the limit of protocol C."""

    def stream(seed: int) -> LegacyRealStream:
        return LegacyRealStream(train, ipc, seed, judge.recipe.batch_size)

    def seen(seed: int) -> int:
        example = stream(seed)
        drawn = judge.recipe.epochs * example.length // len(example.parts)
        return sum(min(drawn, len(part)) for part in example.parts)

    control = streamed(Comparison(train=train, ipc=ipc, judge=judge, protocol="C", budget=0))
    return replace(control, kind="legacy_streamed", stream=stream, seen=seen)
