"""The rows, tables and scores of an evaluation, and its report in Markdown and JSON."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.image_data import ImageData
from ..files import replace_text
from ..machine import environment
from .metrics import augmentation_robust_score, label_robust_score
from .names import COMPARED, PROTOCOLS, REAL
from .recipe import DeploymentRecipe


@dataclass(frozen=True)
class Row:
    """
    One row of an evaluation: several classifiers of one kind, trained on one source.

    Args:
        source (`str`): What they were trained on.
        classifier (`str`): Their architecture.
        ipc (`int`): Images per class and epoch; of a fixed set, images per class.
        steps (`int`): Optimiser steps of each.
        distinct_images (`int`): Different images that each one saw.
        bytes (`int`): Everything of the source that must be stored: weights as saved with latents or soft labels, or
            real images with their labels in a container.
        num_classes (`int`): Of the data set.
        accuracies (`list[float]`): In [0, 1], one per seed.
        seconds (`float`): Mean time to train and score one, without making the generator or a fixed set.
        protocol (`str`): `"A"` (fixed set), `"B"` (streaming) or `"C"` (legacy); of a control, those it belongs to.
        labels (`str`): `"hard"`, or `"soft"` for those of a teacher.
        augment (`bool`): Whether they were trained with augmentation.
        control (`bool`): Whether the row is not a result of the distilled data set.
    """

    source: str
    classifier: str
    ipc: int
    steps: int
    distinct_images: int
    bytes: int
    num_classes: int
    accuracies: list[float]
    seconds: float
    protocol: str
    labels: str
    augment: bool
    control: bool

    @property
    def title(self) -> str:
        """What the classifiers were trained on, with soft labels or missing augmentation."""
        return row_title(self.source, self.labels, self.augment)

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def bits_per_class(self) -> float:
        """Stored bits divided by the classes, which compares data sets of different classes (arXiv 2507.17221)."""
        return 8 * self.bytes / self.num_classes

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; `None` with a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def row_title(source: str, labels: str, augment: bool) -> str:
    """
    The name of a source, followed by "soft labels" or "no augmentation" where that applies.

    Raises:
        ValueError: If `labels` is neither `"hard"` nor `"soft"`.
    """
    if labels not in ("hard", "soft"):
        raise ValueError(f"`labels` is {labels!r}; valid are 'hard' and 'soft'.")
    return source + (", soft labels" if labels == "soft" else "") + ("" if augment else ", no augmentation")


def results_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that also reads well as plain text; accuracies in percent."""
    return _markdown_table(*results_cells(rows))


def results_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of results."""
    header = [
        "trained on",
        "protocol",
        "classifier",
        "ipc",
        "steps",
        "distinct images",
        "size",
        "bits per class",
        "accuracy %",
        "seeds",
        "s",
    ]
    cells = [
        [
            row.title,
            row.protocol,
            row.classifier,
            str(row.ipc),
            f"{row.steps:,}",
            f"{row.distinct_images:,}",
            f"{row.bytes / 2**20:.2f} MiB" if row.bytes >= 2**17 else f"{row.bytes / 2**10:.2f} KiB",
            f"{row.bits_per_class:,.0f}",
            f"{100 * row.mean:.2f}" + ("" if row.std is None else f" ± {100 * row.std:.2f}"),
            str(len(row.accuracies)),
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    return header, cells


def scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    The scores of DD-Ranking (see `metrics.py`) that the rows allow, from mean accuracies.

    LRS takes the rows of the same classifier and ipc on a random real subset, with the same kind of labels, and on the
    whole set. ARS takes rows with and without augmentation, generated and random.

    Returns:
        For each result in protocol A or B with augmentation: `source`, `labels`, `classifier`, `ipc`, and `lrs` and
        `ars` in [0, 1] or `None`. A row without either is left out.
    """
    rows = [row for row in rows if row.control or row.protocol in COMPARED]
    by_kind = {(row.source, row.labels, row.augment, row.classifier, row.ipc): row for row in rows}

    def mean(source: str, labels: str, augment: bool, like: Row) -> float | None:
        row = by_kind.get((source, labels, augment, like.classifier, like.ipc))
        return row.mean if row else None

    found = []
    for row in rows:
        if row.control or not row.augment:
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


def scores_table(scores: Sequence[dict[str, Any]]) -> str:
    """The scores of DD-Ranking, as [`scores`] gives them, as a Markdown table; empty without any."""
    return _markdown_table(*scores_cells(scores)) if scores else ""


