"""
Draws docs/images/frontier_*.png from the tables in docs/results.md, whose rows were measured on several machines:

    python benchmarks/draw_frontiers.py

`benchmarks/frontier.py` measures such rows, and draws those of one folder.
"""

import argparse
import re
from pathlib import Path

from frontier import CODED, LIMIT, OURS, PNG, Mark, plot


DOCS = Path(__file__).resolve().parents[1] / "docs"
# The ending of each picture's name, and the published fixed sets that are in it.
PICTURES = {"MNIST": ("mnist", None), "Fashion-MNIST": ("fashion", None), "CIFAR-10": ("cifar10", "cifar10")}
FIGURE = re.compile(r"\**(\d+\.\d)(?: ± (\d+\.\d))?")


def read_marks(results: str) -> dict[str, list[Mark]]:
    """
    The rows of the section "Accuracy against bytes" by data set: tables of ConvNet-3 under a heading each, with the
    columns bytes, generator, generated images, PNG and best codec, and one of ResNet-18 with the data set before them
    and without the generator.
    """
    section = re.split(r"^## ", results.partition("\n## Accuracy against bytes\n")[2], flags=re.MULTILINE)[0]
    marks = {}
    for name in PICTURES:
        part = section.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        marks[name] = [
            mark for size, _, *cells in table_rows(part) for mark in row_marks("convnet3", size, cells)
        ] + limit("convnet3", "All real images, streamed: ", part)
    others = section.partition("With ResNet-18, ")[2].partition("\n### ")[0]
    for name, own in marks.items():
        for found, size, *cells in table_rows(others):
            if found == name:
                own += row_marks("resnet18", size, cells)
        own += limit(
            "resnet18", rf"All real images, streamed:(?:[^.]|\.\d)*?\b(?<!-){name} ", " ".join(others.split())
        )
    return marks


def table_rows(text: str) -> list[list[str]]:
    """The cells of the rows below the heads of tables; an empty first cell repeats the one above."""
    rows: list[list[str]] = []
    for line in re.findall(r"^\| (?!bytes|data set).*\|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append([cells[0] or rows[-1][0], *cells[1:]])
    return rows


def row_marks(classifier: str, size: str, cells: list[str]) -> list[Mark]:
    stored = int(re.match(r"[\d,]+", size)[0].replace(",", ""))  # type: ignore[index]
    found = [(curve, FIGURE.match(cell)) for curve, cell in zip((OURS, PNG, CODED), cells, strict=True)]
    return [
        Mark(curve, classifier, stored, float(figure[1]), float(figure[2]) if figure[2] else None)
        for curve, figure in found
        if figure
    ]


def limit(classifier: str, before: str, text: str) -> list[Mark]:
    found = re.search(before + r"(\d+\.\d)", text)
    return [Mark(LIMIT, classifier, 0, float(found[1]), None)] if found else []


def main() -> None:
    argparse.ArgumentParser(description="Draws docs/images/frontier_*.png from docs/results.md.").parse_args()
    for name, marks in read_marks((DOCS / "results.md").read_text()).items():
        ending, published = PICTURES[name]
        plot(DOCS / "images" / f"frontier_{ending}.png", marks, published)


if __name__ == "__main__":
    main()
