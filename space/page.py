"""The page: pick a pipeline, look at its images, train a classifier on them, and have a drawn digit read."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
import torch
from drawing import SIZE, is_of_digits, read_digit, to_digit
from gradio.components.image_editor import EditorData
from PIL import Image
from torch import nn
from unseen import MAX_SEED, NOT_READ, unseen_images

from dim_hf import DiMPipeline
from dim_hf.data import ImageData
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.evaluation.sample_grid import sample_grid
from dim_hf.messages import one_line
from dim_hf.streams.generated import GeneratedStream
from dim_hf.weights import module_bytes


MAX_IPC = 20
MAX_CLASSES = 20
TRAINING_STEPS = 200
STEPS_PER_POINT = 10
CANVAS = 320
# Whose choice of a pipeline is known, and seconds for which a classifier is kept.
MOST_SESSIONS, KEPT = 1000, 3600
# How often files of visitors and pictures for them are looked through, and the age at which they are deleted; seconds.
KEPT_FILES = (60, 600)
# Side of a drawing that is read, in pixels; a browser may send more than the canvas has.
LARGEST_DRAWING = 4 * CANVAS
# On which the page opens, unless a pipeline is named.
FIRST = "mnist"
NOTHING_TRAINED = "Nothing is trained yet."

CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
.pixels img {image-rendering: pixelated}
footer {display: none !important}
"""


def read_drawing(read: Callable[[EditorData | None], Any], sent: EditorData | None) -> Any:
    """What `read` makes of the content of a canvas, of which only the drawing as a whole is decoded."""
    if sent is None:
        return None
    # Of these a message may hold any number.
    sent.background, sent.layers = None, []
    if sent.composite is not None and sent.composite.path is not None:
        try:
            with Image.open(sent.composite.path, formats=("PNG", "WEBP")) as drawing:
                fits = max(drawing.size) <= LARGEST_DRAWING
        except (OSError, ValueError, Image.DecompressionBombError):
            fits = False
        if not fits:
            raise refusal(f"The drawing is not a PNG or WebP image of at most {LARGEST_DRAWING} pixels a side.")
    return read(sent)


