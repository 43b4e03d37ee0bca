"""The report of an evaluation as one self-contained HTML file: tables, plots and pictures."""

import base64
import io
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import torch
from diffusers import DiffusionPipeline
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from ..data.image_data import ImageData
from ..files import replace_text
from ..machine import environment
from .sample_grid import GAP
from .tables import Row, results_cells, scores_cells


TEMPLATE = Path(__file__).parent / "report.html"
# Names of classes and models are not formulas; equal figures give equal files.
SETTINGS: Any = {"text.parse_math": False, "svg.hashsalt": "dim_hf", "font.size": 9}
# Most classes with which samples are shown beside real images, and the confusion matrix has numbers.
CLASSES_SHOWN, CLASSES_NUMBERED = 10, 20
SAMPLES_PER_CLASS = 4


@dataclass(frozen=True)
class Picture:
    """A figure of the report: `data` is base64 of an image of the MIME type `kind`."""

    title: str
    caption: str
    kind: str
    data: str


def write_html_report(
    folder: str | os.PathLike,
    rows: Sequence[Row],
    protocol: str,
    *,
    pipeline: DiffusionPipeline,
    train: ImageData,
    scores: Sequence[dict[str, Any]] = (),
    confusion: tuple[Row, torch.Tensor] | None = None,
    training: Sequence[dict[str, Any]] = (),
    audit: tuple[Sequence[dict[str, Any]], Sequence[Picture]] = ((), ()),
) -> None:
    """
    Writes `report.html`, with the picture `samples.png` that lies in the folder.

    Args:
        folder: The folder of the report.
        rows (`Sequence[Row]`): The table.
        protocol (`str`): How the figures were made, in words.
        pipeline ([`DiMPipeline`]): Makes the samples.
        train ([`ImageData`]): Real images to compare with, of the pipeline's size and channels.
        scores: From [`scores`].
        confusion (`tuple[Row, torch.Tensor]`, *optional*):
            A row, and of shape `(classes, classes)` how many images of each class (rows) its classifiers took for
            which (columns), in all its seeds.
        training: The records of a training run, lines of its `metrics.jsonl`.
        audit: Tables and pictures of an audit, as `dim_hf.audit.report` makes them.
    """
    folder = Path(folder)
    tables = [{"title": "", "text": protocol} | dict(zip(("header", "cells"), results_cells(rows), strict=True))]
    if scores:
        header, cells = scores_cells(scores)
        text = "From mean accuracies as fractions, in [0, 1]; the published package's raw output is another number."
        tables.append({"title": "Scores of DD-Ranking", "text": text, "header": header, "cells": cells})
    with matplotlib.rc_context(SETTINGS):
        figures = [accuracy_by_ipc(rows), accuracy_by_bytes(rows)]
        if training:
            figures.append(training_curves(training))
        samples = base64.b64encode((folder / "samples.png").read_bytes()).decode()
        figures.append(
            Picture(
                "Samples", "One row per class, from fixed noise; the images were not selected.", "image/png", samples
            )
        )
        if confusion is not None:
            row, counts = confusion
            figures.append(confusion_matrix(counts, pipeline.class_names, row))
        figures.append(neighbours(pipeline, train))
    write_page(folder / "report.html", "Evaluation", pipeline, [*tables, *audit[0]], [*figures, *audit[1]])


