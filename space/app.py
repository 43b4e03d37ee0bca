"""
A page for a distilled data set: look at images of any class, train a classifier on them while its accuracy on real
images rises, and, for the digits, let it read a digit that you draw.

    make space
    DIM_PIPELINE=out/fashion DIM_DATASET=zalando-datasets/fashion_mnist make space

`DIM_PIPELINE` is the folder or Hub id of a pipeline (default: out/digits), and `DIM_DATASET` the data set of the test
split (default: digits). With a local pipeline and data set the page needs no network. It opens on 127.0.0.1, or on
`GRADIO_SERVER_NAME`.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import gradio as gr
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from dim_hf import DiMPipeline
from dim_hf.data import ImageData, load_image_data, normalise
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.evaluation.sample_grid import sample_grid
from dim_hf.streams.generated import GeneratedStream


MAX_IPC = 20
MAX_CLASSES = 20
MAX_SEED = 2**31 - 1
TRAINING_STEPS = 300
STEPS_PER_POINT = 10
CANVAS = 320

CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
.pixels img {image-rendering: pixelated}
footer {display: none !important}
"""


def main() -> None:
    source = os.path.expanduser(os.environ.get("DIM_PIPELINE", "out/digits"))
    # A missing folder would be looked up on the Hub.
    if "DIM_PIPELINE" not in os.environ and not os.path.isdir(source):
        raise SystemExit(f"{source} is missing: `make space` distils it, or name a pipeline in DIM_PIPELINE.")
    pipeline = DiMPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = os.path.expanduser(os.environ.get("DIM_DATASET", "digits"))
    test = load_test_images(dataset, pipeline)
    page = build_page(pipeline, test, draw=dataset == "digits")
    page.launch(share=False, footer_links=[], theme=theme(), css=CSS)


