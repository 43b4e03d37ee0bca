"""The HTML report: complete in itself, escaped, and with the figures that it was given."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from matplotlib import rc_context
from PIL import Image

from dim_hf.data import ImageData
from dim_hf.evaluation.html_report import (
    SETTINGS,
    accuracy_by_bytes,
    accuracy_by_ipc,
    confusion_matrix,
    nearest_real,
    neighbours,
    training_curves,
    write_html_report,
)
from dim_hf.evaluation.sample_grid import GAP, save_sample_grid
from dim_hf.evaluation.tables import Row
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline


ROWS = [
    Row("generated <b>", "convnet3", 1, 2000, 100000, 2**20, 10, [0.85, 0.87], 61.4, "B", "hard", True, False),
    Row("generated <b>", "convnet3", 10, 2000, 100000, 2**20, 10, [0.9, 0.9], 61.4, "B", "hard", True, False),
    Row("real & true", "resnet18", 1, 2000, 10, 2**19, 10, [0.5], 60.0, "A, B", "soft", True, True),
]
SCORES = [{"source": "<i>", "labels": "soft", "classifier": "convnet3", "ipc": 1, "lrs": 0.25, "ars": None}]


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    names = {0: "cat $x^", 1: "<script>alert(1)</script>", 2: "é"}
    pipeline = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)).eval(), names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def train():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return ImageData(images, torch.arange(30) % 3, ("a", "b", "c"), "noise")


class Page(HTMLParser):
    """The tags, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def write(folder, pipeline, train, **more):
    save_sample_grid(pipeline, folder / "samples.png")
    write_html_report(folder, ROWS, "Protocol <B>.", pipeline=pipeline, train=train, **more)
    return (folder / "report.html").read_text()


def test_the_page_is_complete_in_itself_and_its_text_is_escaped(pipeline, train, tmp_path):
    records = [{"step": 10, "loss/generator": 1.0, "matching": False}, {"step": 20, "validation/accuracy": 0.5}]
    text = write(tmp_path, pipeline, train, scores=SCORES, confusion=(ROWS[1], torch.eye(3)), training=records)
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "table", "thead", "tbody", "tr", "th", "td",
        "p", "figure", "img", "figcaption", "ul", "li",
    }  # fmt: skip
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "Accuracy by images per class",
        "Accuracy by stored bytes",
        "Training",
        "Samples",
        "Confusion",
        "Nearest real images",
    ]
    for picture in pictures:
        kind, data = re.fullmatch(r"data:(image/\S+);base64,(\S+)", picture["src"]).groups()
        content = base64.b64decode(data)
        if kind == "image/svg+xml":
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert Image.open(io.BytesIO(content)).format == "PNG"
    samples = base64.b64decode(pictures[3]["src"].partition(",")[2])
    assert samples == (tmp_path / "samples.png").read_bytes()
    assert any("Generated <b>, convnet3, ipc 10: percent" in part for part in page.text)
    for shown in ("generated <b>", "86.00 ± 1.41", "real & true, soft labels", "Protocol <B>.", "0.2500"):
        assert any(shown in part for part in page.text), shown
    assert not re.search(r"https?://|src=\"[^d]|url\(", re.sub(r"base64,[^\"]+", "", text))


def test_what_is_not_known_is_left_out_and_a_second_page_is_the_same(pipeline, train, tmp_path):
    first = write(tmp_path, pipeline, train)
    assert "Training" not in first and "Confusion" not in first and "DD-Ranking" not in first
    assert write(tmp_path, pipeline, train) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "samples.png"]


def test_plots_follow_their_figures():
    """Each figure that is drawn changes with what it shows."""
    confusion = torch.tensor([[9, 1], [2, 8]])
    records = [{"step": 1, "loss/generator": 1.0}, {"step": 2, "validation/accuracy": 0.5}]
    other = [replace(ROWS[0], accuracies=[0.85, 0.88]), *ROWS[1:]]
    with rc_context(SETTINGS):
        for one, changed in [
            (accuracy_by_ipc(ROWS), accuracy_by_ipc(other)),
            (accuracy_by_bytes(ROWS), accuracy_by_bytes([replace(ROWS[0], bytes=2**21), *ROWS[1:]])),
            (
                confusion_matrix(confusion, ["a", "b"], ROWS[0]),
                confusion_matrix(confusion.flip(0), ["a", "b"], ROWS[0]),
            ),
            (training_curves(records), training_curves([{**records[0], "loss/generator": 1.5}, records[1]])),
        ]:
            assert one.data != changed.data and one.title == changed.title


def test_a_single_seed_has_no_error_bar():
    alike = replace(ROWS[2], accuracies=[0.5, 0.5])
    with rc_context(SETTINGS):
        for plot in (accuracy_by_ipc, accuracy_by_bytes):
            assert plot([ROWS[2]]).data != plot([alike]).data


def test_a_matrix_of_many_classes_and_of_a_class_without_images():
    with rc_context(SETTINGS):
        assert confusion_matrix(torch.zeros(30, 30, dtype=torch.int64), list(map(str, range(30))), ROWS[0]).data


@pytest.mark.parametrize("block_size", [1, 7, 100])
def test_the_nearest_image_by_hand(train, block_size):
    images = torch.stack([train.images[17], train.images[4]])
    images[1, 0, 0, 0] = (images[1, 0, 0, 0].int() + 16) % 256
    change = abs(int(images[1, 0, 0, 0]) - int(train.images[4, 0, 0, 0]))
    nearest, distances = nearest_real(images, train, block_size)
    assert nearest.tolist() == [17, 4]
    assert distances.tolist() == pytest.approx([0.0, change / 8])


def test_pairs_show_generated_images_and_their_neighbours(pipeline, train):
    picture = neighbours(pipeline, train)
    grid = Image.open(io.BytesIO(base64.b64decode(picture.data))).convert("L")
    made = pipeline(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
    images = (255 * made).round().to(torch.uint8)
    nearest, _ = nearest_real(images, train)
    side = 48
    for i in range(12):
        left, top = (i % 4) * (2 * side + 4 * GAP), (i // 4) * (side + GAP)
        for x, expected in ((left, images[i]), (left + side + GAP, train.images[nearest[i]])):
            shown = grid.crop((x, top, x + side, top + side)).resize((8, 8), Image.Resampling.NEAREST)
            assert shown.tobytes() == expected.numpy().tobytes()