def scores_cells(scores: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of scores."""
    cells = [
        [
            row_title(score["source"], score["labels"], augment=True),
            score["classifier"],
            str(score["ipc"]),
            *("" if score[name] is None else f"{score[name]:.4f}" for name in ("lrs", "ars")),
        ]
        for score in scores
    ]
    return ["trained on", "classifier", "ipc", "LRS", "ARS"], cells


def _markdown_table(header: list[str], cells: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *cells]
    ]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def describe_protocol(
    protocols: Sequence[str],
    recipes: Mapping[int, DeploymentRecipe],
    seeds: Sequence[int],
    test: ImageData,
    scored_on: str,
    stored: int,
    as_many_images: float,
) -> str:
    """
    How the figures of an evaluation were made, in words.

    Args:
        protocols (`Sequence[str]`): Any of `"A"`, `"B"` and `"C"`.
        recipes (`Mapping[int, DeploymentRecipe]`):
            Of A, B and the controls, by ipc. They differ only in their epochs.
        seeds (`Sequence[int]`): Of each row.
        test ([`ImageData`]): What classifiers were scored on.
        scored_on (`str`): What that is called.
        stored (`int`): Bytes of the generator.
        as_many_images (`float`): Number of real images that take these bytes.
    """
    parts = [PROTOCOLS[name] for name in sorted(protocols)]
    recipe = next(iter(recipes.values()))
    lengths = [f"{each.epochs:,} at ipc {ipc}" for ipc, each in sorted(recipes.items())]
    if len({each.epochs for each in recipes.values()}) == 1:
        lengths = [f"{recipe.epochs:,}"]
    parts.append(f"Epochs of training: {', '.join(lengths)}.")
    if compared := sorted({*protocols} & {*COMPARED}):
        parts.append(
            f"Classifiers of {' and '.join(compared)} and the controls: SGD with a one-cycle "
            f"learning rate up to {recipe.learning_rate}, random shifts of up to an eighth of the size, mixed "
            f"precision: {recipe.mixed_precision}. All rows of an ipc take the same steps on batches of the same "
            f"size. Labels are hard and smoothed by {recipe.label_smoothing} where a row does not say otherwise; "
            "those of a teacher are not smoothed. Scored once, after the last epoch."
        )
    spread = "one seed, so no spread is known"
    if len(seeds) > 1:
        # The standard error of a normal sample's standard deviation is about 1 / sqrt(2 (n - 1)) of it.
        spread = (
            f"mean and standard deviation over the seeds {', '.join(map(str, seeds))} (over {len(seeds)} seeds "
            f"this standard deviation is itself uncertain by about {100 / math.sqrt(2 * (len(seeds) - 1)):.0f} %)"
        )
    parts.append(
        f"Accuracy on the {len(test):,} images of {scored_on}; {spread}. A seed determines a classifier, its noise "
        f"and its sets of images; the spread excludes variance between training runs of the generator. Real images "
        f"have the generator's {test.channels} x {test.size} x {test.size} (channels, height, width). Size: "
        f"everything that must be stored, which is weights as saved, with the latents of a fixed set and the teacher "
        f"or probabilities of soft labels, or real images with their labels in one container, as PNG files unless the "
        f"row names another codec. Bits per class: 8 times the bytes, divided by the classes. The generator takes "
        f"{stored:,} bytes, the size of {as_many_images:,.0f} real images as PNG. s: seconds to train and score one "
        f"classifier, without making the generator or a set."
    )
    return " ".join(parts)


def write_report(
    folder: str | os.PathLike,
    rows: Sequence[Row],
    protocol: str,
    details: dict[str, Any],
    scores: Sequence[dict[str, Any]] = (),
) -> None:
    """
    Writes `metrics.json` and `report.md`; the report shows `samples.png`, which lies beside it.

    Args:
        protocol (`str`): How the figures were made, in words.
        details: JSON values to add to `metrics.json`: options, environment and the like.
        scores: From [`scores`].
    """
    folder = Path(folder)
    metrics = details | {
        "protocol": protocol,
        "rows": [
            asdict(row) | {name: getattr(row, name) for name in ("bits_per_class", "mean", "std")} for row in rows
        ],
        "scores": list(scores),
    }
    replace_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    machine = "\n".join(f"- {name}: {value}" for name, value in environment().items())
    ranking = f"## Scores of DD-Ranking\n\n{scores_table(scores)}\n\n" if scores else ""
    text = (
        f"# Evaluation\n\n{results_table(rows)}\n\n{protocol}\n\n{ranking}"
        f"![Generated images, one row per class](samples.png)\n\n## Machine\n\n{machine}\n"
    )
    replace_text(folder / "report.md", text)
