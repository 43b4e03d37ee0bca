"""The page's functions: results, refusals, and the reduction of drawings to digits."""

import re
from pathlib import Path

import app
import gradio as gr
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.evaluation.sample_grid import sample_grid
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream


ROOT = Path(__file__).parents[2]


def build_pipeline(num_classes=10, names=True, size=8):
    torch.manual_seed(0)
    generator = DiMGenerator(num_classes, size, 1, 6, 4, (8,), (0,))
    pipeline = DiMPipeline(generator, {i: f"class {i}" for i in range(num_classes)} if names else None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return build_pipeline()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return tuple(load_image_data("digits", split, cache_dir=cache) for split in ("train", "test"))


def canvas(ink, left=0, top=0, size=320, paper=255):
    """A canvas of `size` pixels as the page gives it, with black where `ink` is, on opaque or transparent paper."""
    drawing = np.full((size, size, 4), paper, np.uint8)
    drawing[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = (0, 0, 0, 255)
    return drawing


# Drawings.
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 60), st.integers(0, 60), st.sampled_from([0, 255]), st.integers(0, 2**32 - 1))
def test_a_bitmap_gives_its_blocks_counted_wherever_and_however_large_it_is_drawn(scale, left, top, paper, seed):
    bitmap = np.random.default_rng(seed).random((32, 24)) < 0.4
    bitmap[0, 0] = bitmap[31, 23] = True
    drawing = canvas(bitmap.repeat(scale, axis=0).repeat(scale, axis=1), left, top, paper=paper)
    counts = np.pad(bitmap, ((0, 0), (4, 4))).reshape(8, 4, 8, 4).sum(axis=(1, 3))
    # The shades of the digits, by the words of `load_image_data`.
    expected = np.round(counts * (255 / 16)).astype(np.uint8)
    assert np.array_equal(app.to_digit(drawing)[0, 0].numpy(), expected)


def test_real_digits_drawn_large_and_aside_are_read_as_the_originals(digits):
    train, test = digits
    reader = KNeighborsClassifier(1).fit(train.images.flatten(1).numpy(), train.labels.numpy())

    def drawn(image):
        large = Image.fromarray(image.numpy()).resize((200, 200), Image.Resampling.BICUBIC)
        return canvas(np.asarray(large) >= 128, left=100, top=30)

    redrawn = torch.cat([app.to_digit(drawn(image[0])) for image in test.images])
    assert reader.score(test.images.flatten(1).numpy(), test.labels.numpy()) > 0.98
    # 0.958 here; 0.15 if the canvas is only made smaller.
    assert reader.score(redrawn.flatten(1).numpy(), test.labels.numpy()) > 0.93
    assert set(redrawn.unique().tolist()) <= set(digits[0].images.unique().tolist())


def test_a_wide_drawing_is_narrowed_and_a_thin_one_stays_thin():
    ring = np.hypot(*(np.mgrid[-80:81, -80:81])) < 80
    columns = app.to_digit(canvas(ring))[0, 0].sum(dim=0)
    assert (columns > 0).tolist() == [False] + [True] * 6 + [False]
    bar = app.to_digit(canvas(np.ones((200, 25), bool), left=200))[0, 0]
    assert (bar.sum(dim=0) > 0).tolist() == [False] * 3 + [True] * 2 + [False] * 3 and bar[:, 3:5].min() > 0


@pytest.mark.parametrize("paper", [0, 255])
def test_an_empty_canvas_is_refused(paper):
    with pytest.raises(gr.Error, match="canvas is empty; draw a digit first"):
        app.to_digit(np.full((320, 320, 4), paper, np.uint8))


# The grid.
def test_the_grid_is_the_pipelines(pipeline):
    grid = app.generated_grid(pipeline, [7, 2], 3, 5.0)
    assert grid.tobytes() == sample_grid(pipeline, [2, 7], 3, seed=5).tobytes()
    assert grid.tobytes() != app.generated_grid(pipeline, [2, 7], 3, 6).tobytes()