def write_page(
    path: str | os.PathLike,
    kind: str,
    pipeline: DiffusionPipeline,
    tables: Sequence[dict[str, Any]],
    figures: Sequence[Picture],
) -> None:
    """
    Writes a report as one HTML file.

    Args:
        kind (`str`): What it is, for its title.
        tables: Each has `title`, `header`, `cells` and the `text` that follows it.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    config = pipeline.generator.config
    size = f"{config.sample_size} x {config.sample_size}"
    text = template.render(
        title=f"{kind} of a generator of {config.num_classes} classes at {size} pixels",
        tables=tables,
        figures=figures,
        machine=environment(),
    )
    replace_text(path, text + "\n")


def accuracy_by_ipc(rows: Sequence[Row]) -> Picture:
    """Accuracy against images per class, a panel per classifier, with the standard deviation over the seeds."""
    figure, panels = _panels(rows)
    for axes, of_classifier in panels:
        lines = list(_lines(rows, of_classifier))
        for i, (name, colour, line) in enumerate(lines):
            line = sorted(line, key=lambda row: row.ipc)
            # Moved apart, so that error bars of the same ipc do not hide each other.
            places = [row.ipc * 1.03 ** (i - (len(lines) - 1) / 2) for row in line]
            style = _style(line[0], colour) | {"ls": ":" if line[0].control else "-"}
            axes.errorbar(places, [100 * row.mean for row in line], _spreads(line), label=name, **style)
        every_ipc = sorted({row.ipc for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(every_ipc, [str(ipc) for ipc in every_ipc])
        axes.minorticks_off()
        axes.set_xlabel("images per class (and epoch, where they are streamed)")
    caption = (
        "Mean and, with more than one seed, standard deviation over the seeds; controls are dotted and hollow. Points "
        "of the same ipc are moved apart. The table has the steps of each ipc."
    )
    return _finish(figure, panels, "Accuracy by images per class", caption)


def accuracy_by_bytes(rows: Sequence[Row]) -> Picture:
    """Accuracy against stored bytes, a panel per classifier."""
    figure, panels = _panels(rows)
    every_ipc = sorted({row.ipc for row in rows})
    for axes, of_classifier in panels:
        for name, colour, line in _lines(rows, of_classifier):
            for row, spread in zip(line, _spreads(line), strict=True):
                # Sources of about as many bytes lie over each other and must be seen through each other.
                face = {"markerfacecolor": "none"} if row.control else {"alpha": 0.6}
                style = _style(row, colour) | {"ms": 4 + 3 * every_ipc.index(row.ipc)} | face
                axes.errorbar(row.bytes / 2**20, 100 * row.mean, spread, label=name, **style, ls="none")
        axes.set_xscale("log")
        # The usual labels are formulas.
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("stored, MiB")
    caption = (
        "Weights with the latents and labels that belong to them, or real images in a container; controls are hollow."
    )
    if len(every_ipc) > 1:
        caption += f" The larger a point, the larger its ipc: {', '.join(map(str, every_ipc))}."
    return _finish(figure, panels, "Accuracy by stored bytes", caption)


def training_curves(records: Sequence[dict[str, Any]]) -> Picture:
    """Validation accuracy and losses of the generator's training against its steps."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith("loss/")))
    for axes, name in [(left, "validation/accuracy"), *((right, name) for name in names)]:
        points = [(record["step"], record[name]) for record in records if name in record]
        factor = 100 if axes is left else 1
        axes.plot(
            [step for step, _ in points],
            [factor * value for _, value in points],
            label=name.removeprefix("loss/"),
            marker="o" if axes is left else None,
            ms=3,
        )
    matching = [record["step"] for record in records if record.get("matching")]
    for axes, label in ((left, "accuracy on the part held out of train, %"), (right, "loss")):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if matching:
            axes.axvline(matching[0], color="grey", ls=":")
    if names:
        right.legend(fontsize=7)
    caption = "The dotted line is the first record of matching." if matching else "Without matching."
    return _svg(figure, "Training", caption)


def confusion_matrix(counts: torch.Tensor, class_names: Sequence[str], row: Row) -> Picture:
    """How many of the images of each class (rows) were taken for which class (columns), in percent of the row."""
    percent = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = 2 + 0.35 * min(len(class_names), CLASSES_NUMBERED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100)
    if len(class_names) <= CLASSES_NUMBERED:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
        for i, line in enumerate(percent.tolist()):
            for j, value in enumerate(line):
                if value >= 0.5:
                    axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="w" if value > 50 else "k")
    axes.set_xlabel("predicted")
    axes.set_ylabel("is")
    about = f"{row.title}, {row.classifier}, ipc {row.ipc}: percent of the images of each class, over all seeds."
    return _svg(figure, "Confusion", about[0].upper() + about[1:])


def neighbours(pipeline: DiffusionPipeline, train: ImageData) -> Picture:
    """Pairs of a generated image and the real one that is nearest to it, a row per class."""
    labels = list(range(min(CLASSES_SHOWN, train.num_classes)))
    rng = torch.Generator().manual_seed(0)
    made = pipeline(class_labels=labels, ipc=SAMPLES_PER_CLASS, generator=rng, output_type="pt").images
    images = (255 * made).round().to(torch.uint8)
    nearest, distances = nearest_real(images, train)
    buffer = io.BytesIO()
    draw_pairs(images, train.batch(nearest.to(train.labels.device))[0].cpu(), SAMPLES_PER_CLASS).save(buffer, "PNG")
    caption = (
        f"Pairs: on the left a generated image, on the right the nearest of {len(train):,} real ones by the distance "
        f"of their pixels, whatever its class. The smallest distance is {distances.min():.1f} grey levels per pixel "
        f"(root mean square), the median {distances.median():.1f}."
    )
    return Picture("Nearest real images", caption, "image/png", base64.b64encode(buffer.getvalue()).decode())


