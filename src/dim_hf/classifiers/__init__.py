"""
Classifiers by name: the standard ones of data set distillation, and any of timm and transformers.

    convnet3, resnet10, resnet18, resnet10_ap, resnet18_ap
    timm/<model>                            timm/resnet18, timm/resnet18.a1_in1k
    transformers/<config class>             transformers/ResNetConfig
    transformers/<hub id or local folder>   transformers/microsoft/resnet-18

Options of a model follow a colon: `timm/vit_tiny_patch16_224:patch_size=2,drop_path_rate=0.1`,
`transformers/ResNetConfig:depths=[1,1],hidden_sizes=[16,32]`. They are arguments of the timm model or attributes of
the transformers config; a value is JSON or a word. All models take two more: `pretrained=true` starts from published
weights, and `input_size=N` resizes the images to N pixels.
"""

import difflib

from torch import nn

from ..arguments import check_integer, shown
from ..choices import CLASSIFIERS
from .convnet import ConvNet
from .features import logits_and_features
from .names import LIBRARIES, local_fingerprint, public_name, split_name
from .resnet import ResNet


__all__ = [
    "CLASSIFIERS",
    "build_classifier",
    "check_classifier",
    "local_fingerprint",
    "logits_and_features",
    "public_name",
]


def build_classifier(name: str, num_classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """
    A freshly initialised classifier.

    A model of timm or transformers is adapted to images of less than half the size that it was designed for: a model
    with patches gets smaller patches, and any other a stem that keeps the size (no stride in the first convolution,
    no pooling). Where neither works, the images are enlarged inside the module, as little as the model allows. With
    `pretrained=true` the model is not changed; the images are resized and normalised as for its training.

    Args:
        name (`str`): One of `CLASSIFIERS`, or a model of timm or transformers with its options (see this module).
        num_classes (`int`): Number of classes.
        channels (`int`, *optional*, defaults to 3): Channels of the images. Grey images are repeated inside the module
            if the model takes only three channels.
        size (`int`, *optional*, defaults to 32): Height and width of the images; at least 8 for `CLASSIFIERS`.

    Returns:
        A module from images `(batch_size, channels, size, size)` in [-1, 1] to logits `(batch_size, num_classes)`.
        [`logits_and_features`] also gives the outputs of the submodules in its `feature_layers`.

    Raises:
        ValueError: If the name or an option is unknown, listing valid ones, nearest first, or if the model does not
            take images of this size or number of channels, listing those that it takes.
    """
    check_integer("num_classes", num_classes, least=1)
    check_classifier(name, channels, size)
    if split_name(name)[0] in LIBRARIES:
        from .external import build_external

        return build_external(name, num_classes, channels, size)
    if name == "convnet3":
        return ConvNet(num_classes, channels, size)
    blocks = 1 if name.startswith("resnet10") else 2
    return ResNet(num_classes, channels, blocks, average_pool=name.endswith("_ap"))


def check_classifier(
    name: str, channels: int | None = None, size: int | None = None, *, features: bool = False
) -> None:
    """
    Raises the errors of [`build_classifier`] without making weights. Without `channels` and `size` it checks only the
    name, and does not use the network. With `features` it also refuses a model without intermediate features.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"classifier {shown(name)} is not a name; valid are {', '.join(CLASSIFIERS)}, timm/<model> and "
            "transformers/<config class, hub id or folder>."
        )
    for argument, value in (("channels", channels), ("size", size)):
        if value is not None:
            check_integer(argument, value, least=1)
    library, _, options = split_name(name)
    if library in LIBRARIES:
        # timm and transformers take seconds to import.
        from .external import check_external_name, plan

        check_external_name(name)
        if channels is not None and size is not None:
            layers = plan(name, channels, size).feature_layers
            if features and not layers:
                raise ValueError(f"classifier {name!r} has no intermediate features; match only its logits.")
        return
    if name not in CLASSIFIERS:
        nearest = difflib.get_close_matches(name, CLASSIFIERS, n=len(CLASSIFIERS), cutoff=0)
        raise ValueError(
            f"classifier {shown(name)} is unknown; valid are {', '.join(nearest)}"
            f"{' without options' if options else ''}, timm/<model> and transformers/<config class, hub id or folder>."
        )
    if size is not None and size < 8:
        raise ValueError(f"`size` is {size}; {name} takes images of 8 pixels or more.")
