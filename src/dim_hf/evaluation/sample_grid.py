"""Pictures of generated images, a row for each class."""

import os
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from ..files import whole_file


# Pixels between the images of a grid: without them strokes on black run into each other.
GAP = 4


def save_sample_grid(pipeline: DiffusionPipeline, path: str | os.PathLike, columns: int = 10, rows: int = 10) -> None:
    """
    Saves the [`sample_grid`] of the first classes, from fixed noise: pictures of the same generator at different times
    show the same images.

    Args:
        pipeline ([`DiMPipeline`]): Makes the images.
        path: A PNG file; its folder is made.
        columns (`int`, *optional*, defaults to 10): Images per class.
        rows (`int`, *optional*, defaults to 10): The number of classes at most.
    """
    labels = list(range(min(rows, pipeline.generator.config.num_classes)))
    picture = sample_grid(pipeline, labels, columns, seed=0)
    with whole_file(path) as aside:
        picture.save(aside, format="PNG")


def sample_grid(pipeline: DiffusionPipeline, labels: Sequence[int], columns: int, seed: int) -> Image.Image:
    """
    Draws generated images, a row for each class with its name.

    Args:
        pipeline ([`DiMPipeline`]): Makes the images.
        labels (`Sequence[int]`): The classes, from the top.
        columns (`int`): Images per class.
        seed (`int`): Seeds the noise.
    """
    images = pipeline(class_labels=labels, ipc=columns, generator=torch.Generator().manual_seed(seed)).images
    names = [pipeline.config.id2label[label] if pipeline.config.id2label else str(label) for label in labels]
    side = images[0].width * max(1, round(48 / images[0].width))
    cell = side + GAP
    font = ImageFont.load_default(size=14)
    margin = 12 + max(int(font.getlength(name)) for name in names)
    grid = Image.new("RGB", (margin + columns * cell, len(labels) * cell), "white")
    draw = ImageDraw.Draw(grid)
    for row, name in enumerate(names):
        draw.text((6, row * cell + side // 2), name, fill="black", font=font, anchor="lm")
        for column in range(columns):
            image = images[row * columns + column].resize((side, side), Image.Resampling.NEAREST)
            grid.paste(image, (margin + column * cell, row * cell))
    return grid