def draw_pairs(left: torch.Tensor, right: torch.Tensor, columns: int) -> Image.Image:
    """
    Draws pairs of images side by side, in rows of `columns` pairs.

    Args:
        left (`torch.Tensor` of shape `(n, channels, size, size)`), right (same): uint8.
    """
    side = left.shape[2] * max(1, round(48 / left.shape[2]))
    rows = math.ceil(len(left) / columns)
    grid = Image.new("RGB", (columns * (2 * side + 4 * GAP), rows * (side + GAP)), "white")
    for i, pair in enumerate(zip(left, right, strict=True)):
        row, column = divmod(i, columns)
        for j, image in enumerate(pair):
            picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
            picture = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            grid.paste(picture, (column * (2 * side + 4 * GAP) + j * (side + GAP), row * (side + GAP)))
    return grid


def nearest_real(images: torch.Tensor, data: ImageData, block_size: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the real image nearest to each of `images`, by the root mean square difference of pixels.

    Args:
        images (`torch.Tensor` of shape `(n, channels, size, size)`): uint8.
        data ([`ImageData`]): The real images.
        block_size (`int`, *optional*, defaults to 4096): Real images that are compared at once.

    Returns:
        Positions in `data`, int64 of shape `(n,)`, and distances, float32 of shape `(n,)` in [0, 255]; on the CPU.
    """
    wanted = images.flatten(1).float().to(data.labels.device)
    nearest = torch.zeros(len(wanted), dtype=torch.int64, device=wanted.device)
    smallest = torch.full((len(wanted),), torch.inf, device=wanted.device)
    for block in torch.arange(len(data), device=wanted.device).split(block_size):
        pixels = data.batch(block)[0].flatten(1).float()
        # The faster way is not exact where two images are equal.
        found = torch.cdist(wanted, pixels, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        nearer = found.values < smallest
        nearest = torch.where(nearer, block[found.indices], nearest)
        smallest = torch.where(nearer, found.values, smallest)
    return nearest.cpu(), smallest.cpu() / wanted.shape[1] ** 0.5


def _panels(rows: Sequence[Row]) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """A figure with a panel for each classifier, two per line, and the rows of each panel."""
    classifiers = list(dict.fromkeys(row.classifier for row in rows))
    columns, lines = min(2, len(classifiers)), -(-len(classifiers) // 2)
    figure = Figure(figsize=(max(7, 5 * columns), 3.6 * lines + 1), layout="constrained")
    all_axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axes in all_axes[len(classifiers) :]:
        axes.set_axis_off()
    panels = []
    for i, (axes, classifier) in enumerate(zip(all_axes, classifiers, strict=False)):
        # A name with options is long.
        axes.set_title(
            "\n".join(textwrap.wrap(classifier, 60)), fontsize="medium" if len(classifier) > 40 else "large"
        )
        axes.set_ylabel("accuracy, %" if i % columns == 0 else "")
        axes.grid(alpha=0.3)
        panels.append((axes, [row for row in rows if row.classifier == classifier]))
    return figure, panels


def _lines(rows: Sequence[Row], of_classifier: Sequence[Row]) -> Iterator[tuple[str, Any, list[Row]]]:
    """Name, colour and rows of each source; the colours are the same in every panel."""
    names = list(dict.fromkeys(_name(row) for row in rows))
    colours = matplotlib.colormaps["tab20"]
    for i, name in enumerate(names):
        if line := [row for row in of_classifier if _name(row) == name]:
            yield name, colours((2 * i + i // 10) % 20), line


def _style(row: Row, colour: Any) -> dict[str, Any]:
    hollow = {"markerfacecolor": "white"} if row.control else {}
    return {"color": colour, "marker": "o", "ms": 4, "capsize": 3} | hollow


def _spreads(line: Sequence[Row]) -> list[float]:
    """The error bars of points; none for a single seed."""
    return [math.nan if row.std is None else 100 * row.std for row in line]


def _name(row: Row) -> str:
    return f"{row.title} ({row.protocol})"


def _finish(figure: Figure, panels: list[tuple[Axes, list[Row]]], title: str, caption: str) -> Picture:
    handles: dict[str, Artist] = {}
    for axes, _ in panels:
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    figure.legend(handles.values(), list(handles), loc="outside lower center", ncols=2, fontsize=8)
    return _svg(figure, title, caption)


def _svg(figure: Figure, title: str, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(title, caption, "image/svg+xml", base64.b64encode(buffer.getvalue()).decode())
