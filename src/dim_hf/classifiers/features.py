"""Intermediate features of any classifier, by layer name."""

from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn


def logits_and_features(classifier: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    One forward pass that also returns the outputs of the classifier's `feature_layers`.

    Args:
        classifier: A classifier made by [`build_classifier`].
        images (`torch.Tensor` of shape `(batch_size, channels, size, size)`): In [-1, 1].

    Returns:
        The logits `(batch_size, num_classes)`, and the output of each layer in order: maps
        `(batch_size, channels, height, width)`, or another shape of the network that starts with `batch_size`.
    """
    features: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in cast(tuple[str, ...], classifier.feature_layers):

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                features[name] = output

            hooks.callback(classifier.get_submodule(name).register_forward_hook(keep).remove)
        logits = classifier(images)
    return logits, features
