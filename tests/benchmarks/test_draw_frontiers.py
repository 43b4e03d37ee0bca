"""The plots of the documentation: read from its tables, cell by cell."""

from draw_frontiers import DOCS, PICTURES, read_marks
from frontier import CODED, LIMIT, OURS, PNG, Mark


RESULTS = """
## Before

| bytes | generator | generated images | PNG | best codec |
|---|---|---|---|---|
| 1 | not of the section | 1.0 | 2.0 | 3.0 |

## Accuracy against bytes

### MNIST

| bytes | generator | generated images | real images as PNG | real images, best codec |
|---|---|---|---|---|
| 1,320 | `pico` | 98.2 ± 0.0 | 96.7 ± 0.3 | **98.8** (AVIF quality 10) |
| | another | **98.0 ± 0.1** | | |

All real images, streamed: 99.4 %.

### What the tables say

With ResNet-18, generators win. All real images,
streamed: Fashion-MNIST 91.1, MNIST 99.6 and CIFAR-10 77.7 %.

| data set | bytes | generated images | real images as PNG | real images, lossy |
|---|---|---|---|---|
| MNIST | 20 (real images: one classifier) | 98.1 | 95.8 ± 0.5 | 98.5 ± 0.3 |

## After
"""


def test_the_tables_are_read_cell_by_cell():
    assert read_marks(RESULTS)["MNIST"] == [
        Mark(OURS, "convnet3", 1320, 98.2, 0.0),
        Mark(PNG, "convnet3", 1320, 96.7, 0.3),
        Mark(CODED, "convnet3", 1320, 98.8, None),
        Mark(OURS, "convnet3", 1320, 98.0, 0.1),
        Mark(LIMIT, "convnet3", 0, 99.4, None),
        Mark(OURS, "resnet18", 20, 98.1, None),
        Mark(PNG, "resnet18", 20, 95.8, 0.5),
        Mark(CODED, "resnet18", 20, 98.5, 0.3),
        Mark(LIMIT, "resnet18", 0, 99.6, None),
    ]
    assert read_marks(RESULTS)["Fashion-MNIST"] == [Mark(LIMIT, "resnet18", 0, 91.1, None)]


def test_the_page_has_every_curve_of_every_picture():
    for name, marks in read_marks((DOCS / "results.md").read_text()).items():
        assert {(mark.classifier, mark.curve) for mark in marks} == {
            (classifier, curve) for classifier in ("convnet3", "resnet18") for curve in (OURS, PNG, CODED, LIMIT)
        }, name
        assert (DOCS / "images" / f"frontier_{PICTURES[name][0]}.png").is_file()
