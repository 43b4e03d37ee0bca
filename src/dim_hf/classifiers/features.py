"""Intermediate features of any classifier, by the names of its layers."""

from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn


def logits_and_features(classifier: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    One forward pass that also returns what the classifier's `feature_layers` gave.

    Args:
        classifier: As [`build_classifier`] makes it.
        images (`torch.Tensor` of shape `(batch_size, channels, size, size)`): In [-1, 1].

    Returns:
        The logits `(batch_size, num_classes)`, and for each layer, from the first to the last, its output: maps
        `(batch_size, channels, height, width)`, or whatever shape the network has there, `batch_size` first.
    """
    features: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in cast(tuple[str, ...], classifier.feature_layers):

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                features[name] = output

            hooks.callback(classifier.get_submodule(name).register_forward_hook(keep).remove)
        logits = classifier(images)
    return logits, features