def theme() -> gr.themes.Base:
    """System fonts, so that none are downloaded."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def load_test_images(dataset: str, pipeline: DiMPipeline) -> ImageData:
    """The test split of a data set, with the size, channels and classes of a pipeline, on its device."""
    config = pipeline.generator.config
    names = tuple(pipeline.class_names) if pipeline.config.id2label else None
    test = load_image_data(
        dataset, "test", class_names=names, resolution=config.sample_size, channels=config.out_channels
    )
    return test.to(pipeline.device)


def check_whole(name: str, value: float | None, highest: int, lowest: int = 1) -> int:
    """Checks a number that the user gave, and returns it as an `int`."""
    if value is None or value != int(value) or not lowest <= value <= highest:
        raise refusal(f"{name} is {'empty' if value is None else value}; valid are {lowest} to {highest:,}.")
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
    pipeline: DiMPipeline, test: ImageData, ipc: float | None, seed: float | None
) -> Iterator[tuple[int, float, nn.Module | None]]:
    """
    Trains a ConvNet-3 only on generated images, fresh in every epoch, for about `TRAINING_STEPS` steps.

    Yields:
        During training: the step, the accuracy on `test` in [0, 1], and None. The last item has the classifier instead
        of None.
    """
    ipc = check_whole("Images per class and epoch", ipc, MAX_IPC)
    seed = check_whole("Seed", seed, MAX_SEED, lowest=0)
    stream = GeneratedStream(pipeline.generator, ipc, seed, DeploymentRecipe.batch_size)
    recipe = DeploymentRecipe(epochs=math.ceil(TRAINING_STEPS / stream.steps_per_epoch))
    epochs_per_point = math.ceil(STEPS_PER_POINT / stream.steps_per_epoch)
    points: SimpleQueue[tuple[int, float] | None] = SimpleQueue()

    def score(epoch: int, classifier: nn.Module) -> None:
        if (epoch + 1) % epochs_per_point == 0 and epoch + 1 < recipe.epochs:
            points.put(((epoch + 1) * stream.steps_per_epoch, evaluate_accuracy(classifier, test)))

    with ThreadPoolExecutor(max_workers=1) as worker:
        training = worker.submit(
            train_classifier,
            stream,
            "convnet3",
            recipe,
            channels=test.channels,
            size=test.size,
            seed=seed,
            device=pipeline.device,
            on_epoch=score,
        )
        training.add_done_callback(lambda _: points.put(None))
        while point := points.get():
            yield *point, None
    classifier = training.result()
    yield recipe.epochs * stream.steps_per_epoch, evaluate_accuracy(classifier, test), classifier


def to_digit(drawing: np.ndarray) -> torch.Tensor:
    """
    Reduces a drawing to 8x8 pixels in the way the digits were made (Alpaydin and Kaynak, 1998): the inked area is cut
    out and scaled to a bitmap of height 32, centred in 32x32, and the pixels in each 4x4 block are counted.

    Args:
        drawing (`np.ndarray` of shape `(height, width, 4)`): RGBA, uint8; dark strokes on transparent or white.

    Returns:
        `torch.Tensor` of shape `(1, 1, 8, 8)`, uint8, white on black, in 17 shades.
    """
    paper = Image.new("RGBA", drawing.shape[1::-1], "white")
    paper.alpha_composite(Image.fromarray(drawing))
    ink = paper.convert("L").point(lambda value: 255 * (value < 128))
    box = ink.getbbox()
    if box is None:
        raise refusal("The canvas is empty; draw a digit first.")
    # Most of the digits are 6 blocks wide, and all are 8 high.
    width = min(24, max(1, round(32 * (box[2] - box[0]) / (box[3] - box[1]))))
    bitmap = Image.new("L", (32, 32))
    bitmap.paste(ink.crop(box).resize((width, 32), Image.Resampling.BOX), ((32 - width) // 2, 0))
    counts = (np.asarray(bitmap) >= 128).reshape(8, 4, 8, 4).sum(axis=(1, 3))
    return torch.from_numpy(np.round(counts * (255 / 16)).astype(np.uint8))[None, None]


@torch.no_grad()
def recognise(classifier: nn.Module | None, digit: torch.Tensor) -> dict[str, float]:
    """The probability that a classifier gives to each digit, by name."""
    if classifier is None:
        raise refusal("No classifier has been trained yet; press Train first.")
    device = next(classifier.parameters()).device
    probabilities = classifier(normalise(digit.to(device))).softmax(dim=1)[0]
    return {str(label): probability for label, probability in enumerate(probabilities.tolist())}


def build_page(pipeline: DiMPipeline, test: ImageData, draw: bool) -> gr.Blocks:
    """Builds the page; `draw` adds the part where the classifier reads a drawn digit."""
    names = pipeline.class_names
    paper = np.full((CANVAS, CANVAS, 4), 255, np.uint8)

    def show_grid(labels: list[int], ipc: float | None, seed: float | None) -> Image.Image:
        return generated_grid(pipeline, labels, ipc, seed)

    def show_training(ipc: float | None, seed: float | None) -> Iterator[tuple[pd.DataFrame, str, nn.Module | None]]:
        curve: list[tuple[int, float]] = []
        for step, accuracy, classifier in train_and_score(pipeline, test, ipc, seed):
            curve.append((step, 100 * accuracy))
            state = "Trained" if classifier else "Training"
            text = f"{state}: step {step}, accuracy **{100 * accuracy:.1f} %** on {len(test):,} real test images."
            yield pd.DataFrame(curve, columns=["step", "accuracy"]), text, classifier

    def show_reading(drawing: dict, classifier: nn.Module | None) -> tuple[Image.Image, dict[str, float]]:
        # A canvas that was just cleared has no content.
        digit = to_digit(paper if drawing["composite"] is None else drawing["composite"])
        seen = Image.fromarray(digit[0, 0].numpy()).resize((160, 160), Image.Resampling.NEAREST)
        return seen, recognise(classifier, digit)

    with gr.Blocks(title="dim_hf: a data set in a generator", analytics_enabled=False) as page:
        gr.Markdown(
            "# A data set in a generator\n"
            f"{pipeline.generator.num_parameters():,} weights replace the training images of {len(names)} classes. "
            "Look at the images that they generate, and train a classifier that never sees a real one."
        )
        trained = gr.State()

        gr.Markdown("## 1. Generate")
        with gr.Row():
            with gr.Column(scale=2):
                labels = gr.CheckboxGroup(
                    [(name, label) for label, name in enumerate(names)],
                    value=list(range(min(len(names), 10))),
                    label="Classes",
                )
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
            "## 2. Train\n"
            f"A ConvNet-3 learns only from generated images, in about {TRAINING_STEPS} steps. The curve is its "
            "accuracy on real test images."
        )
        with gr.Row():
            with gr.Column(scale=2):
                train_ipc = gr.Slider(1, MAX_IPC, value=10, step=1, label="Images per class and epoch")
                train_seed = gr.Number(0, precision=0, label="Seed")
                train = gr.Button("Train", variant="primary")
                progress = gr.Markdown("Nothing is trained yet.", elem_id="progress")
            with gr.Column(scale=3):
                curve = gr.LinePlot(
                    pd.DataFrame({"step": [], "accuracy": []}),
                    x="step",
                    y="accuracy",
                    x_title="training step",
                    y_title="accuracy on real images, %",
                    y_lim=[0, 100],
                    height=300,
                    elem_id="curve",
                    buttons=[],
                )

        # Progress is hidden so that the previous result stays if input is refused.
        generate.click(show_grid, [labels, ipc, seed], grid, show_progress="hidden")
        page.load(show_grid, [labels, ipc, seed], grid, show_progress="hidden")
        # One run at a time: a second press of the button does nothing until the first is done.
        train.click(
            show_training,
            [train_ipc, train_seed],
            [curve, progress, trained],
            show_progress="hidden",
            trigger_mode="once",
        )

        if draw:
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
                        brush=gr.Brush(default_size=CANVAS // 20, colors=["#000000"], color_mode="fixed"),
                        layers=False,
                        transforms=(),
                        buttons=[],
                    )
                    read = gr.Button("Recognise", variant="primary")
                with gr.Column(scale=3), gr.Row():
                    seen = gr.Image(
                        label="What it sees: 8x8",
                        format="png",
                        elem_classes="pixels",
                        interactive=False,
                        buttons=[],
                        height=220,
                    )
                    answer = gr.Label(label="What it reads", num_top_classes=3)
            # With an image on the canvas the brush is selected.
            drawing.clear(lambda: paper, None, drawing, show_progress="hidden")
            read.click(show_reading, [drawing, trained], [seen, answer], show_progress="hidden")
    return page


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"app.py: {error}") from error
