"""The page's functions: drawings, what classifiers are scored on, results and refusals."""

import re
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import app
import drawing
import gradio as gr
import numpy as np
import page
import pytest
import torch
import unseen
from huggingface_hub import SpaceCard
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.evaluation.sample_grid import sample_grid
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.dim_dataset import DiMDataset
from dim_hf.streams.generated import GeneratedStream


ROOT = Path(__file__).parents[2]


def build_pipeline(num_classes=10, names=None, size=8, channels=1):
    torch.manual_seed(0)
    generator = DiMGenerator(num_classes, size, channels, 6, 4, (8,), (0,))
    pipeline = DiMPipeline(generator, names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return build_pipeline(names=[str(label) for label in range(10)])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_image_data("digits", "test", cache_dir=tmp_path_factory.mktemp("cache"))


def canvas(ink, left=0, top=0, size=320, paper=255):
    """A canvas of `size` pixels as the page gives it, with black where `ink` is, on opaque or transparent paper."""
    drawn = np.full((size, size, 4), paper, np.uint8)
    drawn[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = (0, 0, 0, 255)
    return drawn


# Drawings.
@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 20),
    st.booleans(),
    st.integers(1, 10),
    st.integers(0, 100),
    st.integers(0, 100),
    st.sampled_from([0, 255]),
    st.integers(0, 2**32 - 1),
)
def test_a_drawing_of_any_size_fills_the_box_around_its_centre_of_mass(side, wide, scale, left, top, paper, seed):
    rng = np.random.default_rng(seed)
    bitmap = rng.random((20, side)) < rng.random()
    bitmap[[0, -1], [0, -1]] = True
    bitmap = bitmap.T if wide else bitmap
    large = canvas(bitmap.repeat(scale, axis=0).repeat(scale, axis=1), left, top, paper=paper)
    digit = drawing.to_digit(large)[0, 0].numpy()
    rows, columns = np.nonzero(digit)
    assert np.array_equal(
        digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], 255 * bitmap.astype(np.uint8)
    )
    for places, length in ((rows, bitmap.shape[0]), (columns, bitmap.shape[1])):
        # Nothing leaves the image for the sake of the centre.
        at_an_edge = places.min() == 0 or places.max() == 27
        assert abs(places.mean() - 14) <= 0.5 + 1e-9 or (at_an_edge and length > 1)


def test_edges_are_smoothed_by_the_share_of_ink():
    ink = np.ones((40, 40), bool)
    ink[0, 1] = ink[1, :2] = False
    ink[0, 38] = False
    digit = drawing.to_digit(canvas(ink, 7, 90))[0, 0].numpy()
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 4:24] = 255
    # A quarter and three quarters of 255.
    expected[4, 4], expected[4, 23] = 64, 191
    assert np.array_equal(digit, expected)


def test_the_shape_is_kept():
    digit = drawing.to_digit(canvas(np.ones((30, 200), bool), 100, 10))[0, 0].numpy()
    expected = np.zeros((28, 28), np.uint8)
    expected[13:16, 4:24] = 255
    assert np.array_equal(digit, expected)


def test_a_drawing_with_its_weight_at_one_side_stays_whole():
    ink = np.zeros((200, 200), bool)
    ink[:, :10] = ink[:10, :] = True
    digit = drawing.to_digit(canvas(ink))[0, 0].numpy()
    expected = np.zeros((28, 28), np.uint8)
    # Its centre of mass would ask for one pixel more.
    assert round(14 - sum(range(20)) / 39) == 9
    expected[8:, 8] = expected[8, 8:] = 255
    assert np.array_equal(digit, expected)


@pytest.mark.parametrize("width", [1, 3, 22])
def test_a_thin_stroke_is_as_white_as_a_thick_one(width):
    digit = drawing.to_digit(canvas(np.ones((200, width), bool), left=50, top=30))[0, 0].numpy()
    assert digit.max() == 255
    dots = canvas(np.zeros((1, 1), bool))
    # Two dots in corners, which make up little of any of its pixels.
    dots[0, 0] = dots[-1, -1] = (0, 0, 0, 255)
    assert drawing.to_digit(dots)[0, 0].numpy().max() == 255


