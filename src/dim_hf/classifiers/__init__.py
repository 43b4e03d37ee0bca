"""
The classifiers of the field, by name. They judge generators in the pool and are trained in deployment.

Names of other libraries (`timm/...`, `transformers/...`) would be told apart in `build_classifier` by their prefix.
"""

import difflib

from torch import nn

from .convnet import ConvNet
from .resnet import ResNet


CLASSIFIERS: tuple[str, ...] = ("convnet3", "resnet10", "resnet18", "resnet10_ap", "resnet18_ap")


def build_classifier(name: str, num_classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """
    A freshly initialised classifier.

    Args:
        name (`str`): One of `CLASSIFIERS`.
        num_classes (`int`): Number of classes.
        channels (`int`, *optional*, defaults to 3): Channels of the images.
        size (`int`, *optional*, defaults to 32): Height and width of the images, 8 or more.

    Returns:
        A module from images `(batch_size, channels, size, size)` in [-1, 1] to logits `(batch_size, num_classes)`.

    Raises:
        ValueError: If the name is unknown, listing the valid ones, nearest first, or if the size is below 8.
    """
    if name not in CLASSIFIERS:
        nearest = difflib.get_close_matches(name, CLASSIFIERS, n=len(CLASSIFIERS), cutoff=0)
        raise ValueError(f"classifier {name!r} is unknown; valid are {', '.join(nearest)}.")
    if size < 8:
        raise ValueError(f"`size` is {size}; {name} takes images of 8 pixels or more.")
    if name == "convnet3":
        return ConvNet(num_classes, channels, size)
    blocks = 1 if name.startswith("resnet10") else 2
    return ResNet(num_classes, channels, blocks, average_pool=name.endswith("_ap"))
