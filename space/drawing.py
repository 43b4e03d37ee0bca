"""Drawings as the digits of MNIST, and what a classifier reads in them."""

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import nn

from dim_hf import DiMPipeline
from dim_hf.data import normalise


SIZE = 28
BOX = 20
DIGITS = [str(digit) for digit in range(10)]


def is_of_digits(pipeline: DiMPipeline) -> bool:
    """Whether a pipeline's images are digits like those of MNIST, which is what a drawing can be turned into."""
    config = pipeline.generator.config
    # Without names every pipeline's classes are numbers.
    named = pipeline.config.id2label is not None and pipeline.class_names == DIGITS
    return named and (config.sample_size, config.out_channels) == (SIZE, 1)


def to_digit(drawing: np.ndarray) -> torch.Tensor | None:
    """
    Reduces a drawing to 28x28 pixels in the way MNIST was made (LeCun et al., 1998): the inked area is cut out and
    scaled, with its shape kept and edges smoothed, to fit a box of 20x20 pixels, whose centre of mass is put on the
    pixel in row and column 14.

    Args:
        drawing (`np.ndarray` of shape `(height, width, 4)`): RGBA, uint8; dark strokes on transparent or white.

    Returns:
        `torch.Tensor` of shape `(1, 1, 28, 28)`, uint8, white on black; `None` if nothing is drawn.
    """
    paper = Image.new("RGBA", drawing.shape[1::-1], "white")
    paper.alpha_composite(Image.fromarray(drawing))
    ink = ImageChops.invert(paper.convert("L"))
    # The faint edge of a stroke does not widen the area.
    area = ink.point(lambda value: 255 * (value >= 128)).getbbox()
    if area is None:
        return None
    width, height = area[2] - area[0], area[3] - area[1]
    scale = BOX / max(width, height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    # Each pixel is the mean of the ink that it covers.
    small = np.asarray(ink.crop(area).convert("F").resize(size, Image.Resampling.BOX))
    # A thin stroke covers only a part of any pixel, and MNIST's are white.
    small = (255 / small.max() * small).round()
    digit = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (_offset(small.sum(axis=axis, dtype=np.float64)) for axis in (1, 0))
    digit[top : top + size[1], left : left + size[0]] = small
    return torch.from_numpy(digit)[None, None]


def _offset(ink: np.ndarray) -> int:
    """Where rows or columns with this much ink begin, so that their centre of mass is as in MNIST."""
    # Measured there: 14.0 on average, counted from 0, and within half a pixel of it.
    centre = ink @ np.arange(len(ink)) / ink.sum()
    return int(np.clip(round(SIZE // 2 - centre), 0, SIZE - len(ink)))


@torch.no_grad()
def read_digit(classifier: nn.Module, digit: torch.Tensor) -> dict[str, float]:
    """The probability that a classifier gives to each digit."""
    device = next(classifier.parameters()).device
    probabilities = classifier(normalise(digit.to(device))).softmax(dim=1)[0]
    return dict(zip(DIGITS, probabilities.tolist(), strict=True))