def theme() -> gr.themes.Base:
    """System fonts, so that none are downloaded."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def load_pipelines(shipped: Path, named: str | None) -> dict[str, DiMPipeline]:
    """
    Loads the pipelines that can be picked, the one on which the page opens first.

    Args:
        shipped (`Path`): Every pipeline in it is loaded, by the name of its folder. It need not exist.
        named (`str`, *optional*): Another one, a folder or Hub id, or one of those in `shipped`.

    Raises:
        OSError: If there is none at all, or one cannot be loaded.
        ValueError: If a file describes something else.
    """
    sources = {path.parent.name: str(path.parent) for path in sorted(shipped.glob("*/model_index.json"))}
    first = FIRST
    if named is not None:
        folder = Path(named).expanduser().resolve()
        first = folder.name if folder.parent == shipped.resolve() and folder.name in sources else named
        # A folder of the same name as a shipped one goes by its path.
        if first in sources and folder.is_dir() and folder.parent != shipped.resolve():
            first = str(folder)
        sources.setdefault(first, named)
    if not sources:
        raise FileNotFoundError(f"{shipped} holds no pipeline; name one in DIM_PIPELINE, a folder or Hub id.")
    pipelines = {}
    for name in sorted(sources, key=lambda name: name != first):
        pipelines[name] = DiMPipeline.from_pretrained(sources[name])
        pipelines[name].set_progress_bar_config(disable=True)
        pipelines[name].to("cuda" if torch.cuda.is_available() else "cpu")
    return pipelines


def check_whole(name: str, value: float | None, highest: int, lowest: int = 1) -> int:
    """Checks a number that the user gave, and returns it as an `int`."""
    if not isinstance(value, int | float) or not lowest <= value <= highest or value != int(value):
        raise refusal(
            f"{name} is {'empty' if value is None else one_line(value, 40)}; valid are {lowest} to {highest:,}."
        )
    return int(value)


def refusal(message: str) -> gr.Error:
    """An error that the page shows to the user. It is not an error of the program, so it is not logged."""
    return gr.Error(message, print_exception=False)


def generated_grid(pipeline: DiMPipeline, labels: list[int], ipc: float | None, seed: float | None) -> Image.Image:
    """A grid with a row of `ipc` generated images for each label."""
    if not 1 <= len(labels) <= MAX_CLASSES:
        raise refusal(f"{len(labels)} classes are chosen; valid are 1 to {MAX_CLASSES}.")
    ipc = check_whole("Images per class", ipc, MAX_IPC)
    seed = check_whole("Seed", seed, MAX_SEED, lowest=0)
    return sample_grid(pipeline, sorted(labels), ipc, seed)


def train_and_score(
    pipeline: DiMPipeline, unseen: ImageData, ipc: int, seed: int, is_wanted: Callable[[], bool] = lambda: True
) -> Iterator[tuple[int, float, nn.Module | None]]:
    """
    Trains a ConvNet-3 only on generated images, fresh in every epoch, for about `TRAINING_STEPS` steps. It is given up
    after the epoch in which the iterator is closed or `is_wanted` becomes false.

    Yields:
        During training: the step, the accuracy on `unseen` in [0, 1], and None. Unless it is given up, the last item
        has the classifier instead of None.
    """
    stream = GeneratedStream(pipeline.generator, ipc, seed, DeploymentRecipe.batch_size)
    recipe = DeploymentRecipe(epochs=math.ceil(TRAINING_STEPS / stream.steps_per_epoch))
    epochs_per_point = math.ceil(STEPS_PER_POINT / stream.steps_per_epoch)
    points: SimpleQueue[tuple[int, float] | None] = SimpleQueue()
    given_up = False

    def score(epoch: int, classifier: nn.Module) -> None:
        nonlocal given_up
        given_up = given_up or not is_wanted()
        if given_up:
            raise CancelledError
        if (epoch + 1) % epochs_per_point == 0 and epoch + 1 < recipe.epochs:
            points.put(((epoch + 1) * stream.steps_per_epoch, evaluate_accuracy(classifier, unseen)))

    with ThreadPoolExecutor(max_workers=1) as worker:
        training = worker.submit(
            train_classifier,
            stream,
            "convnet3",
            recipe,
            channels=unseen.channels,
            size=unseen.size,
            seed=seed,
            device=pipeline.device,
            on_epoch=score,
        )
        training.add_done_callback(lambda _: points.put(None))
        try:
            while point := points.get():
                yield *point, None
        except GeneratorExit:
            given_up = True
            raise
    if given_up:
        return
    classifier = training.result()
    yield recipe.epochs * stream.steps_per_epoch, evaluate_accuracy(classifier, unseen), classifier


def as_curve(points: list[tuple[int, float]]) -> pd.DataFrame:
    """The steps and accuracies that are plotted."""
    return pd.DataFrame(points, columns=["step", "accuracy"], dtype=float)


def about(pipeline: DiMPipeline) -> str:
    """What a pipeline is, in a sentence."""
    return (
        f"{pipeline.generator.num_parameters():,} weights, stored in {module_bytes(pipeline.generator) / 1e6:.2f} MB, "
        f"replace the training images of {len(pipeline.class_names)} classes."
    )


def choices(pipeline: DiMPipeline) -> list[tuple[str, int]]:
    return [(name, label) for label, name in enumerate(pipeline.class_names)]


def first_labels(pipeline: DiMPipeline) -> list[int]:
    return list(range(min(len(pipeline.class_names), 10)))


def build_page(pipelines: dict[str, DiMPipeline], unseen: dict[str, ImageData]) -> gr.Blocks:
    """
    Builds the page.

    Args:
        pipelines (`dict[str, DiMPipeline]`): What can be picked, by name; the page opens on the first.
        unseen (`dict[str, ImageData]`): Images to score on, by name of a pipeline. Others are added when needed.
    """
    first, pipeline = next(iter(pipelines.items()))
    # What each browser shows, by its session.
    picked: dict[str | None, str] = {}
    paper = np.full((CANVAS, CANVAS, 4), 255, np.uint8)

    def show_grid(name: str, labels: list[int], ipc: float | None, seed: float | None) -> Image.Image:
        return generated_grid(pipelines[name], labels, ipc, seed)

    def show_pipeline(name: str, request: gr.Request) -> tuple[Any, ...]:
        picked[request.session_hash] = name
        while len(picked) > MOST_SESSIONS:
            del picked[next(iter(picked))]
        shown = pipelines[name]
        labels = first_labels(shown)
        return (
            about(shown),
            gr.CheckboxGroup(choices(shown), value=labels),
            gr.Slider(value=10),
            gr.Number(value=0),
            generated_grid(shown, labels, 10, 0),
            as_curve([]),
            NOTHING_TRAINED,
            None,
            gr.Column(visible=is_of_digits(shown)),
        )

    def show_training(
        name: str, ipc: float | None, seed: float | None, request: gr.Request
    ) -> Iterator[tuple[pd.DataFrame, str, nn.Module | None]]:
        def is_wanted() -> bool:
            return picked.get(request.session_hash, first) == name

        ipc = check_whole("Images per class and epoch", ipc, MAX_IPC)
        seed = check_whole("Seed", seed, MAX_SEED, lowest=0)
        if name not in unseen:
            yield as_curve([]), "Looking for real test images...", None
            images = unseen_images(pipelines[name])
            if NOT_READ not in images.origin:
                unseen[name] = images
        else:
            images = unseen[name]
        points: list[tuple[int, float]] = []
        classifier: nn.Module | None = None
        for step, accuracy, classifier in train_and_score(pipelines[name], images, ipc, seed, is_wanted):
            if not is_wanted():
                classifier = None
                break
            points.append((step, 100 * accuracy))
            state = "Trained" if classifier else "Training"
            text = f"{state}: step {step}, accuracy **{100 * accuracy:.1f} %** on {len(images):,} {images.origin}."
            yield as_curve(points), text, classifier
        # A classifier of one pipeline does not outlive the choice of another. (Gradio's own `cancels` would leave the
        # thread running, and the next training waiting for it.)
        if classifier is None:
            yield as_curve([]), NOTHING_TRAINED, None

    def show_reading(drawn: dict, classifier: nn.Module | None) -> tuple[Image.Image, dict[str, float]]:
        # A canvas that was just cleared has no content.
        digit = None if drawn["composite"] is None else to_digit(drawn["composite"])
        if digit is None:
            raise refusal("The canvas is empty; draw a digit first.")
        if classifier is None:
            raise refusal("No classifier has been trained yet; press Train first.")
        enlarged = Image.fromarray(digit[0, 0].numpy()).resize((8 * SIZE, 8 * SIZE), Image.Resampling.NEAREST)
        return enlarged, read_digit(classifier, digit)

    with gr.Blocks(
        title="dim_hf: a data set in a generator", analytics_enabled=False, delete_cache=KEPT_FILES
    ) as page:
        gr.Markdown("# A data set in a generator")
        with gr.Row():
            choice = gr.Dropdown(list(pipelines), value=first, label="Pipeline", elem_id="pipeline", scale=2)
            with gr.Column(scale=3):
                facts = gr.Markdown(about(pipeline), elem_id="facts")
                gr.Markdown("Look at the images that they generate, and train a classifier that sees no others.")
        trained = gr.State(time_to_live=KEPT)

        gr.Markdown("## 1. Generate")
        with gr.Row():
            with gr.Column(scale=2):
                labels = gr.CheckboxGroup(choices(pipeline), value=first_labels(pipeline), label="Classes")
                ipc = gr.Slider(1, MAX_IPC, value=10, step=1, label="Images per class")
                seed = gr.Number(0, precision=0, label="Seed")
                generate = gr.Button("Generate", variant="primary")
            with gr.Column(scale=3):
                grid = gr.Image(
                    elem_id="grid",
                    format="png",
                    show_label=False,
                    elem_classes="pixels",
                    interactive=False,
                    buttons=[],
                )

        gr.Markdown(
            f"## 2. Train\nA ConvNet-3 learns only from generated images, in about {TRAINING_STEPS} steps. The curve "
            "is its accuracy on images that it does not learn from: real ones where they can be had."
        )
        with gr.Row():
            with gr.Column(scale=2):
                train_ipc = gr.Slider(1, MAX_IPC, value=10, step=1, label="Images per class and epoch")
                train_seed = gr.Number(0, precision=0, label="Seed")
                train = gr.Button("Train", variant="primary")
                progress = gr.Markdown(NOTHING_TRAINED, elem_id="progress")
            with gr.Column(scale=3):
                curve = gr.LinePlot(
                    as_curve([]),
                    x="step",
                    y="accuracy",
                    x_title="training step",
                    y_title="accuracy, %",
                    y_lim=[0, 100],
                    height=300,
                    elem_id="curve",
                    buttons=[],
                )

        with gr.Column(visible=is_of_digits(pipeline)) as draw:
            gr.Markdown("## 3. Draw\nDraw a digit of any size; the classifier that you trained reads it.")
            with gr.Row():
                with gr.Column(scale=2):
                    drawing = gr.Sketchpad(
                        paper,
                        label="Your digit",
                        elem_id="drawing",
                        height=420,
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        # Strokes of a digit that fills most of the canvas become two or three pixels wide.
                        brush=gr.Brush(default_size=CANVAS // 14, colors=["#000000"], color_mode="fixed"),
                        layers=False,
                        transforms=(),
                        buttons=[],
                    )
                    drawing.preprocess = partial(read_drawing, drawing.preprocess)  # type: ignore[method-assign]
                    read = gr.Button("Recognise", variant="primary")
                with gr.Column(scale=3), gr.Row():
                    seen = gr.Image(
                        label=f"What it sees: {SIZE}x{SIZE}",
                        format="png",
                        elem_classes="pixels",
                        interactive=False,
                        buttons=[],
                        height=260,
                    )
                    answer = gr.Label(label="What it reads", num_top_classes=3)

        # Progress is hidden so that the previous result stays if input is refused.
        inputs = [choice, labels, ipc, seed]
        generate.click(show_grid, inputs, grid, show_progress="hidden")
        page.load(show_grid, inputs, grid, show_progress="hidden")
        # One run at a time: a second press of the button does nothing until the first is done.
        train.click(
            show_training,
            [choice, train_ipc, train_seed],
            [curve, progress, trained],
            show_progress="hidden",
            trigger_mode="once",
        )
        choice.change(
            show_pipeline,
            choice,
            [facts, labels, ipc, seed, grid, curve, progress, trained, draw],
            show_progress="hidden",
        )
        # With an image on the canvas the brush is selected.
        drawing.clear(lambda: paper, None, drawing, show_progress="hidden")
        read.click(show_reading, [drawing, trained], [seen, answer], show_progress="hidden")
    return page