@pytest.mark.parametrize(
    "labels, ipc, seed, message",
    [
        ([], 1, 0, "0 classes are chosen; valid are 1 to 20."),
        (list(range(21)), 1, 0, "21 classes are chosen; valid are 1 to 20."),
        ([0], 0, 0, "Images per class is 0; valid are 1 to 20."),
        ([0], 21, 0, "Images per class is 21; valid are 1 to 20."),
        ([0], 2.5, 0, "Images per class is 2.5; valid are 1 to 20."),
        ([0], None, 0, "Images per class is empty; valid are 1 to 20."),
        ([0], 1, -1, "Seed is -1; valid are 0 to 2,147,483,647."),
        ([0], 1, None, "Seed is empty; valid are 0 to 2,147,483,647."),
        ([0], 1, 1e20, "Seed is 1e+20; valid are 0 to 2,147,483,647."),
    ],
)
def test_refusals_of_the_grid(labels, ipc, seed, message):
    with pytest.raises(gr.Error, match=re.escape(message)):
        app.generated_grid(build_pipeline(30), labels, ipc, seed)


# Training.
@pytest.mark.parametrize("ipc, steps", [(1, [10, 20, 30, 35]), (10, [10, 20, 30, 36]), (20, [12, 24, 36])])
def test_the_curve_is_that_of_the_classifier_which_training_gives(pipeline, digits, monkeypatch, ipc, steps):
    monkeypatch.setattr(app, "TRAINING_STEPS", 35)
    points = list(app.train_and_score(pipeline, digits[1], ipc, 3))
    assert [step for step, _, _ in points] == steps
    assert [classifier for _, _, classifier in points[:-1]] == [None] * (len(steps) - 1)
    step, accuracy, classifier = points[-1]
    assert accuracy == evaluate_accuracy(classifier, digits[1])

    stream = GeneratedStream(pipeline.generator, ipc, 3, 64)
    recipe = DeploymentRecipe(epochs=step // stream.steps_per_epoch)
    expected = train_classifier(stream, "convnet3", recipe, channels=1, size=8, seed=3, device=torch.device("cpu"))
    assert all(map(torch.equal, classifier.state_dict().values(), expected.state_dict().values()))


def test_a_failure_in_training_reaches_the_page():
    test = ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), "small")
    with pytest.raises(ValueError, match="`size` is 4"):
        list(app.train_and_score(build_pipeline(2), test, 1, 0))


@pytest.mark.parametrize("ipc, seed, name", [(0, 0, "Images per class and epoch is 0"), (1, -1, "Seed is -1")])
def test_refusals_of_training(pipeline, digits, ipc, seed, name):
    with pytest.raises(gr.Error, match=name):
        next(app.train_and_score(pipeline, digits[1], ipc, seed))


# Reading.
def test_probabilities_are_the_classifiers():
    logits = torch.arange(10.0) / 3
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        classifier[1].weight.fill_(1 / 64)
        classifier[1].bias.copy_(logits)
    answer = app.recognise(classifier, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert list(answer) == [str(label) for label in range(10)]
    assert list(answer.values()) == pytest.approx(logits.softmax(dim=0).tolist())


def test_reading_needs_a_classifier():
    with pytest.raises(gr.Error, match="No classifier has been trained yet; press Train first."):
        app.recognise(None, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


# The whole.
def test_without_a_pipeline_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIM_PIPELINE", raising=False)
    with pytest.raises(SystemExit, match="out/digits is missing: `make space` distils it"):
        app.main()


def test_a_pipeline_without_class_names_uses_numbers(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.data.decoding.HF_HOME", tmp_path)
    pipeline = build_pipeline(names=False)
    assert pipeline.class_names == [str(label) for label in range(10)]
    assert torch.equal(app.load_test_images("digits", pipeline).images, digits[1].images)


def test_only_the_digits_can_be_drawn(pipeline, digits):
    kinds = [
        [type(block) for block in app.build_page(pipeline, digits[1], draw).blocks.values()] for draw in (True, False)
    ]
    assert [gr.Sketchpad in kind for kind in kinds] == [True, False]


def test_the_card_and_the_requirements_name_the_tested_gradio():
    card = SpaceCard.load(ROOT / "space" / "README.md").data
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert card.sdk == "gradio" and card.sdk_version == pins["gradio"]
    assert (ROOT / "space" / card.app_file).is_file()
    lines = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    needed = {need.name: need for need in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert set(needed) == {"dim-hf", "gradio"} and pins["gradio"] in needed["gradio"].specifier
