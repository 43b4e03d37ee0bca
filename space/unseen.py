"""The images that the page's classifiers are scored on: real ones where they can be had, else generated ones."""

import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import httpx

from dim_hf import DiMDataset, DiMPipeline
from dim_hf.data import ImageData, load_image_data
from dim_hf.hub.merging import existing_card
from dim_hf.messages import markdown, one_line


# What a network that is up again may change.
NOT_READ = "could not be read"
# Enough to see a curve rise, and scored in a second.
MOST_IMAGES = 500
MAX_SEED = 2**31 - 1
# No seed that a user can train with has the same images.
HELD_OUT_SEED = MAX_SEED + 1


def unseen_images(pipeline: DiMPipeline) -> ImageData:
    """
    Real test images of the data set that a pipeline's card names, or generated ones that no training sees if they
    cannot be had. `origin` tells which, and why.
    """
    dataset = None
    try:
        if dataset := dataset_of_card(str(pipeline.name_or_path)):
            return real_images(pipeline, dataset)
        reason = "the pipeline's card names no data set on the Hub"
    # What a network, the Hub, a card or a data set raises; the page goes on.
    except (OSError, httpx.HTTPError, ValueError) as error:
        reason = f"{dataset or 'the card'} {NOT_READ}: {markdown(one_line(error))}"
    return replace(held_out_images(pipeline), origin=f"held-out *generated* images (no real ones: {reason})")


def dataset_of_card(source: str) -> str | None:
    """
    The Hub id of the data set that the card of a pipeline, in a folder or on the Hub, names first.

    Raises:
        ValueError: If it names something else, such as a folder of this machine.
    """
    card = existing_card(ModelCard, Path(source) / "README.md" if os.path.isdir(source) else source)
    named = (card.data.get("datasets") if card else None) or []
    if not named:
        return None
    first = named[0] if isinstance(named, list) else named
    valid = isinstance(first, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", first, re.ASCII)
    if not valid or os.path.exists(first):
        raise ValueError("it names a data set that is not the id of one on the Hub")
    return first


def real_images(pipeline: DiMPipeline, dataset: str) -> ImageData:
    """
    A stratified sample of the test split of a data set, with the size, channels and classes of a pipeline, on its
    device.

    Raises:
        OSError: If there is no such data set.
        ValueError: If it does not fit the pipeline.
    """
    config = pipeline.generator.config
    data = load_image_data(
        dataset,
        "test",
        class_names=tuple(pipeline.class_names) if pipeline.config.id2label else None,
        resolution=config.sample_size,
        channels=config.out_channels,
        max_samples=max(MOST_IMAGES, config.num_classes),
        # So few images do not repay processes.
        num_workers=0,
    )
    if data.num_classes != config.num_classes:
        raise ValueError(f"{data.origin} has {data.num_classes} classes, and the pipeline {config.num_classes}.")
    return replace(data.to(pipeline.device), origin=f"real test images of {dataset}")


def held_out_images(pipeline: DiMPipeline) -> ImageData:
    """Generated images, as many of each class, of a seed that no training can have."""
    stream = DiMDataset(pipeline, max(1, MOST_IMAGES // len(pipeline.class_names)), HELD_OUT_SEED)
    blocks = [stream.make(0, positions) for positions in torch.arange(len(stream)).split(256)]
    images = torch.cat([((block + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for block, _ in blocks])
    labels = torch.cat([labels for _, labels in blocks])
    return ImageData(images, labels, tuple(pipeline.class_names), f"seed {HELD_OUT_SEED}")