@pytest.mark.parametrize("paper", [0, 255])
def test_an_empty_canvas_is_no_digit(paper):
    assert drawing.to_digit(np.full((320, 320, 4), paper, np.uint8)) is None


@pytest.mark.parametrize(
    "arguments, drawn",
    [
        ({"names": drawing.DIGITS, "size": 28}, True),
        ({"names": drawing.DIGITS}, False),
        ({"names": drawing.DIGITS, "size": 28, "channels": 3}, False),
        ({"names": drawing.DIGITS[::-1], "size": 28}, False),
        ({"size": 28}, False),
    ],
)
def test_only_digits_like_those_of_mnist_can_be_drawn(arguments, drawn):
    assert drawing.is_of_digits(build_pipeline(**arguments)) is drawn


@pytest.mark.parametrize("size", [8, 28])
def test_the_page_opens_with_a_canvas_for_digits(size):
    shown = build_pipeline(names=drawing.DIGITS, size=size)
    (part,) = (each for each in page.build_page({"own": shown}, {}).blocks.values() if isinstance(each, gr.Sketchpad))
    while part.parent.parent is not None:
        part = part.parent
    assert part.visible is (size == 28)


def test_probabilities_are_the_classifiers():
    logits = torch.arange(10.0) / 3
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        classifier[1].weight.fill_(1 / 784)
        classifier[1].bias.copy_(logits + 1)
    answer = drawing.read_digit(classifier, torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert list(answer) == [str(label) for label in range(10)]
    assert list(answer.values()) == pytest.approx(logits.softmax(dim=0).tolist())


# What classifiers are scored on.
def saved(pipeline, folder, card):
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text(card)
    return DiMPipeline.from_pretrained(folder)


def test_real_images_of_the_cards_data_set(pipeline, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.data.decoding.HF_HOME", tmp_path)
    images = unseen.unseen_images(saved(pipeline, tmp_path / "made", "---\ndatasets:\n- digits\n---\n"))
    assert images.origin == "real test images of digits"
    assert torch.equal(images.images, digits.images) and torch.equal(images.labels, digits.labels)
    monkeypatch.setattr(unseen, "MOST_IMAGES", 20)
    assert unseen.real_images(pipeline, "digits").labels.bincount().tolist() == [2] * 10


@pytest.mark.parametrize(
    "card, reason",
    [
        ("---\ndatasets:\n- none/such\n---\n", "none/such could not be read: "),
        (
            "---\ndatasets:\n- /none/such\n---\n",
            "the card could not be read: it names a data set that is not the id of",
        ),
        ("---\nlicense: mit\n---\n", "the pipeline's card names no data set on the Hub"),
        ("---\na: [\n---\n", "the card could not be read: the card"),
    ],
)
def test_generated_images_where_real_ones_cannot_be_had(pipeline, tmp_path, card, reason):
    images = unseen.unseen_images(saved(pipeline, tmp_path, card))
    assert images.origin.startswith(f"held-out *generated* images (no real ones: {reason}")
    made, labels = DiMDataset(pipeline, 50, unseen.HELD_OUT_SEED).make(0, torch.arange(500))
    assert torch.equal(images.labels, labels)
    assert (images.images - (made + 1) * 127.5).abs().max() < 0.51
    # No seed that the page takes trains on them.
    assert unseen.HELD_OUT_SEED > unseen.MAX_SEED == page.MAX_SEED


def test_a_data_set_of_other_classes_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.data.decoding.HF_HOME", tmp_path)
    with pytest.raises(ValueError, match="split 'test' of digits has 10 classes, and the pipeline 3"):
        unseen.real_images(build_pipeline(3), "digits")
    with pytest.raises(ValueError, match="has the unknown classes 0, 1, 2, 3 and 6 more; valid are a, b, c"):
        unseen.real_images(build_pipeline(3, ["a", "b", "c"]), "digits")


# A network.
class Missing(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(404)

    def log_message(self, *arguments):
        pass


def test_any_answer_of_a_server_is_one():
    with HTTPServer(("127.0.0.1", 0), Missing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert app.answers(f"http://127.0.0.1:{server.server_port}")
        thread.join()


def test_silence_refusal_and_nonsense_are_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not app.answers(f"http://127.0.0.1:{port}", patience=0.1)
    assert not app.answers(f"http://127.0.0.1:{port}")
    assert not app.answers("nowhere")


# What can be picked.
def test_the_page_opens_on_the_pipeline_that_is_named_or_mnist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shipped/clothes", "shipped/mnist", "shipped/toys", "own"):
        build_pipeline(names=list("abcdefghij")).save_pretrained(tmp_path / name)
    (tmp_path / "shipped" / "notes").mkdir()
    shipped = tmp_path / "shipped"
    assert list(page.load_pipelines(shipped, None)) == ["mnist", "clothes", "toys"]
    assert list(page.load_pipelines(shipped, "./shipped/toys")) == ["toys", "clothes", "mnist"]
    pipelines = page.load_pipelines(shipped, "own")
    assert list(pipelines) == ["own", "clothes", "mnist", "toys"]
    assert [Path(each.name_or_path).name for each in pipelines.values()] == list(pipelines)
    assert list(page.load_pipelines(tmp_path / "none", "own")) == ["own"]
    # A folder of the user, and what is shipped under the same name.
    build_pipeline(names=list("klmnopqrst")).save_pretrained(tmp_path / "mnist")
    pipelines = page.load_pipelines(shipped, "mnist")
    assert list(pipelines) == [str(tmp_path / "mnist"), "clothes", "mnist", "toys"]
    assert [each.class_names[0] for each in pipelines.values()] == ["k", "a", "a", "a"]


@pytest.mark.parametrize(
    "settings_, message",
    [
        ({}, "shipped holds no pipeline; name one in DIM_PIPELINE, a folder or Hub id."),
        ({"DIM_PIPELINE": "./none"}, "./none"),
        ({"DIM_PIPELINE": "own", "DIM_DATASET": "./none"}, "`dataset_name` ./none is not a folder or file"),
        ({"DIM_PIPELINE": "own", "DIM_DATASET": "digits"}, "has 10 classes, and the pipeline 3"),
    ],
)
def test_wrong_settings_end_with_a_message(tmp_path, monkeypatch, settings_, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dim_hf.data.decoding.HF_HOME", tmp_path)
    monkeypatch.setattr(app, "SHIPPED", tmp_path / "shipped")
    for name in ("DIM_PIPELINE", "DIM_DATASET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (settings_ | {"HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(name, value)
    build_pipeline(3).save_pretrained(tmp_path / "own")
    with pytest.raises(SystemExit, match=re.escape(message)) as ended:
        app.main()
    assert len(str(ended.value)) < 400


# The grid.
def test_the_grid_is_the_pipelines(pipeline):
    grid = page.generated_grid(pipeline, [7, 2], 3, 5.0)
    assert grid.tobytes() == sample_grid(pipeline, [2, 7], 3, seed=5).tobytes()
    assert grid.tobytes() != page.generated_grid(pipeline, [2, 7], 3, 6).tobytes()


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
        page.generated_grid(build_pipeline(30), labels, ipc, seed)


# Training.
@pytest.mark.parametrize("ipc, steps", [(1, [10, 20, 25]), (10, [10, 20, 26]), (20, [12, 24, 28])])
def test_the_curve_is_that_of_the_classifier_which_training_gives(pipeline, digits, monkeypatch, ipc, steps):
    monkeypatch.setattr(page, "TRAINING_STEPS", 25)
    points = list(page.train_and_score(pipeline, digits, ipc, 3))
    assert [step for step, _, _ in points] == steps
    assert [classifier for _, _, classifier in points[:-1]] == [None] * (len(steps) - 1)
    step, accuracy, classifier = points[-1]
    assert accuracy == evaluate_accuracy(classifier, digits)

    stream = GeneratedStream(pipeline.generator, ipc, 3, 64)
    recipe = DeploymentRecipe(epochs=step // stream.steps_per_epoch)
    expected = train_classifier(stream, "convnet3", recipe, channels=1, size=8, seed=3, device=torch.device("cpu"))
    assert all(map(torch.equal, classifier.state_dict().values(), expected.state_dict().values()))


def test_a_failure_in_training_reaches_the_page():
    test = ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), "small")
    with pytest.raises(ValueError, match="`size` is 4"):
        list(page.train_and_score(build_pipeline(2), test, 1, 0))


def test_training_ends_when_its_page_is_left(pipeline, digits, monkeypatch):
    monkeypatch.setattr(page, "TRAINING_STEPS", 100_000)
    scored = []
    monkeypatch.setattr(page, "evaluate_accuracy", lambda *_: scored.append(0) or 0.5)
    points = page.train_and_score(pipeline, digits, 1, 0)
    next(points)
    points.close()
    assert len(scored) < 1000


@dataclass
class Request:
    """What the page asks of a `gr.Request`."""

    session_hash: str


def handler(name, pipelines, images):
    """The function behind a part of the page."""
    (found,) = (each.fn for each in page.build_page(pipelines, images).fns.values() if each.name == name)
    return found


def test_refusals_of_training(pipeline):
    images = {}
    train = handler("show_training", {"own": pipeline}, images)
    for ipc, seed, message in ((0, 0, "Images per class and epoch is 0"), (1, -1, "Seed is -1")):
        with pytest.raises(gr.Error, match=message):
            next(train("own", ipc, seed, Request("a")))
    assert images == {}, "images were looked for before the numbers were read"


def test_the_page_says_what_is_scored_and_looks_for_it_once(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "TRAINING_STEPS", 10)
    made, images = saved(pipeline, tmp_path, ""), {}
    train = handler("show_training", {"own": made}, images)
    texts = [text for _, text, _ in train("own", 1, 0, Request("a"))]
    assert texts[0] == "Looking for real test images..." and len(texts) == 2
    assert re.fullmatch(
        r"Trained: step 10, accuracy \*\*[\d.]+ %\*\* on 500 held-out \*generated\* images \(no real ones: "
        r"the pipeline's card names no data set on the Hub\)\.",
        texts[1],
    )
    found = images["own"]
    assert [text for _, text, _ in train("own", 1, 0, Request("a"))] == texts[1:] and images["own"] is found


def test_another_pipeline_takes_the_place_of_all_that_belongs_to_the_first(pipeline):
    other = build_pipeline(12, list("abcdefghijkl"))
    pick = handler("show_pipeline", {"a": pipeline, "b": other}, {})
    facts, labels, ipc, seed, grid, curve, progress, trained, draw = pick("b", Request("a"))
    assert "replace the training images of 12 classes" in facts
    assert labels.choices == [(name, label) for label, name in enumerate("abcdefghijkl")]
    assert labels.value == list(range(10))
    # The grid is what the slider and the field say.
    assert (ipc.value, seed.value) == (10, 0)
    assert grid.tobytes() == sample_grid(other, list(range(10)), 10, seed=0).tobytes()
    assert (len(curve), progress, trained, draw.visible) == (0, "Nothing is trained yet.", None, False)


def test_training_is_given_up_for_another_pipeline_in_the_same_browser(pipeline, digits, monkeypatch):
    monkeypatch.setattr(page, "TRAINING_STEPS", 100_000)
    built = page.build_page({"a": pipeline, "b": pipeline}, {"a": digits})
    functions = {each.name: each.fn for each in built.fns.values()}
    training = functions["show_training"]("a", 1, 0, Request("mine"))
    assert "Training: step 10," in next(training)[1]
    functions["show_pipeline"]("b", Request("another"))
    assert "Training: step 20," in next(training)[1]
    functions["show_pipeline"]("b", Request("mine"))
    *_, (curve, text, classifier) = training
    assert (len(curve), text, classifier) == (0, "Nothing is trained yet.", None)


def test_reading_needs_a_drawing_and_a_classifier(pipeline):
    read = handler("show_reading", {"own": pipeline}, {})
    for empty in (None, np.full((320, 320, 4), 255, np.uint8)):
        with pytest.raises(gr.Error, match="The canvas is empty; draw a digit first."):
            read({"composite": empty}, None)
    with pytest.raises(gr.Error, match="No classifier has been trained yet; press Train first."):
        read({"composite": canvas(np.ones((50, 9), bool))}, None)


# The whole.
def test_the_card_and_the_requirements_name_the_tested_gradio():
    card = SpaceCard.load(ROOT / "space" / "README.md").data
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert card.sdk == "gradio" and card.sdk_version == pins["gradio"]
    assert (ROOT / "space" / card.app_file).is_file()
    lines = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    needed = {need.name: need for need in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert set(needed) == {"dim-hf", "gradio"} and pins["gradio"] in needed["gradio"].specifier
